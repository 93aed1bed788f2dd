# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Images to integer levels and back: the one quantisation rule, and the image processor built on it."""

from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageColor, ImageOps
from transformers import PreTrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import TensorType

PIL_MODES = {1: "L", 3: "RGB"}
ARRAY_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
# Steps of other processors after which there are no levels, or not those of the whole image.
NO_LEVELS = ("do_rescale", "do_normalize", "do_center_crop", "do_pad")


def levels_from_uint8(array: np.ndarray | torch.Tensor, num_levels: int) -> np.ndarray | torch.Tensor:
    """Level floor(value * num_levels / 256) of every 8-bit value, as uint8 in the container that was given.

    For 16 levels this is exactly `value >> 4`.

    Shape: any; the result has the shape of `array`.
    Raises: ValueError when `array` is not uint8 or `num_levels` is not an integer from 2 to 256.
    """
    check_num_levels(num_levels)
    if array.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"array must hold uint8 values, got {array.dtype}.")
    if isinstance(array, torch.Tensor):
        return (array.to(torch.int32) * num_levels >> 8).to(torch.uint8)
    return (array.astype(np.uint16) * np.uint16(num_levels) >> 8).astype(np.uint8)


def uint8_from_levels(levels: np.ndarray | torch.Tensor, num_levels: int) -> np.ndarray | torch.Tensor:
    """8-bit value round(level * 255 / (num_levels - 1)) of every level, as uint8 in the container that was given.

    Black is level 0 and white the last level; a float level (a mean) lands between its neighbours.

    Shape: any; the result has the shape of `levels`.
    Raises: ValueError when a level is NaN or outside 0 ... num_levels - 1, or `num_levels` is not 2 to 256.
    """
    check_num_levels(num_levels)
    # bool(...) of the negated comparison also catches NaN.
    if not bool(((levels >= 0) & (levels <= num_levels - 1)).all()):
        allowed = f"0 ... {num_levels - 1} (num_levels={num_levels})"
        raise ValueError(f"levels must lie in {allowed}, got {levels.min()} ... {levels.max()}.")
    if isinstance(levels, torch.Tensor):
        return (levels.to(torch.float32) * 255 / (num_levels - 1)).round().to(torch.uint8)
    return np.rint(levels.astype(np.float32) * 255 / (num_levels - 1)).astype(np.uint8)


def check_num_levels(num_levels: int) -> None:
    """Raise `ValueError` unless `num_levels` is an integer from 2 to 256."""
    if isinstance(num_levels, bool) or not isinstance(num_levels, int) or not 2 <= num_levels <= 256:
        raise ValueError(f"num_levels must be an integer from 2 to 256, got {num_levels!r}.")


class LevelsImageProcessorKwargs(ImagesKwargs, total=False):
    """Fields of `LevelsImageProcessor` beyond those every image processor has.

    do_quantize: whether 8-bit values become levels.
    num_levels: number of grey levels per channel, 2 to 256.
    num_channels: 1 for greyscale, 3 for RGB.
    background: the colour behind transparent images, as `PIL.ImageColor` names it: "white", "black", "#8090a0".
    """

    do_quantize: bool
    num_levels: int
    num_channels: int
    background: str


class LevelsImageProcessor(PilBackend):
    """Integer levels [B, C, H, W] from PIL images, arrays and tensors, and PIL images from levels.

    `processor(images, return_tensors="pt")["pixel_values"]` is uint8 with values 0 ... num_levels - 1. Images are
    PIL images with 8 bits per channel, or numpy arrays or torch tensors [H, W], [C, H, W] or [H, W, C] of integers
    0 ... 255 or of floats in [0, 1] (as `torchvision.transforms.ToTensor` gives); alone, in a list, or stacked
    [B, C, H, W] or [B, H, W, C].

    A PIL image is turned upright as its EXIF orientation says. What is transparent, in any mode and in arrays of four
    channels, is laid on `background`.

    size: height and width of the result; other images are resized when `do_resize` is true, refused otherwise.
    do_convert_rgb: whether images change to the mode `num_channels` asks for: grey for 1, RGB for 3. When false,
        an image with another number of channels, or a transparent one, is refused.
    """

    valid_kwargs = LevelsImageProcessorKwargs
    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    size = SizeDict(height=28, width=28)
    resample = PILImageResampling.BILINEAR
    do_resize = True
    do_convert_rgb = True
    do_rescale = False
    do_normalize = False
    do_quantize = True
    num_levels = 16
    num_channels = 1
    background = "white"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        check_num_levels(self.num_levels)
        if self.num_channels not in PIL_MODES:
            raise ValueError(f"num_channels must be 1 (greyscale) or 3 (RGB), got {self.num_channels!r}.")
        if not self.size.height or not self.size.width:
            raise ValueError(f"size must name a positive height and width, got {dict(self.size)}.")
        _check_whole({name: getattr(self, name, None) for name in NO_LEVELS})
        _colour(self.background)

    @classmethod
    def for_config(cls, config: PreTrainedConfig) -> "LevelsImageProcessor":
        """The image processor that gives what a model of this configuration reads: its size, levels and channels."""
        size = {"height": config.image_size, "width": config.image_size}
        return cls(size=size, num_channels=config.num_channels, num_levels=config.num_levels)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> ImageInput:
        """Flat list of single images."""
        if isinstance(images, (list, tuple, np.ndarray, torch.Tensor)) and len(images) == 0:
            raise ValueError("images must hold at least one image, got an empty batch.")
        # transformers asks for three dimensions; a grey image may come without its channel.
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 2:
            images = images[None]
        elif isinstance(images, (list, tuple)):
            images = [image[None] if _is_grey_array(image) else image for image in images]
        return super()._prepare_images_structure(images, expected_ndims=expected_ndims)

    def process_image(
        self,
        image: Image.Image | np.ndarray | torch.Tensor,
        do_convert_rgb: bool | None,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | None,
        num_channels: int,
        background: str,
        input_data_format: str | ChannelDimension | None = None,
        **_: Any,
    ) -> np.ndarray:
        """8-bit values of one image, uint8. [C, H, W].

        An image is resized before the next one is read: many large ones would not fit into memory side by side.
        """
        if not isinstance(image, Image.Image):
            array = _channels_last(_uint8_from_array(image), input_data_format)
            squeezed = array.squeeze(-1) if array.shape[-1] == 1 else array
            image = Image.fromarray(squeezed, ARRAY_MODES[array.shape[-1]])
        image = convert_image(image, num_channels, background, bool(do_convert_rgb))
        if image.size != (size.width, size.height):
            if not do_resize:
                allowed = f"{size.height}x{size.width} (size; do_resize=False)"
                raise ValueError(f"images must be {allowed}, got {image.height}x{image.width}.")
            image = image.resize((cast(int, size.width), cast(int, size.height)), resample)
        values = np.asarray(image)
        return values[None] if num_channels == 1 else np.moveaxis(values, -1, 0)

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_quantize: bool,
        num_levels: int,
        return_tensors: str | TensorType | None,
        **others: Any,
    ) -> BatchFeature:
        """`pixel_values` [B, C, H, W], uint8: levels, or 8-bit values when `do_quantize` is false."""
        _check_whole(others)
        pixel_values = np.stack(images)
        if do_quantize:
            pixel_values = levels_from_uint8(pixel_values, num_levels)
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)

    def post_process_images(self, levels: np.ndarray | torch.Tensor) -> list[Image.Image]:
        """PIL images, mode L or RGB: level k of L is shown as round(k * 255 / (L - 1)); float levels are allowed.

        Shape: `levels` [B, C, H, W], or [C, H, W] for one image.
        Raises: ValueError for another shape, a channel count other than 1 or 3, or levels out of range.
        """
        if levels.ndim not in (3, 4) or levels.shape[-3] not in PIL_MODES:
            raise ValueError(f"levels must have shape [B, C, H, W] with C 1 or 3, got {tuple(levels.shape)}.")
        if isinstance(levels, torch.Tensor):
            levels = levels.detach().cpu()
        values = np.asarray(uint8_from_levels(levels, self.num_levels)).reshape(-1, *levels.shape[-3:])
        return [Image.fromarray(value[0] if len(value) == 1 else np.moveaxis(value, 0, -1)) for value in values]


def _colour(background: str) -> tuple[int, ...]:
    """Red, green and blue, 0 ... 255, of a colour's name. Raises: ValueError naming the field."""
    try:
        return ImageColor.getrgb(background)[:3]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"background must be a colour such as 'white' or '#8090a0', got {background!r}.") from error


def convert_image(image: Image.Image, num_channels: int, background: str, do_convert_rgb: bool = True) -> Image.Image:
    """The image upright, without transparency, and in the mode that the number of channels asks for."""
    if image.mode not in EIGHT_BIT_MODES:
        raise ValueError(
            f"images must have 8 bits per channel, got a PIL image of mode {image.mode!r}; save it with 8 bits per "
            f"channel. Allowed modes: {', '.join(EIGHT_BIT_MODES)}."
        )
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode != PIL_MODES[num_channels] or image.has_transparency_data:
        if not do_convert_rgb:
            transparent = " with transparency" * image.has_transparency_data
            raise ValueError(
                f"images must have mode {PIL_MODES[num_channels]!r} (num_channels={num_channels}, "
                f"do_convert_rgb=False), got {image.mode!r}{transparent}."
            )
        if image.has_transparency_data:
            # Pillow takes premultiplied grey only to LA.
            image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            ground = Image.new("RGBA", image.size, (*_colour(background), 255))
            image = Image.alpha_composite(ground, image).convert("RGB")
        image = image.convert(PIL_MODES[num_channels])
    return image


def _check_whole(fields: dict[str, Any]) -> None:
    for name in NO_LEVELS:
        if fields.get(name):
            raise ValueError(f"{name} must be false: what comes back are levels of whole images, got True.")


def _is_grey_array(image: Any) -> bool:
    return isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 2


def _uint8_from_array(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """8-bit values of an array of integers 0 ... 255 or floats in [0, 1], in its own shape."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if image.dtype == np.uint8:
        return image
    is_float = np.issubdtype(image.dtype, np.floating)
    if not is_float and not np.issubdtype(image.dtype, np.integer):
        raise ValueError(f"images must hold integers 0 ... 255 or floats in [0, 1], got dtype {image.dtype}.")
    highest = 1 if is_float else 255
    if not ((image >= 0) & (image <= highest)).all():
        told = f"images of dtype {image.dtype} must lie in 0 ... {highest} without NaN"
        raise ValueError(f"{told}, got {image.min()} ... {image.max()}.")
    return np.rint(image * 255).astype(np.uint8) if is_float else image.astype(np.uint8)


def _channels_last(image: np.ndarray, input_data_format: str | ChannelDimension | None) -> np.ndarray:
    """The same image as [H, W, C]."""
    if image.ndim == 2:
        return image[..., None]
    if input_data_format is None:
        first, last = image.shape[0], image.shape[-1]
        if first not in ARRAY_MODES and last not in ARRAY_MODES:
            raise ValueError(f"images must have 1, 3 or 4 channels, first or last, got shape {image.shape}.")
        # Four is more often a height than an alpha channel in front.
        is_first = first in PIL_MODES or last not in ARRAY_MODES
        input_data_format = ChannelDimension.FIRST if is_first else ChannelDimension.LAST
    return np.moveaxis(image, 0, -1) if input_data_format == ChannelDimension.FIRST else image
