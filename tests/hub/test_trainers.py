"""Every trainer, and the command, pushes the averaged weights, and trains on with its own."""

import runpy
import sys

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, TrainerCallback

from hf_latentgen import (
    AdversarialTrainer,
    AdversarialTrainingArguments,
    ELBOTrainer,
    LatentGenPipeline,
    LatentTrainingArguments,
    LevelsDataset,
    LikelihoodTrainer,
    TokenBlocksDataset,
)
from hf_latentgen.data import load_images
from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser
from hf_latentgen.training.latent_prior import PriorTrainer, encoded
from hub_common import make_families

pytestmark = [
    pytest.mark.timeout(300),
    # The client itself raises it, of the library beneath.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


class Last(TrainerCallback):
    """Keeps the weights after the last step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights = weights_of(model)


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def are_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(weight, second[name]) for name, weight in first.items())


def data_of(name, families):
    """What a family is trained on, and the processor that is pushed with it."""
    processor = families["vae"].processor
    if name == "local-text":
        texts = Dataset.from_dict({"text": ["to be or not to be " * 40]})
        return TokenBlocksDataset(texts, 32), families[name].processor
    images = load_images("digits", "validation").select(range(64))
    levels = LevelsDataset(images, processor, with_labels=name == "aae-classifier")
    return encoded(families["vae"].model, levels) if name == "prior" else levels, processor


def assert_only_safetensors(hub, name):
    assert "model.safetensors" in hub.files(name) or "model_index.json" in hub.files(name)
    assert not any(path.endswith((".bin", ".pt")) for path in hub.files(name))


@pytest.mark.parametrize(
    ("name", "trainer_class"),
    [
        ("vae", ELBOTrainer),
        ("aae", AdversarialTrainer),
        ("aae-classifier", AdversarialTrainer),
        ("local-text", LikelihoodTrainer),
        ("local-image", LikelihoodTrainer),
        ("prior", PriorTrainer),
    ],
)
def test_averaged_weights_are_pushed_and_training_weights_come_back(hub, tmp_path, name, trainer_class):
    # Trained, so not those of the other tests.
    families, repo_id, last = make_families(), f"ada/all-{name}", Last()
    data, processor = data_of(name, families)
    model = LatentDenoiser(2, hidden_size=8, num_blocks=1) if name == "prior" else families[name].model
    trainer = trainer_class(
        model,
        (AdversarialTrainingArguments if name.startswith("aae") else LatentTrainingArguments)(
            output_dir=str(tmp_path),
            max_steps=2,
            learning_rate=0.1,
            ema_decay=0.9,
            save_strategy="steps",
            save_steps=1,
            report_to="none",
            push_to_hub=True,
            hub_model_id=repo_id,
        ),
        train_dataset=data,
        eval_dataset=data,
        processing_class=processor,
        callbacks=[last],
        **({"autoencoder": families["vae"].model} if name == "prior" else {}),
    )
    trainer.train()
    trainer.save_model()
    assert are_equal(weights_of(model), last.weights), "training weights were lost"
    with trainer.evaluated_weights():
        averaged = weights_of(model)
    assert not are_equal(averaged, last.weights), "nothing was averaged"
    loader = LatentGenPipeline if name == "prior" else type(model)
    found = loader.from_pretrained(repo_id)
    assert are_equal(weights_of(found.denoiser if name == "prior" else found), averaged), "other weights were pushed"
    assert_only_safetensors(hub, repo_id)


def test_the_command_pushes_what_it_saves(hub, repository, tmp_path, monkeypatch):
    words = ["training.max_steps=2", "training.push_to_hub=true", "training.hub_model_id=ada/all-command"]
    words += ["training.report_to=none", "training.sample_epochs=[]", "--output-dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train.py", str(repository / "configs" / "vae_digits.yaml"), *words])
    runpy.run_path(str(repository / "scripts" / "train.py"), run_name="__main__")
    saved, pushed = (weights_of(AutoModel.from_pretrained(place)) for place in (tmp_path / "run", "ada/all-command"))
    assert are_equal(saved, pushed)
    assert_only_safetensors(hub, "ada/all-command")
