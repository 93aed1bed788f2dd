"""Time of the batch path beside the training step of the course VAE, measured in one process.

    python benchmarks/data_path.py

A batch comes out of a torch `DataLoader` with a random sampler, as `Trainer` uses it. Prints a table and writes
`data_path.json` next to this file.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from hf_latentgen.data import LevelsDataset, collate_levels, dataset_from_arrays
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.models.configuration_vae import VAEConfig
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_vae import VAEModel

TARGET_SHARE = 0.05


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    """Median time of one call, in seconds, after three calls that do not count."""
    times = []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def main() -> None:
    """Measures, prints and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_images", type=int, default=54_000)
    parser.add_argument("--num_batches", type=int, default=400)
    parser.add_argument("--num_steps", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.manual_seed(42)

    # What the pixels show does not change the time, so the measurement needs no data files.
    images = np.random.default_rng(42).integers(0, 256, (arguments.num_images, 28, 28), dtype=np.uint8)
    started = time.perf_counter()
    dataset = dataset_from_arrays(images, split="train")
    dataset_seconds = time.perf_counter() - started
    started = time.perf_counter()
    levels = LevelsDataset(dataset, LevelsImageProcessor(size=28, num_levels=16))
    levels_seconds = time.perf_counter() - started

    loader = DataLoader(
        levels, batch_size=arguments.batch_size, shuffle=True, drop_last=True, collate_fn=collate_levels
    )
    batches = iter(loader)

    def next_batch() -> dict[str, torch.Tensor]:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        return batch

    model = VAEModel(VAEConfig()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = next_batch()

    def training_step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    batch_seconds = median_seconds(next_batch, arguments.num_batches)
    step_seconds = median_seconds(training_step, arguments.num_steps)
    record = {
        "batch_size": arguments.batch_size,
        "num_images": arguments.num_images,
        "image_shape": [1, 28, 28],
        "dataset_from_arrays_seconds": dataset_seconds,
        "levels_dataset_seconds": levels_seconds,
        "batch_seconds": batch_seconds,
        "training_step_seconds": step_seconds,
        "share_of_training_step": batch_seconds / step_seconds,
        "target_share": TARGET_SHARE,
        "num_threads": torch.get_num_threads(),
        "hardware": hardware(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")

    rows = [
        (f"data set of {arguments.num_images:,} images from arrays", f"{dataset_seconds:.2f} s"),
        ("its levels in one tensor", f"{levels_seconds:.2f} s"),
        (f"one batch of {arguments.batch_size}", f"{batch_seconds * 1e3:.3f} ms"),
        ("one training step of the course VAE", f"{step_seconds * 1e3:.1f} ms"),
        ("batch / training step", f"{batch_seconds / step_seconds:.2%} (target: under {TARGET_SHARE:.0%})"),
    ]
    for name, value in rows:
        print(f"{name:<44}{value}")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
