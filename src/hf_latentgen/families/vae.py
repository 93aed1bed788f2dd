"""Variational autoencoders."""

from pathlib import Path

import torch
from PIL import Image

from hf_latentgen.evaluation.baselines import image_baselines
from hf_latentgen.evaluation.latents import (
    active_units,
    aggregate_posterior_metrics,
    linear_probe_accuracy,
    posterior_moments,
)
from hf_latentgen.evaluation.likelihood import MOST_SAMPLES, evaluate_likelihood, sample_seconds, untrained_metrics
from hf_latentgen.evaluation.metrics import best_baseline, main_reference, show, tighter_bounds
from hf_latentgen.evaluation.pictures import image_grid
from hf_latentgen.evaluation.results import Results
from hf_latentgen.evaluation.samples import autoencoder_pictures, memory_check, prior_samples, reconstruction_mse
from hf_latentgen.families.family import Data, Family, Measured, Options
from hf_latentgen.families.inputs import image_codes, image_data, image_parts
from hf_latentgen.hub.loading import Checkpoint
from hf_latentgen.models.hub import IMAGE_TASK
from hf_latentgen.models.modeling_latentgen import LatentGenModel
from hf_latentgen.training.elbo import ELBOTrainer

NUM_SAMPLES = 64


def measure(checkpoint: Checkpoint, data: Data, options: Options) -> Measured:
    """The scores of a model on all test images. A linear probe needs labels of two classes."""
    measured = measure_likelihood(checkpoint, data, options)
    measured.metrics["reconstruction_mse"] = reconstruction_mse(checkpoint.model, data.test.levels, options.batch_size)
    return measured


def measure_likelihood(checkpoint: Checkpoint, data: Data, options: Options) -> Measured:
    """The scores without the error of reconstructions, for which an image needs a mean."""
    model, train, test = checkpoint.model, data.train, data.test
    batch_size, seed = options.batch_size, options.seed
    _lay_out(model, options)
    if options.compile:
        model.compile_likelihood()
    num_samples = MOST_SAMPLES if options.num_importance_samples is None else options.num_importance_samples
    metrics = evaluate_likelihood(model, test.levels, batch_size, seed, num_samples).metrics()
    means, stds = posterior_moments(model, test.levels, batch_size)
    metrics["active_units"] = active_units(means)
    if train.labels is not None and test.labels is not None and len(train.labels.unique()) > 1:
        train_means, _ = posterior_moments(model, train.levels, batch_size)
        labels = train.labels.numpy(), test.labels.numpy()
        metrics["linear_probe_accuracy"] = linear_probe_accuracy(train_means, labels[0], means, labels[1])
    diagnostics = untrained_metrics(model, test.levels, batch_size, seed)
    diagnostics |= aggregate_posterior_metrics(means, stds)
    samples = prior_samples(model, NUM_SAMPLES, seed, ["sample"])["sample"]
    diagnostics |= memory_check(samples, train.levels, test.levels, model.config.num_levels)
    return Measured(
        metrics, diagnostics, image_baselines(data.train, data.validation, data.test, model.config.num_levels)
    )


def seconds_per_sample(checkpoint: Checkpoint, data: Data, options: Options) -> float:
    """Seconds that one importance sample of every test image takes."""
    _lay_out(checkpoint.model, options)
    return sample_seconds(checkpoint.model, data.test.levels, options.batch_size)


def verify(checkpoint: Checkpoint, data: Data, options: Options) -> dict[str, float]:
    """The bound and its parts, and the reconstruction error."""
    error = reconstruction_mse(checkpoint.model, data.test.levels, options.batch_size)
    return verify_likelihood(checkpoint, data, options) | {"reconstruction_mse": error}


def verify_likelihood(checkpoint: Checkpoint, data: Data, options: Options) -> dict[str, float]:
    """The bound and its parts."""
    return evaluate_likelihood(
        checkpoint.model, data.test.levels, options.batch_size, options.seed, num_importance_samples=0
    ).metrics()


def draw(checkpoint: Checkpoint, data: Data, results: Results, seed: int) -> dict[str, Image.Image]:
    """Samples, their means and modes, reconstructions, interpolations, the latent plane."""
    model = checkpoint.model
    pictures = autoencoder_pictures(model, data.train, data.test, seed)
    samples = prior_samples(model, NUM_SAMPLES, seed, ["mode", "mean"])
    grids = {f"samples_{kind}": image_grid(samples[kind], model.config.num_levels) for kind in ("mode", "mean")}
    return pictures | grids


def columns(results: Results) -> dict[str, str]:
    """Cells by the title of their column; the reference is the first one in bits per dimension."""
    return {
        "Parameters": f"{results.num_parameters:,}",
        "Bits/dim (bound)": show(results, "bits_per_dim"),
        "Nats (bound)": show(results, "negative_elbo_nats"),
        "Nats (tighter bound)": "; ".join(tighter_bounds(results)) or "-",
        "Reference": main_reference(results, "bits_per_dim"),
        "Best baseline": best_baseline(results)[1],
    }


def _lay_out(model: LatentGenModel, options: Options) -> None:
    """The weights with their channels last, where convolutions are fastest so."""
    if options.compile or options.bf16:
        torch.nn.Module.to(model, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


VAE = Family(
    model_type="latentgen_vae",
    title="Variational autoencoders",
    classes={"VAEModel": IMAGE_TASK},
    trainer=ELBOTrainer,
    make_parts=image_parts,
    load_data=image_data,
    measure=measure,
    seconds_per_sample=seconds_per_sample,
    baselines=image_codes,
    verify=verify,
    draw=draw,
    columns=columns,
    template=Path(__file__).with_name("vae.md.jinja"),
    options=("num_importance_samples", "budget", "compile", "bf16"),
    tags=("variational-autoencoder", "image-generation"),
    captions={
        "samples_mean.png": "Samples from the prior: the mean level of each pixel",
        "samples.png": "The same latents, each pixel drawn from its distribution",
    },
    thumbnail="samples_mean",
    best_by=("mnist", "bits_per_dim"),
)
