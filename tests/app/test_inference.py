import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from app_common import last, make_checkpoint
from hf_latentgen import LevelsDataset, VLAEConfig, VLAEModel, anomaly_scores, load, load_images
from hf_latentgen.app import inference
from hf_latentgen.app.checkpoints import load_checkpoints
from hf_latentgen.app.figures import MAP_SIZE, PLANE_LEFT, PLANE_SIZE, PLANE_TOP, point_at
from hf_latentgen.app.inference import ANY_CLASS
from hf_latentgen.evaluation.anomaly import Calibration, calibrate


def pixels(picture):
    return np.asarray(picture)


def seven(ink="black", paper="white", size=(280, 280), offset=(0, 0)):
    picture = Image.new("RGB", size, paper)
    x, y = offset
    points = [(90 + x, 70 + y), (180 + x, 70 + y), (120 + x, 210 + y)]
    ImageDraw.Draw(picture).line(points, fill=ink, width=24)
    return picture


@pytest.mark.parametrize("name", ["vae", "vae_colour", "aae", "aae_flower", "aae_classes", "pixels", "pixels_classes"])
def test_a_sample_depends_on_its_seed_alone(checkpoints, name):
    state = torch.get_rng_state()
    draw = [last(inference.sample(checkpoints[name], 5, 1, ANY_CLASS, "sample", seed)) for seed in (1, 2, 1)]
    assert draw[0] == draw[2]
    assert draw[0] != draw[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_transformer_shows_its_samples_row_by_row(checkpoints):
    checkpoint = checkpoints["pixels"]
    pictures = list(inference.sample(checkpoint, 4, 1, ANY_CLASS, "sample", 0))
    assert len(pictures) == 1 + 8
    levels = checkpoint.model.sample(4, torch.Generator().manual_seed(0))
    assert pictures[-1] == inference.grid(checkpoint, levels, 2, inference.GRID_WIDTH)
    assert len(list(inference.sample(checkpoints["vae"], 4, 1, ANY_CLASS, "sample", 0))) == 1


def test_a_grid_holds_whole_pixels(checkpoints):
    picture = last(inference.sample(checkpoints["vae"], 4, 1, ANY_CLASS, "sample", 0))
    scale = (picture.width - 6) // 16
    cell = pixels(picture)[2 : 2 + 8 * scale, 2 : 2 + 8 * scale]
    blocks = cell.reshape(8, scale, 8, scale)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert 500 < picture.width < 600


@pytest.mark.parametrize("name", ["aae_flower", "aae_classes", "pixels_classes"])
def test_a_class_can_be_asked_for(checkpoints, name):
    threes, fours, any_class = (
        last(inference.sample(checkpoints[name], 4, 1, label, "mean", 0)) for label in (3, 4, ANY_CLASS)
    )
    assert threes != fours
    assert threes != any_class
    with pytest.raises(ValueError, match="0 to 9"):
        last(inference.sample(checkpoints[name], 4, 1, 10, "mean", 0))


def test_arguments_that_a_family_does_not_have_are_refused(checkpoints):
    with pytest.raises(ValueError, match="knows no classes"):
        last(inference.sample(checkpoints["vae"], 4, 1, 3, "mean", 0))
    with pytest.raises(ValueError, match="Temperature must be 1"):
        last(inference.sample(checkpoints["aae"], 4, 0.5, ANY_CLASS, "mean", 0))
    with pytest.raises(ValueError, match="Seed must be"):
        last(inference.sample(checkpoints["vae"], 4, 1, ANY_CLASS, "mean", None))
    with pytest.raises(ValueError, match="Class must be one"):
        last(inference.sample(checkpoints["vae"], 4, 1, "three", "mean", 0))


def test_a_click_on_the_map_is_the_point_that_gets_the_ring(checkpoints):
    checkpoint = checkpoints["vae_plane"]
    limit = inference.map_limit(checkpoint)
    x, y = PLANE_LEFT + 0.75 * PLANE_SIZE, PLANE_TOP + 0.25 * PLANE_SIZE
    first, second = inference.clicked_point(checkpoint, x, y)
    assert (first, second) == pytest.approx((limit / 2, limit / 2))
    bare, marked = inference.latent_map(checkpoint), inference.marked_map(checkpoint, first, second)
    changed = np.argwhere((pixels(bare) != pixels(marked)).any(2))
    assert changed.mean(0)[::-1] == pytest.approx((x, y), abs=2)
    assert bare.size == MAP_SIZE
    assert point_at(-50, 10_000, limit) == (-limit, -limit)


def test_a_click_on_the_map_is_a_place_of_the_sliders(checkpoints):
    numbers = inference.clicked_point(checkpoints["vae_plane"], 137.3, 211.8)
    assert [round(number, 2) for number in numbers] == list(numbers)
    assert all(abs(number / 0.05 - round(number / 0.05)) < 1e-9 for number in numbers)


def test_the_map_shows_the_plane_where_it_says(checkpoints):
    """The axes end where the arithmetic of the clicks puts the edges."""
    picture = pixels(inference.latent_map(checkpoints["vae_plane"])).astype(int).sum(2)
    middle = PLANE_TOP + PLANE_SIZE // 2
    assert picture[middle, PLANE_LEFT - 1 : PLANE_LEFT + 2].min() < 100
    assert picture[PLANE_TOP - 1 : PLANE_TOP + 2, PLANE_LEFT + PLANE_SIZE // 2].min() < 100
    edge = PLANE_TOP + PLANE_SIZE
    assert picture[edge - 1 : edge + 2, PLANE_LEFT + PLANE_SIZE // 3].min() < 100


def test_a_point_is_decoded(checkpoints):
    checkpoint = checkpoints["vae_plane"]
    found = inference.decode_point(checkpoint, 0.5, -1)
    with torch.no_grad():
        mean = checkpoint.model.decode(torch.tensor([[0.5, -1.0]])).mean[0, 0]
    shade = round(mean[3, 4].item() * 255 / 15)
    scale = (found.width - 4) // 8
    assert abs(int(pixels(found)[2 + 3 * scale, 2 + 4 * scale]) - shade) <= 1
    assert found != inference.decode_point(checkpoint, -0.5, 1)


def test_a_drawing_is_cut_out_scaled_and_centred(checkpoints):
    mnist, digits = checkpoints["vae_mnist"], checkpoints["vae"]
    levels = inference.levels_from_drawing(mnist, seven())
    assert torch.equal(levels, inference.levels_from_drawing(mnist, seven(offset=(-40, 50))))
    rows, columns = (torch.nonzero(levels[0, 0].amax(axis)).flatten() for axis in (1, 0))
    assert (rows[0], rows[-1]) == (4, 23)
    assert abs(int(columns[0]) - (27 - int(columns[-1]))) <= 1
    assert inference.levels_from_drawing(digits, seven())[0, 0].amax(1).min() > 0
    assert inference.levels_from_drawing(checkpoints["vae_colour"], seven()).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(("name", "channels"), [("aae_colour", 3), ("vae_plane", 1)])
def test_pictures_take_the_channels_of_the_model(checkpoints, name, channels):
    checkpoint = checkpoints[name]
    for picture in (seven(), seven().convert("L"), seven(ink="red", paper="black")):
        for prepare in (inference.levels_from_drawing, inference.levels_from_picture):
            levels = prepare(checkpoint, picture)
            assert levels.shape == (1, channels, 8, 8)
            inference.reconstruct(checkpoint, levels, 0)
    assert (levels[0].amax((1, 2)) > 0).tolist() == ([True, False, False] if channels == 3 else [True])
    assert checkpoint.digits.levels.shape[1] == channels


def test_a_drawing_on_a_transparent_sheet_is_one_on_white(checkpoints):
    sheet = Image.new("RGBA", (280, 280))
    sheet.paste(seven().convert("RGBA"), mask=Image.eval(seven().convert("L"), lambda value: 255 - value))
    for prepare in (inference.levels_from_drawing, inference.levels_from_picture):
        assert torch.equal(prepare(checkpoints["vae"], sheet), prepare(checkpoints["vae"], seven()))


@pytest.mark.parametrize("empty", [None, Image.new("RGB", (280, 280), "white"), Image.new("RGBA", (280, 280))])
def test_an_empty_drawing_is_refused(checkpoints, empty):
    with pytest.raises(ValueError, match="The drawing is empty"):
        inference.levels_from_drawing(checkpoints["vae"], empty)


@pytest.mark.parametrize("shade", [255, 200, 130, 90, 0])
@pytest.mark.parametrize("noise", [0, 3])
def test_an_empty_picture_is_refused(checkpoints, shade, noise):
    grain = np.random.default_rng(0).integers(-noise, noise + 1, (280, 280))
    sheet = Image.fromarray(np.clip(shade + grain, 0, 255).astype(np.uint8))
    with pytest.raises(ValueError, match="is empty"):
        inference.levels_from_picture(checkpoints["vae"], sheet)


def test_a_picture_of_grey_paper_is_ink_and_a_dark_one_is_taken_as_it_is(checkpoints):
    checkpoint = checkpoints["vae_mnist"]
    assert torch.equal(
        inference.levels_from_picture(checkpoint, seven()), inference.levels_from_drawing(checkpoint, seven())
    )
    scanned = inference.levels_from_picture(checkpoint, seven(ink=(60, 60, 80), paper=(190, 185, 180)))
    assert scanned.max() == 15
    assert scanned[0, 0, 0, 0] == 0
    own = Image.fromarray(np.arange(28 * 28, dtype=np.uint8).reshape(28, 28) % 100)
    assert torch.equal(
        inference.levels_from_picture(checkpoint, own), torch.from_numpy(np.asarray(own) >> 4)[None, None]
    )


def test_files_that_are_no_pictures_or_too_large_are_refused(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    with pytest.raises(ValueError, match=r"'notes.png' is not a picture"):
        inference.open_picture(str(text))
    seven().save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a picture"):
        inference.open_picture(str(tmp_path / "half.png"))
    for side in (5000, 30_000):
        # Its header says so; there is no need of the pixels.
        header = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
        large = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
        (tmp_path / "large.png").write_bytes(large)
        with pytest.raises(ValueError, match="at most 4096"):
            inference.open_picture(str(tmp_path / "large.png"))
    chunk = b"zTXta\0\0" + zlib.compress(bytes(2**26 + 1))
    bomb = (
        content[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ValueError, match="^'bomb.png' is not a picture that can be read, such as PNG or JPEG.$"):
        inference.open_picture(str(tmp_path / "bomb.png"))
    assert inference.open_picture(content).size == (280, 280)
    with pytest.raises(ValueError, match="^The drawing is not a picture"):
        inference.open_picture(b"no picture")
    with pytest.raises(ValueError, match="No file"):
        inference.open_picture(None)
    assert inference.open_picture(str(tmp_path / "whole.png")).size == (280, 280)


def test_a_picture_of_sixteen_bits_is_refused(checkpoints):
    with pytest.raises(ValueError, match="8 bits per channel"):
        inference.levels_from_picture(checkpoints["vae"], Image.new("I;16", (8, 8)))


@pytest.mark.parametrize(("name", "unit"), [("vae", "bits per dimension"), ("aae", "mean squared error")])
def test_a_reconstruction_comes_with_its_place_among_the_test_images(checkpoints, name, unit):
    checkpoint = checkpoints[name]
    best = int(checkpoint.scores.argmin())
    seen, drawn, figure, words = inference.reconstruct(checkpoint, inference.digit(checkpoint, best), 0)
    assert seen != drawn
    assert seen.size == drawn.size
    assert unit in words
    assert "300 test images of scikit-learn digits" in words
    assert figure.width > 400
    # The score of a likelihood is drawn anew, so the best one of all does not stay the best.
    assert int(words.split("**")[2].split("%")[0]) > 50


def test_an_interpolation_leads_from_one_digit_to_the_other(checkpoints):
    checkpoint = checkpoints["vae"]
    strip = pixels(inference.interpolate(checkpoint, 3, 8, 5))
    scale = 1100 // (7 * 8)
    step = 8 * scale + 2
    for place, index in ((0, 3), (6, 8)):
        cell = strip[2 : 2 + 8 * scale : scale, 2 + place * step : 2 + place * step + 8 * scale : scale]
        levels = inference.digit(checkpoint, index)[0, 0].numpy()
        assert np.array_equal(cell, np.rint(levels * 17.0))
    with pytest.raises(ValueError, match="0 to 299"):
        inference.interpolate(checkpoint, 3, 300, 5)
    with pytest.raises(ValueError, match="got None"):
        inference.interpolate(checkpoint, None, 3, 5)


def test_the_sheet_of_digits_has_two_of_each_class_and_knows_where_they_are(checkpoints):
    checkpoint = checkpoints["vae"]
    chosen = inference.chosen_digits(checkpoint)
    assert checkpoint.digits.labels[chosen].tolist() == [label for label in range(10) for _ in range(2)]
    sheet = inference.digit_sheet(checkpoint)
    step = (sheet.width - 2) / 10
    for place in (0, 9, 10, 19):
        row, column = divmod(place, 10)
        x, y = (column + 0.5) * step, (row + 0.5) * step
        assert inference.sheet_digit(checkpoint, x, y) == chosen[place]
    assert inference.sheet_digit(checkpoint, sheet.width, sheet.height) == chosen[-1]


def test_a_completion_grows_row_by_row_and_keeps_what_is_given(checkpoints):
    checkpoint = checkpoints["pixels"]
    pictures = list(inference.complete(checkpoint, 7, 50, 3, 1, 5))
    assert len(pictures) == 1 + 4
    scale = 1100 // (5 * 8)
    step = 8 * scale + 2
    previous = None
    for drawn, picture in enumerate(pictures):
        cells = [
            pixels(picture)[2 : 2 + 8 * scale : scale, 2 + place * step : 2 + place * step + 8 * scale : scale]
            for place in range(5)
        ]
        for cell in cells[1:]:
            assert np.array_equal(cell[:4], cells[0][:4])
            assert (cell[4 + drawn :] == 0).all()
        if previous is not None:
            assert np.array_equal(cells[2][: 3 + drawn], previous[2][: 3 + drawn])
        previous = cells
    assert not np.array_equal(previous[2], previous[3])
    again = list(inference.complete(checkpoint, 7, 50, 3, 1, 5))
    assert again[-1] == pictures[-1]
    assert list(inference.complete(checkpoint, 7, 50, 3, 1, 6))[-1] != pictures[-1]


def test_a_text_grows_from_its_beginning_and_depends_on_its_seed_alone(checkpoints):
    state = torch.get_rng_state()
    first, second, other = (
        list(inference.continue_text(checkpoints["bytes"], "To be", 40, 1, seed)) for seed in (1, 1, 2)
    )
    assert first == second
    assert first[-1] != other[-1]
    assert len(first) >= 2
    assert all(text.startswith("To be") for text in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_text_follows_the_model(checkpoints):
    """At a low temperature it is the most probable one, found without a cache."""
    checkpoint = checkpoints["bytes"]
    text = last(inference.continue_text(checkpoint, "ab", 12, 0.001, 0))
    ids = [257, *b"ab"]
    for _ in range(12):
        with torch.no_grad():
            best = checkpoint.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()
        if best == 258:
            break
        ids.append(best)
    assert text == bytes(value for value in ids if value < 256).decode("utf-8", "replace")


def test_texts_out_of_range_are_refused(checkpoints):
    for arguments, message in (
        (("x" * 2001, 5, 1, 0), "at most 2000"),
        ((None, 5, 1, 0), "Beginning must be a text of at most 2000 characters, got None"),
        (("x", 5, 0, 0), "Temperature must be above 0"),
        (("x", 5, float("nan"), 0), "Temperature must be above 0, got nan"),
        (("x", 5, 1, None), "Seed must be"),
    ):
        with pytest.raises(ValueError, match=message):
            list(inference.continue_text(checkpoints["bytes"], *arguments))


def test_an_image_is_told_its_place_among_validation_images(checkpoints, folders, tmp_path):
    assert "validation images" not in inference.reconstruct(checkpoints["vae"], torch.zeros(1, 1, 8, 8).byte(), 0)[-1]
    folder = shutil.copytree(folders["vae"], tmp_path / "vae")
    loaded = load(folder)
    images = LevelsDataset(load_images("digits", "validation"), loaded.processor)
    calibrate(loaded, images, "digits").write(folder)
    (found,) = load_checkpoints([str(folder)]).values()
    levels = images.levels[:1]
    share = Calibration.read(folder).share_below(
        "likelihood_regret", *anomaly_scores(loaded.model, levels, "likelihood_regret")
    )
    told = (
        f"By its likelihood regret it is more unusual than {share:.1%} of 200 validation images of scikit-learn digits."
    )
    assert told in inference.reconstruct(found, levels, 0)[-1]


def test_a_click_finds_its_digit_on_a_sheet_of_few(folders, monkeypatch):
    checkpoint = load_checkpoints([str(folders["vae"])])["vae"]
    monkeypatch.setattr(inference, "chosen_digits", lambda _: [3, 5, 8])
    sheet = inference.digit_sheet(checkpoint)
    clicks = [((column + 0.5) * sheet.width / 3, sheet.height / 2) for column in range(3)]
    assert [inference.sheet_digit(checkpoint, *click) for click in clicks] == [3, 5, 8]


def test_a_point_of_the_plane_is_one_picture_whoever_draws_it(tmp_path):
    config = VLAEConfig(image_size=8, num_levels=16, latent_dim=2, hidden_channels=[8], decoder_channels=8)
    folder = make_checkpoint(VLAEModel(config), tmp_path / "vlae")
    checkpoint = load_checkpoints([str(folder)])["vlae"]
    assert inference.decode_point(checkpoint, 0.0, 0.0) == inference.decode_point(checkpoint, 0.0, 0.0)
