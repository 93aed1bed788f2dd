"""The schema of `results.json`."""

import json
import re
from dataclasses import asdict, fields, replace

import pytest

from cards_common import change
from hf_latentgen.evaluation.metrics import describe_metric
from hf_latentgen.evaluation.results import Results


@pytest.fixture
def results():
    """The least that a file can hold."""
    reference = [{"name": "a paper", "metric": "bits_per_dim", "value": 1, "source": "table 7"}]
    known = Results(
        row="vae_digits",
        dataset="digits",
        split="test",
        num_images=300,
        metrics={"bits_per_dim": 1.5},
        diagnostics={"untrained_bits_per_dim": 4},
        baseline={"bz2_bits_per_dim": 2.5},
        num_parameters=12,
        weights_sha256=None,
        model={"model_type": "latentgen_vae"},
        autoencoder=None,
        sample_text=None,
        repeats=[],
        spread={},
        evaluate_command="hf-latentgen evaluate",
        evaluation={},
        history=[{"epoch": 1}],
        reference=reference,
    )
    return asdict(known)


def test_what_was_written_is_read(results, tmp_path):
    written = Results.from_dict(results)
    written.write(tmp_path)
    assert Results.read(tmp_path) == written
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert not written.has_provenance
    assert replace(written, train_command="train").has_provenance


def test_the_model_that_draws_of_a_prior_is_its_autoencoder(results):
    prior = results | {"model": {"model_type": "latentgen_prior"}, "autoencoder": {"model_type": "latentgen_vae"}}
    assert Results.from_dict(prior).model_type == "latentgen_prior"
    assert Results.from_dict(prior).drawing_model == {"model_type": "latentgen_vae"}
    assert Results.from_dict(results).drawing_model == results["model"]


@pytest.mark.parametrize("key", [own.name for own in fields(Results)])
def test_missing_keys_are_named(results, key, tmp_path):
    del results[key]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} lacks {key};"):
        Results.read(tmp_path)


def test_unknown_keys_are_named(results):
    with pytest.raises(ValueError, match="has unknown keys: floor; known are row, dataset"):
        Results.from_dict(results | {"floor": {}})


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("dataset",), None, "dataset"),
        (("row",), 5, "row"),
        (("split",), None, "split"),
        (("num_images",), None, "num_images"),
        (("num_parameters",), "208564", "num_parameters"),
        (("train_seconds",), "1", "train_seconds"),
        (("metrics",), [1], "metrics"),
        (("metrics", "bits_per_dim"), float("nan"), "metrics.bits_per_dim"),
        (("metrics", "bits_per_dim"), True, "metrics.bits_per_dim"),
        (("diagnostics", "untrained_bits_per_dim"), None, "diagnostics.untrained_bits_per_dim"),
        (("baseline",), None, "baseline"),
        (("baseline", "bz2_bits_per_dim"), "x", "baseline.bz2_bits_per_dim"),
        (("versions",), None, "versions"),
        (("reference", 0, "value"), "x", "reference[0].value"),
        (("reference", 0, "value"), True, "reference[0].value"),
        (("reference", 0), {"name": "a paper"}, "reference[0]"),
        (("reference", 0), "x", "reference[0]"),
        (("reference",), "x", "reference"),
        (("history", 0), "a", "history[0]"),
        (("model",), [], "model"),
        (("model",), {}, "model.model_type"),
        (("model", "model_type"), None, "model.model_type"),
    ],
)
def test_fields_of_another_kind_are_named(results, path, value, field):
    with pytest.raises(ValueError, match=rf"^somewhere: .*{re.escape(field)}\b|^somewhere: .*{re.escape(field)}"):
        Results.from_dict(change(results, path, value), "somewhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[]", "it must be an object, got"), (b"\xff\xfe", "is not valid JSON"), (b"{", "is not valid JSON")],
)
def test_what_is_no_object_is_refused(tmp_path, content, message):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"results\.json:? {message}"):
        Results.read(tmp_path)


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json does not exist; an evaluation writes it"):
        Results.read(tmp_path)


def test_results_of_every_row_fit(repository):
    folders = sorted(path.parent for path in (repository / "model_cards").glob("*/results.json"))
    assert folders
    assert [Results.read(folder).row for folder in folders] == [folder.name for folder in folders]


def test_a_score_that_rounds_to_nothing_has_no_sign():
    rate = describe_metric("rate_of_group_2_nats")
    assert [rate.show(value) for value in (-4.8e-7, 0.0, -0.005001, 1234.567)] == ["0.00", "0.00", "-0.01", "1,234.57"]
