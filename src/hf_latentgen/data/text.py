"""Texts with fixed splits, and the batch path that packs them into blocks of byte ids."""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetInfo, Features, IterableDataset, NamedSplit, Value
from datasets.table import InMemoryTable

from hf_latentgen.data.batches import GatheredDataset
from hf_latentgen.data.sources import DATA_DIR_VARIABLE, HUB_ID, SPLITS, data_root, load_hub, split_name, walk_files
from hf_latentgen.models.tokenization_bytes import BOS_TOKEN_ID, EOS_TOKEN_ID, PAD_TOKEN_ID, bytes_from_text

# The file of each named text, below a folder of that name.
NAMED_TEXTS = {"tinyshakespeare": "input.txt"}
# Percent of `train` that becomes `validation`, and again `test`, where a source has none.
HELD_OUT_PERCENT = 5
# A label that the losses of transformers leave out.
IGNORED_LABEL = -100

# The bytes [start, stop) of a file; None stands for its end.
Span = tuple[Path, int, int | None]


def load_text(
    name_or_path: str | os.PathLike = "tinyshakespeare",
    split: str = "train",
    *,
    data_dir: str | os.PathLike | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    r"""One split of a set of documents: column `text`, the bytes of each document as `str`.

    Files are read as bytes: nothing is stripped, line ends stay, and a binary file is fine. What is not UTF-8 is
    carried by `surrogateescape`, see [`ByteTokenizer`]; Arrow cannot store that as a string, so then, and only then,
    the column holds bytes that are decoded whenever they are read.

    name_or_path: one of
        `tinyshakespeare`: 1,115,394 bytes of plays; the file `input.txt`.
        the path of a file: one document.
        the path of a folder: one document per file, in the order of their paths; hidden and empty files are left out.
            When it holds `train/` or `train.txt` (with any ending, in any case), then its `train`, `validation` and
            `test` are the splits, and nothing else is read. Links are followed.
        a Hub id `owner/name`, with a column `text` or a single column of strings.
    split: `train`, `validation` or `test`.
    data_dir: for the named text, the folder that holds `tinyshakespeare/input.txt`; the environment variable
        HF_LATENTGEN_DATA says the same.
    streaming: return an `IterableDataset`, which reads files and Hub ids as it goes.

    Where the source has no `validation` or no `test`, each is cut from the end of `train`: with neither, the splits are
    the first 90 %, the next 5 % and the last 5 %, cut at `size * 90 // 100` and `size * 95 // 100`. A single file is
    cut by bytes, each cut moved back by up to three bytes to where a UTF-8 character begins; several files, and the
    rows of a Hub id, are cut by their number.

    Raises: ValueError for an unknown name or split, or where a split would hold no text; FileNotFoundError naming the
    file looked for and where; OSError naming a file that cannot be read.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    if name_or_path in NAMED_TEXTS:
        spans = _split_files([_find_named(str(name_or_path), data_dir)], split, SPLITS[1:], str(name_or_path))
    # The empty path is the working folder to pathlib.
    elif str(name_or_path) and Path(name_or_path).is_file():
        spans = _split_files([Path(name_or_path)], split, SPLITS[1:], str(name_or_path))
    elif str(name_or_path) and Path(name_or_path).is_dir():
        spans = _split_folder(Path(name_or_path), split)
    elif HUB_ID.fullmatch(str(name_or_path)):
        return _split_hub(str(name_or_path), split, streaming)
    else:
        raise ValueError(
            f"name_or_path must be {', '.join(NAMED_TEXTS)}, an existing file or folder or a Hub id owner/name, "
            f"got {str(name_or_path)!r}."
        )
    if streaming:
        return IterableDataset.from_generator(
            _generate_documents,
            features=Features({"text": Value("large_string")}),
            gen_kwargs={"spans": spans},
            split=NamedSplit(split),
        )
    return dataset_from_documents([_read(span) for span in spans], split)


class TokenBlocksDataset(GatheredDataset):
    """Byte ids of all documents, packed into blocks of equal length, from which a whole batch is gathered at once.

    Documents stand one behind the other, each as `[BOS, *bytes, EOS]`, with the ids of [`ByteTokenizer`]. A block
    begins with the last id of the one before, so that every id but the BOS of each document is predicted exactly once.
    The last block is filled up with padding.

    A batch has no `attention_mask`. Where `position_ids` go back to 0, the masks of transformers begin a new document,
    to whose tokens all before are invisible; they look for it only when there is neither an attention mask nor a cache,
    so pass `use_cache=False`. Each padding token is a document of its own.

    A stream is read to its end. `input_ids`: int16 [N, T].

    Raises: ValueError when `block_size` is below 2, or the data set has no column `text` or no document.
    """

    def __init__(self, dataset: Dataset | IterableDataset, block_size: int):
        _check_blocks(dataset, block_size)
        batches = dataset.select_columns(["text"]).iter(batch_size=128)
        self.input_ids = _pack((text for batch in batches for text in cast(dict[str, list], batch)["text"]), block_size)

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.input_ids)

    def gather(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids`, `labels`: int64 [B, T].

        Positions count from the beginning of the document or of the block, whichever is later. Labels are the ids, with
        -100 where the position is 0: what precedes a document says nothing about it, and padding is not scored.
        """
        return _examples(self.input_ids[torch.as_tensor(indices)])


def stream_token_blocks(dataset: IterableDataset, block_size: int) -> IterableDataset:
    """Stream of the examples of [`TokenBlocksDataset`]; each 128 documents are packed on their own.

    Raises: ValueError when `block_size` is below 2 or the data set has no column `text`.
    """
    _check_blocks(dataset, block_size)

    def to_blocks(batch: dict[str, list]) -> dict[str, torch.Tensor]:
        return _examples(_pack(batch["text"], block_size))

    return dataset.select_columns(["text"]).map(to_blocks, batched=True, batch_size=128, remove_columns=["text"])


def _check_blocks(dataset: Dataset | IterableDataset, block_size: int) -> None:
    """Raise `ValueError` as `TokenBlocksDataset` says."""
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 2:
        raise ValueError(f"block_size must be an integer of at least 2, got {block_size!r}.")
    columns = dataset.column_names or []
    if "text" not in columns:
        raise ValueError(f"dataset must have a column 'text', got {', '.join(columns) or 'none'}.")


def _pack(texts: Iterable[str], block_size: int) -> torch.Tensor:
    """Ids of documents in overlapping blocks, a view of one line of ids. int16 [N, T]."""
    pieces = []
    for text in texts:
        pieces += [[BOS_TOKEN_ID], np.frombuffer(bytes_from_text(text), np.uint8), [EOS_TOKEN_ID]]
    if not pieces:
        raise ValueError("dataset must hold at least one document, got an empty data set.")
    length, stride = sum(map(len, pieces)), block_size - 1
    num_blocks = -(-(length - 1) // stride)
    pieces.append(np.full(num_blocks * stride + 1 - length, PAD_TOKEN_ID))
    ids = np.concatenate(pieces, dtype=np.int16, casting="same_kind")
    return torch.from_numpy(ids).unfold(0, block_size, stride)


def _examples(blocks: torch.Tensor) -> dict[str, torch.Tensor]:
    """`input_ids`, `position_ids` and `labels` of blocks of ids. [B, T]."""
    input_ids = blocks.long()
    index = torch.arange(blocks.shape[1])
    is_start = (input_ids == BOS_TOKEN_ID) | (input_ids == PAD_TOKEN_ID)
    position_ids = index - torch.where(is_start, index, 0).cummax(dim=1).values
    labels = input_ids.masked_fill(position_ids == 0, IGNORED_LABEL)
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


def _find_named(name: str, data_dir: str | os.PathLike | None) -> Path:
    """The file of a named text. Raises: FileNotFoundError saying what was looked for and where."""
    root, file = data_root(data_dir), NAMED_TEXTS[name]
    if root and (root / name / file).is_file():
        return root / name / file
    where = root / name if root else f"no folder, as neither data_dir nor {DATA_DIR_VARIABLE} is set"
    raise FileNotFoundError(f"{name} was looked for as {file} in {where}.")


def _split_folder(folder: Path, split: str) -> list[Span]:
    """The files of one split of a folder."""
    stored: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        name = path.stem if path.is_file() else path.name
        stored.setdefault(split_name(name), []).append(path)
    if "train" not in stored:
        return _split_files(_documents(folder), split, SPLITS[1:], str(folder))
    files = {name: [file for path in stored[name] for file in _documents(path)] for name in SPLITS if name in stored}
    held_in, missing = _stored_split(files, split)
    return _split_files(files[held_in], split, missing, str(folder))


def _documents(path: Path) -> list[Path]:
    """The file itself, or the files below a folder in the order of their paths, without hidden and empty ones."""
    if path.is_file():
        return [path]
    files = [path / file for file in walk_files(path)]
    return [file for file in files if not file.is_file() or file.stat().st_size > 0]


def _stored_split(available: Collection[str], split: str) -> tuple[str, tuple[str, ...]]:
    """Name of the stored split that holds `split`, and the splits that have to be cut from it."""
    missing = tuple(name for name in SPLITS[1:] if name not in available)
    return (split, ()) if split in SPLITS[1:] and split in available else ("train", missing)


def _share(total: int, split: str, missing: tuple[str, ...]) -> tuple[int, int]:
    """Where `split` begins and ends among `total` things, the splits in `missing` being cut from the end."""
    if not missing:
        return 0, total
    parts = ("train", *missing)
    stops = [total * (100 - HELD_OUT_PERCENT * (len(missing) - index)) // 100 for index in range(len(parts))]
    index = parts.index(split)
    return (stops[index - 1] if index else 0), stops[index]


def _split_files(files: list[Path], split: str, missing: tuple[str, ...], source: str) -> list[Span]:
    """What one split reads of these files: a part of a single file, or some of several files."""
    if not files:
        raise ValueError(f"{source} must hold at least one file that is not empty, found none.")
    if len(files) > 1:
        start, stop = _share(len(files), split, missing)
        if start == stop:
            raise _too_small(source, split, f"{len(files)} documents")
        return [(file, 0, None) for file in files[start:stop]]
    content = _read((files[0], 0, None))
    if not content:
        raise ValueError(f"{files[0]} must hold text, got an empty file.")
    start, stop = (_character_start(content, cut) for cut in _share(len(content), split, missing))
    if start == stop:
        raise _too_small(source, split, f"{len(content)} bytes")
    return [(files[0], start, stop)]


def _too_small(source: str, split: str, size: str) -> ValueError:
    return ValueError(f"{source} is too small to be cut into splits: of its {size} none are left for {split!r}.")


def _character_start(content: bytes, cut: int) -> int:
    """`cut`, moved back by up to three bytes to where a UTF-8 character begins."""
    for start in range(cut, max(cut - 4, -1), -1):
        # Bytes 10xxxxxx continue a character.
        if start == len(content) or content[start] & 0xC0 != 0x80:
            return start
    return cut


def _read(span: Span) -> bytes:
    """The bytes of a span. Raises: OSError naming the file."""
    path, start, stop = span
    try:
        return path.read_bytes()[start:stop]
    except OSError as error:
        raise OSError(error.errno, f"name_or_path must name readable files, got {path}: {error.strerror}") from error


def _decode(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _decode_column(batch: dict[str, list]) -> dict[str, list]:
    """The batch with its texts decoded; other columns are those that a user has added."""
    return {name: list(map(_decode, values)) if name == "text" else values for name, values in batch.items()}


def _generate_documents(spans: list[Span]) -> Iterator[dict[str, str]]:
    for span in spans:
        yield {"text": _decode(_read(span))}


def dataset_from_documents(documents: list[bytes], split: str) -> Dataset:
    """Documents as a data set with a column `text`, held in memory; the column is as [`load_text`] says."""
    column = pa.array(documents, pa.large_binary())
    try:
        return _dataset_from_column(column.cast(pa.large_string()), "large_string", split)
    # Not UTF-8: Arrow has no string for it.
    except pa.ArrowInvalid:
        dataset = _dataset_from_column(column, "large_binary", split)
        return dataset.with_transform(_decode_column)


def _dataset_from_column(column: pa.Array, dtype: str, split: str) -> Dataset:
    info = DatasetInfo(features=Features({"text": Value(dtype)}))
    return Dataset(InMemoryTable(pa.table({"text": column})), info=info, split=NamedSplit(split))


def _split_hub(hub_id: str, split: str, streaming: bool) -> Dataset | IterableDataset:
    """One split of a data set on the Hub, with a column `text`."""
    splits = load_hub(hub_id, f"{hub_id} was looked for as a file or folder", streaming)
    named = {split_name(str(name)): dataset for name, dataset in splits.items()}
    held_in, missing = _stored_split(named, split)
    if held_in not in named:
        allowed = ", ".join(name for name in SPLITS if name in named) or "none"
        raise ValueError(f"split must be one of {allowed} for {hub_id}, got {split!r}.")
    dataset = _rename_text(named[held_in], hub_id)
    if not missing:
        return dataset
    num_rows = _num_rows(dataset)
    if num_rows is None:
        told = f"{hub_id} has no {' and no '.join(missing)} split and does not state its number of rows"
        raise ValueError(f"{told}, so a stream cannot be cut; load it with streaming=False.")
    start, stop = _share(num_rows, split, missing)
    if start == stop:
        raise _too_small(hub_id, split, f"{num_rows} rows")
    return dataset.skip(start).take(stop - start)


def _num_rows(dataset: Dataset | IterableDataset) -> int | None:
    """Number of rows, for a stream as its source states it, or None."""
    if isinstance(dataset, Dataset):
        return len(dataset)
    stated = (dataset.info.splits or {}).get(str(dataset.split))
    return stated.num_examples or None if stated else None


def _rename_text(dataset: Dataset | IterableDataset, source: str) -> Dataset | IterableDataset:
    """Only one column: `text`, or the one column of strings under that name."""
    features = dataset.features
    if features is None:
        raise ValueError(f"{source} does not state its columns, which streaming needs; load it with streaming=False.")
    texts = (Value("string"), Value("large_string"))
    strings = [name for name, feature in features.items() if feature in texts]
    names = ["text"] if "text" in strings else strings
    if len(names) != 1:
        raise ValueError(f"{source} must have a column 'text' or one column of strings, got {list(features)}.")
    dataset = dataset.select_columns(names)
    return dataset if names == ["text"] else dataset.rename_column(names[0], "text")
