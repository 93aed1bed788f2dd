"""Batches that are gathered at once, and are lists of samples for whoever does not know them."""

from collections.abc import Callable, Iterator, Sequence

import torch


class GatheredBatch(Sequence):
    """The samples of one batch, cut out of `columns` only when they are asked for.

    columns: tensors [B, ...] by name.
    """

    def __init__(self, columns: dict[str, torch.Tensor]):
        self.columns = columns

    def __len__(self) -> int:
        """Number of samples."""
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One sample: tensors [...] by name."""
        return {name: values[index] for name, values in self.columns.items()}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The samples one after another."""
        return (dict(zip(self.columns, values, strict=True)) for values in zip(*self.columns.values(), strict=True))


class GatheredDataset(torch.utils.data.Dataset):
    """Examples in memory, from which a whole batch is gathered at once by `gather`, which a subclass defines."""

    def gather(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Tensors [B, ...] by name."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One sample: tensors [...] by name."""
        return GatheredBatch(self.gather([index]))[0]

    def __getitems__(self, indices: Sequence[int]) -> GatheredBatch:
        """The samples of a batch; `collate_levels` takes them without cutting them apart."""
        return GatheredBatch(self.gather(indices))


def collate_levels(batch: GatheredBatch | list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Tensors [B, ...] by name: a batch gathered at once as it is, a list of samples stacked."""
    if isinstance(batch, GatheredBatch):
        return batch.columns
    return {name: torch.stack([sample[name] for sample in batch]) for name in batch[0]}


def collate_known(collator: Callable, names: list[str], batch: dict | list[dict]) -> dict[str, torch.Tensor]:
    """What a collator makes of the named columns of a batch, gathered at once or a list of examples."""
    if isinstance(batch, dict):
        return collator({name: values for name, values in batch.items() if name in names})
    return collator([{name: value for name, value in example.items() if name in names} for example in batch])
