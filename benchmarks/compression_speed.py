"""Speed of compressing test images and text with rows of this repository, and of bringing them back.

    python benchmarks/compression_speed.py --data_dir DATA

Prints and writes `compression_speed.json` next to this file: images or kilobytes a second of compressing without
verifying, which would take as long again, and of decompressing, one thread on each core, and the seconds of a processor
for each image or kilobyte. Text are plays that `local_shakespeare` was trained on; speed does not depend on that. A
model is written as soon as it is measured, and what the record holds is not measured again.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_latentgen import load, load_images, load_text
from hf_latentgen.coding import compress, decompress
from hf_latentgen.coding.codecs import ByteCodec
from hf_latentgen.data import LevelsDataset
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions

ROWS = {
    "local_mnist_4bit": "mnist",
    "local_binarized_mnist": "binarized_mnist",
    "vae_mnist_4bit": "mnist",
    "vae_mnist_4bit_fast": "mnist",
}
TEXT_ROW = "local_shakespeare"
# Targets on two cores: images a second, kilobytes a second.
TARGETS = {"local": 25, "vae": 100, "text": 2}


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call returns, its wall time and the time of the processor, in seconds."""
    wall, busy = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - busy


def measure(model: Any, processor: Any, data: Any, count: float) -> dict[str, float]:
    """Speeds of `count` images, or kilobytes."""
    file, wall, busy = timed(lambda: compress(model, processor, data, verify=False))
    back, wall_back, busy_back = timed(lambda: decompress(model, processor, file))
    assert torch.equal(back, data) if isinstance(back, torch.Tensor) else back == data
    return {
        "compress": count / wall,
        "decompress": count / wall_back,
        "compress_cpu_seconds_each": busy / count,
        "decompress_cpu_seconds_each": busy_back / count,
    }


def measure_row(row: str, data_dir: str | None, num_images: int) -> dict[str, float]:
    """Speeds of images with a row of this repository."""
    found = load(row, device="cpu")
    images = LevelsDataset(load_images(ROWS[row], "test", data_dir=data_dir), found.processor)
    levels = images.levels[:num_images].to(torch.uint8)
    return measure(found.model, found.processor, levels, len(levels))


def measure_text(data_dir: str | None, chunk_bytes: int) -> dict[str, float]:
    """Speeds of a text that gives two cores a full group of chunks each."""
    ByteCodec.chunk = chunk_bytes
    found = load(TEXT_ROW, device="cpu")
    text = "".join(load_text("tinyshakespeare", "train", data_dir=data_dir)["text"]).encode()
    text = text[: 2 * ByteCodec(found.model, adapt=False).group * chunk_bytes]
    return measure(found.model, found.processor, text, len(text) / 1000) | {"num_bytes": len(text)}


def main() -> None:
    """Measures, prints and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir")
    parser.add_argument("--num_images", type=int, default=2048)
    parser.add_argument(
        "--chunk_bytes", type=int, default=4096, help="fewer than those of a file, which only take time"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    settings = {"num_images": arguments.num_images, "chunk_bytes": arguments.chunk_bytes}
    record: dict = {"settings": settings, "targets_on_two_cores": TARGETS, "cores": os.cpu_count()}
    record |= {"hardware": hardware(), "versions": versions(), "git_commit": git_commit(), "models": {}}
    if arguments.output.exists():
        record = json.loads(arguments.output.read_text())
        if record["settings"] != settings:
            parser.error(f"{arguments.output} was measured with {record['settings']}, got {settings}: remove it")
    for name in (*ROWS, TEXT_ROW):
        if name not in record["models"]:
            record["models"][name] = (
                measure_text(arguments.data_dir, arguments.chunk_bytes)
                if name == TEXT_ROW
                else measure_row(name, arguments.data_dir, arguments.num_images)
            )
            print(name, json.dumps({key: round(value, 4) for key, value in record["models"][name].items()}), flush=True)
            arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
