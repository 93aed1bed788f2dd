"""Lossless compression with the likelihood of a model: n bits of it are a file of n bits. See docs/compression.md.

compressed = compress(model, processor, levels)
assert torch.equal(decompress(model, processor, compressed), levels)
"""

from hf_latentgen.coding.compression import Chunk, compress, compress_to, decompress, decompress_from
from hf_latentgen.coding.container import CompressedFileError, Header, Info, read_info
from hf_latentgen.coding.files import compress_files, decompress_files

__all__ = [
    "Chunk",
    "CompressedFileError",
    "Header",
    "Info",
    "compress",
    "compress_files",
    "compress_to",
    "decompress",
    "decompress_files",
    "decompress_from",
    "read_info",
]
