"""The benchmarks of compression, unusual images and modes run to their end and keep what they have measured."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_latentgen import AAEConfig, AAEModel
from hf_latentgen.evaluation.results import Results


@pytest.fixture
def benchmark_module(repository, monkeypatch):
    """The module of a script of `benchmarks/`, by its name."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, repository / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        # Its dataclasses look for it there.
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run_benchmark(benchmark_module, tmp_path, monkeypatch):
    """Runs a script of `benchmarks/` with its module changed. Returns the record that it writes."""

    def run(name, changes, *words):
        module = benchmark_module(name)
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
    assert record["models"]["local_shakespeare"] == {"compress": 1.0}
    again = run_benchmark("compression_speed", changes | {"load": {}}, "--num_images", "2")
    assert again == record


def test_modes_are_counted_and_told_from_few(benchmark_module):
    module = benchmark_module("mode_coverage")
    features = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    all_modes, one_mode = np.arange(2_000) % 1_000, np.full(2_000, 7)
    assert module.scores(all_modes, features, features)["modes"] == 1_000
    assert module.scores(all_modes, features, features)["kl_to_uniform_nats"] == pytest.approx(0, abs=1e-6)
    few = module.scores(one_mode, features + 10, features)
    assert few["modes"] == 1
    assert few["kl_to_uniform_nats"] == pytest.approx(np.log(1_000), rel=1e-6)
    assert few["coverage"] == 0 < few["in_domain_frechet_distance"]
    # Each channel is the digit that was chosen for it.
    digits = torch.arange(10).reshape(10, 1, 1, 1).expand(10, 1, 28, 28).byte()
    images = module.StackedDigits(digits, 50, 0)
    assert torch.equal(images.batch(10, 20)[:, :, 0, 0], images.chosen[10:20].byte())


@pytest.mark.parametrize("share", [0.5, 1])
def test_the_discriminator_of_images_has_the_weights_that_it_is_given(benchmark_module, share):
    module = benchmark_module("mode_coverage")
    judge = module.image_judge(share * 111_000)
    assert module.count_weights(judge) == pytest.approx(share * 111_000, rel=0.05)
    assert judge(torch.zeros(5, 3, 28, 28)).shape == (5,)


def test_what_is_activated_in_a_decoder_is_normalised(benchmark_module):
    module = benchmark_module("mode_coverage")
    model = AAEModel(AAEConfig(num_channels=3)).train()
    module.normalise(model.decoder)
    seen = []
    for layer in model.decoder.modules():
        if isinstance(layer, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            layer.register_forward_hook(lambda _layer, _given, output: seen.append(output))
    model.decode(torch.randn(64, 8))
    # The first one reads latents, then two for each block.
    assert len(seen) == 5
    for output in seen:
        channels = output.transpose(0, 1).flatten(1)
        assert channels.mean(1).abs().max() < 1e-4
        assert torch.allclose(channels.std(1), torch.ones(len(channels)), atol=0.05)


def test_contestants_are_trained_and_measured_once(run_benchmark, benchmark_module, data_root):
    whole = benchmark_module("mode_coverage").load_images
    changes = {"load_images": lambda *words, **options: whole(*words, **options).select(range(300))}
    words = ("--seeds", "3", "--num_images", "128", "--num_samples", "60", "--num_judged", "30")
    words += ("--data_dir", str(data_root))
    record = run_benchmark("mode_coverage", changes, *words)
    names = ("gan_half", "gan", "aae", "aae_of_images", "aae_of_both")
    assert list(record["runs"]) == [f"{name}, seed 3" for name in names]
    assert record["yardstick"]["modes"] > 40
    for run in record["runs"].values():
        assert 1 <= run["modes"] <= 60
        assert ("image_discriminator" in run["weights"]) == (run["contestant"] != "aae")
    assert len({run["weights"]["decoder"] for run in record["runs"].values()}) == 1
    assert run_benchmark("mode_coverage", changes | {"train": None}, *words) == record
    with pytest.raises(SystemExit, match="settings must be those of"):
        run_benchmark("mode_coverage", changes, "--num_images", "64")


def test_pixel_decoders_are_trained_equally_long_and_once(run_benchmark):
    # One of them reads pixels.
    changes = {
        "ROW": "vlae_digits",
        "CONTESTANTS": {"raster": ["model.pixel_decoder=raster"], "none": ["model.decoder_radius=0"]},
    }
    words = ("--seconds", "1", "--trial_steps", "4")
    record = run_benchmark("pixel_decoders", changes, *words)
    assert list(record["runs"]) == ["raster", "none"]
    for run in record["runs"].values():
        assert run["steps"] >= 1
        assert 0 < run["bits_per_dim"] < 5
    assert record["runs"]["raster"]["num_parameters"] > record["runs"]["none"]["num_parameters"]
    assert run_benchmark("pixel_decoders", changes | {"compare": None}, *words) == record
    with pytest.raises(SystemExit, match="--seconds must be 1"):
        run_benchmark("pixel_decoders", changes, "--seconds", "2")


def test_pairs_of_data_are_measured_once(run_benchmark, data_root, tmp_path):
    words = ("--left_out", "4=vae_mnist_4bit_fast", "--background", "vae_mnist_4bit_fast=vae_mnist_4bit")
    words += ("--num_images", "8", "--data_dir", str(data_root))
    record = run_benchmark("anomaly", {}, *words)
    assert list(record["pairs"]) == ["vae_mnist_4bit_fast: mnist without 4 -> the digit 4"]
    (pair,) = record["pairs"].values()
    scores = pair["scores"]
    assert {"bits_per_dim", "typicality", "complexity_png", "likelihood_ratio", "likelihood_regret"} <= scores.keys()
    assert all(sum(found["usual"]) == sum(found["unusual"]) == 8 for found in scores.values())
    assert all(0 < found["auroc"] <= 1 for found in scores.values())
    with Image.open(tmp_path / "anomaly.png") as picture:
        assert picture.size[0] > picture.size[1]
    assert run_benchmark("anomaly", {"measure": None}, *words) == record
