"""The commands that compress files with a model and bring them back."""

from dataclasses import asdict
from pathlib import Path

from transformers.utils import logging

from hf_latentgen.coding import compress_files, decompress_files, read_info
from hf_latentgen.coding.container import CompressedFileError, Info
from hf_latentgen.hub.loading import load
from hf_latentgen.rows.command import print_table


def compress_command(
    data: str, model: str | None, output: str | None, revision: str | None, force: bool, verify: bool, adapt: bool
) -> None:
    """Write a compressed file and print its size. Errors as in [`compress_files`]."""
    for name, value in (("model", model), ("output", output)):
        if value is None:
            raise ValueError(f"{name} must be given to compress {data}: --{name}")
    loaded = load(str(model), revision, device="cpu")
    logging.enable_progress_bar()
    options = {"overwrite": force, "adapt": adapt, "verify": verify}
    info = compress_files(data, str(output), loaded.model, loaded.processor, **options)
    print(f"{output}: {_size(info)}")


def info_command(file: str) -> None:
    """Print what a compressed file says of itself."""
    with Path(file).open("rb") as opened:
        info = read_info(opened)
    print(f"{file}: {_size(info)}")
    print_table(["", ""], [[key.replace("_", " "), str(value)] for key, value in asdict(info.header).items()], "table")


def decompress_command(file: str, folder: str, model: str | None, revision: str | None, force: bool) -> None:
    """Write what was compressed to a folder.

    Raises:
        CompressedFileError: a chunk is damaged; all others are written. Others as in [`decompress_files`].
    """
    with Path(file).open("rb") as opened:
        info = read_info(opened)
    try:
        loaded = load(model or info.header.model_id, revision, device="cpu")
    except OSError as error:
        if model is not None:
            raise
        raise OSError(f"{error}; {file} was compressed with a model of that name, --model says where it is") from error
    logging.enable_progress_bar()
    errors = decompress_files(file, folder, loaded.model, loaded.processor, overwrite=force)
    if errors:
        raise CompressedFileError(f"{'; '.join(map(str, errors))}; all others are in {folder}")
    print(f"{folder}: {_count(info)}")


def _size(info: Info) -> str:
    unit = "bits/dim" if info.header.shape else "bits/byte"
    return f"{_count(info)} in {info.size:,} bytes, {info.bits_per_dim:.4f} {unit}"


def _count(info: Info) -> str:
    return f"{info.count:,} {'images' if info.header.shape else 'bytes'}"
