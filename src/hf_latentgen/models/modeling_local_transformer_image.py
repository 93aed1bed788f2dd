# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""The local-attention transformer over pixels: an exact likelihood of images, one pixel after the other."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .bits import nats_to_bits_per_dim
from .configuration_local_transformer_image import LocalTransformerImageConfig
from .distributions import (
    check_generator,
    draw_levels,
    expected_level,
    logistic_mixture_log_probs,
    logistic_mixture_logits,
)
from .modeling_latentgen import check_completion, check_levels
from .modeling_local_transformer import LocalTransformerModel, LocalTransformerPreTrainedModel
from .position_steps import Ring


@dataclass
class ImageLikelihoodOutput(ModelOutput):
    """What [`LocalTransformerForImageGeneration`] returns.

    Args:
        loss: mean over the batch, in bits per dimension. Scalar.
        negative_log_likelihood: `-log p(x)` of each image, exact, in nats. [B].
        logits: unnormalised log probabilities of the levels, given the pixels before. [B, num_levels, C, H, W]. Of a
            mixture of logistic distributions the parameters of K parts: all logits of weights, then all means, then all
            log scales. [B, 3 * K, C, H, W].
        hidden_states: with `output_hidden_states`, the embeddings and what each layer returns, in raster order, the
            channels of a pixel together. Tensors [B, H * W * C, hidden_size].
    """

    loss: Tensor | None = None
    negative_log_likelihood: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class PixelInputs:
    """What the model reads to predict values, from tables of the positions `start` to before `stop`."""

    def __init__(self, model: "LocalTransformerForImageGeneration", labels: Tensor | None, start: int, stop: int):
        config = model.config
        position = torch.arange(start, stop, device=model.device)
        row, column = position // config.row_length, position % config.row_length // config.num_channels
        up, right = torch.tensor(config.neighbors, device=model.device).unbind(1)
        neighbor_row, neighbor_column = row.unsqueeze(1) - up, column.unsqueeze(1) + right
        is_inside = (neighbor_row >= 0) & (neighbor_column >= 0) & (neighbor_column < config.image_size)
        neighbors = position.unsqueeze(1) - up * config.row_length + right * config.num_channels
        contexts = torch.cat([position.unsqueeze(1) - 1, neighbors], 1)
        self.start = start
        self.is_inside = torch.cat([position.unsqueeze(1) > 0, is_inside], 1)
        self.contexts = contexts.clamp(min=0)
        self.num_levels = config.num_levels
        self.offsets = (config.num_levels + 1) * torch.arange(contexts.shape[1], device=model.device)
        self.weight = model.model.embed_tokens.weight
        channel = position % config.num_channels
        self.places = [model.row_embedding(row), model.column_embedding(column), model.channel_embedding(channel)]
        self.labels = None if model.class_embedding is None else model.class_embedding(labels).unsqueeze(1)

    def __call__(self, values: Tensor, start: int, stop: int) -> Tensor:
        """The inputs at positions of the tables, from the values before them [B, N]. [B, stop - start, hidden_size]."""
        part = slice(start - self.start, stop - self.start)
        ids = torch.where(self.is_inside[part], values[:, self.contexts[part]], self.num_levels) + self.offsets
        inputs = F.embedding_bag(ids.flatten(0, 1), self.weight, mode="sum").unflatten(0, ids.shape[:2])
        for place in self.places:
            inputs = inputs + place[part]
        return inputs if self.labels is None else inputs + self.labels


class PixelSteps:
    """Logits of one position after the other, from the values before it, which the caller fills in. See `steps`.

    All that depends on positions or weights alone is made once.
    """

    def __init__(
        self,
        model: "LocalTransformerForImageGeneration",
        values: Tensor,
        labels: Tensor | None,
        new_ring: Callable[[Tensor, int, Tensor], Ring],
    ):
        self.model = model
        self.values = values
        self.inputs = PixelInputs(model, labels, 0, values.shape[1])
        self.steps = model.model.steps(values.shape[1], new_ring)

    @torch.no_grad()
    def logits(self, position: int) -> Tensor:
        """Logits of the levels at a position after those asked for before. [B, num_levels].

        All positions that were left out are read at once.
        """
        outputs = self.model.lm_head(self.steps(self.inputs(self.values, self.steps.known, position + 1)))
        config = self.model.config
        if config.pixel_likelihood == "categorical":
            return outputs
        return logistic_mixture_logits(outputs.unflatten(1, (3, -1)), config.num_levels)


class LocalTransformerForImageGeneration(LocalTransformerPreTrainedModel):
    """Autoregressive model of pixels in raster order, the channels of a pixel one after the other.

    The input that predicts a value is the sum of embeddings of the value before it, of its neighbours above and to the
    left (`context_radius`), and of its row, column and channel: a model may look at everything that comes before the
    value it predicts. Attention reaches `window_rows` rows back in each layer.

    Source: Parmar et al. (2018), Image Transformer; the neighbours as input are what a PixelCNN's first layer sees.
    """

    config: LocalTransformerImageConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    kind = "transformer of pixels"
    likelihood = "exact"
    draws_images = True
    has_temperature = True
    can_complete = True

    def __init__(self, config: LocalTransformerImageConfig):
        super().__init__(config)
        self.model = LocalTransformerModel(config)
        self.row_embedding = nn.Embedding(config.image_size, config.hidden_size)
        self.column_embedding = nn.Embedding(config.image_size, config.hidden_size)
        self.channel_embedding = nn.Embedding(config.num_channels, config.hidden_size)
        num_classes = config.num_labels if config.is_class_conditional else None
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.outputs_per_dim, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
    ):
        """The exact likelihood of each image: all `C * H * W` dimensions count, the first too.

        While an adaptive model is trained, and never in `eval()`, `span_penalty` is added to the loss, and never to
        the likelihood.

        Args:
            pixel_values: integer levels, [B, C, H, W].
            labels: classes, for a class-conditional model. [B].
            return_loss: also compute the loss.
            output_hidden_states: also return the states of each layer; as the configuration says when None.

        Raises:
            ValueError: bad levels, or labels that are missing, out of range or not wanted.
        """
        self._check_images(pixel_values)
        self._check_labels(labels, pixel_values.shape[0])
        values = self._sequence(pixel_values)
        shown = {} if output_hidden_states is None else {"output_hidden_states": output_hidden_states}
        states = self.model(inputs_embeds=self._inputs(values, labels, 0, values.shape[1]), use_cache=False, **shown)
        logits = self.lm_head(states.last_hidden_state).float()
        nats = self._nats(logits, values).sum(1)
        loss = nats_to_bits_per_dim(nats.mean(), self.config.num_dims) if return_loss else None
        if loss is not None and self.training and self.config.attention_span == "adaptive":
            loss = loss + self.span_penalty()
        return ImageLikelihoodOutput(loss, nats, self._images(logits), states.hidden_states)

    @torch.no_grad()
    def bits_per_dim(self, pixel_values: Tensor, labels: Tensor | None = None) -> Tensor:
        """`-log p(x)` of each image in bits per dimension: exact, no bound. [B]."""
        nats = self(pixel_values, labels=labels, return_loss=False).negative_log_likelihood
        return nats_to_bits_per_dim(nats, self.config.num_dims)

    @torch.no_grad()
    def score(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Bits per dimension of each image, exact; all classes of a conditional model are equally likely. [B]."""
        if not self.num_sample_classes:
            return self.bits_per_dim(pixel_values)
        classes = torch.arange(self.num_sample_classes, device=pixel_values.device)
        given = [label.expand(pixel_values.shape[0]) for label in classes]
        nats = torch.stack([self(pixel_values, one, return_loss=False).negative_log_likelihood for one in given])
        return nats_to_bits_per_dim(math.log(len(nats)) - (-nats).logsumexp(0), self.config.num_dims)

    def sample(
        self,
        num_images: int,
        generator: torch.Generator | None = None,
        output: str = "sample",
        temperature: float = 1.0,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Images drawn pixel by pixel, as levels. [num_images, C, H, W]. Arguments and errors as in `complete_by_row`.

        Raises:
            ValueError: `num_images` is below 1.
        """
        return self.complete(self.blank(num_images), 0, generator, output, temperature, labels)

    @property
    def num_sample_classes(self) -> int:
        """How many classes `sample` can be asked for, 0 where it knows none."""
        return 0 if self.class_embedding is None else self.class_embedding.num_embeddings

    @torch.no_grad()
    def complete_by_row(
        self,
        pixel_values: Tensor,
        rows: int,
        generator: torch.Generator | None = None,
        output: str = "sample",
        temperature: float = 1.0,
        labels: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Images whose first rows are given, after each further row that is drawn, and first as they are. [B, C, H, W].

        Rows that are not yet drawn are as in `pixel_values`.

        Args:
            pixel_values: levels, of which only the first `rows` rows are read.
            rows: 0 to `image_size`.
            generator: source of the drawn levels.
            output: draw each value ("sample"), or take the most probable one ("mode"); "mean" draws, and returns the
                expected value of each given those before, a real number.
            temperature: the logits are divided by it.
            labels: classes, for a class-conditional model; drawn when None. [B].

        Raises:
            ValueError: an argument is out of range.
        """
        self._check_images(pixel_values)
        check_generator(generator)
        if labels is None and self.num_sample_classes:
            odds = torch.ones(self.num_sample_classes, device=None if generator is None else generator.device)
            drawn = torch.multinomial(odds, pixel_values.shape[0], replacement=True, generator=generator)
            labels = drawn.to(pixel_values.device)
        self._check_labels(labels, pixel_values.shape[0])
        config = self.config
        check_completion(config.image_size, rows, output, temperature)
        values = self._sequence(pixel_values.clone())
        shown = values.float() if output == "mean" else values
        steps = self.steps(values, labels)
        yield self._completed(shown)
        for position in range(int(rows) * config.row_length, values.shape[1]):
            logits = steps.logits(position).float() / temperature
            values[:, position] = logits.argmax(1) if output == "mode" else draw_levels(logits, generator)
            if output == "mean":
                shown[:, position] = expected_level(logits)
            if (position + 1) % config.row_length == 0:
                yield self._completed(shown)

    @torch.no_grad()
    def code_lengths(self, pixel_values: Tensor, labels: Tensor | None = None) -> Tensor:
        """`-log2 p` of each value given those before it, in bits: what it costs in a file. [B, C, H, W].

        Arguments and errors as in `forward`.
        """
        logits = self(pixel_values, labels=labels, return_loss=False).logits
        # As a sequence again. [B, H * W * C, outputs_per_dim]
        nats = self._nats(logits.permute(0, 3, 4, 2, 1).flatten(1, 3), self._sequence(pixel_values))
        return self._images(nats.unsqueeze(2) / math.log(2)).squeeze(1)

    @torch.no_grad()
    def steps(
        self, values: Tensor, labels: Tensor | None = None, new_ring: Callable[[Tensor, int, Tensor], Ring] = Ring
    ) -> "PixelSteps":
        """The model as a function of one position after the other, which reads `values` as they are filled in.

        Args:
            values: levels in raster order, those before each position when it is asked for. int64 [B, H * W * C].
            labels: classes, for a class-conditional model. [B].
            new_ring: see `PositionSteps`.
        """
        return PixelSteps(self, values, labels, new_ring)

    def _nats(self, logits: Tensor, values: Tensor) -> Tensor:
        """`-log p` of each value given those before it. Shape: `logits` [B, N, outputs_per_dim] -> [B, N]."""
        if self.config.pixel_likelihood == "categorical":
            return F.cross_entropy(logits.transpose(1, 2), values, reduction="none")
        return -logistic_mixture_log_probs(values, logits.unflatten(2, (3, -1)), self.config.num_levels)

    def _inputs(self, values: Tensor, labels: Tensor | None, start: int, stop: int) -> Tensor:
        """What the model reads to predict the values from `start` to before `stop`. [B, stop - start, hidden_size]."""
        return PixelInputs(self, labels, start, stop)(values, start, stop)

    def _sequence(self, pixel_values: Tensor) -> Tensor:
        """Levels in raster order, the channels of a pixel together. int64 [B, H * W * C]."""
        return pixel_values.long().movedim(1, -1).flatten(1)

    def _images(self, sequence: Tensor) -> Tensor:
        """The values of a raster order as images. Shape: [B, H * W * C, K] -> [B, K, C, H, W]."""
        size = self.config.image_size
        return sequence.unflatten(1, (size, size, self.config.num_channels)).permute(0, 4, 3, 1, 2)

    def _completed(self, values: Tensor) -> Tensor:
        """Values in raster order [B, H * W * C] as images of their own. [B, C, H, W]."""
        return self._images(values.unsqueeze(2)).squeeze(1).clone()

    def _check_images(self, pixel_values: Tensor) -> None:
        check_levels(pixel_values, self.config.num_channels, self.config.image_size, self.config.num_levels)

    def _check_labels(self, labels: Tensor | None, batch_size: int) -> None:
        if self.class_embedding is None:
            if labels is not None:
                raise ValueError("labels must be None for a model without is_class_conditional")
            return
        num_classes = self.class_embedding.num_embeddings
        if not isinstance(labels, Tensor) or labels.is_floating_point() or tuple(labels.shape) != (batch_size,):
            given = (labels.dtype, list(labels.shape)) if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(f"labels must be a tensor of whole numbers of shape [{batch_size}], got {given}")
        if not torch.compiler.is_compiling() and ((labels < 0) | (labels >= num_classes)).any():
            raise ValueError(f"labels must be in 0 ... {num_classes - 1}, got {labels.tolist()}")
