"""The one loader: a folder, a row of this repository or a name on the Hub becomes a checked model and processor."""

import contextlib
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.utils import CONFIG_NAME, logging

from hf_latentgen.hub.files import INDEX, PROCESSOR_CONFIGS, TOKENIZER_CONFIGS, read_json, weight_files
from hf_latentgen.models.configuration_latentgen import LatentGenConfig, check_processor
from hf_latentgen.models.hub import snapshot
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_latentgen import LatentGenModel
from hf_latentgen.models.tokenization_bytes import ByteTokenizer

# Where the package was installed from a clone, the rows lie beside it.
ROWS = Path(__file__).resolve().parents[3] / "model_cards"
# What a pipeline with a denoiser is called where models have a type.
PRIOR_TYPE = "latentgen_prior"


@dataclass(eq=False)
class Checkpoint:
    """A loaded checkpoint. Two are equal only if they are one.

    Args:
        name: what was asked for.
        folder: where its files lie.
        model: in `eval()` mode.
        processor: image processor or tokenizer, which gives what the model reads.
        denoiser: of a latent diffusion prior, with its scheduler, else None.
        scheduler: of diffusers.
    """

    name: str
    folder: Path
    model: LatentGenModel
    processor: Any
    denoiser: Any = None
    scheduler: Any = None

    @property
    def model_type(self) -> str:
        """The model type, as a configuration names it, or that of a latent diffusion prior."""
        return self.model.config.model_type if self.denoiser is None else PRIOR_TYPE

    @property
    def parts(self) -> tuple:
        """Model, processor, denoiser and scheduler: the arguments of a [`LatentGenPipeline`]."""
        return self.model, self.processor, self.denoiser, self.scheduler


def load(
    checkpoint: str | Path,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Checkpoint:
    """The model, in `eval()` mode, and its image processor or tokenizer, every file checked.

    Args:
        checkpoint: a folder, the name of a row in a clone of the repository, or a name on the Hub; of a model or of a
            saved pipeline.
        revision: branch, tag or commit of a repository on the Hub.
        token: access token, for a private repository.
        cache_dir: where files of the Hub are kept.
        local_files_only: use what was downloaded before.
        dtype: of the weights; as they were saved when None.
        device: of the model; the accelerator, if there is one, when None.

    Raises:
        FileNotFoundError: a file is missing from the folder.
        ValueError: a file is truncated or of another model type, weights are missing or too many, or model and
            processor do not fit each other.
        ConnectionError: the Hub does not answer, and the checkpoint is not in the cache.
        OSError: there is no such repository or revision, or downloaded weights do not have their published SHA-256.
    """
    name = str(checkpoint)
    folder = find_folder(name, revision, token, cache_dir, local_files_only)
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    parts: tuple = ()
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX, "save_pretrained writes it")
        if not {"model", "processor"} <= index.keys():
            raise ValueError(f"{name} must hold a pipeline of a model and a processor, got {index.get('_class_name')}")
        parts += _load_model(folder / "model", folder / "processor", dtype) + _load_denoiser(folder, index, dtype)
    else:
        parts += _load_model(folder, folder, dtype)
    for part in parts:
        if isinstance(part, torch.nn.Module):
            part.to(device)
    # The folder of a snapshot says nothing to anybody.
    parts[0].config._name_or_path = name
    return Checkpoint(name, folder, *parts)


def find_folder(
    name: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a checkpoint: as named, of a row in the clone, or of a snapshot of the Hub. Errors as in `load`."""
    local = next((folder for folder in (Path(name), ROWS / name) if folder.is_dir()), None)
    if local is not None:
        if revision is not None:
            raise ValueError(f"revision must be None for a folder ({local}), got {revision!r}")
        return local
    if "/" not in name:
        nearest = difflib.get_close_matches(name, [folder.name for folder in row_folders()], n=1)
        hint = f", the nearest row is {nearest[0]}" if nearest else ""
        raise FileNotFoundError(f"{name} is no folder and no row{hint}; a name on the Hub is namespace/name")
    return snapshot(name, revision, token, cache_dir, local_files_only)


def row_folders() -> list[Path]:
    """The folders of the rows in the clone that this package was installed from, sorted; none elsewhere."""
    return sorted(path.parent for path in ROWS.glob("*/results.json"))


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Context in which transformers and huggingface_hub show no progress bars: for small files they are noise."""
    is_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_enabled:
            logging.enable_progress_bar()


def new_model(config: Any) -> Any:
    """A model of a configuration with fresh weights."""
    return getattr(transformers, config.auto_model).from_config(config)


def _load_model(
    folder: Path, processor_folder: Path, dtype: torch.dtype | None
) -> tuple[LatentGenModel, LevelsImageProcessor | ByteTokenizer]:
    """The model in one folder and the processor in another, the same or not. Errors as in `load`."""
    model_type = str(read_json(folder / CONFIG_NAME, "save_pretrained writes it").get("model_type"))
    if model_type not in CONFIG_MAPPING or not issubclass(CONFIG_MAPPING[model_type], LatentGenConfig):
        allowed = sorted(name for name in CONFIG_MAPPING if name.startswith("latentgen_"))
        raise ValueError(f"{folder / CONFIG_NAME}: model_type must be one of {allowed}, got {model_type!r}")
    weight_files(folder)
    config = AutoConfig.from_pretrained(folder)
    files = TOKENIZER_CONFIGS if config.reads_text else PROCESSOR_CONFIGS
    if not any((processor_folder / name).is_file() for name in files):
        raise FileNotFoundError(f"{processor_folder} must hold {' or '.join(files)}")
    model = _load_whole(getattr(transformers, config.auto_model), folder, {"dtype": dtype} if dtype else {})
    processor = getattr(transformers, config.auto_processor).from_pretrained(processor_folder)
    if not config.reads_text:
        try:
            check_processor(config, processor)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
    return model, processor


def _load_denoiser(folder: Path, index: dict, dtype: torch.dtype | None) -> tuple[Any, Any]:
    """Denoiser and scheduler of a saved pipeline, or None twice. Errors as in `load`."""
    if index.get("denoiser", [None])[0] is None:
        return None, None
    # Only a pipeline needs diffusers.
    import diffusers

    from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser

    library, name = index.get("scheduler", (None, None))
    scheduler = getattr(diffusers, str(name), None) if library == "diffusers" else None
    if not (isinstance(scheduler, type) and issubclass(scheduler, diffusers.SchedulerMixin)):
        raise ValueError(f"{INDEX} must name a scheduler of diffusers, got {[library, name]}")
    options = {"use_safetensors": True, "torch_dtype": dtype}
    return _load_whole(LatentDenoiser, folder / "denoiser", options), scheduler.from_pretrained(folder / "scheduler")


def _load_whole(loader: Any, folder: Path, options: dict) -> Any:
    """What a class loads from a folder, in `eval()` mode. `ValueError` unless the weights are whole and all used."""
    fault = f"the weights of {folder} are damaged or do not fit its {CONFIG_NAME}"
    try:
        with without_bars():
            loaded, report = loader.from_pretrained(folder, output_loading_info=True, **options)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{fault}: {error}") from error
    for problem in ("missing_keys", "unexpected_keys"):
        if report[problem]:
            raise ValueError(f"{fault}, {problem}: {sorted(report[problem])}")
    return loaded.eval()
