"""The one loader: what it finds in folders, what it refuses, where it puts the parts, and the code beside them."""

import ast
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_latentgen import AAEConfig, AAEModel, ByteTokenizer, LatentGenPipeline, LevelsImageProcessor, load, load_images
from hf_latentgen.hub import loading
from hf_latentgen.hub.code import save_with_code, single_file
from hub_common import assert_same_weights, write_row
from pipelines_common import FAMILIES, levels, make_denoiser, make_pipe, make_text_model


@pytest.fixture(params=FAMILIES)
def pipe(request):
    """A pipeline of each family with new weights."""
    return make_pipe(request.param)


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


def test_options_of_diffusers_are_accepted_or_refused_in_words(tmp_path):
    pipe = make_pipe("prior")
    pipe.save_pretrained(tmp_path / "pipeline")
    pipe.model.save_pretrained(tmp_path / "plain")
    pipe.processor.save_pretrained(tmp_path / "plain")
    from_pretrained = LatentGenPipeline.from_pretrained
    parts = {"scheduler": DDPMScheduler.from_config(pipe.scheduler.config), "denoiser": make_denoiser()}
    other = from_pretrained(tmp_path / "pipeline", scheduler=parts["scheduler"], use_safetensors=True)
    assert other.scheduler is parts["scheduler"]
    assert levels(other, num_inference_steps=3).shape == (1, 1, 8, 8)
    assert from_pretrained(tmp_path / "pipeline", denoiser=parts["denoiser"]).denoiser is parts["denoiser"]
    assert from_pretrained(tmp_path / "plain", **parts).scheduler is parts["scheduler"]
    with pytest.raises(ValueError, match="denoiser and scheduler must be given together"):
        from_pretrained(tmp_path / "plain", scheduler=parts["scheduler"])
    with pytest.raises(ValueError, match="use_safetensors must be True or None, got False: no pickle is ever read"):
        from_pretrained(tmp_path / "pipeline", use_safetensors=False)
    with pytest.raises(ValueError, match="device_map must be None, got 'balanced'"):
        from_pretrained(tmp_path / "pipeline", device_map="balanced")


def test_checkpoints_of_other_kinds_are_refused(tmp_path):
    make_text_model().save_pretrained(tmp_path / "text")
    ByteTokenizer().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="model must be a model .* draws images, got LocalTransformerForCausalLM"):
        LatentGenPipeline.from_pretrained(tmp_path / "text")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="bert/config.json: model_type must be one of .*, got 'bert'"):
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
    with pytest.raises(ValueError, match="model_index.json is not valid JSON"):
        LatentGenPipeline.from_pretrained(tmp_path)
    index.write_text(whole)
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match="the weights of .*model are damaged"):
        LatentGenPipeline.from_pretrained(tmp_path)
    weights.unlink()
    torch.save(content, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        LatentGenPipeline.from_pretrained(tmp_path)
    (tmp_path / "model" / "pytorch_model.bin").unlink()
    save_file({name: torch.cat([value, value]) for name, value in content.items()}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="do not fit its config.json"):
        LatentGenPipeline.from_pretrained(tmp_path)


@pytest.fixture
def folder(families, tmp_path):
    return write_row(tmp_path / "row", families["vae"])


@pytest.mark.parametrize("loader", [load, LatentGenPipeline.from_pretrained])
@pytest.mark.parametrize("change", ["missing_keys", "unexpected_keys"])
@pytest.mark.parametrize("part", ["model", "denoiser"])
def test_missing_and_unexpected_weights_are_refused_by_name(loader, change, part, tmp_path):
    make_pipe("prior").save_pretrained(tmp_path)
    (file,) = (tmp_path / part).glob("*.safetensors")
    weights = load_file(file)
    name = next(iter(weights))
    if change == "missing_keys":
        del weights[name]
    else:
        name = "stranger"
        weights[name] = torch.zeros(1)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"the weights of .*{part}.*, {change}: \['{name}'\]"):
        loader(tmp_path)


@pytest.mark.parametrize("loader", [load, LatentGenPipeline.from_pretrained])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_levels": 256}, "num_levels .* 16.*, got 256"),
        ({"size": {"height": 9, "width": 9}}, r"size .*got \(9, 9\)"),
    ],
)
def test_a_processor_that_gives_what_the_model_does_not_read_is_refused(loader, changes, message, folder, tmp_path):
    LevelsImageProcessor(**({"size": {"height": 8, "width": 8}} | changes)).save_pretrained(folder)
    with pytest.raises(ValueError, match=f"{folder}: {message}"):
        loader(folder)
    make_pipe("prior").save_pretrained(tmp_path / "pipeline")
    LevelsImageProcessor(**({"size": {"height": 8, "width": 8}} | changes)).save_pretrained(
        tmp_path / "pipeline" / "processor"
    )
    with pytest.raises(ValueError, match=message):
        loader(tmp_path / "pipeline")


def test_the_default_processor_of_a_model_of_eight_bits_does_not_fit_it(tmp_path):
    config = AAEConfig(image_size=8, architecture="mlp", latent_dim=2, hidden_channels=(8,), num_levels=256)
    AAEModel(config).save_pretrained(tmp_path)
    LevelsImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_levels of the image processor must be 256.*, got 16"):
        load(tmp_path)
    LevelsImageProcessor.for_config(config).save_pretrained(tmp_path)
    assert load(tmp_path).processor.num_levels == 256


def test_a_missing_processor_is_named(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder} must hold preprocessor_config.json or processor_config"):
        load(folder)


def test_a_revision_of_a_folder_is_refused(folder):
    with pytest.raises(ValueError, match=f"revision must be None for a folder .*{folder}.*, got 'main'"):
        load(folder, "main")


def test_a_row_is_known_by_its_name(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load("vae_digits")
    assert found.folder == repository / "model_cards" / "vae_digits"
    assert found.model_type == "latentgen_vae"
    # A folder of that name comes first.
    shutil.copytree(repository / "model_cards" / "local_digits", tmp_path / "vae_digits")
    assert load("vae_digits").model_type == "latentgen_local_transformer_image"


@pytest.mark.parametrize(("family", "model_type"), [("vae", "latentgen_vae"), ("prior", "latentgen_prior")])
def test_all_parts_are_moved_to_the_accelerator(family, model_type, tmp_path, monkeypatch):
    """The device without memory stands for one."""
    make_pipe(family).save_pretrained(tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    found = load(tmp_path)
    assert found.model_type == model_type
    parts = [part for part in found.parts if isinstance(part, torch.nn.Module)]
    assert len(parts) == (2 if family == "prior" else 1)
    assert {parameter.device.type for part in parts for parameter in part.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in load(tmp_path, device="cpu").model.parameters()} == {"cpu"}
    # As in diffusers, a pipeline stays where it was loaded until it is moved.
    assert LatentGenPipeline.from_pretrained(tmp_path).device.type == "cpu"


def test_a_pipeline_is_loaded_in_eval_mode_and_in_the_type_that_is_asked_for(tmp_path):
    make_pipe("prior").save_pretrained(tmp_path)
    found = load(tmp_path, dtype=torch.float64)
    assert not found.model.training
    assert not found.denoiser.training
    assert {found.model.dtype, found.denoiser.dtype} == {torch.float64}


def test_loading_shows_no_bars(tmp_path, capfd):
    make_pipe("prior").save_pretrained(tmp_path)
    capfd.readouterr()
    load(tmp_path)
    assert "".join(capfd.readouterr()) == ""


def test_a_model_in_a_subfolder_and_a_new_one(tmp_path):
    pipe = make_pipe("prior")
    pipe.save_pretrained(tmp_path)
    assert_same_weights(AutoModel.from_pretrained(tmp_path, subfolder="model"), pipe.model)
    assert type(loading.new_model(pipe.model.config)) is type(pipe.model)


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
