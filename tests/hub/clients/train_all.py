"""Trains a small model of each family with averaged weights and push_to_hub, and compares what was pushed."""

import runpy
import sys
from pathlib import Path

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

folder, repository = Path(sys.argv[1]), Path(sys.argv[2])
families = make_families()
processor = families["vae"].processor
images = LevelsDataset(load_images("digits", "validation").select(range(64)), processor, with_labels=True)
unlabelled = LevelsDataset(load_images("digits", "validation").select(range(64)), processor)
blocks = TokenBlocksDataset(Dataset.from_dict({"text": ["to be or not to be " * 40]}), 32)
trainers = {
    "vae": (ELBOTrainer, unlabelled),
    "aae": (AdversarialTrainer, unlabelled),
    "aae-classifier": (AdversarialTrainer, images),
    "local-text": (LikelihoodTrainer, blocks),
    "local-image": (LikelihoodTrainer, unlabelled),
    "prior": (PriorTrainer, encoded(families["vae"].model, unlabelled)),
}


class Last(TrainerCallback):
    """Keeps the weights after the last step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights = weights_of(model)


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def are_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(weight, second[name]) for name, weight in first.items())


for name, (trainer_class, data) in trainers.items():
    options = {"autoencoder": families["vae"].model} if name == "prior" else {}
    model = LatentDenoiser(2, hidden_size=8, num_blocks=1) if name == "prior" else families[name].model
    last = Last()
    trainer = trainer_class(
        model,
        (AdversarialTrainingArguments if name.startswith("aae") else LatentTrainingArguments)(
            output_dir=str(folder / name),
            max_steps=2,
            learning_rate=0.1,
            ema_decay=0.9,
            save_strategy="steps",
            save_steps=1,
            report_to="none",
            push_to_hub=True,
            hub_model_id=f"ada/all-{name}",
        ),
        train_dataset=data,
        eval_dataset=data,
        processing_class=processor if name == "prior" else families[name].processor,
        callbacks=[last],
        **options,
    )
    trainer.train()
    trainer.save_model()
    assert are_equal(weights_of(model), last.weights), f"{name}: training weights were lost"
    with trainer.evaluated_weights():
        averaged = weights_of(model)
    assert not are_equal(averaged, last.weights), f"{name}: nothing was averaged"
    repo_id = f"ada/all-{name}"
    pushed = (
        LatentGenPipeline.from_pretrained(repo_id).denoiser if name == "prior" else type(model).from_pretrained(repo_id)
    )
    assert are_equal(weights_of(pushed), averaged), f"{name}: other weights were pushed"
    print(name)

sys.argv = ["train.py", str(repository / "configs" / "vae_digits.yaml"), "training.max_steps=2"]
sys.argv += ["training.push_to_hub=true", "training.hub_model_id=ada/all-command", "training.report_to=none"]
sys.argv += ["training.sample_epochs=[]", "--output_dir", str(folder / "command")]
runpy.run_path(str(repository / "scripts" / "train.py"), run_name="__main__")
saved, pushed = (weights_of(AutoModel.from_pretrained(place)) for place in (folder / "command", "ada/all-command"))
assert are_equal(saved, pushed)
print("command")
