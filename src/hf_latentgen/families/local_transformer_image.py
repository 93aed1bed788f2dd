"""Local-attention transformers over pixels."""

from pathlib import Path

from PIL import Image

from hf_latentgen.evaluation.baselines import image_baselines
from hf_latentgen.evaluation.likelihood import exact_metrics, fresh_model, image_nats
from hf_latentgen.evaluation.metrics import best_baseline, main_reference, show
from hf_latentgen.evaluation.pictures import image_grid, reconstruction_grid
from hf_latentgen.evaluation.results import Results
from hf_latentgen.evaluation.samples import (
    COMPLETION_COLUMNS,
    NUM_RECONSTRUCTIONS,
    NUM_SAMPLES,
    SAMPLE_AND_NEAREST,
    completions,
    memory_check,
    nearest_images,
    prior_samples,
)
from hf_latentgen.families.family import Data, Family, Measured, Options, Setup
from hf_latentgen.families.inputs import image_codes, image_data, image_parts
from hf_latentgen.hub.loading import Checkpoint
from hf_latentgen.models.bits import nats_to_bits_per_dim
from hf_latentgen.models.hub import IMAGE_TASK
from hf_latentgen.training.likelihood import LikelihoodTrainer


def parts(setup: Setup) -> dict:
    """Arguments of the trainer by name; a class-conditional model is told the classes of all images."""
    section = setup.model if setup.checkpoint is None else setup.checkpoint.model.config.to_dict()
    is_conditional = bool(section.get("is_class_conditional"))
    return image_parts(setup, needs_labels=is_conditional, is_taught=is_conditional)


def measure(checkpoint: Checkpoint, data: Data, options: Options) -> Measured:
    """The exact likelihood of all test images, and further numbers that tell whether to trust it."""
    model = checkpoint.model
    metrics = exact_metrics(model, data.test, options.batch_size)
    untrained = image_nats(fresh_model(model, options.seed), data.test, options.batch_size).mean()
    diagnostics = {"untrained_bits_per_dim": float(nats_to_bits_per_dim(untrained, model.config.num_dims))}
    samples = prior_samples(model, NUM_SAMPLES, options.seed, ("sample",))["sample"]
    diagnostics |= memory_check(samples, data.train.levels, data.test.levels, model.config.num_levels)
    return Measured(
        metrics, diagnostics, image_baselines(data.train, data.validation, data.test, model.config.num_levels)
    )


def verify(checkpoint: Checkpoint, data: Data, options: Options) -> dict[str, float]:
    """The exact likelihood of all test images."""
    return exact_metrics(checkpoint.model, data.test, options.batch_size)


def draw(checkpoint: Checkpoint, data: Data, results: Results, seed: int) -> dict[str, Image.Image]:
    """Samples, alone and above the nearest training images, and completions."""
    model = checkpoint.model
    num_levels = model.config.num_levels
    samples = prior_samples(model, NUM_SAMPLES, seed, ("sample",))["sample"]
    nearest, _ = nearest_images(samples[:NUM_RECONSTRUCTIONS], data.train.levels)
    return {
        "samples": image_grid(samples, num_levels),
        "samples_above_nearest_training_images": reconstruction_grid(
            samples[:NUM_RECONSTRUCTIONS], data.train.levels[nearest], num_levels, labels=SAMPLE_AND_NEAREST
        ),
        "completions": image_grid(
            completions(model, data.test, seed),
            num_levels,
            columns=len(COMPLETION_COLUMNS),
            column_labels=COMPLETION_COLUMNS,
        ),
    }


def columns(results: Results) -> dict[str, str]:
    """Cells by the title of their column."""
    return {
        "Parameters": f"{results.num_parameters:,}",
        "Bits/dim (exact)": show(results, "exact_bits_per_dim"),
        "Nats (exact)": show(results, "nll_nats"),
        "Reference": main_reference(results, "exact_bits_per_dim"),
        "Best baseline": best_baseline(results)[1],
    }


LOCAL_TRANSFORMER_IMAGE = Family(
    model_type="latentgen_local_transformer_image",
    title="Local-attention transformers over pixels",
    classes={"LocalTransformerForImageGeneration": IMAGE_TASK},
    trainer=LikelihoodTrainer,
    make_parts=parts,
    load_data=image_data,
    measure=measure,
    baselines=image_codes,
    verify=verify,
    draw=draw,
    columns=columns,
    template=Path(__file__).with_name("local_transformer_image.md.jinja"),
    tags=("autoregressive", "local-attention", "image-generation"),
    # A transformer has neither a prior nor latents.
    captions={"samples.png": "Samples", "samples_mode.png": "Samples, each pixel at its most likely level"},
    best_by=("mnist", "exact_bits_per_dim"),
)
