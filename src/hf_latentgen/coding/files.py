"""Files and folders to a compressed file, and back."""

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.utils import logging

from hf_latentgen.coding.compression import compress_to, decompress_from, exact_levels
from hf_latentgen.coding.container import CompressedFileError, Info, check_names, read_info
from hf_latentgen.data.levels import BROKEN
from hf_latentgen.evaluation.files import list_files
from hf_latentgen.models.modeling_latentgen import LatentGenModel


def compress_files(
    source: str | os.PathLike,
    target: str | os.PathLike,
    model: LatentGenModel,
    processor: Any,
    *,
    overwrite: bool = False,
    adapt: bool = False,
    verify: bool = True,
) -> Info:
    """Compress an image, all images of a folder, or for a byte model any file; says what the compressed file holds.

    An image keeps its name below the folder, with the ending of a PNG file.

    Args:
        source: file, or folder of images.
        target: file to write. It appears when it is whole.
        model: as in `compress`, and so the others.
        processor: its image processor or tokenizer.
        overwrite: replace a file that exists.
        adapt: a byte model learns from what it has coded.
        verify: decode before a chunk is written.

    Raises:
        FileNotFoundError: there is no such file, or no image in the folder.
        FileExistsError: the target exists, and `overwrite` is False.
        ValueError: a file is no image that can be read, or not one of the model's; two would come back with one name;
            and as in `compress`.
    """
    source = Path(source)
    options = {"overwrite": overwrite, "adapt": adapt, "verify": verify}
    if model.config.reads_text:
        if not source.is_file():
            raise FileNotFoundError(f"{source} must be a file for a {model.kind}")
        with source.open("rb") as file:
            return compress_to(target, model, processor, file, names=[source.name], **options)
    files = list_files(source, images=True)
    names = [(file.relative_to(source) if source.is_dir() else Path(file.name)).with_suffix(".png") for file in files]
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise ValueError(f"names must differ without their endings, got {twice[0].with_suffix('')} more than once")
    images = (_read(file, processor) for file in files)
    return compress_to(target, model, processor, images, names=[name.as_posix() for name in names], **options)


def decompress_files(
    source: str | os.PathLike,
    folder: str | os.PathLike,
    model: LatentGenModel,
    processor: Any,
    *,
    overwrite: bool = False,
) -> list[CompressedFileError]:
    """Write the images of a compressed file as PNG files, or its bytes as one file, into a folder, made if missing.

    They appear once all are decoded. What comes back are the errors of damaged chunks, whose images are missing.

    Raises:
        FileExistsError: a file of that name exists, and `overwrite` is False.
        NotADirectoryError: the folder is a file.
        IsADirectoryError: a folder has the name of a file.
        CompressedFileError: bytes of a text are damaged, a name leads out of the folder, and as in `decompress`.
    """
    source, folder = Path(source), Path(folder)
    errors = []
    with source.open("rb") as file:
        info = read_info(file)
        targets = _targets(info, source, folder)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} must be a folder to write into, got a file")
        if folders := [target for target in targets if target.is_dir()]:
            raise IsADirectoryError(f"{folders[0]} must be a file to write, got a folder")
        existing = [target for target in targets if target.exists()]
        if existing and not overwrite:
            raise FileExistsError(f"{existing[0]} exists; it is replaced with overwrite=True (--force)")
        # On the same file system, so that a file moves in one step.
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        unit = "images" if info.header.shape else "B"
        with (
            tempfile.TemporaryDirectory(dir=place, prefix=".decompress-") as staging,
            logging.tqdm(desc="decompress", unit=unit, total=info.count) as bar,
        ):
            written = [Path(staging, str(index)) for index in range(len(targets))]
            bar.set_postfix_str(f"{info.bits_per_dim:.4f} bits/dim")
            for chunk in decompress_from(file, model, processor):
                if chunk.data is None:
                    errors.append(chunk.error)
                elif info.header.shape:
                    for index, image in zip(chunk.items, processor.post_process_images(chunk.data), strict=True):
                        image.save(written[index], format="PNG")
                else:
                    with written[0].open("ab") as whole:
                        whole.write(chunk.data.tobytes())
                bar.update(len(chunk.items))
            if not info.header.shape:
                if errors:
                    raise errors[0]
                written[0].touch()
            folder.mkdir(parents=True, exist_ok=True)
            for path, target in zip(written, targets, strict=True):
                if path.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(target)
    return errors


def _targets(info: Info, source: Path, folder: Path) -> list[Path]:
    """Where each image, or the bytes, go. Raises: CompressedFileError for names that cannot be those of files."""
    names = list(info.names)
    if not names and info.header.shape:
        names = [f"{index:06d}.png" for index in range(info.count)]
    elif not names:
        names = [source.stem]
    try:
        check_names(names)
    except ValueError as error:
        raise CompressedFileError(str(error)) from error
    return [folder / name for name in names]


def _read(file: Path, processor: Any) -> np.ndarray:
    """Levels of one image file. [C, H, W]."""
    try:
        with Image.open(file) as image:
            if _has_frames(image):
                raise ValueError("it has more than one frame, of which the first alone would come back")
            # A value of one bit is 0 or 255.
            return exact_levels(image.convert("L") if image.mode == "1" else image, processor)[0]
    except BROKEN as error:
        raise ValueError(f"{file} cannot be compressed: {error}") from error


def _has_frames(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    return True
