import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import AutoConfig

from hf_latentgen import AAEForImageClassification, LevelsDataset, TokenBlocksDataset, load_images, load_text
from hf_latentgen.evaluation.clusters import classification_error
from hf_latentgen.evaluation.results import Results
from hf_latentgen.evaluation.text import count_bytes, token_nats
from hf_latentgen.hub.loading import load, new_model
from hf_latentgen.rows.recipes import load_recipe, recipe_files, train_recipe

# Not trained yet, so that there is no row to compare with.
UNTRAINED = {"vae_fashion_mnist_4bit_background", "local_fashion_mnist_4bit_background"}
# One that is made for folders of anybody's is no row.
RECIPES = [path for path in recipe_files() if path.stem != "own_images"]
VAE_RECIPES = [path for path in RECIPES if path.stem.startswith("vae_")]
AAE_RECIPES = [path for path in RECIPES if path.stem.startswith(("aae_", "ae_"))]
LOCAL_RECIPES = [path for path in RECIPES if path.stem.startswith("local_")]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.usefixtures("nothing_outside")


@pytest.fixture
def data_dir(tmp_path):
    """A folder with 40 made images of 28x28 under the file names of each named data set."""
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = (np.arange(40) % 10).astype(np.uint8)
    for name in ("mnist", "fashion_mnist", "binarized_mnist"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for name in ("mnist", "fashion_mnist"):
        for split in ("train", "t10k"):
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
                (tmp_path / "data" / name / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())
    (tmp_path / "data" / "tinyshakespeare").mkdir()
    text = "Before.\n\nROMEO:\nTo be, or not to be: that is the question.\n\n" * 40
    (tmp_path / "data" / "tinyshakespeare" / "input.txt").write_text(text)
    lines = "".join(" ".join(map(str, row)) + "\n" for row in (images.reshape(40, -1) > 127).astype(int))
    for split in ("train", "valid", "test"):
        (tmp_path / "data" / "binarized_mnist" / f"binarized_mnist_{split}.amat").write_text(lines)
    return tmp_path / "data"


def make_narrow(model):
    """The fields of a recipe with networks of the same kind, but a few channels wide: what depends on their size is
    tested by their number of weights."""
    sizes = {"hidden_channels": [8] * len(model.get("hidden_channels", (1, 2, 3)))}
    if model["model_type"] == "latentgen_aae":
        sizes["discriminator_channels"] = [8, 8]
    if "hidden_size" in model:
        sizes = {"hidden_size": 16, "intermediate_size": 24}
    return model | sizes


@pytest.fixture
def two_steps(data_dir, tmp_path):
    """Trains a recipe for two steps: the recipe, the folder, the model, its processor and the only evaluation."""

    def train(path):
        words = ["max_steps=2", "per_device_train_batch_size=4", "per_device_eval_batch_size=4", "logging_steps=1"]
        words += ["eval_strategy=steps", "eval_steps=2", "save_strategy=steps", "save_steps=2", "warmup_steps=0"]
        words += ["bf16=false", "disable_tqdm=true", "seed=3"]
        recipe = load_recipe(path, [f"training.{word}" for word in words])
        recipe.model = make_narrow(recipe.model)
        if "block_size" in recipe.dataset:
            recipe.dataset |= {"block_size": 64, "renamed_copies": 2}
        # Validation images of a background model are changed too; below they are read as they are.
        recipe.dataset.pop("replaced_pixels", None)
        if "num_labelled" in recipe.dataset:
            # Of the 36 made training images.
            recipe.dataset |= {"num_labelled": 20, "labelled_per_batch": 2}
        if recipe.dataset["name"] == "digits":
            # All 200 validation images cost nothing at this size.
            recipe.training["per_device_eval_batch_size"] = 200
        elif recipe.family.title == "Local-attention transformers over pixels":
            # Their pictures are drawn pixel by pixel: those of the digits show the same.
            recipe.training["sample_epochs"] = []
        folder = train_recipe(recipe, tmp_path / "run", data_dir=str(data_dir))
        run = json.loads((folder / "run.json").read_text())
        (evaluation,) = run["history"]
        # What overrides its recipe is not its row.
        assert run["row"] == "run"
        assert evaluation["step"] == 2
        loaded = load(folder)
        model, processor = loaded.model, loaded.processor
        for name in ("latent_dim", "num_levels", "hidden_size"):
            assert getattr(model.config, name, None) == recipe.model.get(name)
        assert getattr(processor, "num_levels", None) == recipe.model.get("num_levels")
        return recipe, model, processor, evaluation

    return train


@pytest.mark.parametrize("path", VAE_RECIPES, ids=[path.stem for path in VAE_RECIPES])
def test_every_vae_recipe_trains_saves_loads_and_scores_the_same(path, two_steps, data_dir):
    recipe, model, processor, evaluation = two_steps(path)
    # Untrained networks give every level about the same probability.
    assert evaluation["eval_bits_per_dim"] == pytest.approx(math.log2(recipe.model["num_levels"]), abs=0.3)
    name, batch = recipe.dataset["name"], recipe.training["per_device_eval_batch_size"]
    generator = torch.Generator().manual_seed(3)
    levels = LevelsDataset(load_images(name, "validation", data_dir=data_dir), processor).levels
    scores = torch.cat([model.bits_per_dim(images, generator=generator) for images in levels.split(batch)])
    assert scores.mean().item() == pytest.approx(evaluation["eval_bits_per_dim"], rel=1e-5)


@pytest.mark.parametrize("path", AAE_RECIPES, ids=[path.stem for path in AAE_RECIPES])
def test_every_aae_recipe_trains_saves_loads_and_scores_the_same(path, two_steps, data_dir):
    recipe, model, processor, evaluation = two_steps(path)
    validation = load_images(recipe.dataset["name"], "validation", data_dir=data_dir)
    dataset = LevelsDataset(validation, processor, with_labels=True)
    labels = dataset.labels if model.config.labelled_prior else None
    with torch.no_grad():
        outputs = model(dataset.levels, labels=labels)
    assert outputs.reconstruction_loss.mean().item() == pytest.approx(evaluation["eval_reconstruction_loss"], rel=1e-5)
    if isinstance(model, AAEForImageClassification):
        # Clusters have no names before the training ends.
        assert ("eval_error" in evaluation) == (model.config.num_clusters is None)
        if model.config.num_clusters is None:
            assert classification_error(model, dataset) == pytest.approx(evaluation["eval_error"], abs=1e-6)
        else:
            assert len(model.config.cluster_labels) == model.config.num_clusters


@pytest.mark.parametrize("path", LOCAL_RECIPES, ids=[path.stem for path in LOCAL_RECIPES])
def test_every_local_recipe_trains_saves_loads_and_scores_the_same(path, two_steps, data_dir):
    recipe, model, processor, evaluation = two_steps(path)
    name = recipe.dataset["name"]
    if model.config.reads_text:
        validation = load_text(name, "validation", data_dir=data_dir)
        blocks = TokenBlocksDataset(validation, recipe.dataset["block_size"])
        batch = blocks.gather(range(len(blocks)))
        with torch.no_grad():
            nats = token_nats(model(**batch, use_cache=False).logits, batch["labels"]).sum()
        score, expected = nats.item() / count_bytes(batch["labels"]).sum().item() / math.log(2), "eval_bits_per_byte"
    else:
        dataset = LevelsDataset(load_images(name, "validation", data_dir=data_dir), processor)
        score, expected = model.bits_per_dim(dataset.levels).mean().item(), "eval_bits_per_dim"
    assert score == pytest.approx(evaluation[expected], rel=1e-5)


def test_a_class_conditional_transformer_is_trained_and_scored_with_labels(tmp_path):
    path = next(path for path in LOCAL_RECIPES if path.stem == "local_digits")
    words = ["model.is_class_conditional=true", "model.num_labels=10", "model.hidden_size=16", "training.max_steps=2"]
    words += ["model.intermediate_size=24", "training.sample_epochs=[]"]
    words += ["training.eval_strategy=steps", "training.eval_steps=2", "training.per_device_eval_batch_size=200"]
    folder = train_recipe(load_recipe(path, words), tmp_path / "run")
    (evaluation,) = json.loads((folder / "run.json").read_text())["history"]
    loaded = load(folder)
    model, processor = loaded.model, loaded.processor
    dataset = LevelsDataset(load_images("digits", "validation"), processor, with_labels=True)
    scores = [
        model.bits_per_dim(dataset.levels, labels=labels).mean() for labels in (dataset.labels, 9 - dataset.labels)
    ]
    assert scores[0].item() == pytest.approx(evaluation["eval_bits_per_dim"], rel=1e-5)
    assert scores[0] != scores[1]


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_makes_the_model_of_its_row(path, repository, tmp_path):
    recipe = load_recipe(path)
    recipe.family.arguments(output_dir=str(tmp_path), **recipe.training)
    if path.stem in UNTRAINED:
        assert not (repository / "model_cards" / path.stem).exists()
        pytest.skip("its row is not trained yet")
    published = Results.read(repository / "model_cards" / path.stem)
    assert published.model_type == recipe.family.model_type
    if recipe.family.model_keys is None:
        with torch.device("meta"):
            model = new_model(AutoConfig.for_model(**recipe.model))
        assert model.num_parameters() == published.num_parameters
        assert type(model).__name__ == recipe.family.model_class(recipe.model)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_names_a_seed_and_draws_pictures_before_and_after(path):
    recipe = load_recipe(path)
    training = recipe.training
    assert isinstance(training["seed"], int)
    if recipe.family.thumbnail == "samples" and recipe.family.model_keys is None:
        assert training["sample_epochs"][0] == 0
        assert training["sample_epochs"][-1] == training["num_train_epochs"]
    for reference in recipe.reference:
        assert reference.keys() == {"name", "metric", "value", "source"}


def test_values_from_a_benchmark_are_those_of_its_record():
    # As in the source "benchmarks/pixel_decoders.py: raster, 364 steps".
    words = re.compile(r"benchmarks/(\w+)\.py: (\w+), (\d+) steps")
    references = [reference for path in RECIPES for reference in load_recipe(path).reference]
    own = [(reference, match) for reference in references if (match := words.fullmatch(reference["source"]))]
    assert own
    for reference, match in own:
        name, contestant, num_steps = match.groups()
        run = json.loads((BENCHMARKS / f"{name}.json").read_text())["runs"][contestant]
        assert run["steps"] == int(num_steps)
        assert run["train_seconds"] == pytest.approx(120, rel=0.02)
        score = run[reference["metric"].removesuffix("_after_two_minutes")]
        assert reference["value"] == pytest.approx(score, abs=5e-5)


def test_a_recipe_says_what_it_does_not_mention(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("training: {max_steps: 1}\n")
    recipe = load_recipe(path)
    assert recipe.row == "empty"
    assert recipe.dataset == {"name": "digits"}
    assert recipe.model == {"model_type": "latentgen_vae"}
    assert recipe.reference == []


def test_overrides_replace_values_and_keep_the_rest(tiny):
    recipe = load_recipe(tiny, ["training.learning_rate=1e-4", "model.hidden_channels=[4,4]", "dataset.name=mnist"])
    assert recipe.training["learning_rate"] == 1e-4
    assert recipe.training["max_steps"] == 2
    assert recipe.model["hidden_channels"] == [4, 4]
    assert recipe.dataset["name"] == "mnist"
    assert recipe.overrides == ["training.learning_rate=1e-4", "model.hidden_channels=[4,4]", "dataset.name=mnist"]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("trainings.seed=1", "unknown key trainings; the nearest valid key is training"),
        ("dataset.nam=mnist", "unknown key dataset.nam; the nearest valid key is dataset.name"),
        ("model.latent_dims=3", "unknown key model.latent_dims; the nearest valid key is model.latent_dim"),
        (
            "training.learning_rat=3",
            "unknown key training.learning_rat; the nearest valid key is training.learning_rate",
        ),
        ("training.emadecay=0.9", "unknown key training.emadecay; the nearest valid key is training.ema_decay"),
        ("training.seed", "an override must have the form section.key=value, got 'training.seed'"),
        ("model.model_type=latentgen_vea", r"model.model_type must be one of \['latentgen_vae'.*, got 'latentgen_vea'"),
        ("model.model_type=bert", r"model.model_type must be one of \['latentgen_vae'.*, got 'bert'"),
        # The command names the folder.
        ("training.output_dir=elsewhere", "training.output_dir must be left out of a recipe"),
        ("dataset.name=5", "dataset.name must be a text, in quotes if need be, got 5"),
        ("dataset.streaming=maybe", "dataset.streaming must be true or false, got 'maybe'"),
        ("training=3", "training in .* must be a dict, got 3"),
        ("reference=3", "reference in .* must be a list, got 3"),
        ("seed=3", "unknown key seed; the nearest valid key is"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tiny, override, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_recipe(tiny, [override])


def test_a_recipe_of_several_sizes_is_taken_at_one(tmp_path):
    path = tmp_path / "sizes.yaml"
    path.write_text(
        "size: small\nsizes: {small: {model: {latent_dim: 2}}, large: {model: {latent_dim: 9}}}\n"
        "model: {latent_dim: 1, num_levels: 4}\n"
    )
    assert load_recipe(path).model["latent_dim"] == 2
    assert load_recipe(path, ["size=large"]).model == {"model_type": "latentgen_vae", "latent_dim": 9, "num_levels": 4}
    # What is said of one field counts more than the size.
    assert load_recipe(path, ["size=large", "model.latent_dim=5"]).model["latent_dim"] == 5
    with pytest.raises(ValueError, match="size must be one of small, large, got 'huge'"):
        load_recipe(path, ["size=huge"])
    with pytest.raises(ValueError, match=r"unknown key model\.latent; the nearest valid key is model\.latent_dim"):
        load_recipe(path, ["model.latent=5"])


def test_a_file_that_is_no_recipe_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe and no folder of images at .*missing.yaml"):
        load_recipe(tmp_path / "missing.yaml")
    for text in ("- a list\n", "training: [\n", "training: ${missing}\n"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match="bad.yaml with no overrides is no mapping of sections"):
            load_recipe(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.latent_dim=0", "latent_dim must be at least 1, got 0"),
        ("model.architecture=cnn", "architecture must be one of"),
        ("training.ema_decay=1.5", "ema_decay must be in"),
        ("dataset.name=nothing", "name_or_path must be digits"),
        ("dataset.name=mnist", "mnist was looked for as train-images-idx3-ubyte"),
        ("training.learning_rate=-0.1", "learning_rate must be at least 0 and finite, got -0.1"),
        # These show when a training begins.
        ("training.adam_beta1=2.0", "Invalid beta parameter at index 0: 2.0"),
        (
            "training.per_device_train_batch_size=2000 training.dataloader_drop_last=true",
            "per_device_train_batch_size must be at most 1297",
        ),
    ],
)
def test_bad_values_leave_nothing_behind(tiny, tmp_path, override, complaint):
    with pytest.raises((ValueError, FileNotFoundError, StrictDataclassError), match=complaint):
        train_recipe(load_recipe(tiny, override.split()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_stays(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="Invalid beta parameter"):
        train_recipe(load_recipe(tiny, ["training.adam_beta1=2.0"]), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_run_record(tiny, tmp_path):
    overrides = ["training.eval_strategy=steps", "training.eval_steps=1", "dataset.name=digits"]
    folder = train_recipe(load_recipe(tiny, overrides), tmp_path / "run")
    run = json.loads((folder / "run.json").read_text())
    assert run["row"] == "run"
    # Where a recipe of one's own lies is nobody else's business.
    assert run["config"] == tiny.name
    assert run["overrides"] == overrides
    assert run["train_command"] == f"hf-latentgen train {run['config']} {' '.join(overrides)}"
    assert run["seed"] == 42
    assert 0 <= run["train_seconds"] < 60
    assert "CPU thread" in run["hardware"] or " x " in run["hardware"]
    assert {"python", "torch", "transformers", "hf-latentgen"} <= run["versions"].keys()
    assert run["git_commit"]
    assert run["dataset"] == {"name": "digits"}
    assert run["training"]["max_steps"] == 2
    assert run["num_parameters"] == sum(weight.numel() for weight in load_file(folder / "model.safetensors").values())
    # Published values are of a recipe and its data.
    assert run["reference"] == []
    assert [entry["step"] for entry in run["history"]] == [1, 2]
    assert all(entry["eval_distortion"] > 0 for entry in run["history"])


def test_a_recipe_without_overrides_keeps_its_name_and_references(tiny, tmp_path):
    run = json.loads((train_recipe(load_recipe(tiny), tmp_path / "run") / "run.json").read_text())
    assert run["row"] == "tiny"
    assert run["reference"][0]["value"] == 1.5


def test_two_runs_of_a_recipe_give_the_same_weights(tiny, tmp_path):
    first, second = (train_recipe(load_recipe(tiny), tmp_path / name) for name in ("first", "second"))
    third = train_recipe(load_recipe(tiny, ["training.seed=43"]), tmp_path / "third")
    weights = [load_file(folder / "model.safetensors") for folder in (first, second, third)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_resume_and_fresh_run_ask_for_the_right_folder(tiny, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="cannot resume: .*run holds no complete checkpoint"):
        train_recipe(load_recipe(tiny), run, resume=True)
    assert not run.exists()
    (run / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(ValueError, match="cannot resume: .*run holds no complete checkpoint"):
        train_recipe(load_recipe(tiny), run, resume=True)
    (run / "checkpoint-5" / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match="run holds checkpoint-5 already: resume it, or name another output folder"):
        train_recipe(load_recipe(tiny), run)
    assert [path.name for path in run.rglob("*")] == ["checkpoint-5", "trainer_state.json"]


def test_a_finished_training_takes_no_further_step(tiny, tmp_path):
    words = ["training.max_steps=3", "training.save_strategy=steps", "training.save_steps=3"]
    run = train_recipe(load_recipe(tiny, words), tmp_path / "run")
    before = load_file(run / "model.safetensors")
    train_recipe(load_recipe(tiny, words), run, resume=True)
    after = load_file(run / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    with pytest.raises(ValueError, match="max_steps must be at least the 3 of checkpoint-3, got 2"):
        train_recipe(load_recipe(tiny, [*words, "training.max_steps=2"]), run, resume=True)
    with pytest.raises(ValueError, match=r"model\.latent_dim must be .*, as when it began, got 5"):
        train_recipe(load_recipe(tiny, [*words, "model.latent_dim=5"]), run, resume=True)
    train_recipe(load_recipe(tiny, [*words, "training.max_steps=5"]), run, resume=True)
    assert (run / "checkpoint-3").is_dir()


def test_a_model_without_checkpoints_is_not_replaced(tiny, tmp_path):
    run = train_recipe(load_recipe(tiny, ["training.save_strategy=no"]), tmp_path / "run")
    with pytest.raises(ValueError, match="run holds a model already: name another output folder"):
        train_recipe(load_recipe(tiny), run)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_an_output_folder_that_cannot_be_written_is_refused(tiny, tmp_path, inside):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PermissionError, match="the output folder .*file.* is not writable"):
        train_recipe(load_recipe(tiny), tmp_path / "file" / inside)
    assert (tmp_path / "file").read_text() == "in the way"


def test_tensorboard_shows_the_parts(tiny, tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    words = ["training.report_to=tensorboard", "training.eval_strategy=steps", "training.eval_steps=1"]
    train_recipe(load_recipe(tiny, words), tmp_path / "run")
    events = event_accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    scalars = set(events.Tags()["scalars"])
    for part in ("loss", "distortion", "rate", "bits_per_dim", "beta"):
        assert {f"train/{part}", f"eval/{part}"} <= scalars
    assert [event.step for event in events.Scalars("train/bits_per_dim")] == [1, 2]


def test_trackio_keeps_its_log_on_disk(tiny, tmp_path, monkeypatch):
    # Read when trackio is imported, which no other test does.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    train_recipe(load_recipe(tiny, ["training.report_to=trackio"]), tmp_path / "run")
    assert list((tmp_path / "trackio").glob("*.db"))


def test_a_strategy_can_be_no(tiny):
    recipe = load_recipe(tiny, ["training.save_strategy=no", "training.eval_strategy=no"])
    assert recipe.training["save_strategy"] == recipe.training["eval_strategy"] == "no"


def test_a_recipe_of_ones_own_is_no_row_whatever_its_name(tiny, tmp_path):
    own = tmp_path / "configs" / "vae_digits.yaml"
    own.parent.mkdir()
    own.write_text(tiny.read_text())
    run = json.loads((train_recipe(load_recipe(own), tmp_path / "run") / "run.json").read_text())
    assert run["config"] == "vae_digits.yaml"
