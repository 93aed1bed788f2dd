"""The trainer of the autoregressive models, whose likelihood is exact."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_latentgen.evaluation.text import count_bytes, token_nats
from hf_latentgen.training.trainer import LatentTrainer


class LikelihoodTrainer(LatentTrainer):
    """Trains a model of images, or of texts in blocks of ids, by its exact likelihood.

    Logged beside `loss`, for train and with the prefix `eval_` for evaluation: `bits_per_dim` of images, or
    `bits_per_byte` of texts, all nats over all bytes. In blocks the first ids of a block have little context: scores of
    texts by [`text_scores`] are better than these.
    """

    _reads_text = False

    def set_up(self, model: PreTrainedModel) -> None:
        """Prepares a model that will be trained; what it reads decides on the score."""
        super().set_up(model)
        self._reads_text = model.main_input_name == "input_ids"
        if self._reads_text:
            self.score, self.without_pictures = "bits_per_byte", "a model of texts"

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the weights that decay: not the learned spans, which have a price of their own."""
        return [name for name in super().get_decay_parameter_names(model) if name.split(".")[-1] != "share"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective, in bits per dimension or nats per id, and the model's output when asked for. Scalar."""
        outputs = self._outputs(model, inputs)
        nats, sizes = (part.sum() for part in self._nats_and_sizes(outputs, inputs))
        # Not as a mean: a batch may predict nothing but the end of a text, which is no byte.
        self._parts[self.score].append(torch.stack([nats.float() / math.log(2), sizes.float()]))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def num_terms(self, inputs: dict[str, torch.Tensor]) -> int | torch.Tensor:
        """The number of terms of which the loss of a batch is the mean: its images, or the ids that are predicted."""
        return (inputs["labels"][:, 1:] != -100).sum() if self._reads_text else super().num_terms(inputs)

    def evaluate_batch(self, model, inputs):
        """The loss, and nats and dimensions or bytes of each example, for one batch of an evaluation."""
        outputs = self._outputs(model, inputs)
        return outputs.loss, self._nats_and_sizes(outputs, inputs)

    def metrics(self, parts) -> dict[str, float]:
        """The score: all nats over ln 2 and all dimensions or bytes."""
        nats, sizes = (part.astype("float64").sum() for part in parts)
        return {self.score: nats / sizes / math.log(2)}

    def _outputs(self, model, inputs):
        # Packed documents are kept apart only without a cache.
        return model(**inputs, use_cache=False) if self._reads_text else model(**inputs)

    def _nats_and_sizes(self, outputs, inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats of each example, and the number of its dimensions or bytes. Two tensors [B]."""
        if self._reads_text:
            with torch.no_grad():
                return token_nats(outputs.logits, inputs["labels"]).sum(1), count_bytes(inputs["labels"])
        nats = outputs.negative_log_likelihood.detach()
        return nats, torch.full_like(nats, self.model.config.num_dims)
