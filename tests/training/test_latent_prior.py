import json

import pytest
import torch
from safetensors.torch import load_file

from hf_latentgen import AAEConfig, AAEForImageClassification, LatentGenPipeline, LatentTrainingArguments, load
from hf_latentgen.evaluation.results import Results
from hf_latentgen.families import PRIOR
from hf_latentgen.families.family import Options, Setup
from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser
from hf_latentgen.rows.evaluation import evaluate, write_evaluation
from hf_latentgen.rows.recipes import load_recipe, train_recipe
from hf_latentgen.training.latent_prior import LatentsDataset, PriorTrainer, encoded
from training_common import AtStep, assert_equal_weights, assert_resumed_is_straight, weights_of

RECIPE = """
dataset: {{name: digits}}
model: {{model_type: latentgen_prior, autoencoder: {autoencoder}, hidden_size: 16, num_blocks: 1}}
training:
  max_steps: 2
  per_device_train_batch_size: 64
  eval_strategy: steps
  eval_steps: 1
  save_strategy: "no"
  logging_steps: 1
  ema_decay: 0.5
"""


def prior_parts(**section):
    return PRIOR.make_parts(Setup(section, {"name": "digits"}, None, seed=0, checkpoint=None))


def save(model, folder, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def autoencoder(make_model, processor, tmp_path):
    """The folder of a VAE."""
    return save(make_model(latent_dim=3), tmp_path / "autoencoder", processor)


@pytest.fixture
def recipe(tmp_path, autoencoder):
    """A recipe that trains two steps."""
    path = tmp_path / "prior_digits.yaml"
    path.write_text(RECIPE.format(autoencoder=autoencoder))
    return path


@pytest.fixture
def make_prior(make_model, digits, processor, tmp_path):
    """A trainer of a new denoiser; keyword arguments are training arguments."""

    def make(folder="run", callbacks=None, **arguments):
        model = make_model(latent_dim=3)
        torch.manual_seed(0)
        train, validation = (encoded(model, images) for images in digits)
        defaults = {"per_device_train_batch_size": 16, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no"}
        return PriorTrainer(
            LatentDenoiser(3, hidden_size=16, num_blocks=1),
            LatentTrainingArguments(output_dir=str(tmp_path / folder), disable_tqdm=True, **(defaults | arguments)),
            autoencoder=model,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=processor,
            callbacks=callbacks,
        )

    return make


def test_parts_that_do_not_fit_are_refused_before_the_training(make_prior):
    trainer = make_prior()
    given = {"autoencoder": trainer.autoencoder, "train_dataset": trainer.train_dataset}
    with pytest.raises(
        ValueError, match="processing_class must be the image processor of the autoencoder, got NoneType"
    ):
        PriorTrainer(trainer.model, trainer.args, **given)
    with pytest.raises(ValueError, match="denoiser must be one of the 3 latents"):
        PriorTrainer(LatentDenoiser(2), trainer.args, processing_class=trainer.processing_class, **given)


def test_training_lowers_the_error_and_leaves_the_autoencoder_alone(make_prior):
    trainer = make_prior(num_train_epochs=60, ema_decay=0.9)
    # Latents far from a standard normal: two points.
    ends = torch.tensor([[-1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]).repeat(32, 1)
    trainer.train_dataset = trainer.eval_dataset = LatentsDataset(ends, torch.full_like(ends, 0.1))
    before = trainer.evaluate()["eval_velocity_mse"]
    untouched = weights_of(trainer.autoencoder)
    trainer.train()
    assert_equal_weights(untouched, weights_of(trainer.autoencoder))
    assert trainer.evaluate()["eval_velocity_mse"] < 0.6 * before
    assert trainer.evaluate()["eval_velocity_mse"] == trainer.evaluate()["eval_velocity_mse"]
    with trainer.evaluated_weights():
        drawn = trainer.pipeline().prior_latents(200, torch.Generator().manual_seed(0))
    # A standard normal has about an eighth of its samples there.
    nearest = torch.cdist(drawn, ends[:2]).min(1)
    assert (nearest.values < 1).float().mean() > 0.5
    assert 40 < (nearest.indices == 0).sum() < 160


def test_one_step_changes_every_trained_layer(make_prior):
    steps = []
    trainer = make_prior(max_steps=1, callbacks=[AtStep(lambda model: steps.append(weights_of(model)))])
    before = weights_of(trainer.model)
    trainer.train()
    changed = {name for name, weight in before.items() if not torch.equal(weight, steps[0][name])}
    # The first layer of a block learns once its last layer is no longer zero.
    assert {"first.weight", "last.weight", "blocks.0.last.weight"} <= changed


def test_latents_are_drawn_anew_from_the_posteriors(make_prior):
    trainer = make_prior()
    batch = trainer.train_dataset.gather([0, 1, 2])
    assert {name: values.shape for name, values in batch.items()} == {"mean": (3, 3), "std": (3, 3)}
    assert torch.equal(trainer.train_dataset[1]["std"], batch["std"][1])
    first, second = (trainer.compute_loss(trainer.model, batch) for _ in range(2))
    assert first != second
    errors = [trainer._errors(trainer.model, batch, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*errors)
    assert errors[0].shape == (3,)


def test_recipe_ends_in_a_pipeline(recipe, autoencoder, tmp_path):
    folder = train_recipe(load_recipe(recipe), tmp_path / "run")
    pipe = LatentGenPipeline.from_pretrained(folder)
    assert pipe.denoiser.config.hidden_size == 16
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert_equal_weights(
        load_file(autoencoder / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    )
    run = json.loads((folder / "run.json").read_text())
    assert run["row"] == "prior_digits"
    assert run["model"]["autoencoder"] == str(autoencoder)
    assert [entry["step"] for entry in run["history"]] == [1, 2]
    assert all(entry["eval_velocity_mse"] > 0 for entry in run["history"])
    assert pipe(2).images[0].size == (8, 8)


def test_latents_are_standardised(autoencoder):
    parts = prior_parts(autoencoder=str(autoencoder), hidden_size=16)
    data, denoiser = parts["train_dataset"], parts["model"]
    drawn = data.means + data.stds * torch.randn(data.means.shape)
    sample = denoiser.standardise(drawn)
    assert sample.mean(0).abs().max() < 0.1
    assert (sample.std(0) - 1).abs().max() < 0.1
    assert len(data) == 1297
    assert len(parts["eval_dataset"]) == 200


def test_resumed_is_straight(make_prior, tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "ema_decay": 0.5}
    options |= {"eval_strategy": "steps", "eval_steps": 4}

    def make(folder, **arguments):
        trainer = make_prior(folder, **arguments)
        # The last folder is compared as that of a model.
        trainer.save_model = lambda *args, **kwargs: super(PriorTrainer, trainer).save_model(*args, **kwargs)
        return trainer

    assert_resumed_is_straight(make, tmp_path, 4, options)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.autoencoder=nowhere/at_all", "cannot load model.autoencoder nowhere/at_all"),
        ("model.hidden_size=15", "hidden_size must be an even number of at least 4, got 15"),
        ("model.hiden_size=16", "unknown key model.hiden_size; the nearest valid key is model.hidden_size"),
        ("dataset.streaming=true", "unknown key dataset.streaming"),
        ("training.sample_epochs=[1]", r"sample_epochs must be empty for a latent prior, got \[1\]"),
    ],
)
def test_mistakes_in_a_recipe(recipe, tmp_path, override, message):
    with pytest.raises((ValueError, OSError), match=message):
        train_recipe(load_recipe(recipe, [override]), tmp_path / "run")


def test_prior_needs_one_group_of_latents_and_a_new_denoiser(recipe, processor, tmp_path):
    torch.manual_seed(0)
    fields = {"architecture": "mlp", "image_size": 8, "latent_dim": 2, "hidden_channels": [16], "num_levels": 16}
    classifier = AAEForImageClassification(AAEConfig(**fields, discriminator_channels=[8], num_labels=10))
    folder = save(classifier, tmp_path / "classifier", processor)
    with pytest.raises(ValueError, match=r"must have a single group of latents, got groups of \[10, 2\]"):
        prior_parts(autoencoder=str(folder))
    with pytest.raises(ValueError, match="must name the checkpoint of an autoencoder"):
        prior_parts()
    with pytest.raises(ValueError, match="must be 'latentgen_prior', .*, got 'latentgen_aae'"):
        train_recipe(load_recipe(recipe), tmp_path / "run", checkpoint=load(folder))
    trained = train_recipe(load_recipe(recipe), tmp_path / "run")
    with pytest.raises(ValueError, match="starts from a new denoiser"):
        train_recipe(load_recipe(recipe), tmp_path / "another", checkpoint=load(trained))


def test_evaluation_scores_both_priors(recipe, processor, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_latentgen.families.prior.NUM_DRAWN", 300)
    torch.manual_seed(0)
    # The judge reads other levels than the autoencoder.
    fields = {"architecture": "mlp", "image_size": 8, "latent_dim": 2, "hidden_channels": [16], "num_levels": 256}
    judge = AAEForImageClassification(AAEConfig(**fields, discriminator_channels=[8], num_labels=2))
    judge_folder = tmp_path / "judge"
    judge.save_pretrained(judge_folder)
    type(processor)(size={"height": 8, "width": 8}, num_levels=256).save_pretrained(judge_folder)
    run = train_recipe(load_recipe(recipe), tmp_path / "run")
    with pytest.raises(ValueError, match="classifier must be given for a latent diffusion prior"):
        evaluate(load(run))
    evaluation = evaluate(load(run), options=Options(classifier=load(judge_folder)))
    folder = write_evaluation(evaluation, run, tmp_path / "row")
    results = Results.read(folder)
    for name in ("in_domain_frechet_distance", "in_domain_frechet_distance_of_means", "in_domain_coverage"):
        assert results.metrics[name] >= 0
        assert results.metrics[f"{name}_of_own_prior"] >= 0
    reachable = results.diagnostics["in_domain_frechet_distance_of_train"]
    assert results.metrics["in_domain_frechet_distance"] > reachable
    assert results.num_parameters == LatentDenoiser(3, hidden_size=16, num_blocks=1).num_parameters()
    assert results.model["latent_dim"] == 3
    assert results.autoencoder["model_type"] == "latentgen_vae"
    pictures = sorted(path.name for path in (folder / "images").iterdir())
    assert pictures == [
        "history.png",
        "samples.png",
        "samples_above_nearest_training_images.png",
        "samples_mean.png",
        "samples_own_prior.png",
        "samples_own_prior_mean.png",
    ]
    assert LatentGenPipeline.from_pretrained(folder).denoiser is not None
    # A second evaluation replaces the first one.
    assert write_evaluation(evaluation, run, folder) == folder
    # A published row, which has no run.json, is scored with what its results tell.
    again = evaluate(load(folder), options=Options(classifier=load(judge_folder))).results
    assert again.metrics == results.metrics
    assert again.model == results.model
