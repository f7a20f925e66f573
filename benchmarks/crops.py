"""Nine crops of every face: one sampling call, against kornia's `crop_and_resize` and a plain loop over the boxes.

python benchmarks/crops.py [cpu|cuda] [batch]
"""

import sys
import time

import pandas as pd
import torch
import torch.nn.functional as F
from kornia.geometry.transform import crop_and_resize

from frl_dgt_nb.model.regions import crop_boxes


def by_kornia(images, boxes, size=90):
    "kornia takes one box a picture, so every picture is repeated."
    x0, y0, x1, y1 = boxes.flatten(0, 1).unbind(-1)
    corners = torch.stack(
        [torch.stack(corner, -1) for corner in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], 1
    )
    crops = crop_and_resize(images.repeat_interleave(boxes.shape[1], 0), corners, (size, size))
    return crops.view(*boxes.shape[:2], images.shape[1], size, size)


def by_loop(images, boxes, size=90):
    "One box of one face after the other."
    (B, _, H, W), steps, crops = images.shape, torch.linspace(0, 1, size, device=images.device), []
    for image, nine in zip(images, boxes):
        for x0, y0, x1, y1 in nine:
            x, y = (
                ((x0 + steps * (x1 - x0)) * 2 + 1) / W - 1,
                ((y0 + steps * (y1 - y0)) * 2 + 1) / H - 1,
            )
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
            crops.append(
                F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)
            )
    return torch.cat(crops).view(B, boxes.shape[1], -1, size, size)


def seconds(step, device, repeats=7):
    "Median seconds of a call; on a CPU those of the processor, which a busy machine doesn't stretch."
    times, clock = [], time.perf_counter if device == "cuda" else time.process_time
    for _ in range(repeats):
        started = clock()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - started)
    return sorted(times)[repeats // 2]


def main(device="cpu", batch="32"):
    torch.manual_seed(0)
    images = torch.rand(int(batch), 8, 256, 256, device=device)
    low = torch.rand(int(batch), 9, 2, device=device) * 120
    boxes = torch.cat([low, low + 40 + torch.rand_like(low) * 90], -1)
    ours, rows = crop_boxes(images, boxes), []
    for name, function in {
        "one sampling call": crop_boxes,
        "kornia crop_and_resize": by_kornia,
        "loop": by_loop,
    }.items():
        with torch.no_grad():
            difference = (function(images, boxes) - ours).abs().max().item()
            rows.append(
                {
                    "crops": name,
                    "ms": seconds(lambda: function(images, boxes), device) * 1000,
                    "largest difference": difference,
                }
            )
    table = pd.DataFrame(rows).set_index("crops")
    table.insert(1, "times", table.ms / table.ms.iloc[0])
    print(f"{batch} faces of 8x256x256, 9 boxes each, to 90x90, {device}")
    print(
        table.to_string(
            formatters={
                "ms": "{:.1f}".format,
                "times": "{:.2f}".format,
                "largest difference": "{:.1e}".format,
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
