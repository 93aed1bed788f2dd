"""Samples judged in the features of an in-domain classifier of the same images."""

import numpy as np
import torch
from torch import Tensor

from hf_latentgen.data import LevelsDataset
from hf_latentgen.evaluation.distances import class_histogram_kl, coverage_and_recall, frechet_distance
from hf_latentgen.evaluation.samples import spread_indices
from hf_latentgen.models.modeling_latentgen import LatentGenModel


def in_domain_scores(
    classifier: LatentGenModel,
    samples: Tensor,
    train: LevelsDataset,
    test: LevelsDataset,
    batch_size: int,
    num_levels: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of samples in the feature space of a classifier of the same images, and what real images score.

    The Frechet distance is that of the features of the samples to those of the test images, never to be compared with
    one from another classifier; `in_domain_frechet_distance_of_train`, that of training
    images, is about what can be reached.

    Raises:
        ValueError: the classifier reads images of another size or number of levels.
    """
    shape, read = tuple(train.levels.shape[1:]), classifier.config.num_levels
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
    baseline = {"in_domain_frechet_distance_of_train": frechet_distance(features["real"], features["seen"])}
    if test.labels is not None:
        error = float((torch.from_numpy(classes["real"]) != test.labels).float().mean())
        baseline["in_domain_classifier_test_error"] = error
    return scores, baseline


@torch.no_grad()
def classifier_features(classifier: LatentGenModel, levels: Tensor, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Features before the last layer [N, F] and most likely classes [N] of images."""
    classifier.eval()
    features, classes = [], []
    for batch in levels.split(batch_size):
        batch = batch.to(classifier.device)
        features.append(classifier.features(batch).cpu())
        classes.append(classifier.classify(batch).argmax(1).cpu())
    return torch.cat(features).numpy(), torch.cat(classes).numpy()
