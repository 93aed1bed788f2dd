r"""Whether what makes images loses modes: GANs and adversarial autoencoders with one decoder on stacked MNIST.

    python benchmarks/mode_coverage.py --seeds 0 1 2 --data_dir DATA

An image is three digits of MNIST, drawn independently, as the channels of a colour image: 1,000 modes. A row of this
repository reads the digit in each channel of 26,000 samples; its error on single digits is part of the record. Real
test images come first, as the yardstick. All contestants have the decoder, the latents and the images in common, and
each image is seen once:

- gan_half, gan: the decoder as generator, and a DCGAN-like discriminator of images with half of its weights, or as many
  (non-saturating loss, Adam with 2e-4 and beta1 0.5);
- aae: encoder and decoder, and a discriminator that sees codes only, at lambda 0.995;
- aae_of_images: encoder and decoder must reconstruct as before, but the adversary sees images, drawn from the prior,
  as that of the gan does, and nothing holds the codes to the prior: what "must reconstruct" does by itself;
- aae_of_both: the aae with that discriminator of images as well.

The hidden layers of the decoder are normalised over the batch, as in DCGAN: without it, the gan learned nothing.

Prints a line for each, and writes `mode_coverage.json` and a picture, `mode_coverage.png`, beside this, after each run:
a run that is there already is not made again, so that they can be made in pieces.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from hf_latentgen import AAEConfig, AAEModel, LevelsDataset, load, load_images
from hf_latentgen.evaluation.distances import class_histogram_kl, coverage_and_recall, frechet_distance
from hf_latentgen.evaluation.features import classifier_features
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.models.networks import DenseBlock, UpsamplingBlock

CLASSIFIER = "aae_mnist_all_labels"
NUM_DIGITS, NUM_MODES, NUM_SAMPLES = 3, 1_000, 26_000
LATENT_DIM = 24
BATCH_SIZE = 64
# Rates of autoencoders, which end at zero, and those of DCGAN, which stay. With the rates of configs/aae_mnist.yaml,
# made for 8 latents and one digit, the adversary wins before the codes say anything, and they shrink to a point.
AUTOENCODER_RATE, CODE_RATE, GAN_RATE, BETAS = 3e-3, 2e-4, 2e-4, (0.5, 0.999)
MAX_GRAD_NORM = 1.0
WARMUP_STEPS, INPUT_NOISE = 200, 0.3
LAMBDA = 0.995


@dataclass(frozen=True)
class Contestant:
    """What trains the decoder.

    Args:
        reconstructs: an encoder, from whose codes the decoder has to make the image again.
        judges_codes: a discriminator of codes.
        image_judge: weights of the discriminator of images as a share of the decoder's; 0 for none.
    """

    reconstructs: bool
    judges_codes: bool
    image_judge: float


CONTESTANTS = {
    "gan_half": Contestant(False, False, 0.5),
    "gan": Contestant(False, False, 1),
    "aae": Contestant(True, True, 0),
    "aae_of_images": Contestant(True, False, 1),
    "aae_of_both": Contestant(True, True, 1),
}


class StackedDigits:
    """Images of three digits each, drawn independently with a seed. uint8 [N, 3, H, W]."""

    def __init__(self, digits: Tensor, count: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.digits = digits
        self.chosen = torch.randint(len(digits), (count, NUM_DIGITS), generator=generator)

    def batch(self, start: int, stop: int) -> Tensor:
        """Images from one number to before another. uint8 [B, 3, H, W]."""
        return self.digits[self.chosen[start:stop], 0]


def image_judge(num_weights: float) -> nn.Module:
    """A discriminator of images like that of DCGAN, with about as many weights. [B, 3, 28, 28] -> [B]."""

    def make(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(NUM_DIGITS, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(4 * width * 16, 1),
            nn.Flatten(0),
        )

    with torch.device("meta"):
        best = min(range(4, 128), key=lambda width: abs(count_weights(make(width)) - num_weights))
    judge = make(best)
    for module in judge.modules():
        # As in DCGAN.
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, 0.02)
    return judge.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def normalise(decoder: nn.Module) -> None:
    """Puts batch normalisation before each activation of a decoder."""
    for block in decoder.modules():
        if isinstance(block, (DenseBlock, UpsamplingBlock)):
            for name, layer in list(block.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(block, name, nn.Sequential(layer, nn.BatchNorm1d(layer.out_features)))
                elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                    setattr(block, name, nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)))


def count_weights(module: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in module.parameters())


def train(contestant: Contestant, images: StackedDigits, seed: int, device: Any) -> tuple[AAEModel, dict]:
    """The model whose decoder was trained, in `eval()` mode, and the numbers of weights.

    Both players step on the same batch, each by its own loss.
    """
    torch.manual_seed(seed)
    weight = LAMBDA if contestant.judges_codes else 1.0
    config = AAEConfig(
        num_channels=NUM_DIGITS, latent_dim=LATENT_DIM, reconstruction_weight=weight, input_noise_std=INPUT_NOISE
    )
    made: Any = AAEModel(config)
    normalise(made.decoder)
    model: AAEModel = made.to(device, memory_format=torch.channels_last).train()
    sizes = {"decoder": count_weights(model.decoder)}
    judge = image_judge(contestant.image_judge * sizes["decoder"]).to(device) if contestant.image_judge else None
    num_steps = len(images.chosen) // BATCH_SIZE
    if contestant.reconstructs:
        autoencoder = [*model.encoder.parameters(), *model.decoder.parameters()]
        codes = {"params": model.discriminator.parameters(), "lr": CODE_RATE}
        players = torch.optim.Adam([{"params": autoencoder}, codes], AUTOENCODER_RATE)
    else:
        players = torch.optim.Adam(model.decoder.parameters(), GAN_RATE, BETAS)

    def rate(step: int) -> float:
        """Share of the learning rate at a step."""
        cosine = (1 + math.cos(math.pi * step / num_steps)) / 2
        return min(1, (step + 1) / WARMUP_STEPS) * cosine if contestant.reconstructs else 1.0

    schedule = torch.optim.lr_scheduler.LambdaLR(players, rate)
    judging = None if judge is None else torch.optim.Adam(judge.parameters(), GAN_RATE, BETAS)
    for step in range(num_steps):
        levels = images.batch(step * BATCH_SIZE, (step + 1) * BATCH_SIZE).to(device)
        loss = torch.zeros((), device=device)
        # As the rows are trained: weights and losses are fp32. A discriminator that has stepped must not be remembered.
        with torch.autocast(levels.device.type, torch.bfloat16, cache_enabled=False):
            if contestant.reconstructs:
                loss = model(levels, sample_posterior=True, sample_prior=True).loss
            if judge is not None and judging is not None:
                real = levels / 127.5 - 1
                drawn = model.decode(torch.randn(len(levels), LATENT_DIM, device=device)).mean / 127.5 - 1
                judged = F.softplus(-judge(real).float()).mean() + F.softplus(judge(drawn.detach()).float()).mean()
                judging.zero_grad()
                judged.backward()
                judging.step()
                share = 1 - LAMBDA if contestant.reconstructs else 1.0
                loss = loss + share * F.softplus(-judge(drawn).float()).mean()
        players.zero_grad()
        loss.backward()
        if contestant.reconstructs:
            nn.utils.clip_grad_norm_([*model.parameters()], MAX_GRAD_NORM)
        players.step()
        schedule.step()
    sizes |= {} if judge is None else {"image_discriminator": count_weights(judge)}
    return model.eval(), sizes


def modes_and_features(classifier: Any, images: Sequence[Tensor], num_features: int) -> tuple[np.ndarray, np.ndarray]:
    """The mode of each image, 0 to 999 [N], and features of the first ones, channels side by side [M, F]."""
    modes, features, found = [], [], 0
    for batch in images:
        parts = [classifier_features(classifier, batch[:, channel, None], 250) for channel in range(NUM_DIGITS)]
        modes.append(sum(part[1] * 10 ** (NUM_DIGITS - 1 - channel) for channel, part in enumerate(parts)))
        if found < num_features:
            features.append(np.concatenate([part[0] for part in parts], 1)[: num_features - found])
            found += len(features[-1])
    return np.concatenate(modes), np.concatenate(features)


def scores(modes: np.ndarray, features: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Modes hit, KL of their histogram to the uniform one in nats, and how near features are to those of images."""
    found = coverage_and_recall(real, features)
    return {
        "modes": len(np.unique(modes)),
        "kl_to_uniform_nats": class_histogram_kl(modes, np.arange(NUM_MODES), NUM_MODES),
        "coverage": found["coverage"],
        "recall": found["recall"],
        "in_domain_frechet_distance": frechet_distance(real, features),
    }


def batches(images: StackedDigits) -> list[Tensor]:
    """All images, some at a time."""
    return [images.batch(start, start + 1_000) for start in range(0, len(images.chosen), 1_000)]


@torch.no_grad()
def samples(model: AAEModel, count: int) -> list[Tensor]:
    """Images from the prior, some at a time, as whole levels. Those of a time are normalised together."""
    model.decoder.train()
    generator = torch.Generator().manual_seed(0)
    sizes = [min(1_000, count - start) for start in range(0, count, 1_000)]
    return [model.sample(size, generator, output="mode").byte() for size in sizes]


def draw(record: dict, path: Path) -> None:
    """Each run as a dot, the yardstick as a line: one panel for each score."""
    names = [name for name in CONTESTANTS if any(run["contestant"] == name for run in record["runs"].values())]
    titles = {
        "modes": "modes hit, of 1,000",
        "kl_to_uniform_nats": "KL to uniform, nats",
        "coverage": "coverage",
        "recall": "recall",
        "in_domain_frechet_distance": "in-domain Fréchet distance",
    }
    figure = Figure(figsize=(13, 3), dpi=110, layout="constrained")
    for axes, (score, title) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
        for place, name in enumerate(names):
            values = [run[score] for run in record["runs"].values() if run["contestant"] == name]
            axes.plot([place] * len(values), values, "o", alpha=0.7)
        axes.axhline(record["yardstick"][score], color="black", linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_title(title, fontsize=9)
    figure.supxlabel("dashed: real test images", fontsize=8)
    figure.savefig(path)


def main() -> None:
    """Makes each run that is missing, prints, and writes the record and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", nargs="*", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--num_images", type=int, default=300_000, help="images that each contestant sees")
    parser.add_argument("--num_samples", type=int, default=NUM_SAMPLES)
    parser.add_argument("--num_judged", type=int, default=10_000, help="samples of which features are compared")
    parser.add_argument("--data_dir")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    settings = {key: getattr(arguments, key) for key in ("num_images", "num_samples", "num_judged")}
    settings |= {"batch_size": BATCH_SIZE, "latent_dim": LATENT_DIM, "classifier": CLASSIFIER}
    record: dict = {"settings": settings, "runs": {}}
    if arguments.output.is_file():
        record = json.loads(arguments.output.read_text())
        if record["settings"] != settings:
            raise SystemExit(f"settings must be those of {arguments.output}, {record['settings']}, got {settings}")
    checkpoint = load(CLASSIFIER)
    classifier, device = checkpoint.model, checkpoint.model.device
    train_images, test_images = (
        LevelsDataset(load_images("mnist", split, data_dir=arguments.data_dir), checkpoint.processor, with_labels=True)
        for split in ("train", "test")
    )
    real = StackedDigits(test_images.levels, arguments.num_samples, 0)
    real_modes, real_features = modes_and_features(classifier, batches(real), arguments.num_judged)
    if "yardstick" not in record:
        labels = test_images.labels
        predicted = classifier_features(classifier, test_images.levels, 250)[1]
        others = StackedDigits(train_images.levels, arguments.num_judged, 1)
        _, seen = modes_and_features(classifier, batches(others), arguments.num_judged)
        record["classifier_test_error"] = float((torch.from_numpy(predicted) != labels).float().mean())
        # Modes of test images; distances of training images, which are others.
        record["yardstick"] = scores(real_modes, seen, real_features)
    print(f"error of the classifier on test digits: {record['classifier_test_error']:.4f}")
    print("real images", record["yardstick"], flush=True)
    for seed in arguments.seeds:
        for name in arguments.contestants:
            key = f"{name}, seed {seed}"
            if key in record["runs"]:
                print(f"{key}: made before", flush=True)
                continue
            started = time.monotonic()
            images = StackedDigits(train_images.levels, arguments.num_images, 100 + seed)
            model, sizes = train(CONTESTANTS[name], images, seed, device)
            seconds = time.monotonic() - started
            drawn = samples(model, arguments.num_samples)
            found = scores(*modes_and_features(classifier, drawn, arguments.num_judged), real_features)
            provenance = {"hardware": hardware(), "versions": versions(), "git_commit": git_commit()}
            told = {"contestant": name, "seed": seed, "weights": sizes, "train_seconds": round(seconds, 1)}
            record["runs"][key] = told | found | provenance
            arguments.output.write_text(json.dumps(record, indent=2) + "\n")
            draw(record, arguments.output.with_suffix(".png"))
            print(key, found, f"trained in {seconds:.0f} s", flush=True)
    print(f"written to {arguments.output} and {arguments.output.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
