"""What the demo does with a checkpoint: pictures and texts from plain arguments, each request with its own generator.

Every function raises `ValueError` with a sentence for the person at the page when it cannot do what is asked.
"""

from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers.cache_utils import DynamicCache

from hf_latentgen.app.checkpoints import Checkpoint
from hf_latentgen.app.figures import map_figure, mark_point, point_at, score_figure
from hf_latentgen.data.descriptions import describe_data
from hf_latentgen.evaluation.anomaly import Calibration, anomaly_scores
from hf_latentgen.evaluation.pictures import image_grid
from hf_latentgen.hub.files import CALIBRATION
from hf_latentgen.models.image_processing_levels import EIGHT_BIT_MODES, convert_image
from hf_latentgen.models.tokenization_bytes import EOS_TOKEN_ID, ByteTokenizer

ANY_CLASS = -1
MAX_IMAGES = 64
MAX_SIDE = 4096
MAX_PROMPT = 2000
MAX_LENGTH = 1000
# Bytes of text between two updates of the page.
TEXT_STEP = 8
# A lone bound is noisy: the score of one picture is a mean over this many posterior samples.
SCORE_DRAWS = 32
# Widths on the page of one image, of a grid, and of a row from side to side, in pixels.
SINGLE_WIDTH, GRID_WIDTH, STRIP_WIDTH = 224, 560, 1100
PADDING = 2
SHEET_COLUMNS = 10
MAP_CELLS = 20
# Of a latent number, between two places of a slider.
MAP_STEP = 0.05
# Share of the image that the ink of a digit fills: MNIST leaves a border of four pixels, the 8x8 digits leave none.
INK_SHARE = {28: 20 / 28}
# Ink fainter than this does not count as drawn.
LEAST_INK = 40


def make_generator(seed: float | None) -> torch.Generator:
    """A generator of the request's own."""
    if seed is None:
        raise ValueError("Seed must be a whole number of at least 0, got nothing.")
    return torch.Generator().manual_seed(int(seed))


def grid(checkpoint: Checkpoint, levels: Tensor, columns: int, width: int) -> Image.Image:
    """A picture of images of levels [N, C, H, W] side by side, their pixels enlarged until it is about `width` wide."""
    config = checkpoint.model.config
    scale = max(1, width // (columns * config.image_size))
    # A mean can leave the range by a rounding error.
    bounded = levels.float().clamp(0, config.num_levels - 1)
    return image_grid(bounded, config.num_levels, columns, PADDING, scale)


def sample(
    checkpoint: Checkpoint, number: float, temperature: float, label: int, output: str, seed: float | None
) -> Iterator[Image.Image]:
    """A grid of images drawn from the prior, after each row where a transformer draws them pixel by pixel.

    `label` is a class, or `ANY_CLASS`.
    """
    number, generator = int(number), make_generator(seed)
    labels = None
    if str(label) != str(ANY_CLASS):
        label = int(label) if str(label).isdecimal() else label
        if label not in range(checkpoint.num_classes):
            known = f"0 to {checkpoint.num_classes - 1}" if checkpoint.num_classes else "none, as it knows no classes"
            raise ValueError(f"Class must be one that {checkpoint.name} knows ({known}) or any, got {label}.")
        labels = torch.full((number,), int(label), device=checkpoint.model.device)
    model = checkpoint.model
    if temperature != 1 and not checkpoint.has_temperature:
        article = "an" if checkpoint.family[0] in "aeiou" else "a"
        raise ValueError(f"Temperature must be 1 for {article} {checkpoint.family}, got {temperature:g}.")
    if checkpoint.prior is not None:
        drawn = checkpoint.prior(number, generator, output=output, output_type="pt", return_dict=False)
        steps = [cast(tuple, drawn)[0]]
    else:
        options: dict = {"temperature": temperature} if model.has_temperature else {}
        options |= {"labels": labels} if checkpoint.num_classes else {}
        if model.can_complete:
            steps = model.complete_by_row(model.blank(number), 0, generator, output, **options)
        else:
            steps = [model.sample(number, generator, output, **options)]
    for levels in steps:
        yield grid(checkpoint, levels, int(np.ceil(np.sqrt(number))), GRID_WIDTH)


def map_limit(checkpoint: Checkpoint) -> float:
    """The latent number at the edge of the map: nearly all test images lie inside."""
    farthest = float(np.quantile(np.abs(checkpoint.codes), 0.99))
    return float(np.clip(np.ceil(2 * farthest) / 2, 2, 4))


@cache
@torch.no_grad()
def latent_map(checkpoint: Checkpoint) -> Image.Image:
    """The latent plane: decoded at evenly spaced points, with the codes of the test images, coloured by class."""
    model, limit = checkpoint.model, map_limit(checkpoint)
    axis = (torch.arange(MAP_CELLS) + 0.5) * (2 * limit / MAP_CELLS) - limit
    second, first = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    decoded = model.decode(torch.stack([first, second], -1).flatten(0, 1).to(model.device))
    levels = decoded.draw("mean", make_generator(0)).mean(1)
    size = model.config.image_size
    plane = levels.cpu().unflatten(0, (MAP_CELLS, MAP_CELLS)).transpose(1, 2).reshape(MAP_CELLS * size, -1)
    digits = checkpoint.digits
    return map_figure(plane.numpy() / (model.config.num_levels - 1), checkpoint.codes, digits.labels, limit)


@torch.no_grad()
def decode_point(checkpoint: Checkpoint, first: float, second: float) -> Image.Image:
    """The image that the two latent numbers stand for."""
    model = checkpoint.model
    decoded = model.decode(torch.tensor([[first, second]], dtype=torch.float32, device=model.device))
    return grid(checkpoint, decoded.draw("mean", make_generator(0)), 1, SINGLE_WIDTH)


def marked_map(checkpoint: Checkpoint, first: float, second: float) -> Image.Image:
    """The map of `latent_map` with a ring around a point."""
    return mark_point(latent_map(checkpoint), first, second, map_limit(checkpoint))


def clicked_point(checkpoint: Checkpoint, x: float, y: float) -> tuple[float, float]:
    """The two latent numbers at a pixel of the map, as steps of the sliders can say them."""
    first, second = (round(round(number / MAP_STEP) * MAP_STEP, 2) for number in point_at(x, y, map_limit(checkpoint)))
    return first, second


def open_picture(path: str | bytes | None) -> Image.Image:
    """The picture in a file, or in its content.

    Raises: ValueError when there is no file, it is no picture, or one with a side above 4,096 pixels.
    """
    if not path:
        raise ValueError("No file was given: choose a picture first.")
    try:
        with Image.open(BytesIO(path) if isinstance(path, bytes) else path) as picture:
            # The size stands in the header: nothing enormous is decoded.
            if max(picture.size) <= MAX_SIDE:
                return ImageOps.exif_transpose(picture)
            size = f"{picture.width}×{picture.height} pixels"
    except Image.DecompressionBombError:
        size = "too large"
    except (OSError, SyntaxError, ValueError) as error:
        name = repr(Path(path).name) if isinstance(path, str) else "The drawing"
        raise ValueError(f"{name} is not a picture that can be read, such as PNG or JPEG.") from error
    raise ValueError(f"The picture is {size}; at most {MAX_SIDE} pixels a side.")


def levels_from_drawing(checkpoint: Checkpoint, picture: Image.Image | None) -> Tensor:
    """A drawing in dark ink on white, as the levels of one image. [1, C, H, W].

    The ink is cut out, scaled and centred the way the digits of the data set are.

    Raises: ValueError when nothing is drawn.
    """
    background = checkpoint.images.background
    ink = None if picture is None else np.asarray(ImageOps.invert(convert_image(picture, 1, background)))
    if ink is None or ink.max() < LEAST_INK:
        raise ValueError("The drawing is empty: draw a digit first.")
    return _levels(checkpoint, _centred(ink, checkpoint.model.config.image_size))


def levels_from_picture(checkpoint: Checkpoint, picture: Image.Image) -> Tensor:
    """A picture of any size, as the levels of one image. [1, C, H, W].

    For a grey model, a picture with a light border is taken for ink on paper; any other is only resized.

    Raises: ValueError for an image of more than 8 bits per channel, or an empty sheet.
    """
    if picture.mode not in EIGHT_BIT_MODES:
        raise ValueError(f"The picture must have 8 bits per channel, got one of mode {picture.mode}.")
    picture = convert_image(picture, 3, checkpoint.images.background)
    grey = np.asarray(picture.convert("L")).astype(np.float32)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper = float(np.median(border))
    if checkpoint.model.config.num_channels != 1:
        return _levels(checkpoint, picture)
    if paper < 128:
        if np.abs(grey - paper).max() < LEAST_INK:
            raise ValueError("The picture is empty: it shows nothing on its ground.")
        return _levels(checkpoint, picture)
    # The shade of the paper becomes white, the darkest ink black, and what is too faint for ink stays faint.
    contrast = paper - float(grey.min())
    stretched = np.clip(255 - (paper - grey) * (255 / contrast if contrast >= LEAST_INK else 1), 0, 255)
    return levels_from_drawing(checkpoint, Image.fromarray(stretched.astype(np.uint8)))


def reconstruct(
    checkpoint: Checkpoint, levels: Tensor, seed: float | None
) -> tuple[Image.Image, Image.Image, Image.Image, str]:
    """One image as the model sees it, its reconstruction, its score among those of test images, and that in words.

    Shape: `levels` [1, C, H, W].
    """
    generator = make_generator(seed)
    model = checkpoint.model
    reconstruction = model.reconstruct(levels.to(model.device), generator=make_generator(seed))
    draws = SCORE_DRAWS if model.likelihood == "bound" else 1
    score = float(model.score(levels.expand(draws, -1, -1, -1).to(model.device), generator).mean())
    share = float((checkpoint.scores > score).mean())
    words = (
        f"**{score:.3f} {model.score_name}.** {share:.0%} of the compared images score worse, "
        f"{1 - share:.0%} better. Compared with {checkpoint.digits.source}. {unusual(checkpoint, levels)}"
    )
    figure = score_figure(checkpoint.scores, score, model.score_name)
    return grid(checkpoint, levels, 1, SINGLE_WIDTH), grid(checkpoint, reconstruction, 1, SINGLE_WIDTH), figure, words


def unusual(checkpoint: Checkpoint, levels: Tensor) -> str:
    """How unusual one image is among validation images, by the best method, in a sentence; empty where none are known.

    Shape: `levels` [1, C, H, W].
    """
    folder = checkpoint.folder
    if folder is None or not (folder / CALIBRATION).is_file():
        return ""
    known = Calibration.read(folder)
    method = known.best_method
    (score,) = anomaly_scores(checkpoint.model, levels, method)
    images = f"{known.num_images:,} validation images of {describe_data(known.dataset).title}"
    return (
        f"By its {method.replace('_', ' ')} it is more unusual than {known.share_below(method, score):.1%} of {images}."
    )


def interpolate(checkpoint: Checkpoint, first: float, second: float, steps: float) -> Image.Image:
    """The images on the straight line between the codes of two test images, which stand at the two ends."""
    model = checkpoint.model
    ends = [digit(checkpoint, index).to(model.device) for index in (first, second)]
    levels = model.interpolate(ends[0], ends[1], int(steps), generator=make_generator(0))[0]
    strip = torch.cat([ends[0], levels, ends[1]])
    return grid(checkpoint, strip, len(strip), STRIP_WIDTH)


def digit(checkpoint: Checkpoint, index: float | None) -> Tensor:
    """The levels of one test image. [1, C, H, W]. Raises: ValueError for a number that none has."""
    levels = checkpoint.digits.levels
    if index is None or not 0 <= int(index) < len(levels):
        raise ValueError(f"Image number must be in 0 to {len(levels) - 1}, got {index}.")
    return levels[int(index)][None]


def chosen_digits(checkpoint: Checkpoint, number: int = 20) -> list[int]:
    """Numbers of test images to choose from, the same number of each class where classes are known."""
    labels = checkpoint.digits.labels
    if labels is None:
        return list(range(min(number, len(checkpoint.digits.levels))))
    classes = np.unique(labels)
    each = max(1, number // len(classes))
    return [int(row) for label in classes for row in np.flatnonzero(labels == label)[:each]]


@cache
def digit_sheet(checkpoint: Checkpoint) -> Image.Image:
    """A picture of `chosen_digits`, ten in a row."""
    levels = checkpoint.digits.levels[chosen_digits(checkpoint)]
    return grid(checkpoint, levels, SHEET_COLUMNS, GRID_WIDTH)


def sheet_digit(checkpoint: Checkpoint, x: float, y: float) -> int:
    """The number of the test image at a pixel of `digit_sheet`."""
    chosen = chosen_digits(checkpoint)
    columns = min(SHEET_COLUMNS, len(chosen))
    cell = (digit_sheet(checkpoint).width - PADDING) / columns
    place = int(y / cell) * columns + min(int(x / cell), columns - 1)
    return chosen[min(place, len(chosen) - 1)]


def complete(
    checkpoint: Checkpoint, index: float, given: float, number: float, temperature: float, seed: float | None
) -> Iterator[Image.Image]:
    """The picture after each row: a test image, its given part, and what the model draws below it, several times.

    Args:
        checkpoint: a transformer of pixels.
        index: number of the test image.
        given: percentage of the rows that are given.
        number: how many times it is completed.
        temperature: the logits are divided by it.
        seed: of the drawn pixels.
    """
    model = checkpoint.model
    generator, original = make_generator(seed), digit(checkpoint, index)
    rows = round(given / 100 * model.config.image_size)
    blank = original.long()
    blank[:, :, rows:] = 0
    batch = blank.repeat(int(number), 1, 1, 1).to(model.device)
    for images in model.complete_by_row(batch, rows, generator, temperature=temperature):
        strip = torch.cat([original.long(), blank, images.cpu()])
        yield grid(checkpoint, strip, len(strip), STRIP_WIDTH)


@torch.no_grad()
def continue_text(
    checkpoint: Checkpoint, prompt: str | None, length: float, temperature: float, seed: float | None
) -> Iterator[str]:
    """The prompt and its continuation, longer each time, byte by byte; what is not UTF-8 is shown as U+FFFD."""
    if prompt is None or len(prompt) > MAX_PROMPT:
        raise ValueError(f"Beginning must be a text of at most {MAX_PROMPT} characters, got {prompt and len(prompt)}.")
    if not temperature > 0:
        raise ValueError(f"Temperature must be above 0, got {temperature:g}.")
    model, generator = checkpoint.model, make_generator(seed)
    tokenizer = ByteTokenizer(errors="replace")
    ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
    written = ids[0].tolist()
    cache = DynamicCache(config=model.config)
    for step in range(int(length)):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        # Not `generate`, whose noise comes from the one generator that all requests share.
        drawn = torch.multinomial((logits.float() / temperature).softmax(-1).cpu(), 1, generator=generator)
        if drawn.item() == EOS_TOKEN_ID:
            break
        written.append(drawn.item())
        ids = drawn.view(1, 1).to(model.device)
        if step % TEXT_STEP == 0:
            yield cast(str, tokenizer.decode(written, skip_special_tokens=True))
    yield cast(str, tokenizer.decode(written, skip_special_tokens=True))


def _centred(ink: np.ndarray, size: int) -> Image.Image:
    """White ink on black, its larger side scaled to what a digit of the data set fills. [size, size]."""
    rows, columns = (np.flatnonzero((ink >= LEAST_INK).any(axis)) for axis in (1, 0))
    cut = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = size * INK_SHARE.get(size, 1) / max(cut.size)
    width, height = (max(1, round(side * scale)) for side in cut.size)
    canvas = Image.new("L", (size, size))
    canvas.paste(cut.resize((width, height), Image.Resampling.BOX), ((size - width) // 2, (size - height) // 2))
    return canvas


def _levels(checkpoint: Checkpoint, picture: Image.Image) -> Tensor:
    return checkpoint.images(picture, return_tensors="pt")["pixel_values"]
