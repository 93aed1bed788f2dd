"""Adversarial autoencoders, and those that classify."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hf_latentgen.evaluation.clusters import classification_error
from hf_latentgen.evaluation.distances import energy_distance_test, moment_scores, parzen_log_likelihood
from hf_latentgen.evaluation.features import in_domain_scores
from hf_latentgen.evaluation.latents import linear_probe_accuracy
from hf_latentgen.evaluation.metrics import main_reference, show, show_spread
from hf_latentgen.evaluation.pictures import image_grid
from hf_latentgen.evaluation.results import Results
from hf_latentgen.evaluation.samples import (
    NUM_SAMPLES,
    autoencoder_pictures,
    code_samples,
    drawn_samples,
    memory_check,
    reconstruction_mse,
    spread_indices,
)
from hf_latentgen.families.family import Data, Family, Measured, Options, Setup
from hf_latentgen.families.inputs import image_data, image_parts
from hf_latentgen.hub.loading import Checkpoint
from hf_latentgen.models.hub import IMAGE_TASK
from hf_latentgen.training.adversarial import AdversarialTrainer
from hf_latentgen.training.arguments import AdversarialTrainingArguments

CLASSIFIER_TASK = "image-classification"
NUM_DRAWN = 10_000
# Codes compared with as many samples of the prior: a matrix of all distances is permuted.
NUM_COMPARED = 2_000
NUM_STYLES = 10
NUM_VALIDATION = 1_000
BANDWIDTHS = tuple(float(bandwidth) for bandwidth in np.geomspace(0.08, 0.5, 12))


def parts(setup: Setup) -> dict:
    """Arguments of the trainer by name; training images bring labels, unless clusters are sought."""
    section = setup.model if setup.checkpoint is None else setup.checkpoint.model.config.to_dict()
    needs_labels = AAE.task(section) == CLASSIFIER_TASK or bool(section.get("labelled_prior"))
    return image_parts(setup, needs_labels, needs_labels and section.get("num_clusters") is None)


def measure(checkpoint: Checkpoint, data: Data, options: Options) -> Measured:
    """The scores of a model on all test images, and further numbers that tell whether to trust them.

    What needs labels is left out where the images have none, and what needs an in-domain classifier without one.
    """
    model, (train, validation, test) = checkpoint.model, data
    batch_size, seed = options.batch_size, options.seed
    metrics = verify(checkpoint, data, options)
    codes = code_samples(model, test.levels, batch_size, seed)
    compared = codes[spread_indices(len(codes), min(NUM_COMPARED, len(codes)))]
    generator = torch.Generator().manual_seed(seed)
    drawn = model.prior.sample(len(compared), torch.empty(0), generator).numpy()
    distance, p_value = energy_distance_test(compared, drawn, seed=seed)
    metrics |= {"code_energy_distance": distance, "code_energy_p_value": p_value}
    if train.labels is not None and test.labels is not None and len(train.labels.unique()) > 1:
        train_codes = code_samples(model, train.levels, batch_size, seed)
        labels = train.labels.numpy(), test.labels.numpy()
        metrics["linear_probe_accuracy"] = linear_probe_accuracy(train_codes, labels[0], codes, labels[1])
    samples = drawn_samples(model, NUM_DRAWN, seed)
    last_level = model.config.num_levels - 1
    parzen, error, bandwidth = parzen_log_likelihood(
        samples.flatten(1) / last_level,
        validation.levels[:NUM_VALIDATION].flatten(1) / last_level,
        test.levels.flatten(1) / last_level,
        BANDWIDTHS,
    )
    metrics |= {"parzen_nats": parzen, "parzen_nats_standard_error": error}
    diagnostics = {"parzen_bandwidth": bandwidth}
    if options.classifier is not None:
        num_levels = model.config.num_levels
        scores, real = in_domain_scores(options.classifier.model, samples, train, test, batch_size, num_levels)
        metrics |= scores
        diagnostics |= real
    diagnostics |= memory_check(samples[:NUM_SAMPLES], train.levels, test.levels, model.config.num_levels)
    return Measured(metrics, diagnostics)


def verify(checkpoint: Checkpoint, data: Data, options: Options) -> dict[str, float]:
    """The classification error of a classifier, the reconstruction errors, and the moments of the codes."""
    model, test, metrics = checkpoint.model, data.test, {}
    if model.hub_task == CLASSIFIER_TASK and test.labels is not None:
        metrics["test_error"] = classification_error(model, test, options.batch_size)
    mse = reconstruction_mse(model, test.levels, options.batch_size)
    # The range [-1, 1] is twice as wide as [0, 1].
    metrics |= {"reconstruction_mse_minus1_1": 4 * mse, "reconstruction_mse": mse}
    return metrics | moment_scores(code_samples(model, test.levels, options.batch_size, options.seed))


def draw(checkpoint: Checkpoint, data: Data, results: Results, seed: int) -> dict[str, Image.Image]:
    """Samples, reconstructions, interpolations, the latent plane, styles of a classifier."""
    model = checkpoint.model
    pictures = autoencoder_pictures(model, data.train, data.test, seed)
    if model.hub_task == CLASSIFIER_TASK:
        grid = model.style_grid(NUM_STYLES, torch.Generator().manual_seed(seed))
        pictures["styles"] = image_grid(
            grid,
            model.config.num_levels,
            columns=model.num_codes,
            row_labels=[f"style {number + 1}" for number in range(NUM_STYLES)],
            column_labels=model.code_names,
        )
    return pictures


def columns(results: Results) -> dict[str, str]:
    """Cells by the title of their column."""
    return {
        "lambda": f"{results.model['reconstruction_weight']:g}",
        "MSE on [-1, 1]": show(results, "reconstruction_mse_minus1_1"),
        "Codes: largest mean": show(results, "code_max_abs_mean"),
        "Codes: std": f"{show(results, 'code_min_std')} to {show(results, 'code_max_std')}",
        "Frechet, in-domain": show(results, "in_domain_frechet_distance"),
        "Coverage": show(results, "in_domain_coverage"),
        "Recall": show(results, "in_domain_recall"),
        "Class KL": show(results, "class_histogram_kl_nats"),
        "Test error": show_spread(results, "test_error"),
        "Reference": main_reference(results, "test_error"),
    }


AAE = Family(
    model_type="latentgen_aae",
    title="Adversarial autoencoders",
    classes={"AAEModel": IMAGE_TASK, "AAEForImageClassification": CLASSIFIER_TASK},
    trainer=AdversarialTrainer,
    arguments=AdversarialTrainingArguments,
    dataset_keys=("name", "streaming", "skip_broken", "allow_grey", "num_labelled", "labelled_per_batch", "label_seed"),
    make_parts=parts,
    load_data=image_data,
    measure=measure,
    verify=verify,
    draw=draw,
    columns=columns,
    template=Path(__file__).with_name("aae.md.jinja"),
    options=("classifier",),
    # Five of 10,000 images may be taken for another class by another processor.
    tolerances={"test_error": 5e-4},
    history=("reconstruction_loss", "reconstruction loss"),
    tags=("adversarial-autoencoder", "image-generation"),
    best_by=("mnist", "in_domain_frechet_distance"),
)
