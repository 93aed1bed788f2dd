"""Every sliding-window model of transformers, tiny: what it gets from local attention is what it gets from sdpa."""

import importlib
import inspect
from collections import Counter
from dataclasses import fields

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)

from hf_latentgen.models.local_attention_interface import BandedMask
from modeling_common import perturb

LENGTH, WINDOW, LARGEST = 70, 16, 2_000_000
SMALL = {
    "vocab_size": 50,
    "vocab_size_per_layer_input": 50,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 4,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "v_head_dim": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "swa_head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "sliding_window": WINDOW,
    "sliding_window_size": WINDOW,
    "local_attention": WINDOW,
    "attention_chunk_size": WINDOW,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "global_attn_every_n_layers": 2,
    "num_experts": 2,
    "n_routed_experts": 2,
    "num_local_experts": 2,
    "moe_num_experts": 2,
    "n_shared_experts": 1,
    "num_experts_per_tok": 1,
    "top_k_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 4,
    "index_block_size": 8,
    "index_topk_blocks": 2,
    "first_k_dense_replace": 1,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention"]
ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
SECTIONS = ROTARY | {"mrope_section": [2, 1, 1]}
# What some configurations need besides.
MORE = {
    "cohere_compass_text": {"layer_types": MIXED, "rope_parameters": dict.fromkeys(MIXED, ROTARY)},
    **{name: {"num_key_value_heads": 4} for name in ("axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa")},
    "gemma3n_text": {
        "num_hidden_layers": 5,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
        "intermediate_size": [24] * 5,
        "activation_sparsity_pattern": [0.0] * 5,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
    },
    "gemma4_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": MIXED * 2},
    "minimax": {"layer_types": ["full_attention"] * 2},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1},
    "neomme": {"head_dim": 16},
    **{name: {"layer_types": MIXED} for name in ("laguna", "lfm3", "mellum", "smollm3")},
    **{name: {"rope_parameters": SECTIONS} for name in ("qwen2_5_omni_text", "qwen2_5_vl_text", "qwen2_vl_text")},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"]},
}
# Models that choose their keys, with a window or without.
SPARSE = {"axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4", "minimax_m3_vl_text"}
# Models whose attention has more than a window: what they ask for has no place here.
REFUSED = SPARSE | {
    "deepseek_v4",
    "dots3_note_text",
    "flint",
    "gemma2",
    "gpt_oss",
    "granite_swa",
    "granitemoe_swa",
    "inkling2_text",
    "inkling_text",
    "mimo_v2_flash",
    "openai_privacy_filter",
    "t5_gemma_module",
    "vaultgemma",
}
# Models that do not run under any name in this form: parts of larger models, such as read sound, such as are large.
NOT_TINY = {
    "blt_local_encoder",
    "blt_patcher",
    "deepseek_ocr2_encoder",
    "esmfold2",
    "gemma4_audio",
    "kyutai_speech_to_text",
    "mimi",
    "mimi_decoder",
    "mimi_encoder",
    "moshi",
    "moshi_depth",
    "muse_glimmer_assistant",
    "nemotron_asr_streaming_encoder",
    "phi4_multimodal",
    "pocket_tts_audio_tokenizer",
    "pocket_tts_audio_tokenizer_decoder",
    "pocket_tts_audio_tokenizer_encoder",
    "qwen2_5_omni_talker",
    "qwen3_omni_moe_talker_code_predictor",
    "qwen3_omni_moe_talker_text",
    "voxtral_realtime_text",
}
# Models none of whose masks is a band: their layers have no window here, or one of another kind.
NEVER_BANDED = SPARSE | {
    "dots3_note_text",
    "nemotron_h",
    "qwen3_omni_moe_text",
    "recurrent_gemma",
    "unlimited_ocr_text",
    "zaya",
}


@pytest.fixture(autouse=True)
def banded(monkeypatch):
    """How many masks were banded: a test must not pass because everything took another path."""
    counter = Counter()
    original = BandedMask.__init__
    monkeypatch.setattr(
        BandedMask, "__init__", lambda mask, *arguments: counter.update(["masks"]) or original(mask, *arguments)
    )
    return counter


def sliding_window_types() -> list[str]:
    """Model types of transformers whose configuration has a window."""
    names = {"sliding_window", "local_attention", "attention_chunk_size"}
    types = []
    for name in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[name]
        known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
        if config_class.__module__.startswith("transformers.") and names & known:
            types.append(name)
    return types


def tiny(name: str) -> PreTrainedConfig:
    config_class = CONFIG_MAPPING[name]
    known = {field.name for field in fields(config_class)}
    given = {
        field: value for field, value in SMALL.items() if field in known and field not in config_class.attribute_map
    }
    return config_class(**(given | MORE.get(name, {})))


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    for mapping in (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    # A part of a larger model stands beside it.
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    classes = [member for _, member in inspect.getmembers(module, inspect.isclass)]
    return next(one for one in classes if getattr(one, "config_class", None) is type(config) and "forward" in vars(one))


def whole(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the model with encoder and decoder that a part belongs to, or the configuration itself."""
    name = config.model_type
    if name == "t5_gemma_module":
        return CONFIG_MAPPING["t5gemma"](encoder=config, decoder=config, vocab_size=config.vocab_size)
    if name in ("t5gemma2_text", "t5gemma2_decoder"):
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        encoder = {
            "text_config": tiny("t5gemma2_text").to_dict(),
            "vision_config": vision | {"model_type": "siglip_vision_model"},
        }
        return CONFIG_MAPPING["t5gemma2"](encoder=encoder, decoder=tiny("t5gemma2_decoder").to_dict())
    return config


def build(name: str) -> PreTrainedModel:
    config = whole(tiny(name))
    make = model_class(config)._from_config
    with torch.device("meta"):
        size = make(config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"{name} has {size} parameters")
    torch.manual_seed(0)
    model = make(config).float().eval()
    perturb(model, 0.1)
    return model


def inputs_of(model: PreTrainedModel, padding: str | None):
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    if padding:
        mask[1, slice(0, LENGTH // 3) if padding == "left" else slice(-(LENGTH // 3), None)] = 0
    accepted = inspect.signature(model.forward).parameters
    ids = torch.randint(3, 50, (2, LENGTH), generator=generator)
    if "input_ids" in accepted:
        inputs = {"input_ids": ids}
    else:
        inputs = {"inputs_embeds": torch.randn(2, LENGTH, SMALL["hidden_size"], generator=generator)}
    if model.config.is_encoder_decoder:
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    return {**inputs, "attention_mask": mask, "use_cache": False}, "logits_to_keep" in accepted


def results(model: PreTrainedModel, padding: str | None) -> list[torch.Tensor]:
    """Outputs of all tokens that are no padding, and of the last ones alone as in `generate`; gradients."""
    inputs, keeps = inputs_of(model, padding)
    output = model(**inputs)
    states = output.logits if "logits" in output else output.last_hidden_state
    states = states[inputs["attention_mask"].bool()]
    found = [states.detach()]
    if keeps and padding != "right":
        with torch.no_grad():
            found.append(model(**inputs, logits_to_keep=1).logits)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(states.square().mean(), trained, allow_unused=True)
    return found + [gradient for gradient in gradients if gradient is not None]


def expected_results(model: PreTrainedModel, padding: str | None) -> list[torch.Tensor]:
    """Those of sdpa, or of eager where a model does not know sdpa."""
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:
        model.set_attn_implementation("eager")
    return results(model, padding)


def compare(model: PreTrainedModel, padding: str | None) -> str:
    """What there is to say: "equal", "refused", "fails as under sdpa", or what differs."""
    expected = None
    # Models fail in many ways.
    try:
        expected = expected_results(model, padding)
    except Exception as error:  # noqa: BLE001
        failure = type(error)
    model.set_attn_implementation("local_attention")
    try:
        found = results(model, padding)
    except Exception as error:  # noqa: BLE001
        if "must be None for the attention of this name" in str(error):
            return "refused"
        return "fails as under sdpa" if expected is None and type(error) is failure else repr(error)
    if expected is None:
        return f"gives what sdpa does not, {failure}"
    errors = [
        (one - other).abs().max() / other.abs().max().clamp(min=1e-3)
        for one, other in zip(found, expected, strict=True)
    ]
    return "equal" if max(errors) < 1e-3 else f"differs by {max(errors):.1e}"


@pytest.mark.parametrize(
    "name",
    [
        "deepseek_v32",
        "doge",
        "gemma3_text",
        "gemma4_text",
        "gpt_oss",
        "llama4_text",
        "mistral",
        "neomme",
        "t5gemma2_text",
    ],
)
@pytest.mark.parametrize("is_causal", [True, False])
def test_models_get_what_sdpa_gives_or_an_error(name, is_causal, banded):
    model = build(name)
    model.config.is_causal = is_causal
    assert compare(model, "left") == ("refused" if name in REFUSED else "equal")
    assert (banded["masks"] > 0) == (name not in NEVER_BANDED)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_sliding_window_model_gets_what_sdpa_gives_or_an_error(banded):
    outcomes, not_tiny, never_banded = {}, {}, set()
    for name in [*sliding_window_types(), *SPARSE]:
        before = banded["masks"]
        # What a model needs that it does not get here is said by errors of every kind.
        try:
            model = build(name)
            expected_results(model, "left")
        except Exception as error:  # noqa: BLE001
            not_tiny[name] = repr(error)
            continue
        for is_causal, padding in ((True, None), (True, "left"), (True, "right"), (False, "left")):
            model.config.is_causal = is_causal
            outcomes[name, is_causal, padding] = compare(model, padding)
        if banded["masks"] == before:
            never_banded.add(name)
    allowed = {name: ("refused" if name in REFUSED else "equal", "fails as under sdpa") for name, *_ in outcomes}
    assert not {case: found for case, found in outcomes.items() if found not in allowed[case[0]]}
    assert set(not_tiny) <= NOT_TINY, not_tiny
    assert never_banded <= NEVER_BANDED
    assert Counter(outcomes.values())["equal"] >= 4 * 40
