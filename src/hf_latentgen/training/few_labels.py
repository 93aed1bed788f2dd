"""Training images of which only a few have labels."""

from collections.abc import Sequence

import torch

from hf_latentgen.data import LevelsDataset
from hf_latentgen.data.batches import GatheredDataset
from hf_latentgen.models.modeling_aae import UNLABELLED


class FewLabelsDataset(GatheredDataset):
    """Images whose labels are forgotten but for `num_labelled`, equally many of each class.

    Each image of a batch brings a labelled one along, until `labelled_per_batch` of them follow the batch: without
    them, a batch would rarely hold a label. Which one is fixed by the number of the image, so that nothing is drawn
    and a resumed training sees the same batches.

    Args:
        dataset: levels with labels.
        num_labelled: images that keep their label; a multiple of the number of classes.
        labelled_per_batch: labelled images added to a batch, which are never more than it has already.
        seed: of the choice of the labelled images.

    Raises:
        ValueError: the data set has no labels, or too few images of a class, or a number is out of range.
    """

    def __init__(self, dataset: LevelsDataset, num_labelled: int, labelled_per_batch: int, seed: int):
        if dataset.labels is None:
            raise ValueError("dataset must hold labels, got one without")
        classes, counts = dataset.labels.unique(return_counts=True)
        most = len(classes) * int(counts.min())
        if not 1 <= num_labelled <= most or num_labelled % len(classes):
            raise ValueError(f"num_labelled must be a multiple of {len(classes)}, at most {most}, got {num_labelled}")
        if labelled_per_batch < 1:
            raise ValueError(f"labelled_per_batch must be at least 1, got {labelled_per_batch}")
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
        chosen = [order[dataset.labels[order] == number][: num_labelled // len(classes)] for number in classes.tolist()]
        # Class by class in turn, so that any run of consecutive ones holds all classes.
        self.labelled = torch.stack(chosen, 1).flatten()
        self.labelled_per_batch = labelled_per_batch
        self.levels = dataset.levels
        self.labels = dataset.labels

    def __len__(self) -> int:
        """Number of images, the labelled ones included."""
        return len(self.levels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`pixel_values`: uint8 levels [C, H, W]; `labels`: -100."""
        return {"pixel_values": self.levels[index], "labels": torch.tensor(UNLABELLED)}

    def gather(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """`pixel_values`: uint8 levels [B + L, C, H, W]; `labels`: int64 [B + L], -100 for the first B."""
        rows = torch.as_tensor(indices)
        companions = self.labelled[rows[: self.labelled_per_batch] % len(self.labelled)]
        unlabelled = torch.full((len(rows),), UNLABELLED)
        return {
            "pixel_values": self.levels[torch.cat([rows, companions])],
            "labels": torch.cat([unlabelled, self.labels[companions]]),
        }
