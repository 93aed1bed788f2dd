"""The commands that read files: `score`, `compress`, `decompress`, in the process of the tests."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hf_latentgen import (
    ByteTokenizer,
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    anomaly_scores,
    load,
    load_images,
)
from hf_latentgen.coding import read_info
from hf_latentgen.evaluation.anomaly import Calibration
from hf_latentgen.evaluation.files import levels_of_files
from hf_latentgen.evaluation.results import Results
from rows_common import names, save_vae


@pytest.fixture
def images(here):
    """A folder of three images, one below another folder, and of a file that is none."""
    (here / "images" / "more").mkdir(parents=True)
    for name, row in zip(("a.png", "b.png", "more/c.png"), load_images("digits", "test"), strict=False):
        row["image"].save(here / "images" / name)
    (here / "images" / "notes.txt").write_text("no image")
    return ["a.png", "b.png", "more/c.png"]


def test_files_are_scored_as_table_csv_and_json(command, vae, images):
    scores = json.loads(command(f"score images --model {vae} --format json"))
    assert [entry["file"] for entry in scores] == images
    assert all(3 < entry["bits per dimension"] < 5 for entry in scores)
    header, *lines = csv.reader(io.StringIO(command(f"score images --model {vae} --format csv")))
    assert header == ["file", "bits per dimension"]
    assert [(name, float(value)) for name, value in lines] == [tuple(entry.values()) for entry in scores]
    table = command(f"score images --model {vae}")
    assert all(f"{entry['bits per dimension']:.4f}" in table for entry in scores)
    (only,) = json.loads(command(f"score images/a.png --model {vae} --format json"))
    assert only["file"] == "a.png"


def test_names_are_shown_as_they_are_however_long(command, vae, images, here):
    odd = ["photo[copy].png", "a:warning:b.png", "x[/y].png", f"{'long' * 55}.png"]
    for name in odd:
        (here / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here / "images" / "a.png", here / "odd" / name)
    table = command(f"score odd --model {vae}")
    assert all(name in table for name in odd)


def test_documents_beside_images_are_passed_over(command, vae, images, here):
    for name in ("notes.pdf", "data.h5"):
        (here / "images" / name).write_bytes(b"no image")
    assert [entry["file"] for entry in json.loads(command(f"score images --model {vae} --format json"))] == images


@pytest.mark.parametrize("name", ["broken.avif", "broken.qoi", "broken.png"])
@pytest.mark.parametrize("line", ["score {}", "compress {} -o a.hlg"])
def test_broken_images_are_named(refused, vae, here, name, line):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(content, format=name[7:])
    (here / name).write_bytes(content.getvalue()[: len(content.getvalue()) * 2 // 3])
    assert name in refused(f"{line.format(name)} --model {vae}")


def test_scores_are_those_of_the_model(command, vae, images):
    scores = json.loads(command(f"score images --model {vae} --format json --seed 4"))
    loaded = load(vae)
    levels = loaded.processor([row["image"] for row in load_images("digits", "test").select(range(3))])["pixel_values"]
    with torch.no_grad():
        expected = loaded.model.bits_per_dim(torch.as_tensor(levels), generator=torch.Generator().manual_seed(4))
    assert [entry["bits per dimension"] for entry in scores] == pytest.approx(expected.tolist(), rel=1e-5)


def test_texts_are_scored_in_bits_per_byte(command, refused, here):
    torch.manual_seed(0)
    fields = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    LocalTransformerForCausalLM(LocalTransformerConfig(**fields, window=8)).save_pretrained(here / "model")
    ByteTokenizer().save_pretrained(here / "model")
    (here / "play.txt").write_text("To be, or not to be.")
    (only,) = json.loads(command("score play.txt --model model --format json"))
    assert only["file"] == "play.txt"
    assert only["bits per byte"] == pytest.approx(8, abs=1)
    assert "cannot" not in command("score play.txt --model model")
    (here / "empty.txt").touch()
    assert "empty.txt must be a file that is not empty" in refused("score empty.txt --model model")
    # Texts are not scored in batches.
    line = refused("evaluate model --data . --batch-size 4")
    assert "batch_size is of no use for local-attention transformers over bytes" in line


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("nowhere --model {vae}", "nowhere must be a file that is not empty, or a folder that holds images"),
        ("images/notes.txt --model {vae}", "images/notes.txt must be an image that can be read"),
        ("images --model aae_digits", "model must have a likelihood to score files"),
    ],
)
def test_mistakes_in_scoring_end_with_one_line(refused, vae, images, words, complaint):
    assert complaint in refused(f"score {words.format(vae=vae)}")


@pytest.fixture
def digits(vae, here):
    """A folder of five images whose grey values are those of sixteen levels."""
    processor = load(vae).processor
    levels = processor([row["image"] for row in load_images("digits", "test").select(range(5))])["pixel_values"]
    (here / "digits" / "more").mkdir(parents=True)
    for index, picture in enumerate(processor.post_process_images(np.asarray(levels))):
        picture.save(here / "digits" / f"{'more/' if index > 2 else ''}{index}.png")
    return here / "digits"


def test_images_are_compressed_and_come_back(command, vae, digits, here):
    text = command(f"compress digits --model {vae} -o digits.hlg")
    assert f"digits.hlg: 5 images in {(here / 'digits.hlg').stat().st_size:,} bytes, " in text
    text = command("compress --info digits.hlg")
    assert "5 images in" in text
    assert "model id        vae_small" in text
    assert command(f"decompress digits.hlg --output again --model {vae}").strip().endswith("again: 5 images")
    assert names(here / "again") == names(digits)
    for name in ("0.png", "more/4.png"):
        with Image.open(digits / name) as before, Image.open(here / "again" / name) as after:
            assert after.tobytes() == before.tobytes()


def test_a_file_says_which_row_compressed_it(command, digits, here):
    text = command("compress digits --model local_digits -o digits.hlg --no-verify")
    assert " bits/dim" in text
    assert command("decompress digits.hlg -o again").strip().endswith("again: 5 images")
    assert names(here / "again") == names(digits)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            "compress nowhere --model {vae} -o a.hlg",
            "nowhere must be a file that is not empty, or a folder that holds images",
        ),
        (
            "compress empty --model {vae} -o a.hlg",
            "empty must be a file that is not empty, or a folder that holds images",
        ),
        ("compress digits --model aae_digits -o a.hlg", "model must have a likelihood"),
        ("compress digits --model {vae} -o mine", "mine exists; it is replaced with overwrite=True (--force)"),
        ("compress digits --model {vae} -o a.hlg --adapt", "adapt must be False for a model of images"),
        ("compress digits --model vae_mnist_4bit -o a.hlg", "digits/0.png cannot be compressed: images must be 28x28"),
        ("compress digits --model {vae}", "output must be given"),
        ("compress digits -o a.hlg", "model must be given"),
        ("compress --info mine", "magic must be"),
        ("decompress mine -o out", "magic must be"),
        ("decompress nowhere -o out", "nowhere"),
        ("decompress good.hlg -o out", "vae_small is no folder and no row"),
        ("decompress good.hlg -o out --model vae_digits", "config_digest must be"),
        ("decompress good.hlg -o digits --model {vae}", "digits/0.png exists; it is replaced"),
        ("verify vae_digits --record", "record must go with --bytes"),
    ],
)
def test_mistakes_in_compressing_end_with_one_line(command, refused, vae, digits, here, words, complaint):
    (here / "mine").write_text("mine, and no compressed file")
    (here / "empty").mkdir()
    command(f"compress digits --model {vae} -o good.hlg --no-verify")
    before = names(here)
    assert complaint in refused(words.format(vae=vae))
    assert names(here) == before
    assert (here / "mine").read_text() == "mine, and no compressed file"


def test_damaged_chunks_are_named_once_all_others_are_written(command, refused, vae, digits, here):
    command(f"compress digits --model {vae} -o digits.hlg")
    content = bytearray((here / "digits.hlg").read_bytes())
    content[read_info(bytes(content)).start] ^= 1
    (here / "digits.hlg").write_bytes(content)
    assert "chunk 0 (images 0 to 4) is damaged" in refused(f"decompress digits.hlg -o again --model {vae}")


@pytest.mark.slow
def test_a_row_is_proved_by_a_file(command, repository, here):
    row = shutil.copytree(repository / "model_cards" / "vae_digits", here / "vae_digits")
    before = Results.read(row).metrics
    text = command("verify vae_digits aae_digits --bytes --record", code=1)
    assert "vae_digits: decoded: " in text
    assert "aae_digits: not proved: row must have one of bits_per_byte" in text
    found = Results.read(row).metrics
    size = found.pop("bits_per_dim_on_disk")
    assert found == {name: value for name, value in before.items() if name != "bits_per_dim_on_disk"}
    assert before["bits_per_dim"] < size < 1.1 * before["bits_per_dim"]


@pytest.fixture
def calibrated(command, checkpoint):
    """The same checkpoint with what validation images score."""
    text = command(f"calibrate {checkpoint}")
    assert "likelihood_regret of 200 validation images of digits" in " ".join(text.split())
    return checkpoint


@pytest.fixture
def noise(images, here):
    """The folder of images with one more, of noise."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(here / "images" / "d.png")


def test_files_are_reported_as_unusual(command, calibrated, noise):
    words = f"score images --model {calibrated} --method complexity_png --false-alarm-rate 0.1"
    text = command(words)
    entries = json.loads(command(f"{words} --format json"))
    header, *lines = csv.reader(io.StringIO(command(f"{words} --format csv")))
    assert header == ["file", "bits per dimension", "complexity_png", "unusual"]
    assert [line[0] for line in lines] == ["a.png", "b.png", "d.png", "more/c.png"]
    known = Calibration.read(calibrated)
    threshold = known.threshold("complexity_png", 0.1)
    loaded = load(calibrated)
    _, levels = levels_of_files(loaded.processor, "images")
    scores = anomaly_scores(loaded.model, levels, "complexity_png")
    for entry, line, score in zip(entries, lines, scores, strict=True):
        assert float(line[2]) == entry["complexity_png"] == pytest.approx(score)
        assert (line[3] == "True") == entry["unusual"] == (score > threshold)
    assert f"complexity_png above {threshold:.4f}, as for 0.1 of 200 validation images of digits" in text
    plain = json.loads(command(f"score images --model {calibrated} --format json"))
    assert [entry["bits per dimension"] for entry in plain] == [entry["bits per dimension"] for entry in entries]


def test_without_a_method_the_best_one_is_taken(command, calibrated, images):
    header, *_ = command(f"score images --model {calibrated} --false-alarm-rate 0.1 --format csv").splitlines()
    assert header == "file,bits per dimension,likelihood_regret,unusual"
    header, *_ = command("score images --model local_digits --method complexity_png --format csv").splitlines()
    assert header == "file,bits per dimension,complexity_png"


def test_a_ratio_needs_the_model_that_it_was_calibrated_with(command, refused, checkpoint, images, here):
    other = save_vae(here / "other", latent_dim=3)
    words = f"score images --model {checkpoint} --method likelihood_ratio --false-alarm-rate 0.1"
    command(f"calibrate {checkpoint} --background {other}")
    assert "yes" in (text := command(f"{words} --background {other}")) or "no" in text
    assert "background must have the weights" in refused(f"{words} --background {checkpoint}")
    assert "background must be a model" in refused(words)


def test_a_calibration_elsewhere_brings_the_model_along(command, vae, images, here):
    command(f"calibrate {vae} --data digits --output-dir elsewhere")
    assert not (vae / "calibration.json").exists()
    assert names(here / "elsewhere") == [
        "calibration.json",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert "unusual" in command("score images --model elsewhere --false-alarm-rate 0.05")


def test_a_calibration_never_replaces_another_model(refused, vae, here):
    other = save_vae(here / "other", latent_dim=3)
    before = (other / "model.safetensors").read_bytes()
    assert "output_dir must be a folder without another model" in refused(f"calibrate {vae} --output-dir {other}")
    assert (other / "model.safetensors").read_bytes() == before
    (here / "file").touch()
    assert "output_dir must be a folder, got the file" in refused(f"calibrate {vae} --output-dir file")


def test_an_empty_image_among_others_is_no_image(refused, vae, images, here):
    (here / "images" / "zero.png").touch()
    assert "zero.png must be an image that can be read" in refused(f"score images --model {vae}")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--false-alarm-rate 0.1", "calibration.json does not exist; hf-latentgen calibrate CHECKPOINT"),
        ("--method typicality", "calibration.json does not exist; hf-latentgen calibrate CHECKPOINT"),
        ("--method regret", "method must be one of bits_per_dim, typicality"),
        ("--background {vae}", "background must go with --method likelihood_ratio, got None"),
        ("--method likelihood_ratio", "background must be a model with a likelihood of images"),
    ],
)
def test_mistakes_in_what_is_unusual_end_with_one_line(refused, vae, images, words, complaint):
    assert complaint in refused(f"score images --model {vae} {words}".format(vae=vae))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            "aae_digits",
            "model must have a likelihood of images to say how unusual they are, got adversarial autoencoder",
        ),
        ("{vae} --data few", "dataset must have at least 50 validation images for a calibration, got 1 of few"),
    ],
)
def test_mistakes_in_calibrating_end_with_one_line(refused, vae, images, here, words, complaint):
    (here / "few").mkdir()
    for split in ("train", "validation", "test"):
        shutil.copytree(here / "images" / "more", here / "few" / split)
    assert complaint in refused(f"calibrate {words}".format(vae=vae))
    assert not (vae / "calibration.json").exists()
