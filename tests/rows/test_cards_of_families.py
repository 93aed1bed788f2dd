"""Cards and tables of the families other than the VAE."""

import re

import pytest

import hf_latentgen
from cards_common import CONFIG, REPO_ID, change, render
from hf_latentgen.evaluation.results import Results
from hf_latentgen.rows.tables import results_tables


def tables(*rows):
    return results_tables([Results.from_dict(results) for results in rows], "../model_cards")


@pytest.fixture
def adversarial(results):
    """The results of an adversarial autoencoder."""
    config = hf_latentgen.AAEConfig(**CONFIG).to_dict()
    fields = ("architecture", "image_size", "latent_dim", "hidden_channels", "reconstruction_weight", "num_levels")
    other = change(results, ("row",), "aae_digits")
    other["model"] = {"model_type": "latentgen_aae", "architectures": None, **{key: config[key] for key in fields}}
    other["metrics"] = {"reconstruction_mse_minus1_1": 0.0432, "code_min_std": 0.91, "code_max_std": 1.02}
    other["reference"], other["baseline"] = [], {}
    other["history"] = [{"epoch": 1, "eval_reconstruction_loss": 0.2}, {"epoch": 2, "eval_reconstruction_loss": 0.1}]
    return other


@pytest.fixture
def classifier(adversarial):
    """The results of a classifier of few labels."""
    other = change(adversarial, ("model", "architectures"), ["AAEForImageClassification"])
    other["metrics"] = {"test_error": 0.031} | other["metrics"]
    repeat = {"seed": 7, "command": "hf-latentgen train aae_semi training.seed=7", "metrics": {"test_error": 0.035}}
    trainings = {"repeats": [repeat], "spread": {"test_error": {"mean": 0.033, "std": 0.0028}}}
    return other | {"row": "aae_semi", "dataset_options": {"num_labelled": 100}} | trainings


def test_card_of_an_adversarial_autoencoder(adversarial):
    card = render(adversarial)
    assert card.data.pipeline_tag == "unconditional-image-generation"
    for text in (
        "An adversarial autoencoder of 8x8 images of scikit-learn digits: **reconstruction, mean squared error",
        "| lambda | 0.995: loss = lambda * reconstruction + (1 - lambda) * generator |",
        "| Reconstruction, mean squared error (values on [-1, 1]) | measurement | 0.0432 |",
        "0.2000 (epoch 1) at the first evaluation, 0.1000 (epoch 2) at the best",
        "arxiv.org/abs/1511.05644",
        "One training run with seed 1042",
    ):
        assert text in str(card)
    assert "bits/dim" not in str(card)
    assert "\n\n\n" not in str(card)


@pytest.mark.parametrize(
    ("weight", "text"), [(1, "An autoencoder without adversary"), (0, "the decoder gets no gradient at all")]
)
def test_card_says_what_the_ends_of_lambda_mean(adversarial, weight, text):
    assert text in str(render(change(adversarial, ("model", "reconstruction_weight"), weight)))


def test_card_of_a_classifier(classifier):
    card = render(classifier)
    assert card.data.pipeline_tag == "image-classification"
    for text in (
        "that was told the classes of 100 images, and none of the others: **classification error, "
        "mean of 2 trainings: 0.0330",
        "trained 2 times, with other seeds:",
        "| Classification error (fraction) | 0.0310 | 0.0350 | 0.0330 ± 0.0028 |",
        "hf-latentgen train aae_semi training.seed=7",
        "AAEForImageClassification.from_pretrained",
    ):
        assert text in str(card)
    assert "One training run" not in str(card)
    classifier["repeats"][0]["seed"] = classifier["seed"]
    assert "trained 2 times, with other labelled images:" in str(render(classifier))
    classifier["model"]["num_clusters"] = 30
    clusters = str(render(classifier))
    assert "30 clusters found without labels" in clusters


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
LOCAL_MODELS = {
    "pixels": hf_latentgen.LocalTransformerImageConfig(image_size=8, **SIZES),
    "classes": hf_latentgen.LocalTransformerImageConfig(
        image_size=8, is_class_conditional=True, num_labels=10, **SIZES
    ),
    "bytes": hf_latentgen.LocalTransformerConfig(window=8, **SIZES),
}


@pytest.fixture(params=LOCAL_MODELS)
def local(request, results, tmp_path):
    """The results of a local-attention transformer, and its saved model."""
    config = LOCAL_MODELS[request.param]
    fields = {
        name: value
        for name, value in config.to_dict().items()
        if name in (*SIZES, "window", "image_size", "num_levels")
    }
    model = {"model_type": config.model_type, "architectures": None, **fields}
    other = results | {"row": "local_row", "model": model, "reference": []}
    if request.param == "bytes":
        other |= {"dataset": "tinyshakespeare", "sample_text": "To be"}
        other |= {
            "metrics": {"bits_per_byte": 2.0432, "dynamic_bits_per_byte": 1.9321},
            "baseline": {"bz2_bits_per_byte": 2.4644},
        }
        other |= {"diagnostics": {"context": 8, "num_bytes": 55770}, "history": []}
        hf_latentgen.LocalTransformerForCausalLM(config).save_pretrained(tmp_path / "model")
        hf_latentgen.ByteTokenizer(errors="replace").save_pretrained(tmp_path / "model")
        return other
    if config.is_class_conditional:
        model |= {"is_class_conditional": True, "num_labels": 10}
    other["metrics"] = {"exact_bits_per_dim": 1.8432, "nll_nats": 81.77}
    hf_latentgen.LocalTransformerForImageGeneration(config).save_pretrained(tmp_path / "model")
    hf_latentgen.LevelsImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    return other


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_card_of_a_local_transformer(local, tmp_path, monkeypatch, capsys):
    card = render(local, [])
    reads_text = local["sample_text"] is not None
    score = "2.0432 bits/byte" if reads_text else "1.8432 bits/dim"
    task = "text-generation" if reads_text else "unconditional-image-generation"
    assert card.data.pipeline_tag == task
    for text in ("A local-attention transformer over the", f"**{score}** on the test split", "| exact | "):
        assert text in str(card)
    assert "\n\n\n" not in str(card)
    assert ("To be" in str(card)) == reads_text
    assert ("| 1.9321 |" in str(card) and "In dynamic evaluation" in str(card)) == reads_text
    assert "upper bound |" not in str(card)
    assert f"| {score.split()[0]} |" in tables(local)
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", str(card), re.DOTALL)
    code = snippet.replace(REPO_ID, str(tmp_path / "model")).replace("max_new_tokens=200", "max_new_tokens=9")
    exec(compile(code, "snippet", "exec"), {})
    printed = capsys.readouterr().out
    assert "ROMEO:" in printed if reads_text else "bits per dimension, exact" in printed


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_card_tells_of_the_copies_and_of_the_neighbourhood(local):
    card = str(render(local | {"dataset_options": {"renamed_copies": 26, "block_size": 64}}, []))
    if local["sample_text"] is not None:
        assert "trained on 26 copies of the training text" in card
        assert "the idea came from there" in card
        assert "| `renamed_copies` | 26 |" in card
        assert "copies of the training text" not in str(render(local, []))
        return
    assert "the pixel before, of those above, above to the left and above to the right" in card
    wider = str(render(change(local, ("model", "context_radius"), 3), []))
    assert "the 24 pixels before it that are at most 3 rows and columns away" in wider


def test_tables_have_a_part_for_each_family(results, adversarial, classifier):
    table = tables(results, adversarial, classifier)
    assert table.index("Variational autoencoders") < table.index("Adversarial autoencoders")
    assert "| 0.995 | 0.0432 | - | 0.910 to 1.020 | - | - | - | - | - | - | 2 min 07 s |" in table
    assert "| 0.0330 ± 0.0028 |" in table


@pytest.mark.parametrize("name", ["AAEModel", "AAEForImageClassification"])
def test_snippets_of_adversarial_cards_run_offline(name, adversarial, classifier, tmp_path, monkeypatch):
    chosen = adversarial if name == "AAEModel" else classifier
    model_class = getattr(hf_latentgen, name)
    model_class(hf_latentgen.AAEConfig(**CONFIG, num_labels=10)).save_pretrained(tmp_path / "model")
    processor = hf_latentgen.LevelsImageProcessor(size={"height": 8, "width": 8}, num_levels=256)
    processor.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", str(render(chosen)), re.DOTALL)
    exec(compile(snippet.replace(REPO_ID, str(tmp_path / "model")), "snippet", "exec"), {})
    assert (tmp_path / "styles.png").exists() == (name == "AAEForImageClassification")


@pytest.fixture
def prior(results):
    """The results of a latent diffusion prior."""
    other = change(results, ("row",), "prior_digits")
    other["autoencoder"] = {"model_type": "latentgen_vae", "architectures": None, **CONFIG, "num_levels": 16}
    other["model"] = {"model_type": "latentgen_prior", "autoencoder": "model_cards/vae_digits"}
    other["model"] |= {"latent_dim": 2, "hidden_size": 64, "num_blocks": 3}
    other["metrics"] = {"in_domain_frechet_distance": 25.125, "in_domain_frechet_distance_of_means": 26.5}
    other["metrics"] |= {"in_domain_frechet_distance_of_own_prior": 81.25, "in_domain_coverage": 0.75}
    other["diagnostics"] = {"in_domain_frechet_distance_of_means_of_encoded": 9.5}
    other["reference"], other["baseline"] = [], {}
    other["history"] = [{"epoch": 1, "eval_velocity_mse": 0.99}, {"epoch": 2, "eval_velocity_mse": 0.92}]
    return other


def test_card_of_a_latent_prior(prior):
    card = render(prior, ["samples_mean.png", "samples.png", "samples_own_prior.png"])
    assert card.data.library_name == "diffusers"
    for text in (
        "A latent diffusion prior of 8x8 images of scikit-learn digits: a denoiser draws the latents",
        "**Frechet distance, in-domain classifier 25.12**, 81.25 with the prior that the autoencoder was trained with.",
        "| Frechet distance, in-domain classifier | measurement | 25.12 |",
        "latents from the prior that the autoencoder was trained with | measurement | 81.25 |",
        "decoder means instead of drawn pixels | measurement | 26.50 |",
        "| in domain frechet distance of means of encoded | 9.50 |",
        "0.9900 (epoch 1) at the first evaluation, 0.9200 (epoch 2) at the best",
        f'LatentGenPipeline.from_pretrained("{REPO_ID}")',
        "![Samples of the diffusion: the mean level of each pixel](images/samples_mean.png)",
    ):
        assert text in str(card)
    assert "bits/dim" not in str(card)


def test_table_of_latent_priors(prior):
    table = tables(prior)
    headers = "| Row | Data | Parameters | Frechet, diffusion | Frechet, own prior |"
    assert table.startswith(f"## Latent diffusion priors\n\n{headers}")
    assert "| 12,345 | 25.12 | 81.25 | 0.750 | - | 2 min 07 s |" in table
