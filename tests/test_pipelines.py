"""The pipeline: every family, every option, every mistake, and loading with and without the package."""

import ast
import json
import os
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_latentgen import (
    AAEConfig,
    AAEForImageClassification,
    AAEModel,
    ByteTokenizer,
    LevelsImageProcessor,
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    LocalTransformerForImageGeneration,
    LocalTransformerImageConfig,
    VAEConfig,
    VAEModel,
    load_images,
)
from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser
from hf_latentgen.pipelines import LatentGenPipeline, save_with_code, single_file

MLP = {"architecture": "mlp", "image_size": 8, "latent_dim": 3, "hidden_channels": [16], "num_levels": 16}
LOCAL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
FAMILIES = ("vae", "aae", "labelled", "classifier", "pixels", "classes", "prior")


def make_model(family):
    torch.manual_seed(0)
    if family in ("vae", "prior"):
        return VAEModel(VAEConfig(**MLP))
    if family == "aae":
        return AAEModel(AAEConfig(**MLP, discriminator_channels=[8]))
    if family == "labelled":
        fields = MLP | {"latent_dim": 2, "prior": "flower", "labelled_prior": True, "num_labels": 10}
        return AAEModel(AAEConfig(**fields, discriminator_channels=[8]))
    if family == "classifier":
        return AAEForImageClassification(AAEConfig(**MLP, discriminator_channels=[8], num_labels=10))
    fields = {"is_class_conditional": True, "num_labels": 10} if family == "classes" else {}
    return LocalTransformerForImageGeneration(LocalTransformerImageConfig(image_size=8, **LOCAL, **fields))


def make_text_model():
    return LocalTransformerForCausalLM(LocalTransformerConfig(window=8, **LOCAL))


def make_denoiser(latent_dim=3):
    torch.manual_seed(1)
    return LatentDenoiser(latent_dim, [0.5] * latent_dim, [2.0] * latent_dim, hidden_size=8, num_blocks=1)


def make_scheduler():
    return DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")


def make_pipe(family):
    processor = LevelsImageProcessor(size={"height": 8, "width": 8})
    parts = {"denoiser": make_denoiser(), "scheduler": make_scheduler()} if family == "prior" else {}
    pipe = LatentGenPipeline(make_model(family), processor, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(params=FAMILIES)
def pipe(request):
    """A pipeline of each family with new weights."""
    return make_pipe(request.param)


@pytest.fixture(scope="module")
def digits():
    """Four real digits."""
    return load_images("digits", "test")[:4]["image"]


def levels(pipe, seed=0, **options):
    return pipe(generator=torch.Generator().manual_seed(seed), output_type="pt", **options).images


def test_draws_what_the_model_draws():
    for family in ("vae", "aae", "classifier", "pixels", "classes"):
        pipe = make_pipe(family)
        expected = pipe.model.sample(5, torch.Generator().manual_seed(0))
        assert torch.equal(levels(pipe, batch_size=5), expected), family


def test_types_of_output(pipe):
    drawn = levels(pipe, batch_size=2)
    assert drawn.shape == (2, 1, 8, 8)
    assert drawn.dtype == torch.int64
    pictures = pipe(2, torch.Generator().manual_seed(0)).images
    assert [(picture.mode, picture.size) for picture in pictures] == [("L", (8, 8))] * 2
    (array,) = pipe(2, torch.Generator().manual_seed(0), output_type="np", return_dict=False)
    assert array.shape == (2, 8, 8, 1)
    assert np.allclose(array[..., 0] * (pipe.model.config.num_levels - 1), drawn[:, 0])
    assert np.array_equal(np.asarray(pictures[0]), np.rint(array[0, ..., 0] * 255))
    assert levels(pipe, output="mean").is_floating_point()


def test_one_seed_gives_one_result(pipe):
    assert torch.equal(levels(pipe, batch_size=3), levels(pipe, batch_size=3))
    assert not torch.equal(levels(pipe, batch_size=3), levels(pipe, 1, batch_size=3))


def test_reloaded_pipeline_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = LatentGenPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.model, type(pipe.model))
    assert not loaded.model.training
    assert torch.equal(levels(pipe, batch_size=3), levels(loaded, batch_size=3))
    # What is published must not tell where it lay.
    assert not [path for path in tmp_path.rglob("*.json") if str(tmp_path) in path.read_text()]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".py"}]


@pytest.mark.parametrize("family", ["vae", "classifier", "classes"])
def test_plain_checkpoint_of_a_model_is_a_pipeline_too(family, tmp_path):
    pipe = make_pipe(family)
    pipe.model.save_pretrained(tmp_path)
    pipe.processor.save_pretrained(tmp_path)
    loaded = LatentGenPipeline.from_pretrained(str(tmp_path))
    assert loaded.denoiser is None
    assert torch.equal(levels(pipe, batch_size=3), levels(loaded, batch_size=3))


def test_row_of_the_repository_draws_digits(repository):
    pipe = LatentGenPipeline.from_pretrained(repository / "model_cards" / "vae_digits")
    drawn = levels(pipe, batch_size=64, output="mean").float()
    real = torch.from_numpy(np.stack([np.asarray(image) for image in load_images("digits", "test")[:]["image"]])) / 16
    assert (drawn.mean((0, 1)) - real.float().mean(0)).abs().mean() < 1.5


def test_temperature_is_the_spread_of_the_latents_or_of_the_logits():
    vae = make_pipe("vae")
    expected = vae.model.sample(4, torch.Generator().manual_seed(0), temperature=0.5)
    assert torch.equal(levels(vae, batch_size=4, temperature=0.5), expected)
    pixels = make_pipe("pixels")
    cold = levels(pixels, batch_size=4, temperature=1e-4)
    assert torch.equal(cold, levels(pixels, batch_size=4, output="mode"))


@pytest.mark.parametrize("family", ["labelled", "classifier", "classes"])
def test_class_labels_choose_the_class(family):
    pipe = make_pipe(family)
    assert pipe.num_classes == 10
    labels = torch.tensor([3, 3, 3])
    expected = pipe.model.sample(3, torch.Generator().manual_seed(0), labels=labels)
    for given in (3, [3, 3, 3], labels):
        assert torch.equal(levels(pipe, batch_size=3, class_labels=given), expected)
    assert not torch.equal(levels(pipe, batch_size=3, class_labels=[3, 4, 5]), expected)


@pytest.mark.parametrize("family", ["pixels", "classes"])
def test_completions_keep_the_upper_rows(family, digits):
    pipe = make_pipe(family)
    given = pipe.processor(digits, return_tensors="pt")["pixel_values"]
    options = {"class_labels": [0, 1, 2, 3]} if family == "classes" else {}
    completed = levels(pipe, batch_size=3, images=digits, **options).unflatten(0, (4, 3))
    assert (completed[..., :4, :] == given.unsqueeze(1)[..., :4, :]).all()
    assert not torch.equal(completed[:, 0], completed[:, 1])
    completed = levels(pipe, images=digits[0], rows=7)
    assert torch.equal(completed[..., :7, :], given[:1, :, :7].long())
    assert torch.equal(levels(pipe, images=digits, rows=8), given.long())


# diffusers hands tensors to numpy in a way of old.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_the_scheduler_can_be_replaced(name):
    pipe = make_pipe("prior")
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    drawn = levels(pipe, batch_size=3, num_inference_steps=5)
    assert drawn.shape == (3, 1, 8, 8)
    assert torch.equal(drawn, levels(pipe, batch_size=3, num_inference_steps=5))


def test_progress_bar_counts_rows_and_denoising_steps(capsys):
    for family, total in (("pixels", "8/8"), ("prior", "7/7")):
        pipe = make_pipe(family)
        pipe.set_progress_bar_config(disable=False)
        pipe(1, **({"num_inference_steps": 7} if family == "prior" else {}))
        assert total in capsys.readouterr().err, family


def test_prior_is_the_scheduler_applied_to_the_denoiser():
    pipe = make_pipe("prior")
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(4, 3, generator=generator)
    scheduler = make_scheduler()
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for step in scheduler.timesteps:
            sample = scheduler.step(pipe.denoiser(sample, step).sample, step, sample).prev_sample
    latents = pipe.prior_latents(4, torch.Generator().manual_seed(0), 5)
    torch.testing.assert_close(latents, 2 * sample + 0.5)
    expected = pipe.model.decode(latents).mode
    assert torch.equal(levels(pipe, batch_size=4, num_inference_steps=5, output="mode"), expected)
    assert not torch.equal(pipe.prior_latents(4, torch.Generator().manual_seed(0), 6), latents)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    assert levels(pipe, batch_size=2).shape == (2, 1, 8, 8)


MISTAKES = [
    ("vae", {"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    *[
        ("vae", {"batch_size": given}, f"^batch_size must be a whole number of at least 1, got {shown}$")
        for given, shown in [(2.0, "2.0"), (1.5, "1.5"), (True, "True"), ("2", "'2'"), (None, "None"), ([1], r"\[1\]")]
    ],
    ("prior", {"batch_size": float("inf")}, "batch_size must be a whole number of at least 1, got inf"),
    ("vae", {"generator": [torch.Generator()]}, "generator must be one torch.Generator or None, got list"),
    *[
        (family, {"temperature": given}, f"^temperature must be a number above 0 and finite, got {given!r}$")
        for family in ("vae", "aae", "pixels", "prior")
        for given in (0, -1.0, float("nan"), float("inf"), "1", None)
    ],
    ("aae", {"temperature": 0.5}, "temperature must be 1 for AAEModel, got 0.5"),
    ("prior", {"temperature": 0.5}, "temperature must be 1 for latents that a denoiser draws, got 0.5"),
    ("vae", {"output_type": "jpeg"}, r"output_type must be one of \('pil', 'np', 'pt'\), got 'jpeg'"),
    ("vae", {"output": "median"}, "output must be one of"),
    ("vae", {"class_labels": 1}, "class_labels must be None for a model that has no classes"),
    ("pixels", {"class_labels": 1}, "class_labels must be None for a model that has no classes"),
    ("prior", {"class_labels": 1}, "class_labels must be None for a model that has no classes"),
    ("classifier", {"class_labels": 10}, "class_labels must be in 0 ... 9, got 10"),
    ("classes", {"class_labels": [0, -1], "batch_size": 2}, r"class_labels must be in 0 ... 9, got \[0, -1\]"),
    ("classifier", {"class_labels": [0, 1]}, r"class_labels must be a class or 1 of them, whole numbers, got \[0, 1\]"),
    ("classifier", {"class_labels": 0.5}, "whole numbers, got 0.5"),
    ("classifier", {"class_labels": "3"}, "class_labels must be a class or 1 of them, whole numbers, got '3'"),
    ("classes", {"class_labels": [None]}, r"class_labels must be a class or 1 of them, whole numbers, got \[None\]"),
    ("classes", {"class_labels": [[1], [1, 2]]}, "class_labels must be a class or 1 of them, whole numbers"),
    ("classes", {"class_labels": 2**70}, "class_labels must be a class or 1 of them, whole numbers"),
    ("vae", {"num_inference_steps": 5}, "num_inference_steps must be None without a denoiser, got 5"),
    ("prior", {"num_inference_steps": 0}, "num_inference_steps must be a whole number in 1 ... 1000, got 0"),
    ("prior", {"num_inference_steps": 1001}, "num_inference_steps must be a whole number in 1 ... 1000, got 1001"),
    *[
        ("prior", {"num_inference_steps": given}, f"num_inference_steps must be .* in 1 ... 1000, got {given!r}$")
        for given in ("a", 2.0, True, float("nan"))
    ],
    ("pixels", {"rows": 3}, "rows must be None without images to complete, got 3"),
    ("vae", {"images": "digits"}, "images can be completed by LocalTransformerForImageGeneration only, got VAEModel"),
    ("pixels", {"images": "digits", "rows": 9}, "rows must be a whole number in 0 ... 8, got 9"),
    ("pixels", {"images": "digits", "rows": -1}, "rows must be a whole number in 0 ... 8, got -1"),
]


@pytest.mark.parametrize(("family", "options", "message"), MISTAKES)
def test_mistakes_are_named(family, options, message, digits):
    options = options | ({"images": digits} if "images" in options else {})
    with pytest.raises(ValueError, match=message):
        make_pipe(family)(**options)


def test_parts_must_fit_together():
    processor, denoiser = LevelsImageProcessor(size={"height": 8, "width": 8}), make_denoiser()
    text = make_text_model()
    with pytest.raises(ValueError, match="model must be one of .*, got LocalTransformerForCausalLM"):
        LatentGenPipeline(text, processor)
    with pytest.raises(ValueError, match="denoiser and scheduler must be given together"):
        LatentGenPipeline(make_model("vae"), processor, denoiser)
    with pytest.raises(ValueError, match="denoiser must be None for LocalTransformerForImageGeneration"):
        LatentGenPipeline(make_model("pixels"), processor, denoiser, make_scheduler())
    with pytest.raises(ValueError, match="denoiser must be one of the 3 latents of the model, got one of 4"):
        LatentGenPipeline(make_model("vae"), processor, make_denoiser(4), make_scheduler())
    with pytest.raises(ValueError, match="denoiser must be there"):
        make_pipe("vae").prior_latents(2)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 2.0"):
        make_pipe("prior").prior_latents(2.0)


def test_options_of_diffusers_are_accepted_or_refused_in_words(tmp_path):
    pipe = make_pipe("prior")
    pipe.save_pretrained(tmp_path / "pipeline")
    pipe.model.save_pretrained(tmp_path / "plain")
    pipe.processor.save_pretrained(tmp_path / "plain")
    load = LatentGenPipeline.from_pretrained
    parts = {"scheduler": DDPMScheduler.from_config(pipe.scheduler.config), "denoiser": make_denoiser()}
    other = load(tmp_path / "pipeline", scheduler=parts["scheduler"], use_safetensors=True)
    assert other.scheduler is parts["scheduler"]
    assert levels(other, num_inference_steps=3).shape == (1, 1, 8, 8)
    assert load(tmp_path / "pipeline", denoiser=parts["denoiser"]).denoiser is parts["denoiser"]
    assert load(tmp_path / "plain", **parts).scheduler is parts["scheduler"]
    with pytest.raises(ValueError, match="denoiser and scheduler must be given together"):
        load(tmp_path / "plain", scheduler=parts["scheduler"])
    with pytest.raises(ValueError, match="use_safetensors must be True or None, got False: no pickle is ever read"):
        load(tmp_path / "pipeline", use_safetensors=False)
    with pytest.raises(ValueError, match="device_map must be None, got 'balanced': "):
        load(tmp_path / "pipeline", device_map="balanced")


def test_numbers_of_numpy_are_numbers_too():
    drawn = levels(make_pipe("vae"), batch_size=np.int64(2), temperature=np.float32(0.5))
    assert torch.equal(drawn, levels(make_pipe("vae"), batch_size=2, temperature=0.5))


def test_checkpoints_of_other_kinds_are_refused(tmp_path):
    make_text_model().save_pretrained(tmp_path / "text")
    ByteTokenizer().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="text must hold a model of images, .*got 'latentgen_local_transformer'"):
        LatentGenPipeline.from_pretrained(tmp_path / "text")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="bert must hold a model of images, .*got 'bert'"):
        LatentGenPipeline.from_pretrained(tmp_path / "bert")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text(
        '{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}'
    )
    with pytest.raises(ValueError, match="other must hold a pipeline of a model and a processor, got DDPMPipeline"):
        LatentGenPipeline.from_pretrained(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises((OSError, ValueError), match="empty"):
        LatentGenPipeline.from_pretrained(tmp_path / "empty")


def test_damaged_pipelines_are_refused(tmp_path):
    make_pipe("prior").save_pretrained(tmp_path)
    index, weights = tmp_path / "model_index.json", tmp_path / "model" / "model.safetensors"
    whole, content = index.read_text(), load_file(weights)
    index.write_text(whole.replace("DDIMScheduler", "VAEModel"))
    with pytest.raises(ValueError, match="must name a scheduler of diffusers, got"):
        LatentGenPipeline.from_pretrained(tmp_path)
    index.write_text(whole[:-20])
    with pytest.raises(ValueError, match="damaged file"):
        LatentGenPipeline.from_pretrained(tmp_path)
    index.write_text(whole)
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match="damaged file"):
        LatentGenPipeline.from_pretrained(tmp_path)
    weights.unlink()
    torch.save(content, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        LatentGenPipeline.from_pretrained(tmp_path)
    save_file({name: torch.cat([value, value]) for name, value in content.items()}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="do not fit its config.json"):
        LatentGenPipeline.from_pretrained(tmp_path)


CHILD = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_latentgen":
            raise ImportError("hf_latentgen is not installed here")

sys.meta_path.insert(0, Missing())
import torch
from diffusers import DiffusionPipeline

try:
    import hf_latentgen
except ImportError:
    pass
else:
    raise SystemExit("the package was importable")
for family in sys.argv[1:]:
    pipe = DiffusionPipeline.from_pretrained(family, trust_remote_code=True)
    drawn = pipe(3, torch.Generator().manual_seed(0), output_type="pt").images
    assert torch.equal(drawn, torch.load(f"{family}.pt")), family
    again = DiffusionPipeline.from_pretrained(family, custom_pipeline=family, trust_remote_code=True)
    assert torch.equal(drawn, again(3, torch.Generator().manual_seed(0), output_type="pt").images), family
    pipe(1).images[0].save(f"{family}.png")
    pipe.save_pretrained(f"{family}-saved")
    again = DiffusionPipeline.from_pretrained(f"{family}-saved", trust_remote_code=True)
    assert torch.equal(drawn, again(3, torch.Generator().manual_seed(0), output_type="pt").images), family
"""


def test_pipeline_with_code_loads_where_the_package_is_missing(tmp_path):
    families = ["vae", "classifier", "classes", "prior"]
    for family in families:
        pipe = make_pipe(family)
        folder = save_with_code(pipe, tmp_path / family)
        torch.save(levels(pipe, batch_size=3), tmp_path / f"{family}.pt")
        # With the package the code in the folder is not run, and needs no trust.
        assert torch.equal(levels(LatentGenPipeline.from_pretrained(folder), batch_size=3), levels(pipe, batch_size=3))
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            DiffusionPipeline.from_pretrained(folder)
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "home")}
    environment.pop("PYTHONPATH", None)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *families],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert "require the following packages" not in child.stderr
    for family in families:
        first, second = (
            {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.py")}
            for folder in (tmp_path / family, tmp_path / f"{family}-saved")
        )
        assert first == second, "saved again without its code"
    with Image.open(tmp_path / "prior.png") as picture:
        assert picture.size == (8, 8)


@pytest.mark.parametrize(
    "stem", ["modeling_vae", "modeling_aae", "modeling_aae_classification", "modeling_local_transformer_image"]
)
def test_single_file_defines_each_name_once_and_imports_nothing_of_the_package(stem):
    tree = ast.parse(single_file(stem))
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    names += [target.id for target in targets if isinstance(target, ast.Name)]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in imports if node.level or str(node.module).startswith("hf_latentgen")] == []


def test_index_names_the_code(tmp_path):
    save_with_code(make_pipe("vae"), tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "LatentGenPipeline"]
    assert index["model"] == ["modeling_vae", "VAEModel"]
    code = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py"))
    assert code == ["model/modeling_vae.py", "pipeline.py", "processor/image_processing_levels.py"]
