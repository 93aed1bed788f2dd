"""Data to a compressed file and back, chunk by chunk: memory does not grow with the number of images."""

import io
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from hf_latentgen.coding.arithmetic import build, config_digest, entropy_coder, fixed_arithmetic, frozen, weights_sha256
from hf_latentgen.coding.codecs import Codec, codec_for
from hf_latentgen.coding.container import CompressedFileError, Header, Info, Writer, check_names, checksum, read_info
from hf_latentgen.models.configuration_latentgen import check_processor
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_latentgen import LatentGenModel, check_levels
from hf_latentgen.models.tokenization_bytes import ByteTokenizer

# Groups that are coded at once, each in a thread of its own. Every one needs its own keys and values.
MOST_WORKERS = 4
# Chunks that stay one group.
UNDIVIDED = 16
DAMAGED = "is damaged: its CRC differs"
NEEDS_ANOTHER = "cannot be read: with adapt=True it needs a chunk that is damaged"


@dataclass(frozen=True)
class Chunk:
    """A part of a file that was decoded on its own.

    Args:
        index: its number in the file.
        items: the images or bytes it holds.
        data: levels [N, C, H, W] or bytes [N], uint8; None if it cannot be read.
        error: why not.
    """

    index: int
    items: range
    data: np.ndarray | None
    error: CompressedFileError | None


def compress(
    model: LatentGenModel,
    processor: LevelsImageProcessor | ByteTokenizer,
    data: Any,
    *,
    names: Sequence[str] = (),
    adapt: bool = False,
    verify: bool = True,
) -> bytes:
    """The data as a compressed file that the same model decodes bit for bit.

    Args:
        model: one with a likelihood. It is copied, and not changed.
        processor: the image processor or the tokenizer of the model.
        data: of a model of images, levels [N, C, H, W], or any iterable of PIL images or of levels [C, H, W]; of a
            byte model, bytes or a binary file.
        names: one for each image, kept in the file.
        adapt: a byte model learns from what it has coded: smaller, slower, and a damaged chunk costs all after it.
        verify: decode each chunk before it is written, and compare; twice the time.

    Raises:
        ImportError: constriction is not installed.
        ValueError: the model has no likelihood or weights that are not finite; images of another size, mode or range
            than the model's, or that its levels do not represent exactly; not one name for each image.
        ArithmeticError: what was decoded is not what was encoded.
    """
    file = io.BytesIO()
    _write(file, model, processor, data, names, adapt, verify)
    return file.getvalue()


def compress_to(
    path: str | os.PathLike,
    model: LatentGenModel,
    processor: LevelsImageProcessor | ByteTokenizer,
    data: Any,
    *,
    overwrite: bool = False,
    names: Sequence[str] = (),
    adapt: bool = False,
    verify: bool = True,
) -> Info:
    """Write what `compress` returns to a file, chunk by chunk, and say what it holds. Arguments and errors as there.

    The file appears when it is whole; whatever fails before leaves nothing.

    Raises:
        FileExistsError: there is such a file, and `overwrite` is False.
        FileNotFoundError: there is no folder to write it into.
        IsADirectoryError: it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} must be a file to write, got a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; it is replaced with overwrite=True (--force)")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} must be a folder to write {path.name} into, found none")
    with ExitStack() as stack:
        # Beside the file, because a rename within a folder is one step.
        file = cast(BinaryIO, tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False))  # noqa: SIM115
        stack.callback(Path(file.name).unlink, missing_ok=True)
        with file:
            _write(file, model, processor, data, names, adapt, verify)
        # A temporary file is its owner's alone; this one may be read by whom any new file may.
        mask = os.umask(0)
        os.umask(mask)
        Path(file.name).chmod(0o666 & ~mask)
        Path(file.name).replace(path)
    with path.open("rb") as written:
        return read_info(written)


def decompress(
    model: LatentGenModel, processor: LevelsImageProcessor | ByteTokenizer, compressed: bytes | BinaryIO
) -> Tensor | bytes:
    """Levels of the images, uint8 [N, C, H, W], or the bytes, as they were compressed.

    Raises:
        ImportError: constriction is not installed.
        CompressedFileError: the file is foreign, truncated or damaged, in which case the chunk is named, or was
            written with another model, other weights, or another build.
    """
    file = io.BytesIO(compressed) if isinstance(compressed, bytes) else compressed
    info = read_info(file)
    # Damage is found before anything is decoded, which takes long.
    for chunk in range(len(info.entries)):
        if info.payload(file, chunk) is None:
            raise cast(CompressedFileError, _unread(info, chunk, DAMAGED).error)
    parts = []
    for chunk in decompress_from(file, model, processor):
        if chunk.data is None:
            raise cast(CompressedFileError, chunk.error)
        parts.append(chunk.data)
    if isinstance(processor, ByteTokenizer):
        return b"".join(part.tobytes() for part in parts)
    empty = np.empty((0, *_shape(model)), np.uint8)
    return torch.from_numpy(np.concatenate([empty, *parts]))


def decompress_from(
    file: bytes | BinaryIO, model: LatentGenModel, processor: LevelsImageProcessor | ByteTokenizer
) -> Iterator[Chunk]:
    """The chunks of a compressed file in order, one group in memory for each worker. Errors as in `decompress`.

    A chunk that cannot be read comes without data and with its error, and the others come all the same.
    """
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    info = read_info(file)
    twin = frozen(model)
    codec = codec_for(twin, info.header.adapt)
    _check_processor(model, processor)
    _check_reader(info.header, _header(twin, codec, info.header.adapt, info.header.model_id))
    groups = _groups_in_step(range(len(info.entries)), codec.group)
    read = ((group, [info.payload(file, chunk) for chunk in group]) for group in groups)
    is_lost = False

    def decode(work: tuple[list[int], list[bytes | None]]) -> list[Chunk]:
        nonlocal is_lost
        group, payloads = work
        if is_lost:
            return [_unread(info, chunk, NEEDS_ANOTHER) for chunk in group]
        found = _decode_group(info, codec, group, payloads)
        is_lost = info.header.adapt and any(chunk.data is None for chunk in found)
        return found

    with fixed_arithmetic():
        for chunks in _in_order(decode, read, 1 if info.header.adapt else _workers()):
            yield from chunks


def _write(
    file: BinaryIO,
    model: LatentGenModel,
    processor: LevelsImageProcessor | ByteTokenizer,
    data: Any,
    names: Sequence[str],
    adapt: bool,
    verify: bool,
) -> None:
    check_names(names)
    twin = frozen(model)
    codec = codec_for(twin, adapt)
    # A model that learns is in another state once it has encoded.
    checker = codec_for(twin, adapt) if adapt else codec
    _check_processor(model, processor)
    writer = Writer(file, _header(twin, codec, adapt, _name_of(model)))
    chunks = (
        _chunks_of_bytes(data, codec.chunk)
        if adapt or codec.name == "bytes"
        else _chunks_of_images(data, cast(LevelsImageProcessor, processor), codec.chunk)
    )

    def encode(group: list[np.ndarray]) -> list[tuple[bytes, np.ndarray]]:
        payloads = codec.encode(group)
        if verify:
            decoded = checker.decode(payloads, [len(chunk) for chunk in group])
            if not all(map(np.array_equal, group, decoded)):
                raise ArithmeticError("what was decoded is not what was encoded: the arithmetic of this machine varies")
        return list(zip(payloads, group, strict=True))

    values = int(np.prod(writer.header.shape))
    with fixed_arithmetic(), logging.tqdm(desc="compress", unit="B" if not writer.header.shape else "images") as bar:
        for coded in _in_order(encode, _groups_in_step(chunks, codec.group), 1 if adapt else _workers()):
            for payload, chunk in coded:
                writer.add(payload, chunk)
                bar.update(len(chunk))
            bar.set_postfix_str(f"{8 * writer.size / (writer.count * values):.4f} bits/dim")
    writer.finish(names)


def _decode_group(info: Info, codec: Codec, group: list[int], payloads: list[bytes | None]) -> list[Chunk]:
    lengths = [len(info.items(chunk)) for chunk in group]
    try:
        found = codec.decode([payload or b"" for payload in payloads], lengths) if any(payloads) else None
    # What constriction and the codecs say of words that no encoder has written.
    except (AssertionError, ValueError):
        found = None
    chunks = []
    for row, (chunk, payload) in enumerate(zip(group, payloads, strict=True)):
        data = None if found is None else found[row]
        if payload is None:
            chunks.append(_unread(info, chunk, DAMAGED))
        elif data is None or checksum(data.tobytes(), info.header, chunk) != info.entries["data"][chunk]:
            machines = f"this machine, {build()['platform']!r}, computes otherwise than {info.header.platform!r}"
            is_learned = info.header.adapt and None in payloads
            reason = NEEDS_ANOTHER if is_learned else f"does not decode to what was compressed: {machines}"
            chunks.append(_unread(info, chunk, reason))
        else:
            chunks.append(Chunk(chunk, info.items(chunk), data, None))
    return chunks


def _unread(info: Info, chunk: int, reason: str) -> Chunk:
    items = info.items(chunk)
    place = f"chunk {chunk} ({'images' if info.header.shape else 'bytes'} {items[0]} to {items[-1]})"
    return Chunk(chunk, items, None, CompressedFileError(f"{place} {reason}"))


def _header(twin: LatentGenModel, codec: Codec, adapt: bool, model_id: str) -> Header:
    is_bytes = codec.name == "bytes"
    entropy_coder()
    return Header(
        codec=codec.name,
        model_id=model_id,
        model_type=twin.config.model_type,
        config_digest=config_digest(twin),
        weights_sha256=weights_sha256(twin),
        shape=() if is_bytes else _shape(twin),
        num_levels=256 if is_bytes else twin.config.num_levels,
        chunk=codec.chunk,
        batch=codec.batch,
        adapt=adapt,
        **build(),
    )


def _check_reader(written: Header, own: Header) -> None:
    """Raise CompressedFileError for the first thing that a reader does not share with the writer."""
    fields = ["model_type", "config_digest", "shape", "num_levels", "weights_sha256", "torch", "constriction"]
    for field in [*fields, "codec", "chunk", "batch"]:
        expected, found = getattr(written, field), getattr(own, field)
        if expected != found:
            raise CompressedFileError(
                f"{field} must be {expected!r}, with which {written.model_id} compressed the file, got {found!r}"
            )


def _check_processor(model: LatentGenModel, processor: LevelsImageProcessor | ByteTokenizer) -> None:
    if model.config.reads_text != isinstance(processor, ByteTokenizer):
        expected = "a tokenizer" if model.config.reads_text else "an image processor"
        raise ValueError(f"processor must be {expected} for a {model.kind}, got {type(processor).__name__}")
    if not model.config.reads_text:
        check_processor(model.config, processor)


def _shape(model: LatentGenModel) -> tuple[int, int, int]:
    return (model.config.num_channels, model.config.image_size, model.config.image_size)


def _name_of(model: LatentGenModel) -> str:
    """The name on the Hub, or of the folder without the path to it, which is nobody's business."""
    name = str(model.config._name_or_path)
    return Path(name).resolve().name if Path(name).exists() else name


def _chunks_of_bytes(data: bytes | BinaryIO, size: int) -> Iterator[np.ndarray]:
    file = io.BytesIO(data) if isinstance(data, bytes | bytearray | memoryview) else data
    while part := file.read(size):
        if not isinstance(part, bytes):
            raise ValueError(f"data must be bytes or a binary file, got a file of {type(part).__name__}")
        yield np.frombuffer(part, np.uint8)


def _chunks_of_images(data: Any, processor: LevelsImageProcessor, size: int) -> Iterator[np.ndarray]:
    channels, image_size = processor.num_channels, cast(int, processor.size.height)
    for part in _slices(data, size):
        images = (
            part if isinstance(part, np.ndarray) else np.concatenate([exact_levels(image, processor) for image in part])
        )
        check_levels(torch.as_tensor(images), channels, image_size, processor.num_levels)
        yield np.ascontiguousarray(images, dtype=np.uint8)


def _slices(data: Any, size: int) -> Iterator[np.ndarray | list]:
    if isinstance(data, Tensor | np.ndarray):
        array = np.asarray(data.cpu() if isinstance(data, Tensor) else data)
        yield from (array[start : start + size] for start in range(0, len(array), size))
    else:
        yield from _groups(iter(data), size)


def exact_levels(image: Image.Image | Tensor | np.ndarray, processor: LevelsImageProcessor) -> np.ndarray:
    """Levels of one image. [1, C, H, W].

    Raises:
        ValueError: a picture has another size or mode, or values that no level stands for.
    """
    if not isinstance(image, Image.Image):
        return np.asarray(image)[None]
    levels = processor(image, do_resize=False, do_convert_rgb=False, return_tensors="np")["pixel_values"]
    if processor.post_process_images(levels)[0].tobytes() != image.tobytes():
        allowed = f"the grey values of num_levels={processor.num_levels} levels, as post_process_images gives them"
        remedy = "they would not come back; compress processor(images)['pixel_values'] instead"
        raise ValueError(f"images must stand upright, without an EXIF turn, and hold {allowed}, got others: {remedy}")
    return levels


def _groups_in_step(chunks: Iterable, most: int) -> Iterator[list]:
    """Groups of at most `most` chunks, the last two or four equally large, so that two cores have work to the end.

    They depend on nothing but the number of chunks, which a reader knows from the start and a writer at the end.
    """
    ahead = []
    for chunk in chunks:
        ahead.append(chunk)
        if len(ahead) > 4 * most:
            yield ahead[:most]
            ahead = ahead[most:]
    # A few gain nothing: most of their time goes to the weights.
    parts = 1 if len(ahead) <= min(most, UNDIVIDED) else 2 * math.ceil(len(ahead) / (2 * most))
    yield from _groups(ahead, math.ceil(len(ahead) / parts))


def _groups(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def _workers() -> int:
    return min(os.cpu_count() or 1, MOST_WORKERS)


def _in_order(function: Callable, items: Iterable, workers: int) -> Iterator:
    """What the function makes of each item, in order; few items more than there are workers are read ahead."""
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
