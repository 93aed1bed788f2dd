"""Loading a trained checkpoint: every file checked, every mistake named."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel

from hf_latentgen.cards.model_card import read_json
from hf_latentgen.models.auto import (
    MODEL_TYPES,
    PROCESSOR_CONFIGS,
    TOKENIZER_CONFIGS,
    WEIGHTS,
    auto_class,
    auto_processor,
    reads_text,
)
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_safetensors import pinned_revision
from hf_latentgen.models.tokenization_bytes import ByteTokenizer


def load_checkpoint(checkpoint: str | Path) -> tuple[PreTrainedModel, LevelsImageProcessor | ByteTokenizer]:
    """The model, in `eval()` mode on the accelerator if there is one, and its image processor or tokenizer.

    Args:
        checkpoint: a folder, checked file by file, or a Hub id.

    Raises:
        FileNotFoundError: a file is missing from the folder.
        ValueError: a file is truncated, of another model type, or the weights do not fit the configuration.
        ConnectionError: the Hub does not answer, and the checkpoint is not in the cache.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        _check_folder(folder)
    where = {} if folder.exists() else pinned_revision(str(checkpoint))
    config = AutoConfig.from_pretrained(checkpoint, **where)
    _check_model_type(config.model_type, folder)
    try:
        model, report = auto_class(config).from_pretrained(checkpoint, output_loading_info=True, **where)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit config.json: {error}") from error
    for problem in ("missing_keys", "unexpected_keys"):
        if report[problem]:
            raise ValueError(f"{folder / WEIGHTS} does not fit config.json, {problem}: {sorted(report[problem])}")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), auto_processor(config).from_pretrained(checkpoint, **where)


def read_run_record(folder: str | Path) -> dict:
    """The contents of `folder/run.json`: how the checkpoint was trained.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    return read_json(Path(folder, "run.json"), "training writes it beside the weights")


def _check_folder(folder: Path) -> None:
    """Raises as `load_checkpoint` does, naming the file."""
    model_type = read_json(folder / "config.json", "save_pretrained writes it").get("model_type")
    _check_model_type(model_type, folder)
    for weights in sorted(folder.glob("model-*-of-*.safetensors")) or [folder / WEIGHTS]:
        if not weights.is_file():
            raise FileNotFoundError(
                f"{weights} does not exist; a checkpoint holds config.json, {WEIGHTS} and a processor"
            )
        try:
            with safe_open(weights, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{weights} is truncated or corrupt: {error}") from error
    is_text = reads_text(model_type)
    kind, names = ("tokenizer", TOKENIZER_CONFIGS) if is_text else ("image processor", PROCESSOR_CONFIGS)
    if not any((folder / name).is_file() for name in names):
        raise FileNotFoundError(f"{folder} holds no {kind}; one of {names} must be there")


def _check_model_type(model_type: str | None, folder: Path) -> None:
    if model_type not in MODEL_TYPES:
        raise ValueError(f"{folder / 'config.json'}: model_type must be one of {MODEL_TYPES}, got {model_type!r}")
