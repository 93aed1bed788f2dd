"""What a picture costs in a file, with each model and with codes that everybody has."""

from importlib.util import find_spec
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_latentgen.app.checkpoints import Checkpoint, Checkpoints
from hf_latentgen.evaluation.baselines import jpeg_xl_bytes, png_bytes, webp

# A bound is noisy: its mean over this many posterior samples.
DRAWS = 32
HEAT_WIDTH = 280
NOTE = """With a model these are the bytes of the picture itself: a file has a header of some 250 bytes, which many
pictures share. PNG, WebP and JPEG XL are whole files of this one picture."""


class Cost(NamedTuple):
    """Bytes that a code needs for a picture, and in words what it is a picture of."""

    code: str
    picture: str
    size: float


def rated(checkpoints: Checkpoints) -> list[Checkpoint]:
    """The models of images that have a likelihood."""
    return [
        found
        for found in checkpoints.values()
        if found.model.likelihood is not None and not found.model.config.reads_text and found.prior is None
    ]


@torch.no_grad()
def costs(checkpoint: Checkpoint, levels: Tensor) -> list[Cost]:
    """What one image costs with the model and with other codes, in bytes. Levels [1, C, H, W]."""
    config = checkpoint.model.config
    draws = DRAWS if checkpoint.model.likelihood == "bound" else 1
    batch = levels.expand(draws, -1, -1, -1).to(checkpoint.model.device)
    bits = float(checkpoint.model.score(batch, torch.Generator().manual_seed(0)).mean()) * levels.numel()
    picture = f"{config.image_size}×{config.image_size}, {config.num_levels} levels"
    array = levels.cpu().numpy()
    found = [
        Cost(checkpoint.name, picture, bits / 8),
        Cost("PNG", picture, png_bytes(array, config.num_levels)),
        Cost("WebP, lossless", picture, len(webp(array[0].transpose(1, 2, 0).astype(np.uint8)))),
    ]
    # A package of the extra "benchmark".
    if find_spec("imagecodecs") is not None:
        found.append(Cost("JPEG XL, effort 9", picture, jpeg_xl_bytes(array, config.num_levels)))
    return found


def heat_map(checkpoint: Checkpoint, levels: Tensor) -> Image.Image | None:
    """Where the bits of an image [1, C, H, W] go: dark pixels cost nothing. None for a model that cannot say."""
    if checkpoint.model.likelihood != "exact" or checkpoint.num_classes:
        return None
    bits = checkpoint.model.code_lengths(levels.to(checkpoint.model.device))[0].sum(0).cpu().numpy()
    colours = mpl.colormaps["inferno"](bits / max(float(bits.max()), 1e-9))
    scale = max(1, HEAT_WIDTH // bits.shape[1])
    picture = Image.fromarray((255 * colours[..., :3]).astype(np.uint8))
    return picture.resize((scale * bits.shape[1], scale * bits.shape[0]), Image.Resampling.NEAREST)


def table(found: list[Cost]) -> str:
    """Costs as a Markdown table, those of one kind of picture together, the least first; each code once."""
    once = {(cost.picture, cost.code): cost for cost in found}
    rows = sorted(once.values(), key=lambda cost: (cost.picture, cost.size))
    lines = [f"| {cost.picture} | {cost.code} | {cost.size:,.0f} |" for cost in rows]
    return "\n".join(["| Picture | Code | Bytes |", "|---|---|--:|", *lines, "", NOTE])
