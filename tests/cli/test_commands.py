"""The command `hf-latentgen`, in the process of the tests."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_latentgen import (
    LevelsImageProcessor,
)
from hf_latentgen.evaluation.results import Results
from hf_latentgen.hub import loading
from rows_common import names, write_run


def test_help_names_every_command(command):
    text = command("--help")
    for name in (
        "train",
        "evaluate",
        "sample",
        "score",
        "publish",
        "rows",
        "verify",
        "app",
        "env",
        "compress",
        "decompress",
    ):
        assert name in text
    assert "--from" in command("train --help")


@pytest.mark.parametrize("words", ["train", "train small.yaml --unknown", "score images", "sample x --output nicely"])
def test_words_that_cannot_be_parsed(command, words):
    assert "Usage:" in command(words, code=2)


def test_environment(command):
    text = command("env")
    for word in ("torch", torch.__version__, "git commit", "device", "HF_LATENTGEN_DATA"):
        assert word in text


def test_trains_resumes_and_starts_from_the_result(command, here):
    text = command("train small.yaml training.seed=1 --output-dir runs/a training.logging_steps=1")
    assert text.endswith("trained model, its processor and run.json: runs/a\n")
    run = json.loads((here / "runs/a/run.json").read_text())
    assert run["seed"] == 1
    assert run["overrides"] == ["training.seed=1", "training.logging_steps=1"]
    assert (here / "runs/a/preprocessor_config.json").is_file()

    command("train small.yaml training.seed=1 training.max_steps=3 --output-dir runs/a --resume")
    assert (here / "runs/a/checkpoint-3").is_dir()

    command("train small.yaml --from runs/a training.learning_rate=0.0")
    first, second = (load_file(here / folder / "model.safetensors") for folder in ("runs/a", "runs/small"))
    assert all((first[name] == second[name]).all() for name in first)


@pytest.fixture
def photos(here):
    """A folder of coloured images, larger than those of the recipe."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 12, 12, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        path = here / "pictures" / ("train", "val", "test")[max(0, index - 45)] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return here / "pictures"


@pytest.mark.parametrize("start", ["", "--from runs/vae_small"])
def test_colours_are_lost_only_where_that_is_allowed(command, refused, here, checkpoint, photos, start):
    line = refused(f"train small.yaml dataset.name=pictures --output-dir runs/grey {start}")
    assert "dataset.allow_grey must be true (--allow-grey)" in line
    assert "num_channels of " in line
    assert not (here / "runs" / "grey").exists()
    text = command(f"train small.yaml dataset.name=pictures --allow-grey --output-dir runs/grey {start}")
    assert "score on all " in text
    run = json.loads((here / "runs" / "grey" / "run.json").read_text())
    assert run["dataset"] == {"name": "pictures", "allow_grey": True}
    assert "dataset.allow_grey=true" in run["train_command"]


def test_a_model_is_not_written_among_the_images_of_its_training(refused, photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert "output_dir must lie outside of the images in ., got runs/pictures" in refused("train .")
    assert not (photos / "runs").exists()


def test_smaller_images_are_said(command, photos, caplog):
    with caplog.at_level("WARNING"):
        command("train small.yaml dataset.name=pictures model.num_channels=3")
    assert "the images of pictures, 12x12, become 8x8, the size of the recipe" in caplog.text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("missing.yaml", "no recipe and no folder of images at missing.yaml"),
        ("vae_digit", "the nearest row is vae_digits"),
        ("small.yaml training.lr=1", "unknown key training.lr; the nearest valid key is training."),
        ("small.yaml training.seed", "an override must have the form section.key=value, got 'training.seed'"),
        ("small.yaml training.output_dir=x", "training.output_dir must be left out of a recipe"),
        ("small.yaml --resume", "cannot resume: runs/small holds no complete checkpoint"),
        ("small.yaml dataset.name=mnist --data-dir nowhere", "must be an existing folder, got 'nowhere'"),
        ("small.yaml --output-dir small.yaml", "the output folder small.yaml is not writable"),
        ("small.yaml --from nowhere", "nowhere"),
        ("small.yaml model.latent_dim=0", "latent_dim must be at least 1, got 0"),
        # Two classes are the default of transformers.
        (
            "small.yaml model.model_type=latentgen_aae model.prior=flower model.discriminator_channels=[8]",
            "num_labels must be at least 3, one petal for each class, got 2",
        ),
    ],
)
def test_mistakes_in_a_training_end_with_one_line(refused, here, words, complaint):
    assert complaint in refused(f"train {words}")
    assert not (here / "runs").exists()


def drop_a_weight(path):
    """Remove the last weight of a file; its name."""
    weights = load_file(path)
    name = sorted(weights)[-1]
    save_file({key: value for key, value in weights.items() if key != name}, path, {"format": "pt"})
    return name


@pytest.mark.parametrize(
    "words", ["train small.yaml --from", "sample", "evaluate --data digits", "score small.yaml --model"]
)
def test_missing_weights_are_refused_by_every_command(refused, checkpoint, here, words):
    name = drop_a_weight(checkpoint / "model.safetensors")
    line = refused(f"{words} runs/vae_small")
    assert "missing_keys" in line
    assert name in line
    assert not (here / "runs" / "small").exists()


@pytest.mark.parametrize("part", ["model/model.safetensors", "denoiser/diffusion_pytorch_model.safetensors"])
def test_missing_weights_of_a_part_of_a_pipeline_are_refused(refused, repository, here, part):
    row = shutil.copytree(repository / "model_cards" / "prior_vae_mnist", here / "prior")
    name = drop_a_weight(row / part)
    line = refused("sample prior")
    assert "missing_keys" in line
    assert name in line


@pytest.mark.parametrize("words", ["train small.yaml --from", "sample", "evaluate --data digits"])
def test_a_processor_of_other_levels_is_refused_by_every_command(refused, checkpoint, words):
    LevelsImageProcessor(size={"height": 8, "width": 8}, num_levels=256).save_pretrained(checkpoint)
    line = refused(f"{words} runs/vae_small")
    assert "num_levels of the image processor must be 16" in line
    assert "got 256" in line


def test_a_run_is_evaluated_into_its_own_folder(command, checkpoint):
    text = command("evaluate runs/vae_small --num-importance-samples 2 --seed 1")
    results = Results.read(checkpoint)
    assert results.evaluate_command == "hf-latentgen evaluate runs/vae_small --num-importance-samples 2 --seed 1"
    assert "vae_small on all 300 of digits, test split" in text
    assert f"{results.metrics['bits_per_dim']:.4f}" in text
    assert "results.json and images: " in text
    assert (checkpoint / "images" / "samples.png").is_file()


def test_an_evaluation_stays_within_a_budget(command, refused, checkpoint, few_images):
    text = command("evaluate runs/vae_small --budget 0s")
    assert text.startswith("K = 0 importance samples an image: about ")
    assert "; K = 500 would take " in text
    results = Results.read(checkpoint)
    assert results.evaluate_command == "hf-latentgen evaluate runs/vae_small --num-importance-samples 0"
    assert f"{results.metrics['bits_per_dim']:.4f}" in text
    assert "budget must be a number with s, m or h, such as 10m, got '10'" in refused("evaluate vae_digits --budget 10")


def test_a_checkpoint_without_a_record_is_scored_and_left_alone(command, refused, checkpoint, few_images):
    (checkpoint / "run.json").unlink()
    before = names(checkpoint)
    assert "dataset must be named" in refused("evaluate runs/vae_small")
    text = command("evaluate runs/vae_small --data digits --num-importance-samples 1")
    assert "how it was trained is not known" in text
    assert "nothing was written" in text
    assert names(checkpoint) == before
    command("evaluate runs/vae_small --data digits --num-importance-samples 1 --output-dir out")
    assert not Results.read("out").has_provenance


@pytest.fixture
def published(checkpoint, here):
    """The published row of a run, and its results as they are."""
    row = shutil.copytree(checkpoint, here / "model_cards" / "vae_small")
    (row / "run.json").unlink()
    (row / "results.json").write_text("published")
    return row / "results.json"


def test_a_published_row_is_written_only_when_asked_for(command, refused, checkpoint, published, few_images):
    write_run(checkpoint, overrides=["model.latent_dim=2"])
    command("evaluate runs/vae_small --num-importance-samples 1")
    assert "overrides ['model.latent_dim=2']" in refused("evaluate runs/vae_small --row")
    write_run(checkpoint)
    for words in ("--data digits", "--output-dir out", "--split train"):
        assert "row must be alone" in refused(f"evaluate runs/vae_small --row {words}")
    assert published.read_text() == "published"
    command("evaluate runs/vae_small --num-importance-samples 1 --row")
    assert Results.read(published.parent).row == "vae_small"


def test_scoring_a_published_row_leaves_it_alone(command, checkpoint, here, few_images):
    command("evaluate runs/vae_small --num-importance-samples 1 --row")
    row = here / "model_cards" / "vae_small"
    before = {path: path.stat().st_mtime_ns for path in row.rglob("*")}
    assert "nothing was written" in command("evaluate model_cards/vae_small --num-importance-samples 1 --seed 5")
    assert {path: path.stat().st_mtime_ns for path in row.rglob("*")} == before


def test_a_shipped_row_is_scored_from_its_name(command, repository, here):
    before = names(here)
    text = command("evaluate vae_digits --num-importance-samples 1")
    published = Results.read(repository / "model_cards" / "vae_digits").metrics
    assert f"{published['bits_per_dim']:.4f}" in text
    assert f"{published['reconstruction_mse']:.5f}" in text
    assert "nothing was written" in text
    assert "how it was trained is not known" not in text
    assert names(here) == before


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--batch-size 0", "batch_size must be at least 1, got 0"),
        ("--split dev", "split must be one of train, validation, test, got 'dev'"),
        (
            "--output-dir small.yaml/below --num-importance-samples 1",
            "the output folder small.yaml/below is not writable",
        ),
        ("--classifier runs/vae_small", "classifier is of no use for variational autoencoders"),
        ("--repeats runs/vae_small", "results.json does not exist; an evaluation writes it"),
        ("--repeats vae_digits", "repeats must have config"),
        ("--revision main", "revision must be None for a folder"),
        ("--data nowhere", "name_or_path must be digits"),
    ],
)
def test_mistakes_in_an_evaluation_end_with_one_line(refused, checkpoint, here, words, complaint, few_images):
    before = names(here)
    assert complaint in refused(f"evaluate runs/vae_small {words}")
    assert names(here) == before


@pytest.mark.parametrize("option", ["--num-importance-samples 5", "--compile", "--bf16"])
def test_options_of_another_family_are_refused(refused, repository, option):
    line = refused(f"evaluate aae_digits {option}")
    assert f"{option.split()[0].strip('-').replace('-', '_')} is of no use for adversarial autoencoders" in line


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("evaluate aae_digits --classifier aae_mnist", "classifier must be an image classifier, got aae_mnist"),
        ("evaluate aae_digits --classifier aae_mnist_all_labels", "classifier must read images of size 8"),
        ("evaluate vae_digit --data digits", "the nearest row is vae_digits"),
        ("train small.yaml --revision main", "revision is of no use without --from, got 'main'"),
    ],
)
def test_options_of_no_use_and_unknown_rows_are_refused_at_once(refused, words, complaint):
    assert complaint in refused(words)


def test_a_run_keeps_the_results_of_its_own_test_split(command, checkpoint, few_images):
    command("evaluate runs/vae_small --num-importance-samples 1")
    for words in ("--split validation", "--data digits"):
        assert "nothing was written" in command(f"evaluate runs/vae_small --num-importance-samples 1 {words}")
    assert Results.read(checkpoint).split == "test"


def test_samples_are_a_grid(command, checkpoint):
    for name in ("first.png", "second.png"):
        words = f"--num-images 10 --columns 5 --output mean --seed 3 --file {name}"
        assert command(f"sample runs/vae_small {words}") == f"{name}\n"
    with Image.open("first.png") as first, Image.open("second.png") as second:
        # Images of 8x8 at seven times their size, a pixel of theirs between them.
        assert first.size == (7 + 5 * 63, 7 + 2 * 63)
        assert first.tobytes() == second.tobytes()


def test_samples_of_a_latent_diffusion_row(command):
    command("sample prior_vae_mnist --num-images 4 --output mean")
    with Image.open("samples.png") as picture:
        drawn = torch.from_numpy(np.asarray(picture.convert("L")).copy()).float()
    # Digits are neither black nor noise: mostly dark, with bright strokes.
    assert 0.02 < (drawn > 128).float().mean() < 0.4


def test_samples_of_one_class(command, refused):
    pictures = []
    for label in (0, 1, 1):
        command(f"sample aae_mnist_semi_100 --num-images 8 --output mean --label {label}")
        with Image.open("samples.png") as picture:
            pictures.append(torch.from_numpy(np.asarray(picture.convert("L")).copy()).float())
    assert torch.equal(pictures[1], pictures[2])
    # A zero has more ink than a one.
    assert pictures[0].mean() > 1.1 * pictures[1].mean()
    assert "class_labels must be in 0 ... 9, got 10" in refused("sample aae_mnist_semi_100 --label 10")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--num-images 0", "batch_size must be a whole number of at least 1, got 0"),
        ("--temperature -1", "temperature must be a number above 0 and finite, got -1.0"),
        ("--label 3", "class_labels must be None for a model that has no classes, got 3"),
        ("--file nowhere/samples.png", "nowhere/samples.png"),
    ],
)
def test_mistakes_in_drawing_end_with_one_line(refused, checkpoint, words, complaint):
    assert complaint in refused(f"sample runs/vae_small {words}")


def test_rows_are_listed_with_their_weights(command, monkeypatch, repository, here):
    for name in ("vae_digits", "vae_mnist_4bit"):
        shutil.copytree(repository / "model_cards" / name, here / "rows" / name)
    (here / "rows" / "vae_mnist_4bit" / "model.safetensors").unlink()
    monkeypatch.setattr(loading, "ROWS", here / "rows")
    listed = {entry["row"]: entry for entry in json.loads(command("rows --format json"))}
    assert set(listed) == {"vae_digits", "vae_mnist_4bit"}
    assert listed["vae_digits"]["weights"] == "model_cards/vae_digits"
    assert listed["vae_digits"]["score"] == "2.0185 bits/dim"
    assert listed["vae_digits"]["parameters"] == 208_564
    assert listed["vae_mnist_4bit"]["weights"] == "no weights"
    monkeypatch.setattr(loading, "ROWS", here / "nowhere")
    assert "a clone of the repository has them" in command("rows", code=1)


def test_untouched_rows_are_verified(command):
    lines = command("verify vae_digits aae_digits local_digits").splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [name, "verified"] for name in ("vae_digits", "aae_digits", "local_digits")
    ]
    compared, left_out = lines[0].split("; published and not computed again: ")
    assert "reconstruction_mse" in compared
    assert {"linear_probe_accuracy", "nll_nats_iw500"} <= set(left_out.split(", "))


@pytest.mark.parametrize("name", ["vae_digits", "aae_digits", "local_digits"])
def test_changed_weights_are_found(command, repository, here, name):
    row = shutil.copytree(repository / "model_cards" / name, here / name)
    weights = load_file(row / "model.safetensors")
    changed = {key: value + 1e-2 if value.is_floating_point() else value for key, value in weights.items()}
    save_file(changed, row / "model.safetensors", {"format": "pt"})
    line = command(f"verify {row}", code=1)
    assert line.startswith(f"{name}: DIFFERS: ")
    assert "(published " in line


def test_rows_without_weights_are_not_verified(command, repository, here):
    row = shutil.copytree(repository / "model_cards" / "vae_digits", here / "vae_digits")
    (row / "model.safetensors").unlink()
    assert command(f"verify {row} local_digits", code=1).splitlines()[0] == "vae_digits: no weights"
    # A row that cannot be read does not hide the others.
    (row / "results.json").write_text("{")
    first, second = command(f"verify {row} local_digits", code=1).splitlines()
    assert first.startswith("vae_digits: not verified: ")
    assert second.startswith("local_digits: verified")


def test_publishing_is_rehearsed_without_network(command, refused, checkpoint, few_images):
    command("evaluate runs/vae_small --num-importance-samples 1")
    assert "license must be chosen for runs/vae_small" in refused(
        "publish runs/vae_small --repo-id someone/vae --dry-run"
    )
    text = command("publish runs/vae_small --repo-id someone/vae --license mit --title Small --dry-run")
    assert "license: mit" in Path("runs/to_publish/vae/README.md").read_text()
    assert "bytes  model.safetensors" in text
    assert "left out: results.json, run.json" in text
    assert "'a//b'" in refused("publish runs/vae_small --repo-id a//b --dry-run")
