"""Peak memory of reading large photos: a folder of them, the same as a stream, and a stream of parquet files.

    python benchmarks/data_memory.py --num_photos 1000

Each way reads all training and validation photos into levels of 32x32 in a process of its own. Nothing else about a
photo matters, so all hold the same picture of twelve megapixels, in files that differ. Prints a table and writes
`data_memory.json` next to this file. The peak is that of the process, with Python and its libraries, less the pages of
files that the system would give back.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import Dataset, Features, Image

from hf_latentgen.data import LevelsDataset, collate_levels, load_images, stream_levels
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor

WAYS = ("folder", "folder_stream", "parquet_stream")
TARGET_MEGABYTES = 1000
SPLITS = ("train", "validation")


def write_photos(root: Path, num_photos: int, width: int, height: int) -> None:
    """Writes JPEG photos of two classes below `folder`, and the same in files of 50 below `parquet`."""
    generator = np.random.default_rng(42)
    small = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    buffer = BytesIO()
    PIL.Image.fromarray(small).resize((width, height)).save(buffer, "JPEG", quality=92)
    for index in range(num_photos):
        path = root / "folder" / SPLITS[index % 10 == 0] / ("cat", "dog")[index // 10 % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        # What follows the end of a JPEG picture is not read.
        path.write_bytes(buffer.getvalue() + index.to_bytes(4, "big"))
    paths = sorted((root / "folder").rglob("*.jpg"))
    (root / "parquet").mkdir()
    for start in range(0, num_photos, 50):
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths[start : start + 50]]
        dataset = Dataset.from_dict({"image": rows}, features=Features(image=Image()))
        dataset.to_parquet(root / "parquet" / f"train-{start}.parquet", batch_size=10)


def own_megabytes() -> float:
    """Memory of this process that no file backs, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def read_photos(root: Path, way: str) -> dict[str, float]:
    """Number of photos, peak in megabytes, and megabytes before the first photo."""
    processor = LevelsImageProcessor(size=32, num_channels=3, num_levels=256)
    before, peak, stop = own_megabytes(), [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], own_megabytes())

    # A daemon: it would outlive an error.
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    num_photos = 0
    for split in SPLITS:
        dataset = load_images(root / way.split("_")[0], split, streaming=way.endswith("stream"))
        if isinstance(dataset, Dataset):
            num_photos += len(LevelsDataset(dataset, processor))
        else:
            levels = stream_levels(dataset, processor).shuffle(seed=0, buffer_size=1000, max_buffer_input_shards=1)
            num_photos += sum(len(collate_levels([example])["pixel_values"]) for example in levels)
    stop.set()
    watcher.join()
    return {"num_photos": num_photos, "peak_megabytes": peak[0], "before_megabytes": before}


def main() -> None:
    """Measures, prints and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_photos", type=int, default=100)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        folder, way = arguments.read
        print(json.dumps(read_photos(Path(folder), way)))
        return

    record: dict = {"num_photos": arguments.num_photos, "width": arguments.width, "height": arguments.height}
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), arguments.num_photos, arguments.width, arguments.height)
        for way in WAYS:
            started = time.perf_counter()
            command = [sys.executable, __file__, "--read", folder, way]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            measured = json.loads(printed.splitlines()[-1])
            assert measured["num_photos"] == arguments.num_photos
            record[way] = {name: round(value) for name, value in measured.items() if name != "num_photos"}
            print(f"{way:>16}: peak {record[way]['peak_megabytes']} MB, {time.perf_counter() - started:.0f} s")
    record["target_megabytes"] = TARGET_MEGABYTES
    record |= {"hardware": hardware(), "versions": versions(), "git_commit": git_commit()}
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
