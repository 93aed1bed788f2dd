"""Training images per second of `AdversarialTrainer` beside a bare two-optimizer loop and beside pythae's trainer.

    pip install --no-deps "pythae>=0.1.2" imageio
    python benchmarks/adversarial_speed.py

All train the course network (z = 8, batches of 64) in one process, in turn, so that a busy machine slows them alike.
The trainer is measured in fp32, as the two others are, in fp32 with channels last, and under bf16 with channels last,
as the published rows train; the trainer of pythae offers neither (its autocast is that of CUDA). Without pythae its
line is left out. Prints a table and writes `adversarial_speed.json` beside this.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from training_speed import StepTimes, seconds_per_step

from hf_latentgen import AAEConfig, AAEModel, AdversarialTrainer, AdversarialTrainingArguments, LevelsDataset
from hf_latentgen.data import collate_levels, dataset_from_arrays
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor

BATCH_SIZE = 64
LEARNING_RATE = 1e-3
BETAS = (0.5, 0.999)
WEIGHT = AAEConfig().reconstruction_weight
TARGET_SHARE_OF_BARE_LOOP = 0.95
TARGET_TIMES_PYTHAE = 1.3


def trainer_step_seconds(levels: LevelsDataset, num_steps: int, **options) -> float:
    """Seconds per step of `AdversarialTrainer` with these training arguments."""
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        arguments = AdversarialTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            max_steps=num_steps,
            save_strategy="no",
            disable_tqdm=True,
            **options,
        )
        AdversarialTrainer(AAEModel(AAEConfig()), arguments, train_dataset=levels, callbacks=[times]).train()
    return seconds_per_step(times.moments)


def bare_step_seconds(levels: LevelsDataset, num_steps: int) -> float:
    """Seconds per step of the course's loop in plain PyTorch: two optimizers, two backward passes."""
    loader = torch.utils.data.DataLoader(levels, batch_size=BATCH_SIZE, shuffle=True, collate_fn=collate_levels)
    model = AAEModel(AAEConfig()).train()
    encoder, decoder, discriminator = model.encoder, model.decoder, model.discriminator
    autoencoder_optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], LEARNING_RATE, BETAS)
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), LEARNING_RATE, BETAS)
    moments: list[float] = []
    while len(moments) < num_steps:
        for batch in loader:
            images = batch["pixel_values"].float() / 127.5 - 1
            codes = encoder.posterior(0, encoder(images)[0], None)
            decoded = decoder.finish(decoder.advance(0, codes, None)).squeeze(1).tanh()
            loss = WEIGHT * F.mse_loss(decoded, images) + (1 - WEIGHT) * F.softplus(-discriminator(codes)).mean()
            autoencoder_optimizer.zero_grad()
            loss.backward()
            autoencoder_optimizer.step()
            real, fake = discriminator(torch.randn_like(codes)), discriminator(codes.detach())
            discriminator_loss = (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
            discriminator_optimizer.zero_grad()
            discriminator_loss.backward()
            discriminator_optimizer.step()
            moments.append(time.perf_counter())
            if len(moments) == num_steps:
                break
    return seconds_per_step(moments)


def pythae_step_seconds(levels: LevelsDataset, num_steps: int) -> float:
    """Seconds per step of pythae's `AdversarialTrainer` with the same networks, deterministic encoder."""
    from pythae.data.datasets import BaseDataset  # pyright: ignore[reportMissingImports]
    from pythae.models import Adversarial_AE, Adversarial_AE_Config  # pyright: ignore[reportMissingImports]
    from pythae.models.base.base_utils import ModelOutput  # pyright: ignore[reportMissingImports]
    from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder  # pyright: ignore[reportMissingImports]
    from pythae.trainers import AdversarialTrainer as PythaeTrainer  # pyright: ignore[reportMissingImports]
    from pythae.trainers import AdversarialTrainerConfig  # pyright: ignore[reportMissingImports]
    from pythae.trainers.training_callbacks import TrainingCallback  # pyright: ignore[reportMissingImports]

    model = AAEModel(AAEConfig())

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.network = model.encoder

        def forward(self, x):
            codes = self.network.posterior(0, self.network(x)[0], None)
            return ModelOutput(embedding=codes, log_covariance=torch.zeros_like(codes))

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.network = model.decoder

        def forward(self, z):
            outputs = self.network.finish(self.network.advance(0, z, None))
            return ModelOutput(reconstruction=outputs.squeeze(1).tanh())

    class Discriminator(BaseDiscriminator):
        def __init__(self):
            super().__init__()
            self.network = model.discriminator

        def forward(self, z):
            return ModelOutput(embedding=nn.functional.sigmoid(self.network(z)))

    class Times(TrainingCallback):
        def __init__(self):
            self.moments: list[float] = []

        def on_train_step_end(self, training_config, **kwargs):
            self.moments.append(time.perf_counter())

    config = Adversarial_AE_Config(input_dim=(1, 28, 28), latent_dim=8, deterministic_posterior=True)
    data = levels.levels[: num_steps * BATCH_SIZE].float() / 127.5 - 1
    times = Times()
    with tempfile.TemporaryDirectory() as folder:
        options = AdversarialTrainerConfig(
            output_dir=folder,
            num_epochs=1,
            per_device_train_batch_size=BATCH_SIZE,
            autoencoder_learning_rate=LEARNING_RATE,
            discriminator_learning_rate=LEARNING_RATE,
            no_cuda=True,
        )
        PythaeTrainer(
            model=Adversarial_AE(config, Encoder(), Decoder(), Discriminator()),
            train_dataset=BaseDataset(data, torch.zeros(len(data))),
            training_config=options,
            callbacks=[times],
        ).train()
    return seconds_per_step(times.moments)


def main() -> None:
    """Measures, prints and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_steps", type=int, default=100, help="steps of one measurement (default: 100)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each contestant (default: 5)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    # What the pixels show does not change the time, so the measurement needs no data files.
    images = np.random.default_rng(42).integers(0, 256, (8_192, 28, 28), dtype=np.uint8)
    levels = LevelsDataset(dataset_from_arrays(images, split="train"), LevelsImageProcessor(size=28, num_levels=256))
    contestants: dict[str, Callable[[LevelsDataset, int], float]] = {
        "bare two-optimizer loop": bare_step_seconds,
        "AdversarialTrainer": trainer_step_seconds,
        "AdversarialTrainer, channels last": partial(trainer_step_seconds, channels_last=True),
        "AdversarialTrainer, channels last, bf16": partial(trainer_step_seconds, channels_last=True, bf16=True),
    }
    if importlib.util.find_spec("pythae"):
        contestants["pythae"] = pythae_step_seconds
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.repeats):
        for name, measure in contestants.items():
            seconds[name].append(measure(levels, arguments.num_steps))
    speeds = {name: BATCH_SIZE / statistics.median(values) for name, values in seconds.items()}
    ours = speeds["AdversarialTrainer"]
    record = {
        "batch_size": BATCH_SIZE,
        "images_per_second": speeds,
        "step_seconds": seconds,
        "trainer_share_of_bare_loop": ours / speeds["bare two-optimizer loop"],
        "target_share_of_bare_loop": TARGET_SHARE_OF_BARE_LOOP,
        "target_times_pythae": TARGET_TIMES_PYTHAE,
    }
    trainers = [name for name in speeds if name.startswith("AdversarialTrainer") and "pythae" in speeds]
    record["times_pythae"] = {name: speeds[name] / speeds["pythae"] for name in trainers}
    others = {"pythae": importlib.metadata.version("pythae")} if "pythae" in speeds else {}
    record |= {"hardware": hardware(), "versions": versions() | others, "git_commit": git_commit()}
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    for name, value in speeds.items():
        print(f"{name:<50}{value:8.0f} images/s")
    share = record["trainer_share_of_bare_loop"]
    print(f"{'AdversarialTrainer / bare loop':<50}{share:8.3f} (target: at least {TARGET_SHARE_OF_BARE_LOOP})")
    for name, times in record["times_pythae"].items():
        print(f"{f'{name} / pythae':<50}{times:8.3f} (target: at least {TARGET_TIMES_PYTHAE})")


if __name__ == "__main__":
    main()
