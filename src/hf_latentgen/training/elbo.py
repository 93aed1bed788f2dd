"""The trainer of models that are optimised by an evidence lower bound."""

import torch

from hf_latentgen.models.bits import nats_to_bits_per_dim
from hf_latentgen.training.trainer import LatentTrainer


class ELBOTrainer(LatentTrainer):
    """Trains a model whose output has a `distortion` and a `rate` per image by its evidence lower bound.

    The weight of the rate grows linearly over `kl_warmup_steps`, from `kl_warmup_start` on. Evaluation always takes
    posterior samples from a seeded generator and the full weight. Logged beside `loss`: `distortion` and `rate` in
    nats, of several groups of latents also `rate_of_group_1` and so on, `bits_per_dim` (both parts with weight 1: the
    negative ELBO) and `beta`, for train, and with the prefix `eval_` for evaluation.
    """

    @property
    def beta(self) -> float:
        """The weight of the rate at the current step."""
        warmup = self.args.kl_warmup_steps
        warmup = warmup if warmup >= 1 else warmup * self.state.max_steps
        share = min(1.0, (self.state.global_step + 1) / warmup) if warmup else 1.0
        start = self.args.kl_warmup_start
        return (start + (1 - start) * share) * self.model.config.beta

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective in bits per dimension, and the model's output when asked for. Scalar."""
        # A tensor, because a compiled model would be compiled anew for each value of a number.
        beta = torch.tensor(self.beta, device=self.args.device)
        outputs = model(**inputs, beta=beta, sample_posterior=True)
        distortion, rate = outputs.distortion.mean(), outputs.rate.mean()
        bits_per_dim = nats_to_bits_per_dim(distortion + rate, self.model.config.num_dims)
        parts = {"distortion": distortion, "rate": rate, **rates_of_groups(outputs.group_rates.mean(0))}
        self.record(**parts, bits_per_dim=bits_per_dim, beta=beta)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def evaluate_batch(self, model, inputs):
        """The loss, and the distortion and rate of each image in nats, for one batch of an evaluation."""
        outputs = model(**inputs, sample_posterior=True, generator=self._evaluation_generator)
        return outputs.loss, (outputs.distortion, outputs.rate, *outputs.group_rates.unbind(1))

    def metrics(self, parts) -> dict[str, float]:
        """Mean distortion and rate in nats, their sum in bits per dimension, and the full weight of the rate."""
        distortion, rate = (part.astype("float64").mean() for part in parts[:2])
        bits_per_dim = nats_to_bits_per_dim(distortion + rate, self.model.config.num_dims)
        scores = {"distortion": distortion, "rate": rate, **rates_of_groups([part.mean() for part in parts[2:]])}
        return scores | {"bits_per_dim": bits_per_dim, "beta": self.model.config.beta}


def rates_of_groups(rates) -> dict:
    """The mean rate of each group of latents in nats, coarse to fine, by its name, where there are several."""
    return {f"rate_of_group_{number}": rate for number, rate in enumerate(rates, 1)} if len(rates) > 1 else {}
