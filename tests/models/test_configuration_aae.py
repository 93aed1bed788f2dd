import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, BertConfig

from hf_latentgen import AAEConfig, VAEConfig

OTHER = {
    "architecture": "resnet",
    "image_size": 9,
    "num_channels": 3,
    "num_levels": 4,
    "latent_dim": 2,
    "hidden_channels": (4, 6),
    "hidden_act": "gelu",
    "blocks_per_stage": 2,
    "reconstruction_weight": 0.5,
    "reconstruction": "categorical",
    "posterior": "gaussian",
    "prior": "swiss_roll",
    "labelled_prior": True,
    "discriminator_channels": (5,),
    "discriminator_noise_std": 0.1,
    "input_noise_std": 0.2,
    "input_shift": 2,
    "input_affine_std": 0.3,
    "consistency_weight": 0.4,
    "balance_weight": 0.5,
    "supervised_weight": 3,
    "num_clusters": 3,
    "cluster_labels": (1, 0, 1),
}


def fields(config):
    """The fields of the model itself, sequences as lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config.to_dict().items()
        if name in OTHER
    }


def test_defaults_are_the_course_network():
    assert fields(AAEConfig()) == {
        "architecture": "course",
        "image_size": 28,
        "num_channels": 1,
        "num_levels": 256,
        "latent_dim": 8,
        "hidden_channels": [32, 64, 64],
        "hidden_act": "relu",
        "blocks_per_stage": 1,
        "reconstruction_weight": 0.995,
        "reconstruction": "mse",
        "posterior": "deterministic",
        "prior": "gaussian",
        "labelled_prior": False,
        "discriminator_channels": [512, 512],
        "discriminator_noise_std": 0.0,
        "input_noise_std": 0.0,
        "input_shift": 0,
        "input_affine_std": 0.0,
        "consistency_weight": 0.0,
        "balance_weight": 0.0,
        "supervised_weight": 1.0,
        "num_clusters": None,
        "cluster_labels": None,
    }


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("architecture", "vgg", "one of ('course', 'resnet', 'mlp')"),
        ("hidden_act", "tanh", "one of ('gelu', 'relu')"),
        ("latent_dim", 0, "at least 1"),
        ("num_levels", 257, "2 to 256"),
        ("hidden_channels", (8, 8), "three widths for architecture='course'"),
        ("reconstruction_weight", -0.001, "in [0, 1]"),
        ("reconstruction_weight", 1.001, "in [0, 1]"),
        ("reconstruction_weight", float("nan"), "in [0, 1]"),
        ("reconstruction_weight", "0.5", "<class 'float'>, <class 'int'>"),
        ("reconstruction", "l1", "one of ('mse', 'categorical')"),
        ("posterior", "laplace", "one of ('deterministic', 'gaussian')"),
        ("prior", "uniform", "one of ('gaussian', 'flower', 'swiss_roll')"),
        ("prior", None, "expected str"),
        ("labelled_prior", 1, "expected bool"),
        ("discriminator_channels", (), "one or more widths of at least 1"),
        ("discriminator_channels", (8, 0), "one or more widths of at least 1"),
        ("discriminator_channels", 8, "tuple[int, ...]"),
        ("discriminator_noise_std", -0.1, "at least 0 and finite"),
        ("discriminator_noise_std", float("inf"), "at least 0 and finite"),
        ("input_noise_std", -0.1, "at least 0 and finite"),
        ("input_noise_std", float("nan"), "at least 0 and finite"),
        ("input_shift", 28, "at least 0 and below image_size"),
        ("input_affine_std", -0.1, "at least 0 and finite"),
        ("consistency_weight", float("inf"), "at least 0 and finite"),
        ("balance_weight", -0.5, "at least 0 and finite"),
        ("supervised_weight", -1, "at least 0 and finite"),
        ("num_clusters", 1, "at least 2, or None"),
        ("num_clusters", 2.0, "int"),
    ],
)
def test_bad_value_is_refused_with_field_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(StrictDataclassError) as refusal:
        AAEConfig(**{field: value})
    message = str(refusal.value)
    assert field in message
    assert str(value) in message
    assert allowed in message


@pytest.mark.parametrize("prior", ["flower", "swiss_roll"])
@pytest.mark.parametrize("latent_dim", [1, 3])
def test_prior_in_the_plane_needs_two_latents(prior, latent_dim):
    with pytest.raises(StrictDataclassError, match=f"latent_dim must be 2 for prior='{prior}', got {latent_dim}"):
        AAEConfig(prior=prior, latent_dim=latent_dim)


def test_a_flower_has_a_petal_for_each_class():
    # Two classes are the default of transformers, and two petals are no flower.
    with pytest.raises(StrictDataclassError, match="num_labels must be at least 3, .*, got 2"):
        AAEConfig(prior="flower", latent_dim=2)
    assert AAEConfig(prior="flower", latent_dim=2, num_labels=3).num_classes == 3
    AAEConfig(prior="swiss_roll", latent_dim=2)


def test_labelled_prior_needs_a_prior_of_several_parts():
    message = r"prior must be one of \('flower', 'swiss_roll'\) when labelled_prior is set, got 'gaussian'"
    with pytest.raises(StrictDataclassError, match=message):
        AAEConfig(labelled_prior=True, latent_dim=2)


@pytest.mark.parametrize(
    ("num_clusters", "names"),
    [(3, (0, 1)), (3, (0, 1, 2, 3)), (3, (0, 1, 4)), (3, (0, 1, -1)), (3, ()), (None, (0, 1, 2)), (None, ())],
    ids=["too few", "too many", "no such class", "negative", "none", "without clusters", "none without clusters"],
)
def test_bad_cluster_names_are_refused(num_clusters, names):
    with pytest.raises(StrictDataclassError) as refusal:
        AAEConfig(num_labels=4, num_clusters=num_clusters, cluster_labels=names)
    message = str(refusal.value)
    assert "cluster_labels must be" in message
    allowed = "None without num_clusters" if num_clusters is None else "one for each of num_clusters"
    assert allowed in message
    assert f"got {names}" in message


def test_cluster_names_are_classes_of_the_config():
    names = (9, 0, 9)
    assert AAEConfig(num_labels=10, num_clusters=3, cluster_labels=names).cluster_labels == names
    with pytest.raises(StrictDataclassError, match=r"3 classes in 0 \.\.\. 8"):
        AAEConfig(num_labels=9, num_clusters=3, cluster_labels=names)


@pytest.mark.parametrize("weight", [0, 1, 0.0, 1.0, 0.5])
def test_limits_themselves_are_allowed(weight):
    config = AAEConfig(reconstruction_weight=weight, num_clusters=2, discriminator_channels=[1], supervised_weight=0)
    assert config.reconstruction_weight == weight


def test_value_changed_later_is_refused_before_anything_is_written(tmp_path):
    config = AAEConfig()
    config.reconstruction_weight = 2.0
    with pytest.raises(StrictDataclassError, match=r"reconstruction_weight must be in \[0, 1\], got 2\.0"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [{}, OTHER], ids=["defaults", "other"])
def test_json_round_trip(values, tmp_path):
    config = AAEConfig(**values)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == "latentgen_aae"
    assert {name: written[name] for name in OTHER} == fields(config)
    for loaded in (AAEConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is AAEConfig
        assert fields(loaded) == fields(config)
        assert loaded.latent_shapes == [(config.latent_dim,)]


def test_bad_value_in_a_file_is_refused(tmp_path):
    AAEConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"prior": "gaussian"', '"prior": "cauchy"'), encoding="utf-8")
    with pytest.raises(StrictDataclassError, match="prior must be one of .*, got 'cauchy'"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("other", [BertConfig, VAEConfig])
def test_config_of_another_model_type_is_refused(tmp_path, other):
    other().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match=f"must be 'latentgen_aae', got '{other.model_type}'"):
        AAEConfig.from_pretrained(tmp_path)
