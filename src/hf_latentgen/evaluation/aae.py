"""What is measured of an adversarial autoencoder, and drawn."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_latentgen.data import LevelsDataset
from hf_latentgen.evaluation.clusters import classification_error
from hf_latentgen.evaluation.distances import (
    class_histogram_kl,
    coverage_and_recall,
    energy_distance_test,
    frechet_distance,
    moment_scores,
    parzen_log_likelihood,
)
from hf_latentgen.evaluation.latents import linear_probe_accuracy
from hf_latentgen.evaluation.pictures import history_plot, image_grid
from hf_latentgen.evaluation.samples import (
    NUM_SAMPLES,
    autoencoder_pictures,
    nearest_images,
    reconstruction_mse,
    spread_indices,
)
from hf_latentgen.models.modeling_aae import AAEModel
from hf_latentgen.models.modeling_aae_classification import AAEForImageClassification

NUM_DRAWN = 10_000
# Codes compared with as many samples of the prior: a matrix of all distances is permuted.
NUM_COMPARED = 2_000
NUM_STYLES = 10
NUM_VALIDATION = 1_000
BANDWIDTHS = tuple(float(bandwidth) for bandwidth in np.geomspace(0.08, 0.5, 12))


def measure(
    model: AAEModel,
    train: LevelsDataset,
    validation: LevelsDataset,
    test: LevelsDataset,
    batch_size: int = 128,
    seed: int = 0,
    classifier: AAEForImageClassification | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """The scores of a model on all test images, and further numbers that tell whether to trust them.

    What needs labels is left out where the images have none, and what needs an in-domain classifier without one.
    """
    metrics = {}
    if isinstance(model, AAEForImageClassification) and test.labels is not None:
        metrics["test_error"] = classification_error(model, test, batch_size)
    mse = reconstruction_mse(model, test.levels, batch_size)
    # The range [-1, 1] is twice as wide as [0, 1].
    metrics |= {"reconstruction_mse_minus1_1": 4 * mse, "reconstruction_mse": mse}
    codes = code_samples(model, test.levels, batch_size, seed)
    metrics |= moment_scores(codes)
    compared = codes[spread_indices(len(codes), min(NUM_COMPARED, len(codes)))]
    generator = torch.Generator().manual_seed(seed)
    drawn = model.prior.sample(len(compared), torch.empty(0), generator).numpy()
    distance, p_value = energy_distance_test(compared, drawn, seed=seed)
    metrics |= {"code_energy_distance": distance, "code_energy_p_value": p_value}
    if train.labels is not None and test.labels is not None:
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
    if classifier is not None:
        in_domain, floor = in_domain_scores(classifier, samples, train, test, batch_size, model.config.num_levels)
        metrics |= in_domain
        diagnostics |= floor
    # Samples much nearer to the training images than unseen images are would be memorised ones.
    unseen = test.levels[spread_indices(len(test), NUM_SAMPLES)]
    for name, levels in (("samples", samples[:NUM_SAMPLES]), ("test_images", unseen)):
        distances = nearest_images(levels, train.levels)[1] / last_level
        diagnostics[f"nearest_training_image_rmse_of_{name}"] = float(distances.mean())
    return metrics, diagnostics


def draw(
    model: AAEModel, train: LevelsDataset, test: LevelsDataset, results: dict, seed: int
) -> dict[str, Image.Image]:
    """The pictures of a row by name."""
    pictures = autoencoder_pictures(model, train, test, seed)
    if isinstance(model, AAEForImageClassification):
        grid = model.style_grid(NUM_STYLES, torch.Generator().manual_seed(seed))
        pictures["styles"] = image_grid(grid, model.config.num_levels, columns=model.num_codes)
    if results["history"]:
        label = "reconstruction loss"
        pictures["history"] = history_plot(results["history"], metric="reconstruction_loss", label=label)
    return pictures


@torch.no_grad()
def code_samples(model: AAEModel, levels: Tensor, batch_size: int = 128, seed: int = 0) -> np.ndarray:
    """A code (for a classifier: a style) from the posterior of each image. [N, latent_dim].

    Shape: `levels` [N, C, H, W]. The model is put into `eval()` mode.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    batches = levels.split(batch_size)
    return torch.cat([model.encode(batch.to(model.device)).sample(generator).cpu() for batch in batches]).numpy()


def drawn_samples(model: AAEModel, num_images: int, seed: int = 0, batch_size: int = 500) -> Tensor:
    """Images from the prior, as the decoder gives them: real levels. [num_images, C, H, W]."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(batch_size, num_images - start) for start in range(0, num_images, batch_size)]
    return torch.cat([model.sample(size, generator, output="mean").cpu() for size in sizes])


def in_domain_scores(
    classifier: AAEForImageClassification,
    samples: Tensor,
    train: LevelsDataset,
    test: LevelsDataset,
    batch_size: int = 128,
    num_levels: int | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of samples in the feature space of a classifier of the same images, and what real images score.

    The Frechet distance is that of the features of the samples to those of the test images, never to be compared with
    one from another classifier; `in_domain_frechet_distance_of_train` is its floor.

    Raises:
        ValueError: the classifier reads images of another size or number of levels.
    """
    shape, read = tuple(train.levels.shape[1:]), classifier.config.num_levels
    num_levels = read if num_levels is None else num_levels
    if num_levels != read:
        raise ValueError(f"classifier must read images of {num_levels} levels, got one for {read}")
    expected = (classifier.config.num_channels, *(classifier.config.image_size,) * 2)
    if shape != expected:
        raise ValueError(f"classifier must read images of shape {list(shape)}, got one for {list(expected)}")
    real, fake = test.levels, samples.round().long()
    seen = train.levels[spread_indices(len(train), min(len(test), len(train)))]
    features, classes = {}, {}
    for name, levels in (("real", real), ("fake", fake), ("seen", seen)):
        features[name], classes[name] = classifier_features(classifier, levels.clamp(0, num_levels - 1), batch_size)
    num_classes = classifier.config.num_classes
    coverage = coverage_and_recall(features["real"], features["fake"])
    scores = {
        "in_domain_frechet_distance": frechet_distance(features["real"], features["fake"]),
        "class_histogram_kl_nats": class_histogram_kl(classes["fake"], classes["real"], num_classes),
        "in_domain_coverage": coverage["coverage"],
        "in_domain_recall": coverage["recall"],
        "in_domain_precision": coverage["precision"],
        "in_domain_density": coverage["density"],
    }
    floor = {"in_domain_frechet_distance_of_train": frechet_distance(features["real"], features["seen"])}
    if test.labels is not None:
        error = float((torch.from_numpy(classes["real"]) != test.labels).float().mean())
        floor["in_domain_classifier_test_error"] = error
    return scores, floor


@torch.no_grad()
def classifier_features(
    classifier: AAEForImageClassification, levels: Tensor, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features before the last layer [N, F] and most likely classes [N] of images."""
    classifier.eval()
    features, classes = [], []
    for batch in levels.split(batch_size):
        batch = batch.to(classifier.device)
        features.append(classifier.features(batch).cpu())
        classes.append(classifier.classify(batch).argmax(1).cpu())
    return torch.cat(features).numpy(), torch.cat(classes).numpy()
