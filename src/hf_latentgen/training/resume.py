"""What a training needs to go on where it stopped: whole files, the settings it ran under, its place in a stream."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

# In a checkpoint: the settings that a resumed training must share, and its place in a stream.
SETTINGS = "training_settings.json"
# With averaging, `model.safetensors` of a checkpoint holds the averaged weights: they are what `from_pretrained` loads.
# The weights that training goes on from lie beside it.
TRAINING_WEIGHTS = "training_weights.safetensors"
# In an output folder: under what each part of a training ran.
PARTS = "training_parts.json"
# How long to train, what is logged, evaluated, saved and pushed and when, and the machine.
MAY_CHANGE = (
    *("output_dir", "num_train_epochs", "max_steps", "sample_epochs", "load_best_model_at_end"),
    *("disable_tqdm", "report_to", "run_name", "project", "include_num_input_tokens_seen", "push_to_hub"),
    *("ignore_data_skip", "restore_callback_states_from_checkpoint", "resume_from_checkpoint", "enable_jit_checkpoint"),
    *("use_cpu", "local_rank", "debug", "skip_memory_metrics", "torch_empty_cache_steps", "ddp_timeout"),
    *("dataloader_pin_memory", "dataloader_prefetch_factor"),
)
MAY_CHANGE_PREFIXES = ("logging_", "log_", "eval_", "save_", "hub_", "trackio_", "do_")
# Sections of a recipe that all parts of a training share; those of the training are compared as arguments.
SHARED_SECTIONS = ("dataset", "model")


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints in a folder that were written to their end, the newest first.

    `trainer_state.json` is the last file of a checkpoint that is written: where it is missing or cut off, so is more.
    """
    folders = {int(path.name[11:]): path for path in output_dir.glob("checkpoint-*") if path.name[11:].isdecimal()}
    return [path for _, path in sorted(folders.items(), reverse=True) if _is_json(path / "trainer_state.json")]


def last_good_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint whose weights, in one whole file, are all finite, or None."""
    for folder in complete_checkpoints(output_dir):
        if _is_whole_safetensors(folder / SAFE_WEIGHTS_NAME) and all(
            weight.isfinite().all() for weight in load_file(folder / SAFE_WEIGHTS_NAME).values()
        ):
            return folder
    return None


def fixed_settings(arguments: TrainingArguments) -> dict:
    """The settings that all parts of a training share, by name, as JSON reads them back."""
    settings = {
        name: value
        for name, value in arguments.to_dict().items()
        if name not in MAY_CHANGE and not name.startswith(MAY_CHANGE_PREFIXES)
    }
    return json.loads(json.dumps(settings | {"world_size": arguments.world_size}))


def write_settings(checkpoint: Path, arguments: TrainingArguments, position: tuple[int, int] | None) -> None:
    """Writes the settings of a training into a checkpoint.

    Args:
        checkpoint: its folder.
        arguments: the settings.
        position: passes over a stream that were ended, and batches of the next; None for data of known length.
    """
    checkpoint.mkdir(parents=True, exist_ok=True)
    content = {"settings": fixed_settings(arguments), "position": position}
    (checkpoint / SETTINGS).write_text(json.dumps(content, indent=2) + "\n")


def read_position(checkpoint: Path, is_stream: bool) -> tuple[int, int] | None:
    """Passes over a stream that were ended, and batches of the next; None for data of known length.

    Raises:
        ValueError: `is_stream` is not what it was.
    """
    position = json.loads((checkpoint / SETTINGS).read_text())["position"]
    if (position is not None) != is_stream:
        before, now = ("data of known length", "a stream")[:: 1 if position is None else -1]
        raise ValueError(f"cannot resume from {checkpoint}: train_dataset must be {before}, got {now}")
    return position and (position[0], position[1])


def check_resumed_settings(arguments: TrainingArguments, checkpoint: Path) -> None:
    """Checks that a training goes on under the settings of a checkpoint; how long, and what is logged, may change.

    Raises:
        ValueError: settings differ (names each), or the checkpoint tells none.
    """
    path = checkpoint / SETTINGS
    if not path.is_file():
        raise ValueError(f"cannot resume from {checkpoint}: it has no {SETTINGS}, which says what it was trained under")
    before, now = json.loads(path.read_text())["settings"], fixed_settings(arguments)
    # A setting that another version of transformers knows is compared with nothing.
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        told = ", ".join(f"{name} must be {before[name]!r}, got {now[name]!r}" for name in changed)
        raise ValueError(f"cannot resume from {checkpoint} under other settings: {told}")


def check_checkpoint_files(checkpoint: Path, is_averaged: bool) -> None:
    """Checks that a checkpoint holds everything that a training goes on from, to the last byte.

    Args:
        checkpoint: its folder.
        is_averaged: whether the weights are averaged, so that those that are trained lie beside them.

    Raises:
        ValueError: a file is missing or cut off; names it.
    """
    names = [SAFE_WEIGHTS_NAME, "optimizer.pt", "scheduler.pt", *[TRAINING_WEIGHTS] * is_averaged]
    states = [path.name for path in sorted(checkpoint.glob("rng_state*.pth"))]
    for name in [*names, *(states or ["rng_state.pth"])]:
        path = checkpoint / name
        if not path.is_file():
            raise ValueError(f"cannot resume from {checkpoint}: {name} is missing")
        if not (_is_whole_safetensors(path) if path.suffix == ".safetensors" else zipfile.is_zipfile(path)):
            raise ValueError(f"cannot resume from {checkpoint}: {name} is damaged or cut off")


def earlier_parts(output_dir: Path, part: dict) -> list[dict]:
    """The parts of a training before this one, as the output folder tells.

    Parts that began at the same step or later are left out: this one starts before what they did.

    Args:
        output_dir: folder of the training.
        part: under what it runs: `first_step`, the step of the checkpoint that it goes on from, or 0; `dataset` and
            `model`, sections of the recipe; and whatever else is worth telling.

    Raises:
        ValueError: a section differs from that of the first part (names the key), or a resumed training has no record.
    """
    path = output_dir / PARTS
    parts = json.loads(path.read_text()) if path.is_file() else []
    parts = [earlier for earlier in parts if earlier["first_step"] < part["first_step"]]
    if part["first_step"] and not parts:
        raise ValueError(f"cannot resume: {path}, which says what the training began with, is missing")
    for section in SHARED_SECTIONS if parts else ():
        before, now = parts[0][section], json.loads(json.dumps(part[section]))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                told = f"{section}.{key} must be {before.get(key)!r}, as when it began, got {now.get(key)!r}"
                raise ValueError(f"cannot resume the training in {output_dir} with another {section}: {told}")
    return parts


def record_part(output_dir: Path, part: dict) -> list[dict]:
    """The parts of a training up to this one, which is added to those that the output folder tells.

    All processes of a training may call it; what they write is the same. Arguments and errors as in `earlier_parts`.
    """
    parts = [*earlier_parts(output_dir, part), json.loads(json.dumps(part))]
    (output_dir / PARTS).write_text(json.dumps(parts, indent=2) + "\n")
    return parts


def _is_whole_safetensors(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except (ValueError, OSError):
        return False
    return True
