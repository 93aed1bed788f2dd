import math

import evaluate
import pytest

from hf_latentgen.models.bits import nats_to_bits_per_dim

FOLDER = "src/hf_latentgen/evaluation/modules/bits_per_dim"


@pytest.fixture(scope="module")
def metric(repository, tmp_path_factory):
    return evaluate.load(str(repository / FOLDER), cache_dir=str(tmp_path_factory.mktemp("metric")))


def test_uniform_levels_cost_the_logarithm_of_their_number(metric):
    nats = [784 * math.log(16)] * 3
    assert metric.compute(negative_log_likelihoods=nats, num_dims=784)["bits_per_dim"] == pytest.approx(4)


def test_batches_of_different_sizes_are_no_mean_of_means(metric):
    for batch in ([10.0, 20.0, 30.0], [400.0]):
        metric.add_batch(negative_log_likelihoods=batch)
    expected = nats_to_bits_per_dim(460 / 4, 12)
    assert metric.compute(num_dims=12)["bits_per_dim"] == pytest.approx(expected)


def test_double_precision_is_kept(metric):
    value = 282.0 + 1e-9
    result = metric.compute(negative_log_likelihoods=[value], num_dims=784)
    assert result["bits_per_dim"] == nats_to_bits_per_dim(value, 784)


def test_documented_example(metric):
    result = metric.compute(negative_log_likelihoods=[282.0], num_dims=784)
    assert round(result["bits_per_dim"], 3) == 0.519
    assert "0.519" in metric.inputs_description


@pytest.mark.parametrize(
    ("nats", "num_dims", "message"),
    [
        ([1.0], 0, "num_dims must be at least 1, got 0"),
        ([1.0, math.nan], 4, "must be finite, got nan"),
        ([math.inf], 4, "must be finite, got inf"),
        ([], 4, "at least one value, got none"),
    ],
)
def test_bad_input_is_refused(repository, tmp_path, nats, num_dims, message):
    # One that has failed keeps its file locked, and the next would wait a second for it.
    metric = evaluate.load(str(repository / FOLDER), cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        metric.compute(negative_log_likelihoods=nats, num_dims=num_dims)
