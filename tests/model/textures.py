"Frames with something to see everywhere, for the tests of evidence and of the guided module."

import torch
import torch.nn.functional as F


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def texture(batch=1, size=128, seed=0, channels=3):
    "Smooth random frames in [0,1]: something to see everywhere."
    coarse = torch.rand(batch, channels, size // 6, size // 6, generator=generator(seed))
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def constant(x, y, size=128):
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, size, size)


def inside(field):
    "Away from the border, where motion brings in what no frame shows."
    edge = field.shape[-1] // 6
    return field[..., edge:-edge, edge:-edge]
