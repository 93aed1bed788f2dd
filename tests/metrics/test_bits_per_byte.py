import math

import evaluate
import pytest

from hf_latentgen.models.bits import nats_to_bits_per_byte

FOLDER = "src/hf_latentgen/evaluation/modules/bits_per_byte"


@pytest.fixture(scope="module")
def metric(repository, tmp_path_factory):
    return evaluate.load(str(repository / FOLDER), cache_dir=str(tmp_path_factory.mktemp("metric")))


def test_guessing_among_all_bytes_costs_eight_bits(metric):
    lengths = [1000, 1000, 7]
    nats = [length * math.log(256) for length in lengths]
    result = metric.compute(negative_log_likelihoods=nats, num_bytes=lengths)
    assert result["bits_per_byte"] == pytest.approx(8)


def test_windows_of_different_sizes_are_no_mean_of_means(metric):
    metric.add_batch(negative_log_likelihoods=[100.0, 200.0], num_bytes=[64, 64])
    metric.add_batch(negative_log_likelihoods=[50.0], num_bytes=[2])
    expected = nats_to_bits_per_byte(350.0, 130)
    assert metric.compute()["bits_per_byte"] == pytest.approx(expected)
    mean_of_means = nats_to_bits_per_byte((100 / 64 + 200 / 64 + 50 / 2) / 3, 1)
    assert abs(mean_of_means - expected) > 1


def test_double_precision_is_kept(metric):
    value = 1500.0 + 1e-9
    result = metric.compute(negative_log_likelihoods=[value], num_bytes=[1000])
    assert result["bits_per_byte"] == nats_to_bits_per_byte(value, 1000)


def test_documented_example(metric):
    result = metric.compute(negative_log_likelihoods=[1500.0, 40.0], num_bytes=[1000, 20])
    assert round(result["bits_per_byte"], 3) == 2.178
    assert "2.178" in metric.inputs_description


@pytest.mark.parametrize(
    ("nats", "num_bytes", "message"),
    [
        ([1.0, 2.0], [4, 0], "num_bytes must be at least 1 each, got 0"),
        ([1.0], [-3], "num_bytes must be at least 1 each, got -3"),
        ([1.0, math.nan], [4, 4], "must be finite, got nan"),
        ([math.inf], [4], "must be finite, got inf"),
        ([], [], "at least one value, got none"),
        ([1.0, 2.0], [4], "Mismatch in the number of"),
    ],
)
def test_bad_input_is_refused(repository, tmp_path, nats, num_bytes, message):
    # One that has failed keeps its file locked, and the next would wait a second for it.
    metric = evaluate.load(str(repository / FOLDER), cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        metric.compute(negative_log_likelihoods=nats, num_bytes=num_bytes)
