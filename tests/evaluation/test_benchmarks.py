"""The benchmarks of compression run to their end, keep what they have measured, and say how it is made."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from hf_latentgen.evaluation.results import Results


@pytest.fixture
def run_benchmark(repository, tmp_path, monkeypatch):
    """Runs a script of `benchmarks/` with its module changed. Returns the record that it writes."""

    def run(name, changes, *words):
        spec = importlib.util.spec_from_file_location(name, repository / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for key, value in changes.items():
            monkeypatch.setattr(module, key, value)
        output = tmp_path / f"{name}.json"
        monkeypatch.setattr("sys.argv", [name, "--output", str(output), *words])
        module.main()
        return json.loads(output.read_text())

    return run


def test_sizes_of_files_are_measured_once(run_benchmark, repository, tmp_path):
    pytest.importorskip("imagecodecs")
    levels = np.random.default_rng(0).integers(0, 2, (12, 1, 7, 7), np.uint8)
    data = {"mnist_4bit": levels * 15, "binarized_mnist": levels, "tinyshakespeare": b"to be or not to be" * 20}
    record = run_benchmark("compression", {"load": lambda name, *_: data[name]})
    for name, sizes in record["codes"].items():
        files = {code for code, found in sizes.items() if list(found) == ["one file"]}
        assert files == {"xz", "bz2", "zstd -22", "brotli"}
        pictures = set() if name == "tinyshakespeare" else {"PNG", "WebP lossless", "JPEG XL, effort 9"}
        assert sizes.keys() - files == pictures
        assert all(list(sizes[code]) == ["each", "mosaic"] for code in pictures)
        assert all(0.01 < size < 100 for found in sizes.values() for size in found.values())
    assert record["codes"]["binarized_mnist"]["PNG"]["each"] > record["codes"]["binarized_mnist"]["PNG"]["mosaic"] > 1
    results = Results.read(repository / "model_cards" / "local_mnist_4bit")
    shown = record["rows"]["mnist_4bit"]["local_mnist_4bit"]
    assert shown in (
        {"score": results.metrics["exact_bits_per_dim"]},
        {"on disk": results.metrics.get("bits_per_dim_on_disk")},
    )
    with Image.open(tmp_path / "compression.png") as picture:
        assert picture.size[0] > 2 * picture.size[1]
    # Without data, because nothing is missing.
    assert run_benchmark("compression", {"load": {}}) == record
    with pytest.raises(SystemExit):
        run_benchmark("compression", {"load": {}}, "--num_images", "3")


def test_speed_is_measured_once_for_each_model(run_benchmark):
    changes = {"ROWS": {"local_digits": "digits"}, "measure_text": lambda *_: {"compress": 1.0}}
    record = run_benchmark("compression_speed", changes, "--num_images", "2")
    speeds = record["models"]["local_digits"]
    assert speeds.keys() == {f"{way}compress{kind}" for way in ("", "de") for kind in ("", "_cpu_seconds_each")}
    assert min(speeds.values()) > 0
    assert record["models"]["text"] == {"compress": 1.0}
    again = run_benchmark("compression_speed", changes | {"load": {}}, "--num_images", "2")
    assert again == record
