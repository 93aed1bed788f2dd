# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Configuration of the local-attention transformer."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_image_autoencoder import require

LAYER_TYPES = ("sliding_attention", "full_attention")


@strict
class LocalTransformerConfig(PreTrainedConfig):
    """Configuration of [`LocalTransformerModel`] and [`LocalTransformerForCausalLM`]; its defaults read bytes.

    Args:
        vocab_size (`int`, defaults to 259): ids; 256 bytes and the three special ids below.
        hidden_size (`int`, defaults to 128): width of the residual stream.
        intermediate_size (`int`, defaults to 384): width of the gated MLP.
        num_hidden_layers (`int`, defaults to 4): layers.
        num_attention_heads (`int`, defaults to 4): query heads; they divide `hidden_size` into even sizes.
        num_key_value_heads (`int`, *optional*): a divisor of the former, and as many if None.
        window (`int`, defaults to 256): keys that a token sees in a sliding layer, its own included, at least 2.
        layer_types (`list`, *optional*): `"sliding_attention"` or `"full_attention"` each; all sliding if None.
        max_position_embeddings (`int`, *optional*): longest sequence; none if None, positions being rotary.
        rope_theta (`float`, defaults to 10000.0): base of the rotary angles.
        rms_norm_eps (`float`, defaults to 1e-6): added to the mean square.
        attention_dropout (`float`, defaults to 0.0): share of weights dropped in training; takes a slower kernel.
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
    max_position_embeddings: int | None = None
    rope_theta: float | int = 10_000.0
    rms_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
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
        kwargs.setdefault("attn_implementation", "local_attention")
        super().__post_init__(**kwargs)

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values: `num_key_value_heads`, which is set once the configuration is made."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def kinds(self) -> list[str]:
        """Kind of each layer: `layer_types`, which is set once the configuration is made."""
        return list(self.layer_types or [])

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.hidden_size // self.num_attention_heads

    def validate_model_type(self):
        """Raises `ValueError` if the fields were read from the configuration of another model."""
        expected = type(self).model_type
        require(self.model_type == expected, "model_type", self.model_type, repr(expected))

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
        require(self.window >= 2, "window", self.window, "at least 2")
        types = self.kinds
        fits = len(types) == self.num_hidden_layers and set(types) <= set(LAYER_TYPES)
        require(fits, "layer_types", types, f"{self.num_hidden_layers} of {LAYER_TYPES}, one for each layer")
        most = self.max_position_embeddings
        require(most is None or most >= 1, "max_position_embeddings", most, "at least 1, or None")
        require(0 <= self.attention_dropout < 1, "attention_dropout", self.attention_dropout, "in [0, 1)")
