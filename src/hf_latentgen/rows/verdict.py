"""What a training came to: its score beside those that it has to get below, and why where it did not."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_latentgen.evaluation.likelihood import fresh_model
from hf_latentgen.evaluation.metrics import BASELINES, words
from hf_latentgen.families.family import Family
from hf_latentgen.models.modeling_latentgen import LatentGenModel
from hf_latentgen.training.trainer import LatentTrainer

# Bits that a byte holds where all are equally likely.
BYTE_BITS = 8.0
# Below these a model of images seldom gets far; of the first a run of minutes has more.
FEW_STEPS, FEW_LATENTS, FEW_LEVELS = 2_000, 8, 64
# Shares of a score: by how much it still fell at the last evaluation, or had risen since the best one.
STILL_FALLING, RISEN = 0.005, 0.01


@dataclass(frozen=True)
class Verdict:
    """What a training came to, on the validation split; lower scores are better.

    Args:
        unit: of the scores.
        num_examples: validation images, or blocks of text.
        scores: of the model first, then of each rival, by what it is in words.
        sentence: which rivals it lost to, and the likely reason.
    """

    unit: str
    num_examples: int
    scores: dict[str, float]
    sentence: str


def judge(trainer: LatentTrainer, family: Family) -> Verdict:
    """The score of a trained model beside the untrained one, the uniform code and the best code without a network.

    Rivals that there are not for a family, as the codes for a model without a likelihood, are left out.
    """
    name, unit = family.history
    model: Any = trainer.model
    rivals = {}
    with trainer.evaluated_weights():
        score = trainer.validation_metrics(model)[name]
    if isinstance(model, LatentGenModel):
        rivals["the untrained model"] = trainer.validation_metrics(fresh_model(model, trainer.args.seed))[name]
        if model.likelihood is not None:
            rivals["the uniform code"] = BYTE_BITS if model.config.reads_text else math.log2(model.config.num_levels)
    codes = family.baselines(trainer) if family.baselines else {}
    if codes:
        best = min(codes, key=codes.__getitem__)
        rivals[f"the best code without a network ({BASELINES.get(best, words(best))})"] = codes[best]
    history = [entry[f"eval_{name}"] for entry in trainer.state.log_history if f"eval_{name}" in entry]
    lost = [rival for rival, value in rivals.items() if value <= score]
    if lost:
        reasons = likely_reasons(trainer.args.kl_warmup_steps, trainer.state.max_steps, history, model.config.to_dict())
        sentence = f"It lost to {' and to '.join(lost)}. Likely reasons: {'; '.join(reasons)}."
    else:
        sentence = "It beats all of them." if rivals else "There is nothing to compare it with."
    return Verdict(unit, trainer.num_examples(trainer.get_eval_dataloader()), {"this model": score, **rivals}, sentence)


def likely_reasons(warmup: float, num_steps: int, history: Sequence[float], model: Mapping[str, Any]) -> list[str]:
    """Why a model may have lost to what it should beat, in words, the most likely reason first.

    Args:
        warmup: steps over which the weight of the rate grows, or their share of the run.
        num_steps: optimizer steps of the training.
        history: validation scores while training.
        model: fields of its configuration.
    """
    warmup = warmup if warmup >= 1 else warmup * num_steps
    reasons = []
    if warmup > num_steps / 2:
        reasons.append(
            f"the weight of the rate grows over {warmup:g} steps (kl_warmup_steps), the run had {num_steps:,}"
        )
    falls = len(history) > 1 and history[-1] < history[-2] * (1 - STILL_FALLING)
    if falls or num_steps < FEW_STEPS:
        ending = ", and the score was still falling" if falls else ""
        reasons.append(f"too few steps: {num_steps:,}{ending}")
    if history and history[-1] > min(history) * (1 + RISEN):
        reasons.append("too few images, which it has learned by heart: the score rose again before the end")
    if model.get("latent_dim", FEW_LATENTS) < FEW_LATENTS and not model.get("ladder_channels"):
        reasons.append(f"too few latents: latent_dim={model['latent_dim']}")
    if model.get("num_levels", 0) > FEW_LEVELS and model.get("pixel_likelihood", "categorical") == "categorical":
        reasons.append(f"too many levels to learn each by itself: num_levels={model['num_levels']}")
    return reasons or ["the network is too small, or of a kind that does not suit these data"]
