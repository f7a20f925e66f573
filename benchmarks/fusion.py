"""What the fusion layers cost: Eq. 5-7 as written, absorbed, and fusion after attention; then nine regions in a
loop or through vmap.

python benchmarks/fusion.py [cpu|cuda]
"""

import sys
import time

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from frl_dgt_nb.model.attention import FusionAfter, FusionBefore
from frl_dgt_nb.model.fusion import LocalFusion

DIM, HEADS, BATCH = 256, 8, 32


class FusionPlain(FusionBefore):
    "Eq. 5-7 to the letter, with the parameters of the absorbed form."

    def forward(self, tokens):
        q, k, v = (
            torch.einsum("hcd,bnd->bhnc", w, tokens) for w in (self.query, self.key, self.value)
        )
        logits = torch.einsum("bhc,bhnc->bhn", torch.einsum("hm,bhmc->bhc", self.mix, q), k)
        weights = self.norm(logits).softmax(-1)
        return torch.einsum("bhn,bhnc->bhc", weights, v).flatten(1), weights


def seconds(step, device, repeats=15):
    "Median seconds of a call; on a CPU those of the processor, which a busy machine doesn't stretch."
    times, clock = [], time.perf_counter if device.startswith("cuda") else time.process_time
    for repeat in range(repeats + 2):
        start = clock()
        step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        if repeat > 1:
            times.append(clock() - start)
    return sorted(times)[len(times) // 2]


def fusion_row(name, form, tokens, device):
    "Arithmetic, parameters and times of one fusion layer."
    layer, x = (
        form(DIM, HEADS, tokens).to(device),
        torch.randn(BATCH, tokens, DIM, device=device, requires_grad=True),
    )
    with FlopCounterMode(display=False) as counter:
        layer(x)
    with torch.no_grad():
        forward = seconds(lambda: layer(x), device)
    step = seconds(lambda: layer(x)[0].square().mean().backward(), device)
    return {
        "tokens": tokens,
        "fusion": name,
        "parameters": sum(p.numel() for p in layer.parameters()),
        "multiply-adds a sample": counter.get_total_flops() // 2 // BATCH,
        "forward ms": 1e3 * forward,
        "forward and backward ms": 1e3 * step,
    }


def vmapped(local, crops):
    "The nine modules as one call over stacked weights."
    parameters, buffers = torch.func.stack_module_state(list(local.regions))

    def one(p, b, crop):
        return torch.func.functional_call(local.regions[0], (p, b), (crop,))

    return torch.func.vmap(one, in_dims=(0, 0, 1), out_dims=1, randomness="different")(
        parameters, buffers, crops
    )


def regions_row(name, device, **sizes):
    "Milliseconds of a training step through the nine local modules."
    local = LocalFusion(**sizes).to(device)
    crops = torch.randn(BATCH, 9, 8, sizes["size"], sizes["size"], device=device)
    with torch.no_grad():
        forward = [
            1e3 * seconds(lambda: f(crops), device, 5) for f in (local, lambda x: vmapped(local, x))
        ]
    step = [
        1e3 * seconds(lambda: f(crops)[0].square().mean().backward(), device, 5)
        for f in (local, lambda x: vmapped(local, x))
    ]
    return {
        "sizes": name,
        "loop forward ms": forward[0],
        "vmap forward ms": forward[1],
        "loop step ms": step[0],
        "vmap step ms": step[1],
    }


if __name__ == "__main__":
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, "
        f"{torch.cuda.get_device_name() if device.startswith('cuda') else 'one CPU thread'}, "
        f"C={DIM}, h={HEADS}, batch {BATCH}\n"
    )
    forms = {"before, plain": FusionPlain, "before, absorbed": FusionBefore, "after": FusionAfter}
    rows = [
        fusion_row(name, form, tokens, device)
        for tokens in (25, 64)
        for name, form in forms.items()
    ]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format), "\n")
    rows = [
        regions_row("tiny", device, size=45, patch=9, dim=64, heads=4, depth=1),
        regions_row("paper", device, size=90, patch=18, dim=256, heads=8, depth=2),
    ]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.0f}".format))
