"""What the tests of rows share: checkpoints as a training leaves them."""

import json

import torch

from hf_latentgen import LevelsImageProcessor, VAEConfig, VAEModel, load_images

# A published value of those that a recipe names.
REFERENCE = [{"name": "somebody", "metric": "bits_per_dim", "value": 2.5, "source": "a paper"}]
TINY_VAE = {"architecture": "mlp", "image_size": 8, "latent_dim": 2, "hidden_channels": [16]}


def write_run(folder, **fields):
    """Write the record of a training on digits."""
    run = {
        "row": folder.name,
        "config": f"configs/{folder.name}.yaml",
        "overrides": [],
        "train_command": f"python scripts/train.py configs/{folder.name}.yaml",
        "train_seconds": 1.5,
        "seed": 42,
        "hardware": "a computer",
        "versions": {"torch": "2.6"},
        "git_commit": "0" * 40,
        "dataset": {"name": "digits"},
        "model": {},
        "training": {"num_train_epochs": 2},
        "num_parameters": 1,
        "reference": [],
        "history": [],
    }
    (folder / "run.json").write_text(json.dumps(run | fields))


def save_checkpoint(model, folder, num_levels=16):
    """The folder of a model of 8x8 images, saved with its processor."""
    model.save_pretrained(folder)
    LevelsImageProcessor(size={"height": 8, "width": 8}, num_levels=num_levels).save_pretrained(folder)
    return folder


def save_vae(folder, **fields):
    """The folder of a new VAE."""
    torch.manual_seed(0)
    return save_checkpoint(VAEModel(VAEConfig(**(TINY_VAE | fields))), folder)


def load_few(name, split, **where):
    """The first images of a split, for what does not depend on their number."""
    return load_images(name, split, **where).select(range(50))


def names(folder):
    """Names of all that lies in a folder or below it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write_text_recipe(folder, options=""):
    """A recipe of two steps on texts in `folder`, and `train` and `validation` there."""
    for split in ("train", "validation"):
        (folder / f"{split}.txt").write_text("Before.\n\nROMEO:\nTo be, or not to be. " * 40)
    path = folder / "text.yaml"
    path.write_text(
        f"dataset: {{name: {folder}, block_size: 32, {options}}}\n"
        "model: {model_type: latentgen_local_transformer, hidden_size: 16, intermediate_size: 24, "
        "num_hidden_layers: 1, num_attention_heads: 2, window: 8}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 4, save_strategy: no, disable_tqdm: true}\n"
    )
    return path
