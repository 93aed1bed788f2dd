# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""The local-attention transformer: a decoder whose cost grows linearly with the length of a sequence."""

import copy
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_span import AttentionSpan, trimmed_window
from .configuration_latentgen import require
from .configuration_local_transformer import LocalTransformerConfig
from .local_attention_interface import NAME, BandedMask, check_arguments
from .modeling_latentgen import LatentGenModel
from .position_steps import PositionSteps, Ring


def rotary_angles(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles of positions [B, N], in float32. Two tensors [B, 1, N, head_dim].

    Source: Su et al. (2021), RoFormer, eq. 15; halves rather than neighbours are paired, as in transformers.
    """
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[:, None, :, None].float() * theta**-exponents
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(states: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys turned by the angles of their positions. [B, heads, N, head_dim]."""
    cosine, sine = (angle.to(states.dtype) for angle in angles)
    first, second = states.chunk(2, -1)
    return states * cosine + torch.cat([-second, first], -1) * sine


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_,
) -> tuple[Tensor, Tensor]:
    """Attention [B, N, H, D] and its weights [B, H, N, K], with the scores as a matrix."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ repeat_kv(key, groups).mT * scaling
    scores = scores if attention_mask is None else scores + attention_mask
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ repeat_kv(value, groups)).transpose(1, 2).contiguous(), weights


class RMSNorm(nn.Module):
    """Divides by the root mean square, in float32, and scales. Source: Zhang & Sennrich (2019), eq. 4."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        return self.weight * F.rms_norm(hidden_states.float(), self.weight.shape, eps=self.eps).to(hidden_states.dtype)


class LocalTransformerAttention(nn.Module):
    """Multi-head attention with rotary positions and shared heads of keys and values."""

    def __init__(self, config: LocalTransformerConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.num_key_value_groups = config.num_attention_heads // config.key_value_heads
        self.sliding_window = config.window if config.kinds[layer_idx] == "sliding_attention" else None
        windows = config.head_windows[layer_idx]
        self.span = AttentionSpan(config, windows) if windows and config.has_spans else None
        shared = config.key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        angles: tuple[Tensor, Tensor],
        attention_mask: Tensor | BandedMask | None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, N, hidden_size] -> [B, N, hidden_size], and the attention weights where the implementation has them."""
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, angles), rotate(key, angles)
        used = query.shape[2]
        if past_key_values is not None:
            _, first = past_key_values.get_mask_sizes(query.shape[2], self.layer_idx)
            used += past_key_values.get_seq_length(self.layer_idx) - first
            key, value = past_key_values.update(key, value, self.layer_idx)
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.span is not None:
            check_arguments(self, kwargs)
            # What a static cache returns ends with room for later keys.
            output = self.span(query, key[:, :, :used], value[:, :, :used], attention_mask, dropout, self.scaling)
            return self.o_proj(output.transpose(1, 2).flatten(2)), None
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(str(self.config._attn_implementation), eager_attention)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(output.flatten(2)), weights


class LocalTransformerMLP(nn.Module):
    """A gated MLP. Source: Shazeer (2020), GLU Variants Improve Transformer, eq. 6."""

    def __init__(self, config: LocalTransformerConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, N, hidden_size] -> [B, N, hidden_size]."""
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class LocalTransformerLayer(GradientCheckpointingLayer):
    """Attention, then MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: LocalTransformerConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LocalTransformerAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LocalTransformerMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        """[B, N, hidden_size] -> [B, N, hidden_size]. The other arguments go to the attention."""
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class LocalTransformerPreTrainedModel(LatentGenModel):
    """Base class: initialisation, and what transformers may do with the models."""

    config: LocalTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["LocalTransformerLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": LocalTransformerLayer, "attentions": LocalTransformerAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AttentionSpan) and module.share is not None:
            init.ones_(module.share)

    @torch.no_grad()
    def spans(self) -> Tensor:
        """Learned span of each head of each sliding layer, in tokens, without the ramp. [layers, heads].

        Raises:
            ValueError: the spans are fixed.
        """
        if self.config.attention_span == "fixed":
            raise ValueError("attention_span must be 'adaptive' or 'trimmed' for spans, got 'fixed'")
        return torch.stack([span.spans() for span in self._learned_spans()])

    def span_penalty(self) -> Tensor:
        """`span_weight` times the mean span as a share of `window`, which the training loss pays. Scalar.

        Outside of 0 to 1, where a share has no effect, the penalty alone leads it back.

        Source: Sukhbaatar et al. (2019), section 2.2, `lambda / M * sum(z)`, with a mean over layers and heads.
        """
        shares = torch.stack([span.share for span in self._learned_spans()])
        return self.config.span_weight * shares.float().abs().mean()

    @torch.no_grad()
    def trim_spans(self) -> "LocalTransformerPreTrainedModel":
        """A copy of an adaptive model that is the same function, and computes only what its spans reach.

        Its configuration says `attention_span="trimmed"` and holds the window of each head in `layer_windows`. The
        soft mask of the learned spans stays, as a buffer that is no longer trained: keys that it weighs by less than
        one keep their weight, and keys that it weighs by zero are no longer computed. Its cache is that of the
        largest window.

        Raises:
            ValueError: the model's spans are not adaptive.
        """
        config = self.config
        if config.attention_span != "adaptive":
            raise ValueError(f"attention_span must be 'adaptive' to be trimmed, got {config.attention_span!r}")
        learned = iter(self.spans().tolist())
        windows = [
            [trimmed_window(span, config.span_ramp, config.window) for span in next(learned)] if own else None
            for own in config.head_windows
        ]
        fields = config.to_dict() | {"attention_span": "trimmed", "layer_windows": windows}
        trimmed = type(self)(type(config).from_dict(fields))
        trimmed.to(device=self.device, dtype=self.dtype)  # pyright: ignore[reportCallIssue]
        trimmed.load_state_dict(self.state_dict())
        for span in trimmed._learned_spans():
            span.share.clamp_(0, 1).mul_(config.window / trimmed.config.window)
        if self.can_generate():
            trimmed.generation_config = copy.deepcopy(self.generation_config)
        return trimmed.train(self.training)

    def _learned_spans(self) -> list[AttentionSpan]:
        return [module for module in self.modules() if isinstance(module, AttentionSpan)]


class LocalTransformerModel(LocalTransformerPreTrainedModel):
    """Decoder that returns the state of each position."""

    def __init__(self, config: LocalTransformerConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(LocalTransformerLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """The state of each position after the last layer. [B, N, hidden_size].

        Args:
            input_ids: ids in `0 ... vocab_size - 1`. [B, N].
            attention_mask: 0 where there is padding, on either side; a cache's positions first. [B, K].
            position_ids: positions, which start again at 0 where a packed document begins, without a cache. [B, N].
            past_key_values: cache of the positions before.
            inputs_embeds: embeddings instead of ids. [B, N, hidden_size].
            use_cache: return the cache.
            kwargs: for the attention implementation.

        Raises:
            ValueError: ids out of range, a sequence that is too long, a mask of another length, packed documents beside
                a cache, or not exactly one input.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if input_ids is not None:
            self._check_ids(input_ids)
            inputs_embeds = self.embed_tokens(input_ids)
        inputs_embeds = cast(Tensor, inputs_embeds)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        self._check_mask(attention_mask, past + inputs_embeds.shape[1])
        if self._is_packed(attention_mask, position_ids):
            if use_cache or past_key_values is not None:
                raise ValueError("use_cache must be False where position_ids start again (packed documents), got True")
            # transformers tells documents apart only without one.
            attention_mask = None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        needs_no_mask = self.config.has_spans and self._hides_nothing(attention_mask, position_ids)
        if position_ids is None:
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past).unsqueeze(0)
        self._check_length(position_ids)
        if self.config.has_spans and self.config._attn_implementation != NAME:
            given = self.config._attn_implementation
            raise ValueError(f"attn_implementation must be {NAME!r} where heads have spans or windows, got {given!r}")
        # generate() prepares the masks of compiled decoding itself.
        masks = cast(dict, attention_mask)
        if not isinstance(attention_mask, dict):
            described = {
                "config": self.config,
                "inputs_embeds": inputs_embeds,
                "attention_mask": attention_mask,
                "past_key_values": past_key_values,
                "position_ids": position_ids,
            }
            makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
            kinds = set(self.config.kinds) - ({"sliding_attention"} if needs_no_mask else set())
            masks = {kind: makers[kind](**described) for kind in kinds}
        hidden_states = self.dropout(inputs_embeds)
        angles = rotary_angles(position_ids, self.config.head_dim, self.config.rope_theta)
        for layer, kind in zip(self.layers, self.config.kinds, strict=True):
            hidden_states = layer(
                hidden_states, angles=angles, attention_mask=masks.get(kind), past_key_values=past_key_values, **kwargs
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def steps(self, length: int, new_ring: Callable[[Tensor, int, Tensor], Ring] = Ring) -> PositionSteps:
        """What `forward` gives with a cache for one position after the other, at most `length`, in far less time."""
        positions = torch.arange(length, device=self.device).unsqueeze(0)
        return PositionSteps(self, rotary_angles(positions, self.config.head_dim, self.config.rope_theta), new_ring)

    def _hides_nothing(self, attention_mask: Tensor | dict | None, position_ids: Tensor | None) -> bool:
        """Neither padding nor the beginning of a packed document hides a key."""
        if attention_mask is None and position_ids is None:
            return True
        # A compiled graph cannot depend on a value.
        if torch.compiler.is_compiling() or isinstance(attention_mask, dict):
            return False
        is_whole = attention_mask is None or (attention_mask.ndim == 2 and bool(attention_mask.all()))
        return is_whole and (position_ids is None or bool((position_ids.diff() == 1).all()))

    def _is_packed(self, attention_mask: Tensor | dict | None, position_ids: Tensor | None) -> bool:
        """Whether documents stand one after the other, and not padding beside them, where positions jump back too."""
        if position_ids is None or torch.compiler.is_compiling() or isinstance(attention_mask, dict):
            return False
        jumps = position_ids.diff() < 0
        if attention_mask is not None and attention_mask.ndim == 2:
            seen = attention_mask[:, -position_ids.shape[1] :].bool()
            jumps = jumps & seen[:, 1:] & seen[:, :-1]
        return (attention_mask is None or attention_mask.ndim == 2) and bool(jumps.any())

    def _check_ids(self, input_ids: Tensor) -> None:
        # A compiled graph cannot stop on a value.
        if torch.compiler.is_compiling():
            return
        if input_ids.numel() == 0:
            raise ValueError(f"input_ids must hold at least one id, got shape {list(input_ids.shape)}")
        low, high = (value.item() for value in input_ids.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            allowed = f"ids in 0 ... {self.config.vocab_size - 1}"
            raise ValueError(f"input_ids must be {allowed}, got values from {low} to {high}")

    def _check_mask(self, attention_mask: Tensor | dict | None, num_keys: int) -> None:
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 and not torch.compiler.is_compiling():
            given = attention_mask.shape[1]
            require(given == num_keys, "attention_mask", given, f"as long as the keys, {num_keys} with a cache's")

    def _check_length(self, position_ids: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        most = self.config.max_position_embeddings
        if most is not None and position_ids.max() >= most:
            raise ValueError(f"input_ids must end before max_position_embeddings={most}, got {position_ids.max() + 1}")


class LocalTransformerForCausalLM(LocalTransformerPreTrainedModel, GenerationMixin):
    """Language model of bytes or other ids; `generate` needs memory and time per token that do not grow."""

    kind = "transformer of text"
    hub_task = "text-generation"
    likelihood = "exact"
    has_temperature = True
    score_name = "bits per byte"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LocalTransformerConfig):
        super().__init__(config)
        self.model = LocalTransformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        shift_labels: Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits of the next id at each position, and the mean loss in nats. [B, N, vocab_size], scalar.

        While an adaptive model is trained, and never in `eval()`, `span_penalty` is added to the loss.

        Arguments and errors as in [`LocalTransformerModel.forward`], and:
            labels: ids to predict, which are shifted here, -100 where nothing is scored. [B, N].
            shift_labels: such ids that are shifted already, instead of `labels`, of which a part of a sequence does
                not have the last. [B, N].
            logits_to_keep: how many of the last positions get logits, 0 for all, or their indices.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None or shift_labels is not None:
            targets = {"labels": labels, "shift_labels": shift_labels}
            loss = self.loss_function(logits=logits, vocab_size=self.config.vocab_size, **targets)
            if self.training and self.config.attention_span == "adaptive":
                loss = loss + self.span_penalty()
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
