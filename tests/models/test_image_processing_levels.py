import json
import sys

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from transformers import AutoImageProcessor, dynamic_module_utils

from hf_latentgen import VAEConfig
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor, levels_from_uint8, uint8_from_levels

ALL_VALUES = np.arange(256, dtype=np.uint8)


@pytest.fixture
def processor():
    return LevelsImageProcessor(size={"height": 4, "width": 5}, num_levels=16)


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(0, 256, (4, 5), dtype=np.uint8)


@pytest.fixture
def colour():
    return np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)


def levels_reference(values: np.ndarray, num_levels: int) -> list[int]:
    return [int(value) * num_levels // 256 for value in values.reshape(-1)]


@pytest.mark.parametrize("num_levels", [2, 3, 16, 100, 255, 256])
def test_quantisation_is_the_floor_rule_in_numpy_and_torch(num_levels):
    levels = levels_from_uint8(ALL_VALUES, num_levels)
    assert levels.dtype == np.uint8
    assert levels.tolist() == levels_reference(ALL_VALUES, num_levels)
    tensor = levels_from_uint8(torch.from_numpy(ALL_VALUES), num_levels)
    assert tensor.dtype == torch.uint8
    assert tensor.tolist() == levels.tolist()


def test_sixteen_levels_are_the_upper_four_bits():
    assert (levels_from_uint8(ALL_VALUES, 16) == ALL_VALUES >> 4).all()


def test_sixteen_levels_equal_the_course_formula():
    unit = torch.from_numpy(ALL_VALUES).float() / 255
    course = (unit * 16).long().clamp_(max=15)
    assert levels_from_uint8(ALL_VALUES, 16).tolist() == course.tolist()


@pytest.mark.parametrize("num_levels", [1, 257, 0, -1, 16.0, True, "16", None])
def test_num_levels_outside_2_to_256_is_refused(num_levels):
    with pytest.raises(ValueError, match="num_levels must be an integer from 2 to 256, got"):
        levels_from_uint8(ALL_VALUES, num_levels)


@pytest.mark.parametrize("array", [ALL_VALUES.astype(np.int64), torch.zeros(3), np.zeros(3, bool)])
def test_only_uint8_is_quantised(array):
    with pytest.raises(ValueError, match="array must hold uint8 values, got"):
        levels_from_uint8(array, 16)


@pytest.mark.parametrize("num_levels", [2, 4, 16, 52, 86, 256])
def test_shown_levels_span_black_to_white_and_come_back(num_levels):
    levels = np.arange(num_levels)
    values = uint8_from_levels(levels, num_levels)
    assert (values[0], values[-1]) == (0, 255)
    assert values.tolist() == [round(level * 255 / (num_levels - 1)) for level in range(num_levels)]
    assert uint8_from_levels(torch.from_numpy(levels), num_levels).tolist() == values.tolist()
    assert levels_from_uint8(values, num_levels).tolist() == levels.tolist()


def test_float_levels_land_between_their_neighbours():
    assert uint8_from_levels(torch.tensor([0.5, 7.25]), 16).tolist() == [8, 123]


@pytest.mark.parametrize("levels", [[-1], [16], [0.0, float("nan")], [15.5], [float("inf")]])
@pytest.mark.parametrize("container", [np.array, torch.tensor])
def test_levels_out_of_range_are_refused(levels, container):
    with pytest.raises(ValueError, match=r"levels must lie in 0 \.\.\. 15"):
        uint8_from_levels(container(levels), 16)


def test_every_container_gives_the_same_levels(processor, grey):
    expected = torch.from_numpy(grey >> 4)[None, None]
    pil, tensor = Image.fromarray(grey), torch.from_numpy(grey)
    inputs = [pil, grey, tensor, grey[None], grey[..., None], tensor[None], grey.astype(np.int32), grey / 255]
    inputs += [tensor.float() / 255, (tensor.double() / 255)[None], [pil], [grey], [tensor], (grey,), grey[None, None]]
    for images in inputs:
        levels = processor(images, return_tensors="pt")["pixel_values"]
        assert levels.dtype == torch.uint8
        assert torch.equal(levels, expected)


def test_batches_keep_their_order(processor):
    images = np.random.default_rng(2).integers(0, 256, (6, 4, 5), dtype=np.uint8)
    expected = (images >> 4)[:, None]
    for batch in (list(images), images[:, None], images[..., None], [Image.fromarray(image) for image in images]):
        levels = processor(batch, return_tensors="np")["pixel_values"]
        assert levels.shape == (6, 1, 4, 5)
        assert (levels == expected).all()


def test_a_list_may_mix_pil_arrays_and_sizes(processor, grey):
    levels = processor([grey, Image.new("RGB", (9, 7), "white")], return_tensors="pt")["pixel_values"]
    assert levels.shape == (2, 1, 4, 5)
    assert levels[1].unique().tolist() == [15]


def test_colour_images_keep_three_channels(colour):
    processor = LevelsImageProcessor(size={"height": 4, "width": 5}, num_channels=3, num_levels=256)
    expected = np.moveaxis(colour, -1, 0)[None]
    for images in (Image.fromarray(colour), colour, np.moveaxis(colour, -1, 0), torch.from_numpy(colour)):
        assert (processor(images, return_tensors="np")["pixel_values"] == expected).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize(("num_channels", "target"), [(1, "L"), (3, "RGB")])
def test_every_8_bit_mode_is_converted(mode, num_channels, target, colour):
    image = Image.fromarray(colour).convert("L" if mode == "LA" else "RGB").convert(mode)
    processor = LevelsImageProcessor(size=(4, 5), num_channels=num_channels, num_levels=256)
    levels = processor(image, return_tensors="np")["pixel_values"][0]
    expected = np.asarray(image.convert(target)).reshape(4, 5, num_channels)
    assert (np.moveaxis(levels, 0, -1) == expected).all()


def test_arrays_change_channels_like_pil_images(processor, colour):
    expected = processor(Image.fromarray(colour), return_tensors="np")["pixel_values"]
    opaque = np.concatenate([colour, np.full((4, 5, 1), 255, np.uint8)], axis=-1)
    assert (processor(colour, return_tensors="np")["pixel_values"] == expected).all()
    assert (processor(opaque, return_tensors="np")["pixel_values"] == expected).all()


def stroke(mode: str) -> Image.Image:
    """A black stroke down the middle of a transparent ground."""
    image = Image.new("RGBA", (5, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (2, 0, 3, 4))
    if mode == "P":
        palette = Image.new("P", (5, 4), 1)
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.paste(0, (2, 0, 3, 4))
        palette.info["transparency"] = 1
        return palette
    if mode == "La":
        return image.convert("LA").convert("La")
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "RGBa", "La"])
@pytest.mark.parametrize(
    ("fields", "ground"), [({}, 255), ({"background": "black"}, 0), ({"background": "#808080"}, 128)]
)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_transparency_is_laid_on_the_background(mode, fields, ground, num_channels):
    processor = LevelsImageProcessor(size=(4, 5), num_levels=256, num_channels=num_channels, **fields)
    expected = np.full((1, num_channels, 4, 5), ground)
    expected[..., 2] = 0
    assert (processor(stroke(mode), return_tensors="np")["pixel_values"] == expected).all()
    if mode == "RGBA":
        assert (processor(np.asarray(stroke(mode)), return_tensors="np")["pixel_values"] == expected).all()


def test_half_transparent_is_mixed_with_the_background():
    processor = LevelsImageProcessor(size=(4, 5), num_levels=256, background="#640000", num_channels=3)
    levels = processor(Image.new("RGBA", (5, 4), (200, 0, 0, 128)), return_tensors="np")["pixel_values"]
    assert levels[0, :, 0, 0].tolist() == [150, 0, 0]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_colour_that_stands_for_transparent_is_laid_on_the_background(mode, tmp_path):
    # PNG files without an alpha channel may name one value that is transparent.
    Image.new(mode, (5, 4), 0).save(tmp_path / "a.png", transparency=0 if mode == "L" else (0, 0, 0))
    processor = LevelsImageProcessor(size=(4, 5), num_channels=3 if mode == "RGB" else 1)
    with Image.open(tmp_path / "a.png") as image:
        assert (processor(image, return_tensors="np")["pixel_values"] == 15).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_once(orientation, tmp_path, colour):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(colour).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as photo:
        upright = ImageOps.exif_transpose(photo)
        processor = LevelsImageProcessor(size=upright.size[::-1], num_levels=256, num_channels=3)
        for image in (photo, upright):
            levels = processor(image, do_resize=False, return_tensors="np")["pixel_values"][0]
            assert (np.moveaxis(levels, 0, -1) == np.asarray(upright)).all()
        # What the caller holds stays as it is.
        assert photo.size == (5, 4)


def test_images_are_resized_to_size(processor):
    image = Image.fromarray(np.repeat(np.repeat(np.arange(20, dtype=np.uint8).reshape(4, 5) * 12, 2, 0), 2, 1))
    resized = np.asarray(image.resize((5, 4), Image.Resampling.BILINEAR))
    assert (processor(image, return_tensors="np")["pixel_values"][0, 0] == resized >> 4).all()


def test_quantisation_can_be_left_out(processor, grey):
    assert (processor(grey, do_quantize=False, return_tensors="np")["pixel_values"] == grey).all()


def test_num_levels_can_be_given_per_call(processor, grey):
    assert (processor(grey, num_levels=2, return_tensors="np")["pixel_values"] == grey >> 7).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least one image, got an empty batch"),
        (np.zeros((0, 1, 4, 5), np.uint8), "at least one image, got an empty batch"),
        (torch.zeros(0, 4, 5), "at least one image, got an empty batch"),
        (np.full((4, 5), 256), r"dtype int64 must lie in 0 \.\.\. 255 without NaN, got 256 \.\.\. 256"),
        (np.full((4, 5), -1, np.int8), r"dtype int8 must lie in 0 \.\.\. 255"),
        (np.full((4, 5), 65535, np.uint16), r"dtype uint16 must lie in 0 \.\.\. 255"),
        (np.full((4, 5), 1.5), r"dtype float64 must lie in 0 \.\.\. 1 without NaN, got 1.5 \.\.\. 1.5"),
        (torch.full((4, 5), -0.5), r"dtype float32 must lie in 0 \.\.\. 1"),
        (np.full((4, 5), np.nan), "without NaN"),
        (np.full((4, 5), np.inf), r"must lie in 0 \.\.\. 1"),
        (np.zeros((4, 5), bool), r"integers 0 \.\.\. 255 or floats in \[0, 1\], got dtype bool"),
        (np.zeros((4, 5), complex), "got dtype complex128"),
        (np.zeros((2, 4, 5), np.uint8), r"1, 3 or 4 channels, first or last, got shape \(2, 4, 5\)"),
        (Image.new("I;16", (5, 4)), "8 bits per channel, got a PIL image of mode 'I;16'"),
        (Image.new("I", (5, 4)), "8 bits per channel, got a PIL image of mode 'I'"),
        (Image.new("F", (5, 4)), "8 bits per channel, got a PIL image of mode 'F'"),
    ],
)
def test_bad_images_are_refused(processor, images, message):
    with pytest.raises(ValueError, match=message):
        processor(images)


def test_without_conversion_other_channel_counts_are_refused(processor, colour, grey):
    with pytest.raises(ValueError, match=r"mode 'L' \(num_channels=1, do_convert_rgb=False\), got 'RGB'"):
        processor(colour, do_convert_rgb=False)
    rgb = LevelsImageProcessor(size=(4, 5), num_channels=3, do_convert_rgb=False)
    with pytest.raises(ValueError, match=r"mode 'RGB' \(num_channels=3, do_convert_rgb=False\), got 'L'"):
        rgb(grey)
    with pytest.raises(ValueError, match=r"do_convert_rgb=False\), got 'RGBA' with transparency"):
        rgb(stroke("RGBA"))


def test_without_resizing_other_sizes_are_refused(processor):
    with pytest.raises(ValueError, match=r"images must be 4x5 \(size; do_resize=False\), got 5x4"):
        processor(np.zeros((5, 4), np.uint8), do_resize=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_levels": 1}, "num_levels must be an integer from 2 to 256, got 1"),
        ({"num_levels": 16.0}, "num_levels must be an integer from 2 to 256, got 16.0"),
        ({"do_normalize": True}, "do_normalize must be false: .*, got True"),
        ({"do_pad": True}, "do_pad must be false: .*, got True"),
        ({"num_channels": 2}, r"num_channels must be 1 \(greyscale\) or 3 \(RGB\), got 2"),
        ({"size": {"shortest_edge": 4}}, "size must name a positive height and width"),
        ({"size": {"height": 0, "width": 4}}, "size must name a positive height and width"),
        ({"background": "clear"}, "background must be a colour such as 'white' or '#8090a0', got 'clear'"),
        ({"background": 255}, "background must be a colour such as 'white' or '#8090a0', got 255"),
    ],
)
def test_bad_fields_are_refused_when_the_processor_is_made(fields, message):
    with pytest.raises(ValueError, match=message):
        LevelsImageProcessor(**fields)


@pytest.mark.parametrize(
    ("name", "more"), [("do_normalize", {"image_mean": 0.5, "image_std": 0.5}), ("do_center_crop", {"crop_size": 8})]
)
def test_what_gives_no_levels_is_refused_in_a_call_too(name, more):
    processor = LevelsImageProcessor()
    with pytest.raises(ValueError, match=f"{name} must be false: .*, got True"):
        processor(np.zeros((28, 28), np.uint8), **{name: True}, **more)


@pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (3, "RGB")])
def test_post_processing_inverts_processing(num_channels, mode):
    processor = LevelsImageProcessor(size=(4, 5), num_channels=num_channels, num_levels=16)
    levels = torch.randint(16, (3, num_channels, 4, 5))
    images = processor.post_process_images(levels)
    assert [image.mode for image in images] == [mode] * 3
    assert images[0].size == (5, 4)
    assert torch.equal(processor(images, return_tensors="pt")["pixel_values"].long(), levels)
    assert [image.tobytes() for image in processor.post_process_images(levels.numpy())] == [
        image.tobytes() for image in images
    ]


def test_post_processing_takes_one_image_and_float_levels(processor):
    (image,) = processor.post_process_images(torch.full((1, 4, 5), 7.5, requires_grad=True))
    assert set(image.tobytes()) == {128}


@pytest.mark.parametrize("shape", [(4, 5), (2, 2, 4, 5), (1, 1, 1, 4, 5)])
def test_post_processing_refuses_other_shapes(processor, shape):
    with pytest.raises(ValueError, match=r"levels must have shape \[B, C, H, W\] with C 1 or 3, got"):
        processor.post_process_images(torch.zeros(shape))


def test_post_processing_refuses_levels_out_of_range(processor):
    with pytest.raises(ValueError, match=r"levels must lie in 0 \.\.\. 15"):
        processor.post_process_images(torch.full((1, 1, 4, 5), 16))


@pytest.mark.parametrize("loader", [LevelsImageProcessor, AutoImageProcessor])
def test_saved_processor_loads_with_every_field(loader, tmp_path, colour):
    processor = LevelsImageProcessor(size=(6, 7), num_channels=3, num_levels=200, background="#102030")
    processor.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is LevelsImageProcessor
    assert loaded.to_dict() == processor.to_dict()
    assert (dict(loaded.size), loaded.num_channels, loaded.num_levels) == ({"height": 6, "width": 7}, 3, 200)
    assert loaded.background == "#102030"
    expected = processor(colour, return_tensors="np")["pixel_values"]
    assert (loaded(colour, return_tensors="np")["pixel_values"] == expected).all()


def test_auto_class_finds_the_processor_of_a_model_config(tmp_path):
    VAEConfig().save_pretrained(tmp_path)
    LevelsImageProcessor().save_pretrained(tmp_path)
    saved = tmp_path / "preprocessor_config.json"
    fields = json.loads(saved.read_text())
    del fields["image_processor_type"]
    saved.write_text(json.dumps(fields))
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is LevelsImageProcessor


def test_fields_can_be_changed_while_loading(tmp_path):
    LevelsImageProcessor().save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, size=32, num_levels=256)
    assert (dict(loaded.size), loaded.num_levels) == ({"height": 32, "width": 32}, 256)


def test_loads_as_remote_code_without_the_package(tmp_path, monkeypatch):
    class Published(LevelsImageProcessor):
        """A class of its own, so that registering it changes nothing for other tests."""

    Published.__name__ = "LevelsImageProcessor"
    Published.__module__ = LevelsImageProcessor.__module__
    Published.register_for_auto_class()
    Published(size=8, num_levels=4).save_pretrained(tmp_path / "checkpoint")
    reference = json.loads((tmp_path / "checkpoint" / "preprocessor_config.json").read_text())["auto_map"]

    for name in [name for name in sys.modules if name.split(".")[0] == "hf_latentgen"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    remote = dynamic_module_utils.get_class_from_dynamic_module(
        reference["AutoImageProcessor"], str(tmp_path / "checkpoint"), trust_remote_code=True
    )
    assert remote.__module__.startswith("transformers_modules.")
    processor = remote.from_pretrained(tmp_path / "checkpoint")
    assert processor(np.full((8, 8), 255, np.uint8), return_tensors="np")["pixel_values"].max() == 3
