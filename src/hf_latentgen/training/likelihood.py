"""The trainer of the autoregressive models, whose likelihood is exact."""

import math

import torch
from torch import nn
from transformers import EvalPrediction, PreTrainedModel

from hf_latentgen.evaluation.text import count_bytes, token_nats
from hf_latentgen.training.arguments import LatentTrainingArguments
from hf_latentgen.training.trainer import LatentTrainer


class LikelihoodTrainer(LatentTrainer):
    """Trains a model of images, or of texts in blocks of ids, by its exact likelihood.

    Logged beside `loss`, for train and with the prefix `eval_` for evaluation: `bits_per_dim` of images, or
    `bits_per_byte` of texts, all nats over all bytes. In blocks the first ids of a block have little context: scores of
    texts by [`text_scores`] are better than these.
    """

    def __init__(self, model: PreTrainedModel, args: LatentTrainingArguments, **kwargs):
        self._reads_text = model.main_input_name == "input_ids"
        if self._reads_text and args.sample_epochs:
            raise ValueError(f"sample_epochs must be empty for a model of texts, got {args.sample_epochs}")
        if args.metric_for_best_model == "bits_per_dim":
            args.metric_for_best_model = self.score
        super().__init__(model, args, compute_metrics=self._likelihood_metrics, **kwargs)

    @property
    def score(self) -> str:
        """Name of the score: nats over ln 2 and the number of dimensions, or of bytes."""
        return "bits_per_byte" if self._reads_text else "bits_per_dim"

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the weights that decay: not the learned spans, which have a price of their own."""
        return [name for name in super().get_decay_parameter_names(model) if name.split(".")[-1] != "share"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective, in bits per dimension or nats per id, and the model's output when asked for. Scalar."""
        outputs = self._outputs(model, inputs)
        nats, sizes = self._nats_and_sizes(outputs, inputs)
        self.record(**{self.score: nats.sum() / sizes.sum() / math.log(2)})
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss, nats and dimensions or bytes of each example [B], and no labels, for one batch of an evaluation."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self._outputs(model, inputs)
        # Empty labels rather than none: without any, the metrics would not be computed.
        return outputs.loss, self._nats_and_sizes(outputs, inputs), ()

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

    def _likelihood_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        nats, sizes = (part.astype("float64").sum() for part in prediction.predictions)
        return {self.score: nats / sizes / math.log(2)}
