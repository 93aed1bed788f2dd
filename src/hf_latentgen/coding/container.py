"""The file format: what stands where in a compressed file, and what is said of one that is not whole.

    magic | length and CRC of the header | header | payload of each chunk | index | length and CRC of the index | end

The header says who can read the file, the index how many items it holds, where each chunk lies and what it must decode
to. The index stands at the end because a stream does not know its length before.
"""

import io
import json
import math
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np

MAGIC, END = b"\x8eHLG\r\n\x1a\n", b"GLH\x8e"
FORMAT_VERSION = 3
# Words of usual headers, which a file then need not spell. A change is a new FORMAT_VERSION.
_USUAL = (
    b'"bits-back","vae_mnist_4bit","latentgen_vlae","latentgen_vae","pixels","local_mnist_4bit","bytes","local_'
    b'shakespeare","latentgen_local_transformer_image","latentgen_local_transformer","Darwin arm64 DEFAULT",[3,32,32],'
    b'256,"2.13.0","2.13.0+cpu","0.5.0","0.1.0","Linux x86_64 AVX2","Linux x86_64 AVX512",[1,28,28],16,2048,16,false]'
    b"[1,28,28],2,512,128,false][],256,65536,1,true][],256,65536,1,false]"
)
# Of the digests of a header: the configuration's, 8 bytes, and the weights'.
_DIGESTS = 40
_PREFIX = struct.Struct("<HHI")
_COUNT = struct.Struct("<Q")
_SUFFIX = struct.Struct("<II4s")
# Bytes of the payload, its CRC, and the CRC of what it decodes to.
_ENTRY = np.dtype([("length", "<u4"), ("payload", "<u4"), ("data", "<u4")])


class CompressedFileError(ValueError):
    """A compressed file is damaged, foreign, or was written by another model or build than the one that reads it."""


def check_names(names: Sequence[str]) -> None:
    """Raise `ValueError` unless each name can be that of a file below a folder, on every system, beside the others."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.name or ".." in path.parts or set("\\:\0") & set(name):
            raise ValueError(f"names must be those of files below a folder, without \\ and :, got {name!r}")
    known = Counter(map(PurePosixPath, names))
    if wrong := [str(path) for path in known if known[path] > 1 or not known.keys().isdisjoint(path.parents)]:
        raise ValueError(f"names must differ from each other, and from the folders of others, got {wrong[0]!r}")


@dataclass(frozen=True)
class Header:
    """What a reader must share with the writer.

    Args:
        codec: "pixels", "bits-back" or "bytes".
        model_id: where the model came from, to tell a person.
        model_type: of the configuration.
        config_digest: of all fields of the configuration, 16 hexadecimal digits.
        weights_sha256: of all weights as float64, with their names and shapes.
        torch: version and build.
        constriction: version of the entropy coder.
        package: version of this package.
        platform: system, processor and its vector instructions.
        shape: of one item: [C, H, W] of an image, [] of a byte.
        num_levels: values that an element can take.
        chunk: items of a chunk, which is decoded on its own.
        batch: chunks, or images, that the model sees at once.
        adapt: the model learns while it codes.
    """

    codec: str
    model_id: str
    model_type: str
    config_digest: str
    weights_sha256: str
    torch: str
    constriction: str
    package: str
    platform: str
    shape: tuple[int, ...]
    num_levels: int
    chunk: int
    batch: int
    adapt: bool

    def pack(self) -> bytes:
        """The beginning of a file."""
        fields = list(astuple(self))
        digests, fields[3:5] = fields[3:5], []
        words = json.dumps(fields, separators=(",", ":")).encode()
        packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS, zdict=_USUAL)
        content = bytes.fromhex("".join(digests)) + packer.compress(words) + packer.flush()
        return MAGIC + _PREFIX.pack(FORMAT_VERSION, len(content), zlib.crc32(content)) + content

    @classmethod
    def unpack(cls, content: bytes) -> "Header":
        """The header whose `pack` has this content after the prefix."""
        words = zlib.decompressobj(-zlib.MAX_WBITS, _USUAL).decompress(content[_DIGESTS:])
        fields: list[Any] = json.loads(words)
        digests = content[:_DIGESTS].hex()
        fields[3:3] = [digests[:16], digests[16:]]
        header = cls(*fields)
        return replace(header, shape=tuple(header.shape))


@dataclass(frozen=True)
class Info:
    """What a file says of itself.

    Args:
        header: who can read it.
        count: images, or bytes.
        names: of each image, or one of all bytes; empty where none were given.
        entries: length of the payload, its CRC and that of the data, of each chunk. Structured array [chunks].
        start: where the first payload begins, in bytes.
        size: of the whole file, in bytes.
    """

    header: Header
    count: int
    names: tuple[str, ...]
    entries: np.ndarray
    start: int
    size: int

    @property
    def bits_per_dim(self) -> float:
        """Bits of the file, all that it holds included, for each value of an image or each byte."""
        return 8 * self.size / (self.count * math.prod(self.header.shape)) if self.count else math.nan

    def items(self, chunk: int) -> range:
        """Which images or bytes a chunk holds."""
        return range(chunk * self.header.chunk, min((chunk + 1) * self.header.chunk, self.count))

    def payload(self, file: BinaryIO, chunk: int) -> bytes | None:
        """The payload of a chunk, or None if it is damaged."""
        file.seek(self.start + int(self.entries["length"][:chunk].astype(np.int64).sum()))
        payload = file.read(int(self.entries["length"][chunk]))
        return payload if checksum(payload, self.header, chunk) == self.entries["payload"][chunk] else None


def checksum(content: bytes, header: Header, chunk: int) -> int:
    """CRC-32 of bytes that differs between places in a file and between files of other headers."""
    return zlib.crc32(content, zlib.crc32(header.pack() + _COUNT.pack(chunk)))


class Writer:
    """Writes header, chunks and index to a stream that is never read or rewound."""

    def __init__(self, file: BinaryIO, header: Header):
        self.file, self.header = file, header
        self.entries: list[tuple[int, int, int]] = []
        self.count = 0
        self.size = file.write(header.pack())

    def add(self, payload: bytes, data: np.ndarray) -> None:
        """Write a chunk. `data`: what it decodes to, as uint8, its first axis counting items."""
        chunk, content = len(self.entries), data.tobytes()
        sums = checksum(payload, self.header, chunk), checksum(content, self.header, chunk)
        self.entries.append((len(payload), *sums))
        self.count += len(data)
        self.size += self.file.write(payload)

    def finish(self, names: Sequence[str]) -> None:
        """Write the index.

        Raises:
            ValueError: there are names, but not one for each image, or not one of the bytes.
        """
        wanted = self.count if self.header.shape else 1
        if names and len(names) != wanted:
            raise ValueError(f"names must be {wanted}, one for each image or one of all bytes, got {len(names)}")
        listed = zlib.compress(json.dumps(list(names), separators=(",", ":")).encode(), 9) if names else b""
        index = _COUNT.pack(self.count) + np.array(self.entries, _ENTRY).tobytes() + listed
        sum_of_index = zlib.crc32(index, zlib.crc32(self.header.pack()))
        self.size += self.file.write(index + _SUFFIX.pack(len(index), sum_of_index, END))


def read_info(file: BinaryIO | bytes) -> Info:
    """What a compressed file says of itself; no model is needed.

    Raises:
        CompressedFileError: it is foreign, of another version, truncated, or its header or index is damaged.
    """
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        raise CompressedFileError(f"magic must be {MAGIC!r}: this is no compressed file of hf-latentgen, or is damaged")
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise CompressedFileError(f"file is truncated: it ends in its header, after {size} bytes")
    version, length, expected = _PREFIX.unpack(prefix)
    if version != FORMAT_VERSION:
        raise CompressedFileError(f"version must be {FORMAT_VERSION}, got {version}")
    content = file.read(length)
    if len(content) < length or zlib.crc32(content) != expected:
        raise CompressedFileError("header is damaged or truncated: its CRC differs")
    header = Header.unpack(content)
    start = file.tell()
    file.seek(max(size - _SUFFIX.size, start))
    suffix = file.read(_SUFFIX.size)
    if len(suffix) < _SUFFIX.size or suffix[-len(END) :] != END:
        raise CompressedFileError(f"file is truncated, or more follows its end: it does not end in {END!r}")
    length, expected, _ = _SUFFIX.unpack(suffix)
    file.seek(max(size - _SUFFIX.size - length, start))
    index = file.read(length)
    if len(index) < max(length, _COUNT.size) or zlib.crc32(index, zlib.crc32(header.pack())) != expected:
        raise CompressedFileError("index is damaged: its CRC differs")
    (count,) = _COUNT.unpack_from(index)
    num_chunks = -(-count // header.chunk)
    entries = np.frombuffer(index, _ENTRY, num_chunks, _COUNT.size)
    listed = index[_COUNT.size + entries.nbytes :]
    names = tuple(json.loads(zlib.decompress(listed))) if listed else ()
    found = start + int(entries["length"].astype(np.int64).sum()) + length + _SUFFIX.size
    if found != size:
        raise CompressedFileError(f"file must have {found} bytes, as its index says, got {size}")
    return Info(header, count, names, entries, start, size)
