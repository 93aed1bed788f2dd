# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Configuration of the local-attention transformer."""

from math import inf
from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_latentgen import LatentGenConfig, require

LAYER_TYPES = ("sliding_attention", "full_attention")
ATTENTION_SPANS = ("fixed", "adaptive", "trimmed")


@strict
class LocalTransformerConfig(LatentGenConfig):
    """Configuration of [`LocalTransformerModel`] and [`LocalTransformerForCausalLM`]; its defaults read bytes.

    Args:
        vocab_size (`int`, defaults to 259): ids; 256 bytes and the three special ids below.
        hidden_size (`int`, defaults to 128): width of the residual stream.
        intermediate_size (`int`, defaults to 384): width of the gated MLP.
        num_hidden_layers (`int`, defaults to 4): layers.
        num_attention_heads (`int`, defaults to 4): query heads; they divide `hidden_size` into even sizes.
        num_key_value_heads (`int`, *optional*): a divisor of the former, and as many if None.
        window (`int`, defaults to 256): keys that a token sees in a sliding layer, its own included, at least 2; the
            largest of `layer_windows` where those are given.
        layer_types (`list`, *optional*): `"sliding_attention"` or `"full_attention"` each; all sliding if None.
        layer_windows (`list`, *optional*): window of each layer, or the windows of each of its heads; None for a layer
            of full attention, and `window` everywhere if None.
        attention_span (`str`, defaults to `"fixed"`): a head sees all its window (`"fixed"`), learns how far it looks
            back (`"adaptive"`), or has learned it and computes no more (`"trimmed"`, which `trim_spans` makes).
        span_ramp (`int`, defaults to 32): keys over which the weight falls from 1 to 0 beyond a learned span.
        span_weight (`float`, defaults to 0.02): added to the training loss, in its unit, where every head looks back
            over all of `window`, and proportionally less where spans are shorter.
        max_position_embeddings (`int`, *optional*): longest sequence; none if None, positions being rotary.
        rope_theta (`float`, defaults to 10000.0): base of the rotary angles.
        rms_norm_eps (`float`, defaults to 1e-6): added to the mean square.
        attention_dropout (`float`, defaults to 0.0): share of weights dropped in training; takes a slower kernel.
        hidden_dropout (`float`, defaults to 0.0): share dropped in training of the embeddings, and of what each
            attention and each MLP adds to the residual stream.
        initializer_range (`float`, defaults to 0.02): standard deviation of the initial weights.
        tie_word_embeddings (`bool`, defaults to `True`): the output layer is the embedding.
        use_cache (`bool`, defaults to `True`): return keys and values for generation.
        pad_token_id (`int`, defaults to 256): id of padding.
        bos_token_id (`int`, defaults to 257): id of the beginning of a document.
        eos_token_id (`int`, defaults to 258): id of its end.
    """

    model_type = "latentgen_local_transformer"
    keys_to_ignore_at_inference = ["past_key_values"]
    # The name by which transformers' masks and caches know the window.
    attribute_map = {"sliding_window": "window"}

    vocab_size: int = 259
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    window: int = 256
    layer_types: list[str] | tuple[str, ...] | None = None
    layer_windows: list[int | list[int] | None] | tuple[int | list[int] | None, ...] | None = None
    attention_span: str = "fixed"
    span_ramp: float | int = 32
    span_weight: float | int = 0.02
    max_position_embeddings: int | None = None
    rope_theta: float | int = 10_000.0
    rms_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 256
    bos_token_id: int | None = 257
    eos_token_id: int | list[int] | None = 258

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.layer_types is None:
            self.layer_types = ["sliding_attention"] * max(self.num_hidden_layers, 0)
        if self.layer_windows is not None:
            self.window = max((window for windows in self.head_windows for window in windows), default=self.window)
        # Only the whole matrix of scores has weights to show.
        kwargs.setdefault("attn_implementation", "eager" if kwargs.get("output_attentions") else "local_attention")
        super().__post_init__(**kwargs)

    @classmethod
    def replaced(cls, values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        """The fields `values` with some of them changed; fewer layers are the first ones."""
        if "num_hidden_layers" in changes:
            lists = {name: values.get(name) for name in ("layer_types", "layer_windows")}
            layers = changes["num_hidden_layers"]
            changes = {name: entries[:layers] for name, entries in lists.items() if entries is not None} | changes
        return super().replaced(values, changes)

    @property
    def auto_model(self) -> str:
        """Name of the Auto class of transformers that makes the model."""
        return "AutoModelForCausalLM"

    @property
    def reads_text(self) -> bool:
        """Whether the model reads texts, with a tokenizer."""
        return True

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values: `num_key_value_heads`, which is set once the configuration is made."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def kinds(self) -> list[str]:
        """Kind of each layer: `layer_types`, which is set once the configuration is made."""
        return list(self.layer_types or [])

    @property
    def head_windows(self) -> list[list[int]]:
        """Window of each head of each layer; none in a layer of full attention. [layers][heads]."""
        heads = self.num_attention_heads
        given = self.layer_windows
        if given is None:
            given = [self.window if kind == "sliding_attention" else None for kind in self.kinds]
        return [[entry] * heads if isinstance(entry, int) else list(entry or []) for entry in given]

    @property
    def has_spans(self) -> bool:
        """Sliding layers or their heads have spans or windows of their own."""
        return self.attention_span != "fixed" or self.layer_windows is not None

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.hidden_size // max(self.num_attention_heads, 1)

    def validate_sizes(self):
        """Raises `ValueError` if a size is out of range or sizes do not divide each other."""
        for field, value in (
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", -1 if self.num_key_value_heads is None else self.num_key_value_heads),
        ):
            require(value >= 1, field, value, "at least 1")
        heads = self.num_attention_heads
        divides = self.hidden_size % heads == 0 and self.head_dim % 2 == 0
        require(divides, "num_attention_heads", heads, f"a divisor of hidden_size={self.hidden_size} into even heads")
        allowed = f"a divisor of num_attention_heads={heads}"
        require(heads % self.key_value_heads == 0, "num_key_value_heads", self.num_key_value_heads, allowed)

    def validate_attention(self):
        """Raises `ValueError` if window, layer types, positions or dropout are out of range."""
        # transformers' cache keeps window - 1 keys, and with none at all it keeps everything.
        field = "window" if self.layer_windows is None else "layer_windows"
        require(self.window >= 2, field, getattr(self, field), "at least 2" + " somewhere" * (field != "window"))
        types = self.kinds
        fits = len(types) == self.num_hidden_layers and set(types) <= set(LAYER_TYPES)
        require(fits, "layer_types", types, f"{self.num_hidden_layers} of {LAYER_TYPES}, one for each layer")
        most = self.max_position_embeddings
        require(most is None or most >= 1, "max_position_embeddings", most, "at least 1, or None")
        require(0 < self.rope_theta < inf, "rope_theta", self.rope_theta, "above 0 and finite")
        for field, value in (("rms_norm_eps", self.rms_norm_eps), ("initializer_range", self.initializer_range)):
            require(0 <= value < inf, field, value, "at least 0 and finite")
        for field, share in (("attention_dropout", self.attention_dropout), ("hidden_dropout", self.hidden_dropout)):
            require(0 <= share < 1, field, share, "in [0, 1)")

    def validate_spans(self):
        """Raises `ValueError` if the fields of learned spans, or of windows of single layers, are out of range."""
        span, given, heads = self.attention_span, self.layer_windows, self.num_attention_heads
        require(span in ATTENTION_SPANS, "attention_span", span, f"one of {ATTENTION_SPANS}")
        learns = span == "fixed" or "sliding_attention" in self.kinds
        require(learns, "attention_span", span, "'fixed' without a sliding layer")
        require(1 <= self.span_ramp < inf, "span_ramp", self.span_ramp, "at least 1 and finite")
        require(0 < self.span_weight < inf, "span_weight", self.span_weight, "above 0 and finite")
        require(span != "adaptive" or given is None, "layer_windows", given, "None where attention_span is 'adaptive'")
        require(
            span != "trimmed" or given is not None, "layer_windows", given, "given where attention_span is 'trimmed'"
        )
        if given is not None:
            lengths = [heads if kind == "sliding_attention" else 0 for kind in self.kinds]
            fits = [len(windows) for windows in self.head_windows] == lengths
            fits = fits and all(window >= 1 for windows in self.head_windows for window in windows)
            allowed = f"at least 1, one or {heads} of them for each sliding layer, and None for each other layer"
            require(fits, "layer_windows", given, allowed)
