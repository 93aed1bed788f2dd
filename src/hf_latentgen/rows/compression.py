"""The commands that compress files with a model and bring them back, and the proof of a row's score by a file."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.utils import logging

from hf_latentgen.coding import compress_files, compress_to, decompress_files, read_info
from hf_latentgen.coding.container import CompressedFileError, Info
from hf_latentgen.evaluation.results import Results
from hf_latentgen.families import FAMILIES, find_family
from hf_latentgen.families.family import Family
from hf_latentgen.hub.loading import find_folder, load, row_folders
from hf_latentgen.rows.command import print_table

# Another processor rounds otherwise, and so does another version of the coder.
SIZE_TOLERANCE = 1e-3


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


def size_on_disk(
    folder: Path, data_dir: str | None = None, families: tuple[Family, ...] = FAMILIES
) -> tuple[str, float, float]:
    """The score of a row by name, its value, and what a file of all of the row's split costs in that unit.

    Another process decodes the file with the command, and each image or byte is compared.

    Raises:
        ValueError: the row has no likelihood, or something else came back.
        OSError: the data is missing.
    """
    results = Results.read(folder)
    scores = ("bits_per_byte", "exact_bits_per_dim", "bits_per_dim")
    name = next((score for score in scores if score in results.metrics), None)
    if name is None:
        raise ValueError(f"row must have one of {', '.join(scores)} to be proved by a file, got {results.row}")
    checkpoint = load(folder, device="cpu")
    processor = checkpoint.processor
    test = (
        find_family(results.model_type, families).load_data(checkpoint, results.dataset, results.split, data_dir).test
    )
    is_text = checkpoint.model.config.reads_text
    data: Any = b"".join(test) if is_text else test.levels
    with tempfile.TemporaryDirectory() as place:
        file, back = Path(place, "split.hlg"), Path(place, "back")
        # The other process verifies.
        info = compress_to(file, checkpoint.model, processor, data, verify=False)
        words = ["decompress", str(file), "--model", str(folder.resolve()), "--output", str(back)]
        subprocess.run([sys.executable, "-m", "hf_latentgen_cli", *words], check=True, stdout=subprocess.DEVNULL)
        paths = sorted(back.iterdir())
        if is_text:
            is_same = [path.read_bytes() for path in paths] == [data]
        else:
            is_same = len(paths) == len(data) and all(
                torch.equal(_levels(path, processor), levels) for path, levels in zip(paths, data, strict=True)
            )
    if not is_same:
        raise ValueError(f"file of {results.row} must decode to the whole test split, got something else")
    return name, results.metrics[name], info.bits_per_dim


def prove_command(names: Sequence[str], data_dir: str | None, record: bool) -> bool:
    """Print the size of a file of each row's test split; whether all came back and none is larger than published.

    With `record` the size goes into the row's `results.json`.
    """
    outcomes = []
    for folder in [find_folder(name) for name in names] or row_folders():
        logging.enable_progress_bar()
        try:
            score, told, found = size_on_disk(folder, data_dir)
        except (OSError, ValueError, ArithmeticError, subprocess.CalledProcessError) as error:
            print(f"{folder.name}: not proved: {error}", flush=True)
            outcomes.append(False)
            continue
        results = Results.read(folder)
        key = f"{score.removeprefix('exact_')}_on_disk"
        before = results.metrics.get(key)
        if record:
            replace(results, metrics=results.metrics | {key: found}).write(folder)
        is_fine = record or before is None or found <= before * (1 + SIZE_TOLERANCE)
        shown = f"{found:.4f} on disk, {told:.4f} reported, {found / told:.4f} times as much"
        print(f"{folder.name}: {'decoded' if is_fine else 'DIFFERS'}: {shown}", flush=True)
        outcomes.append(is_fine)
    return bool(outcomes) and all(outcomes)


def _levels(path: Path, processor) -> torch.Tensor:
    with Image.open(path) as image:
        return processor(image, do_resize=False, do_convert_rgb=False, return_tensors="pt")["pixel_values"][0]


def _size(info: Info) -> str:
    unit = "bits/dim" if info.header.shape else "bits/byte"
    return f"{_count(info)} in {info.size:,} bytes, {info.bits_per_dim:.4f} {unit}"


def _count(info: Info) -> str:
    return f"{info.count:,} {'images' if info.header.shape else 'bytes'}"
