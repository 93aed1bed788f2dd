"""The tab *Bits*: what a drawing costs in a file, with each model and with codes that everybody has."""

from importlib.util import find_spec
from typing import Any, NamedTuple

import gradio as gr  # pyright: ignore[reportMissingImports]
import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_latentgen.app import inference
from hf_latentgen.app.checkpoints import Checkpoint, Checkpoints
from hf_latentgen.app.parts import choose_brush, drawing_pad, own_file, readable_errors, reveal
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


def bits_tab(checkpoints: Checkpoints) -> None:
    """A tab that counts the bytes of a drawing, or of a test image."""
    fitting = rated(checkpoints)

    def counted(levels_of: Any) -> tuple[str, list]:
        with readable_errors():
            if not fitting:
                raise ValueError(
                    "This needs a model of images that has a likelihood: a VAE or a transformer of pixels."
                )
            found, maps = [], []
            for checkpoint in fitting:
                levels = levels_of(checkpoint)
                found += costs(checkpoint, levels)
                if (picture := heat_map(checkpoint, levels)) is not None:
                    maps.append((own_file(picture), checkpoint.name))
            return table(found), maps

    def bits(drawing: Image.Image | None) -> tuple[str, list]:
        return counted(lambda found: inference.levels_from_drawing(found, drawing))

    def bits_of_digit(index: float) -> tuple[str, list]:
        return counted(lambda found: inference.digit(found, index))

    def example(shown: str, index: float) -> tuple:
        """A test image, where nothing is shown yet."""
        return (gr.skip(), gr.skip()) if shown or not fitting else bits_of_digit(index)

    with gr.Tab("Bits") as tab, gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.Markdown(
                "What a model expects, it writes in few bits. Draw something that it expects, and something that it "
                "does not, and see what they cost in a file from which every pixel comes back."
            )
            drawing = drawing_pad("bits_drawing")
            count = gr.Button("Count the bytes of the drawing", variant="primary", interactive=bool(fitting))
            index = gr.Number(0, label="Or of the test image of this number", precision=0, minimum=0)
            count_digit = gr.Button("Count the bytes of the test image", interactive=bool(fitting))
        with gr.Column(scale=3, min_width=320):
            gr.Markdown("**Where the bits go: bright pixels surprise the model**")
            maps = gr.Gallery(
                show_label=False, format="png", columns=3, height="auto", elem_classes="pixels", elem_id="heat_maps"
            )
            costs_shown = gr.Markdown(elem_id="bits")
    event = {"outputs": [costs_shown, maps], "concurrency_id": "quick", "concurrency_limit": 2}
    count.click(bits, drawing, api_name="bits", show_progress_on=costs_shown, **event)
    count_digit.click(bits_of_digit, index, api_name="bits_of_digit", show_progress_on=costs_shown, **event)
    gr.on([count.click, count_digit.click], **reveal("heat_maps"))
    tab.select(None, js=choose_brush("bits_drawing"))
    tab.select(example, [costs_shown, index], api_visibility="private", show_progress_on=costs_shown, **event)
