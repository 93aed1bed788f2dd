"""How unusual images are to a model with a likelihood: scores, and the scores of validation images to compare with."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from tqdm.auto import tqdm

from hf_latentgen.data import LevelsDataset
from hf_latentgen.data.descriptions import describe_data
from hf_latentgen.evaluation.baselines import jpeg_xl_bytes, png_bytes
from hf_latentgen.evaluation.likelihood import BAR
from hf_latentgen.evaluation.samples import spread_indices
from hf_latentgen.hub.files import CALIBRATION, read_json, weights_sha256
from hf_latentgen.hub.loading import Checkpoint
from hf_latentgen.models.bits import nats_to_bits_per_dim
from hf_latentgen.models.configuration_latentgen import require
from hf_latentgen.models.distributions import DiagonalGaussian, standard_normal
from hf_latentgen.models.modeling_latentgen import LatentGenModel, check_levels

METHODS = ("bits_per_dim", "typicality", "complexity_png", "complexity_jpeg_xl", "likelihood_ratio")
# Of models with latents.
REGRET = "likelihood_regret"
BATCH_SIZE = 64
# Of the regret: steps of Adam with a rate that falls to zero, and the draws that judge the posterior before and after.
NUM_STEPS, RATE, NUM_DRAWS = 50, 0.1, 16
# Below the first number a quantile says nothing, above the second one it hardly changes.
MIN_IMAGES, MAX_IMAGES = 50, 2_000
# Shares of the validation images whose scores are kept: every hundredth, and the tail in thousandths.
SHARES = (*(number / 100 for number in range(99)), *(number / 1000 for number in range(990, 1001)))


def methods_of(model: LatentGenModel) -> tuple[str, ...]:
    """The methods that a model can give here: none without a likelihood of images, with latents the regret too."""
    if model.likelihood is None or model.config.reads_text:
        return ()
    # A package of the extra "benchmark".
    missing = {"complexity_jpeg_xl"} if find_spec("imagecodecs") is None else set()
    return tuple(method for method in (*METHODS, *[REGRET] * (model.likelihood == "bound")) if method not in missing)


def anomaly_scores(
    model: LatentGenModel,
    images: Tensor,
    method: str = "bits_per_dim",
    *,
    background: LatentGenModel | None = None,
    usual_bits: float | None = None,
    bits: np.ndarray | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> np.ndarray:
    """How unusual each image is to a model, in bits per dimension; higher is more unusual, whatever the method. [N].

    - `bits_per_dim`: what the model's `score` gives, of a VAE its bound.
    - `typicality`: how far that is from its mean over validation images (Nalisnick et al., 2019, with one image a set).
    - `complexity_png`, `complexity_jpeg_xl`: those bits minus the bits of the image as a file of its own (Serrà et al.,
      2020). The two are never mixed: files of one code do not compare with those of the other.
    - `likelihood_ratio`: those bits minus the bits of a model that was trained on images of which a share of the pixels
      was replaced (Ren et al., 2019): what images share with noise cancels.
    - `likelihood_regret`: see [`likelihood_regret`]; for models with latents.

    Args:
        model: has a likelihood of images.
        images: integer levels, [N, C, H, W].
        method: one of those above.
        background: of `likelihood_ratio`, the second model; it reads the same images.
        usual_bits: of `typicality`, the mean bits per dimension of validation images.
        bits: bits per dimension of the images, where they are known. [N].
        batch_size: images at once.
        seed: of the posterior noise, where there is any.

    Raises:
        ValueError: a method that the model cannot give, images of another shape or type, what a method needs is missing
            or does not fit, or a score is not finite.
    """
    check_method(model, method)
    config = model.config
    check_levels(images, config.num_channels, config.image_size, config.num_levels)
    if method == REGRET:
        return likelihood_regret(model, images, batch_size, seed)
    bits = image_bits(model, images, batch_size, seed) if bits is None else _finite(bits)
    if bits.shape != (len(images),):
        raise ValueError(f"bits must have shape [{len(images)}], one number for each image, got {list(bits.shape)}")
    if method == "typicality":
        if usual_bits is None or not np.isfinite(usual_bits):
            raise ValueError(f"usual_bits must be the mean bits per dimension of validation images, got {usual_bits}")
        return np.abs(bits - usual_bits)
    if method == "likelihood_ratio":
        return bits - image_bits(_checked_background(model, background), images, batch_size, seed)
    if method.startswith("complexity"):
        size = png_bytes if method == "complexity_png" else jpeg_xl_bytes
        sizes = [size(image[None], config.num_levels) for image in tqdm(images.cpu().numpy(), method, **BAR)]
        return bits - 8 * np.array(sizes) / config.num_dims
    return bits


def check_method(model: LatentGenModel, method: str) -> None:
    """Raise `ValueError` unless the model can give the scores of a method."""
    allowed = methods_of(model)
    if not allowed:
        raise ValueError(f"model must have a likelihood of images to say how unusual they are, got {model.kind}")
    if method not in allowed:
        reason = "; that of JPEG XL needs the package imagecodecs" if method == "complexity_jpeg_xl" else ""
        told = f"{', '.join(allowed)} ({model.kind}), got {method!r}{reason}"
        raise ValueError(f"method must be one of {told}")


@torch.no_grad()
def image_bits(model: LatentGenModel, images: Tensor, batch_size: int = BATCH_SIZE, seed: int = 0) -> np.ndarray:
    """Bits per dimension of each image, exact or a bound as the model gives them. [N].

    Arguments as in [`anomaly_scores`].

    Raises:
        ValueError: bad levels, or a score that is not finite.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    batches = tqdm(images.split(batch_size), "bits", **BAR)
    bits = torch.cat([model.score(batch.to(model.device), generator).double().cpu() for batch in batches]).numpy()
    return _finite(bits)


def likelihood_regret(model: LatentGenModel, images: Tensor, batch_size: int = BATCH_SIZE, seed: int = 0) -> np.ndarray:
    """What the bound of each image gains by a posterior of its own, in bits per dimension. [N].

    An encoder that has seen such images already gives nearly the best posterior, and there is little to gain.

    The paper trains a copy of the whole encoder on each image. Here what the encoder gives is trained: mean and log
    standard deviation of a diagonal Gaussian over all latents of each image, from those of `model.posterior`. That
    is a bound of the same kind with more freedom for each image and without a copy of the network, and because Adam
    works on each number by itself, a batch is trained at once and gives each image what it would get alone. All images
    meet the same noise, so that a score does not depend on the images beside it; the gain is measured with draws that
    the training has not seen, and can be a little below zero.

    Arguments as in [`anomaly_scores`].

    Raises:
        ValueError: the model has no posterior, bad levels, or a score that is not finite.

    Source: Xiao et al. (2020), Likelihood Regret.
    """
    check_method(model, REGRET)
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    shape, like = (1, model.num_latents), torch.empty(0, device=model.device)
    steps, draws = ([standard_normal(shape, like, generator) for _ in range(count)] for count in (NUM_STEPS, NUM_DRAWS))
    gains = []
    for batch in tqdm(images.split(batch_size), "regret", **BAR):
        levels = batch.to(model.device)
        with torch.no_grad():
            start = model.posterior(levels)
        mean, log_std = (value.clone().requires_grad_() for value in (start.mean, start.log_std))
        optimizer = torch.optim.Adam([mean, log_std], RATE)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / NUM_STEPS, NUM_STEPS - 1)
        before = _bound(model, levels, start, draws)
        with torch.enable_grad():
            for noise in steps:
                loss = _negative_elbo(model, levels, DiagonalGaussian(mean, log_std), noise).sum()
                mean.grad, log_std.grad = torch.autograd.grad(loss, [mean, log_std])
                optimizer.step()
                schedule.step()
        gains.append(before - _bound(model, levels, DiagonalGaussian(mean, log_std), draws))
    return _finite(nats_to_bits_per_dim(torch.cat(gains).cpu().numpy(), model.config.num_dims))


@torch.no_grad()
def _bound(model: LatentGenModel, levels: Tensor, posterior: DiagonalGaussian, draws: list[Tensor]) -> Tensor:
    """The negative ELBO of each image, a mean over draws, in nats. [B]."""
    return torch.stack([_negative_elbo(model, levels, posterior, noise).double() for noise in draws]).mean(0)


def _negative_elbo(model: LatentGenModel, levels: Tensor, posterior: DiagonalGaussian, noise: Tensor) -> Tensor:
    """The negative ELBO of each image at one draw, in nats. [B]. Source: Kingma & Welling (2014), eq. 10."""
    distortion = -model.decode(posterior.mean + posterior.std * noise).log_prob(levels)
    return distortion + posterior.kl_to_standard_normal().sum(1)


def _checked_background(model: LatentGenModel, background: LatentGenModel | None) -> LatentGenModel:
    """The background model. Raises `ValueError` where there is none, or none that reads the images of the model."""
    if background is None or "likelihood_ratio" not in methods_of(background):
        given = "None" if background is None else f"a model: {background.kind}"
        raise ValueError(f"background must be a model with a likelihood of images for likelihood_ratio, got {given}")
    for name in ("num_levels", "num_channels", "image_size"):
        expected, found = (getattr(each.config, name) for each in (model, background))
        if found != expected:
            raise ValueError(f"background must have {name} {expected}, as the model does, got one with {found}")
    return background


def _finite(scores: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise ValueError(f"scores of {(~np.isfinite(scores)).sum()} of {len(scores)} images are not finite")
    return scores


def detection_metrics(usual: np.ndarray, unusual: np.ndarray) -> dict[str, float]:
    """How well scores tell unusual images from usual ones: `auroc`, `average_precision`, `fpr_at_95_tpr`; fractions.

    Unusual images are the positive ones: the last number is the share of usual images that are reported where 95 % of
    the unusual ones are. Shape: scores [N] and [M].
    """
    scores, truth = np.concatenate([usual, unusual]), np.repeat([0, 1], [len(usual), len(unusual)])
    false_alarms, found, _ = roc_curve(truth, scores, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(truth, scores)),
        "average_precision": float(average_precision_score(truth, scores)),
        "fpr_at_95_tpr": float(false_alarms[found >= 0.95][0]),
    }


@strict
@dataclass(kw_only=True)
class Calibration:
    """What validation images score, which tells how unusual a score is. It lies beside the weights and travels so.

    Args:
        dataset: whose validation images they are.
        num_images: how many.
        weights_sha256: of the model, see [`weights_sha256`].
        background_sha256: of the background model of the likelihood ratio, None where there is none.
        mean_bits_per_dim: the mean bits per dimension, for the typicality.
        shares: shares of the images, 0 to 1.
        quantiles: by method, the scores that these shares of the images do not exceed.
    """

    dataset: str
    num_images: int
    weights_sha256: str
    background_sha256: str | None
    mean_bits_per_dim: float
    shares: list
    quantiles: dict

    def validate_quantiles(self):
        """Raises `ValueError` unless there are as many quantiles as shares, for each method."""
        for method, values in self.quantiles.items():
            is_right = isinstance(values, list) and len(values) == len(self.shares)
            require(is_right, f"quantiles.{method}", values, f"a list of {len(self.shares)} numbers")

    def threshold(self, method: str, false_alarm_rate: float) -> float:
        """The score that this share of the validation images exceeds.

        Raises:
            ValueError: the images are too few for such a rate, or there are no scores of the method.
        """
        least = 1 / self.num_images
        if not least <= false_alarm_rate < 1:
            told = f"{least:g} (one of {self.num_images} validation images) or more, and below 1"
            raise ValueError(f"false_alarm_rate must be {told}, got {false_alarm_rate:g}")
        return float(np.interp(1 - false_alarm_rate, self.shares, self._quantiles(method)))

    @property
    def best_method(self) -> str:
        """The method that is taken where none is named: it needs no second model, and tells most of those known."""
        return REGRET if REGRET in self.quantiles else "complexity_png"

    def share_below(self, method: str, score: float) -> float:
        """The share of the validation images whose score is lower. Errors as in `threshold`."""
        return float(np.interp(score, self._quantiles(method), self.shares))

    def _quantiles(self, method: str) -> list[float]:
        if method not in self.quantiles:
            commands = {"likelihood_ratio": "calibrate --background", REGRET: "calibrate"}
            remedy = f"; hf-latentgen {commands[method]} adds it" if method in commands else ""
            raise ValueError(
                f"method must be one of {', '.join(self.quantiles)} in {CALIBRATION}, got {method!r}{remedy}"
            )
        return self.quantiles[method]

    @classmethod
    def read(cls, folder: str | Path) -> "Calibration":
        """The calibration in the folder of a checkpoint.

        Raises:
            FileNotFoundError: there is none; says how to make one.
            ValueError: it is damaged, or of other weights.
        """
        path, remedy = Path(folder) / CALIBRATION, "hf-latentgen calibrate CHECKPOINT --data DATA makes one"
        values = read_json(path, remedy)
        names = {own.name for own in fields(cls)}
        if values.keys() != names:
            told = f"{', '.join(sorted(names))}, got {', '.join(sorted(values)) or 'none'}"
            raise ValueError(f"{path} must have the keys {told}; {remedy}")
        calibration = cls(**values)
        if (found := weights_sha256(Path(folder))) != calibration.weights_sha256:
            told = f"weights_sha256 of {path} must be {found}, as of the weights beside it"
            raise ValueError(f"{told}, got {calibration.weights_sha256}; {remedy}")
        return calibration

    def write(self, folder: Path) -> None:
        """Write `folder/calibration.json`."""
        (folder / CALIBRATION).write_text(f"{json.dumps(asdict(self), allow_nan=False)}\n", encoding="utf-8")


def known_levels(images: LevelsDataset, left_out: Sequence[int]) -> torch.Tensor:
    """Levels of the images of all classes but these. [N, C, H, W]."""
    if not left_out or images.labels is None:
        return images.levels
    return images.levels[~torch.isin(images.labels, torch.tensor(left_out))]


def calibrate(
    checkpoint: Checkpoint,
    validation: LevelsDataset,
    dataset: str,
    background: Checkpoint | None = None,
    left_out: Sequence[int] = (),
    with_regret: bool = True,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Calibration:
    """What validation images score with each method that a model can give, as quantiles.

    Images of the classes `left_out`, those that the model was not trained on, are passed over. Of many images 2,000
    are scored, spread evenly. `complexity_jpeg_xl` is left out where imagecodecs is not installed, `likelihood_ratio`
    without a background model, and on demand the regret, which takes as long as a training of an epoch or two.

    Raises:
        ValueError: fewer than 50 images, or a model without a likelihood of images.
    """
    model, levels = checkpoint.model, known_levels(validation, left_out)
    if len(levels) < MIN_IMAGES:
        told = f"dataset must have at least {MIN_IMAGES} validation images for a calibration"
        raise ValueError(f"{told}, got {len(levels)} of {describe_data(dataset).name}")
    check_method(model, "bits_per_dim")
    levels = levels[spread_indices(len(levels), min(len(levels), MAX_IMAGES))]
    bits = image_bits(model, levels, batch_size, seed)
    usual, second = float(bits.mean()), background and background.model
    given: dict = {"background": second, "usual_bits": usual, "bits": bits, "batch_size": batch_size, "seed": seed}
    quantiles = {}
    left_aside = {"likelihood_ratio": background is None, REGRET: not with_regret}
    for method in methods_of(model):
        if not left_aside.get(method, False):
            scores = np.quantile(anomaly_scores(model, levels, method, **given), SHARES)
            # Six digits tell scores apart, and keep the file small.
            quantiles[method] = [float(f"{score:.6g}") for score in scores]
    return Calibration(
        dataset=describe_data(dataset).name,
        num_images=len(levels),
        weights_sha256=weights_sha256(checkpoint.folder),
        background_sha256=background and weights_sha256(background.folder),
        mean_bits_per_dim=usual,
        shares=list(SHARES),
        quantiles=quantiles,
    )
