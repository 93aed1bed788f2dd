import json
import logging

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, BertConfig

from hf_latentgen import VAEConfig

OTHER = {
    "architecture": "resnet",
    "image_size": 9,
    "num_channels": 3,
    "num_levels": 256,
    "latent_dim": 5,
    "hidden_channels": (4, 6),
    "blocks_per_stage": 2,
    "ladder_channels": (2, 1),
    "beta": 0.5,
    "free_bits": 0.25,
}


def fields(config):
    """The fields of the model itself, sequences as lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config.to_dict().items()
        if name in OTHER
    }


def test_defaults_are_the_course_network_on_4_bit_mnist():
    assert fields(VAEConfig()) == {
        "architecture": "course",
        "image_size": 28,
        "num_channels": 1,
        "num_levels": 16,
        "latent_dim": 20,
        "hidden_channels": [32, 64, 64],
        "blocks_per_stage": 1,
        "ladder_channels": [],
        "beta": 1.0,
        "free_bits": 0.0,
    }


def test_default_config_is_made_in_silence(capfd):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub", "hf_latentgen")]
    for logger in loggers:
        logger.addHandler(handler)
    VAEConfig()
    for logger in loggers:
        logger.removeHandler(handler)
    assert records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("architecture", "vgg", "one of ('course', 'resnet', 'mlp')"),
        ("architecture", None, "expected str"),
        ("image_size", 0, "at least 1"),
        ("image_size", (28, 28), "expected int"),
        ("num_channels", 0, "at least 1"),
        ("num_levels", 1, "2 to 256"),
        ("num_levels", 257, "2 to 256"),
        ("num_levels", 3.5, "expected int"),
        ("num_levels", True, "expected int"),
        ("num_levels", "16", "expected int"),
        ("latent_dim", 0, "at least 1"),
        ("latent_dim", -3, "at least 1"),
        ("latent_dim", 2.0, "expected int"),
        ("hidden_channels", (), "one or more widths of at least 1"),
        ("hidden_channels", (8, 0, 8), "one or more widths of at least 1"),
        ("hidden_channels", (8, 8), "three widths for architecture='course'"),
        ("hidden_channels", (8, "x", 8), "tuple[int, ...]"),
        ("hidden_channels", 8, "tuple[int, ...]"),
        ("blocks_per_stage", 0, "at least 1"),
        ("ladder_channels", (2,), "empty for architecture='course'"),
        ("beta", -1, "at least 0"),
        ("beta", float("nan"), "at least 0"),
        ("beta", "1", "<class 'float'>, <class 'int'>"),
        ("free_bits", -0.1, "at least 0"),
        ("free_bits", None, "<class 'float'>, <class 'int'>"),
    ],
)
def test_bad_value_is_refused_with_field_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(StrictDataclassError) as refusal:
        VAEConfig(**{field: value})
    message = str(refusal.value)
    assert field in message
    assert str(value) in message
    assert allowed in message


@pytest.mark.parametrize("ladder", [(2, 0), (-1,), (1, 1, 1)])
def test_bad_ladder_is_refused(ladder):
    with pytest.raises(StrictDataclassError) as refusal:
        VAEConfig(architecture="resnet", hidden_channels=(4, 4), ladder_channels=ladder)
    assert f"ladder_channels must be at most 2 entries (one a stage) of at least 1, got {ladder}" in str(refusal.value)


def test_mlp_has_no_ladder():
    with pytest.raises(StrictDataclassError, match="ladder_channels must be empty for architecture='mlp'"):
        VAEConfig(architecture="mlp", ladder_channels=(1,))


@pytest.mark.parametrize("num_levels", [2, 16, 256])
def test_limits_themselves_are_allowed(num_levels):
    config = VAEConfig(num_levels=num_levels, image_size=1, latent_dim=1, beta=0, free_bits=0)
    assert config.num_levels == num_levels


def test_value_changed_later_is_refused_before_anything_is_written(tmp_path):
    config = VAEConfig()
    with pytest.raises(StrictDataclassError, match="Field 'latent_dim' expected int, got str"):
        config.latent_dim = "20"
    config.latent_dim = 0
    with pytest.raises(StrictDataclassError, match="latent_dim must be at least 1, got 0"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [{}, OTHER], ids=["defaults", "other"])
def test_json_round_trip(values, tmp_path):
    config = VAEConfig(**values)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == "latentgen_vae"
    assert {name: written[name] for name in OTHER} == fields(config)
    for loaded in (VAEConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is VAEConfig
        assert fields(loaded) == fields(config)
        assert (loaded.num_dims, loaded.stage_sizes, loaded.latent_shapes) == (
            config.num_dims,
            config.stage_sizes,
            config.latent_shapes,
        )


def test_bad_value_in_a_file_is_refused(tmp_path):
    VAEConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"num_levels": 16', '"num_levels": 300'), encoding="utf-8")
    with pytest.raises(StrictDataclassError, match="num_levels must be 2 to 256, got 300"):
        AutoConfig.from_pretrained(tmp_path)


def test_config_of_another_model_type_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="model_type must be 'latentgen_vae', got 'bert'"):
        VAEConfig.from_pretrained(tmp_path)


def test_num_dims_counts_every_channel_of_every_pixel():
    assert VAEConfig().num_dims == 784
    assert VAEConfig(image_size=5, num_channels=3).num_dims == 75


@pytest.mark.parametrize(
    ("image_size", "sizes"), [(28, [28, 14, 7, 4]), (8, [8, 4, 2, 1]), (5, [5, 3, 2, 1]), (1, [1, 1, 1, 1])]
)
def test_stages_halve_the_resolution_rounding_up(image_size, sizes):
    assert VAEConfig(image_size=image_size).stage_sizes == sizes


def test_latent_shapes_are_coarse_to_fine():
    assert VAEConfig().latent_shapes == [(20,)]
    ladder = VAEConfig(architecture="resnet", latent_dim=16, ladder_channels=[8, 4, 2])
    assert ladder.latent_shapes == [(16,), (8, 4, 4), (4, 7, 7), (2, 14, 14)]
    assert VAEConfig(architecture="resnet", ladder_channels=[8]).latent_shapes == [(20,), (8, 4, 4)]
