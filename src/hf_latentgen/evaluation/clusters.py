"""Clusters found without labels: their names, and the error they make as classes."""

import torch

from hf_latentgen.data import LevelsDataset
from hf_latentgen.models.modeling_latentgen import LatentGenModel


@torch.no_grad()
def name_clusters(model: LatentGenModel, validation: LevelsDataset, batch_size: int = 128) -> list[int]:
    """The class of each cluster: the label of the validation image that belongs to it most surely.

    Source: Makhzani et al. (2015), section 6.

    Raises:
        ValueError: the images have no labels.
    """
    if validation.labels is None:
        raise ValueError("validation must hold labels: clusters get their names from them")
    training = model.training
    model.eval()
    batches = validation.levels.split(batch_size)
    probabilities = torch.cat([model.code_probabilities(batch.to(model.device)).cpu() for batch in batches])
    model.train(training)
    return validation.labels[probabilities.argmax(0)].tolist()


@torch.no_grad()
def classification_error(model: LatentGenModel, dataset: LevelsDataset, batch_size: int = 128) -> float:
    """Fraction of images whose most likely class is not their label. The model is put into `eval()` mode.

    Raises:
        ValueError: the images have no labels, or the model's clusters no names.
    """
    if dataset.labels is None:
        raise ValueError("dataset must hold labels to measure an error")
    if model.config.num_clusters is not None and model.config.cluster_labels is None:
        raise ValueError("cluster_labels must be set before an error is measured: see name_clusters")
    model.eval()
    predicted = [model.classify(batch.to(model.device)).argmax(1).cpu() for batch in dataset.levels.split(batch_size)]
    return float((torch.cat(predicted) != dataset.labels).float().mean())
