"""From a checkpoint to its results: load, measure, write."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_latentgen.evaluation.anomaly import MIN_IMAGES, Calibration, calibrate, known_levels, methods_of
from hf_latentgen.evaluation.likelihood import MOST_SAMPLES, OTHER_PASSES, affordable_samples
from hf_latentgen.evaluation.metrics import STANDARD_ERROR
from hf_latentgen.evaluation.pictures import score_history
from hf_latentgen.evaluation.provenance import (
    PROVENANCE,
    RECORD,
    git_commit,
    hardware,
    option_value,
    read_record,
    versions,
)
from hf_latentgen.evaluation.results import FILE, Results
from hf_latentgen.families import FAMILIES, find_family
from hf_latentgen.families.family import Family, Options
from hf_latentgen.hub.files import CALIBRATION, CONFIGS, PIPELINE_FILES, WEIGHTS, has_weights, weights_sha256
from hf_latentgen.hub.loading import Checkpoint, load
from hf_latentgen.models.networks import matrix_layers
from hf_latentgen.rows.cards import CHANGES_NOTHING, duration

# What a row keeps of a checkpoint: a model, or a pipeline with its parts.
KEPT_FILES = (*CONFIGS, WEIGHTS, *PIPELINE_FILES)
# A clone stays small: all rows together hold four times as much.
MAX_WEIGHT_BYTES = 20 * 2**20
# What may differ between two trainings of one recipe: seeds, and pictures, which change nothing.
MAY_DIFFER = ("training.seed=", "dataset.label_seed=", "training.sample_epochs=")


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a checkpoint.

    Args:
        results: its scores.
        pictures: those that belong to them, by name.
        calibration: what validation images score, if they are enough.
        half: names of the weights that were read in bfloat16 for every score, and that are kept so.
    """

    results: Results
    pictures: dict[str, Image.Image]
    calibration: Calibration | None = None
    half: tuple[str, ...] = ()


def evaluate(
    checkpoint: Checkpoint,
    dataset: str | None = None,
    *,
    split: str = "test",
    data_dir: str | None = None,
    options: Options | None = None,
    repeats: Sequence[Results] = (),
    command: str = "",
    say: Callable[[str], None] | None = None,
    families: tuple[Family, ...] = FAMILIES,
) -> Evaluation:
    """The scores of a checkpoint on all of a split, its pictures and, where there is a record, how it came about.

    Args:
        checkpoint: as [`load`] gives it.
        dataset: name of a data set, Hub id, folder or file; that of the record when None.
        split: split to score, all of it.
        data_dir: folder with local data files.
        options: how to measure.
        repeats: results of other trainings of the same recipe, as an evaluation of each has written them.
        command: what was typed, for the record; K that followed from a budget is added to it.
        say: told beforehand how many importance samples are drawn, and for how long; None to go on in silence.
        families: those that are known.

    Raises:
        ValueError: an option is out of range or of no use for this family, no data set is named and none recorded, the
            repeats are of another recipe or other data, or a score is not finite.
        OSError: data is missing.
    """
    started = time.monotonic()
    options = options or Options()
    family = find_family(checkpoint.model_type, families)
    check_options(family, options, checkpoint)
    record = read_record(checkpoint.folder)
    name, dataset_options = data_of(checkpoint, dataset, record)
    same_data = name == record.get("dataset")
    check_repeats(record, name, split, repeats)
    data = family.load_data(checkpoint, name, split, data_dir)
    # All splits are read now, so that what is missing shows before anything is measured.
    *_, test = data
    half = torch.autocast(checkpoint.model.device.type, torch.bfloat16, enabled=bool(options.bf16))
    if family.seconds_per_sample and (say or options.budget is not None):
        with half:
            seconds = family.seconds_per_sample(checkpoint, data, options)
        pictures = family.seconds_of_pictures(checkpoint) if family.seconds_of_pictures else 0.0
        if options.budget is not None:
            options = replace(options, num_importance_samples=affordable_samples(seconds, options.budget))
            command += f" --num-importance-samples {options.num_importance_samples}"
        if say:
            say(cost_in_words(seconds, pictures, options.num_importance_samples))
    with half:
        measured = family.measure(checkpoint, data, options)
    model = checkpoint.model.config.described()
    denoiser = checkpoint.denoiser
    sizes = (
        {} if denoiser is None else {key: denoiser.config[key] for key in ("latent_dim", "hidden_size", "num_blocks")}
    )
    results = Results(
        row=record.get("row") or Path(checkpoint.name).name,
        dataset=name,
        split=split,
        num_images=len(test),
        metrics=measured.metrics,
        diagnostics=measured.diagnostics,
        baseline=measured.baseline,
        num_parameters=(checkpoint.model if denoiser is None else denoiser).num_parameters(),
        weights_sha256=weights_sha256(checkpoint.folder),
        model=model if denoiser is None else record.get("model", {"model_type": family.model_type}) | sizes,
        autoencoder=None if denoiser is None else model,
        sample_text=measured.sample_text,
        repeats=[],
        spread={},
        evaluate_command=command,
        evaluation={
            "seed": options.seed,
            "batch_size": options.batch_size,
            "seconds": round(time.monotonic() - started, 1),
            "hardware": hardware(),
            "versions": versions(),
            "git_commit": git_commit(),
        },
        dataset_options=dataset_options,
        **{key: record[key] for key in PROVENANCE if key in record},
    )
    if not same_data:
        # Published values are of a recipe and its data.
        results = replace(results, reference=[])
    results = with_repeats(results, repeats)
    pictures = family.draw(checkpoint, data, results, options.seed) | draw_history(results, family)
    calibration = None
    left_out = dataset_options.get("leave_out_classes", ())
    if denoiser is None and methods_of(checkpoint.model) and len(known_levels(data.validation, left_out)) >= MIN_IMAGES:
        # The regret takes minutes, which nobody who wants a score has asked for.
        quick = {"left_out": left_out, "with_regret": False}
        with half:
            calibration = calibrate(checkpoint, data.validation, name, **quick, seed=options.seed)
    half_names = tuple(f"{layer}.weight" for layer in matrix_layers(checkpoint.model)) if options.bf16 else ()
    return Evaluation(results, pictures, calibration, half_names)


def data_of(checkpoint: Checkpoint, dataset: str | None, record: dict) -> tuple[str, dict]:
    """Name of the data that a checkpoint is measured on, that of its record if None, and how training data was changed.

    Raises:
        ValueError: no data set is named and none recorded.
    """
    name = dataset or record.get("dataset")
    if name is None:
        found = f"{checkpoint.folder} holds neither {RECORD} nor {FILE}"
        raise ValueError(f"dataset must be named for a checkpoint without a record of its training, and {found}")
    return name, record.get("dataset_options", {}) if name == record.get("dataset") else {}


def redraw(folder: Path, data_dir: str | None = None, families: tuple[Family, ...] = FAMILIES) -> None:
    """Draw the pictures of a row again, from its results and weights; without weights only the curve of its training.

    Pictures that were drawn while training stay as they are, and so does `results.json`.

    Raises:
        ValueError: the results are damaged.
        OSError: data is missing.
    """
    results = Results.read(folder)
    family = find_family(results.model_type, families)
    pictures = draw_history(results, family)
    if has_weights(folder):
        checkpoint = load(folder)
        data = family.load_data(checkpoint, results.dataset, results.split, data_dir)
        pictures |= family.draw(checkpoint, data, results, results.evaluation["seed"])
    _save_pictures(pictures, folder / "images")


def draw_history(results: Results, family: Family) -> dict[str, Image.Image]:
    """The curve of the training as `history`, where it is known."""
    return {"history": score_history(results, *family.history)} if results.history else {}


def cost_in_words(seconds: float, pictures: float, num_samples: int | None) -> str:
    """What an evaluation is going to take, from seconds of one importance sample of every image and of the pictures."""
    most, count = MOST_SAMPLES, MOST_SAMPLES if num_samples is None else num_samples
    takes = f"K = {count} importance samples an image: about {duration((count + OTHER_PASSES) * seconds)}"
    if count < most:
        takes += f"; K = {most} would take {duration(most * seconds)}"
    return f"{takes}; pictures, which no budget bounds: about {duration(pictures)}" if pictures >= 1 else takes


def check_options(family: Family, options: Options, checkpoint: Checkpoint) -> None:
    """Raise `ValueError` for an option that is out of range, or of no use for the family or this checkpoint."""
    for name, least in (("batch_size", 1), ("num_importance_samples", 0), ("budget", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if options.budget is not None and options.num_importance_samples is not None:
        raise ValueError(f"budget must be None where num_importance_samples is given, got {options.budget:g} seconds")
    for own in fields(Options):
        # Texts are read one after another, in windows.
        is_special = own.default is None or (own.name == "batch_size" and checkpoint.model.config.reads_text)
        if is_special and getattr(options, own.name) != own.default and own.name not in family.options:
            allowed = ", ".join(family.options) or "none"
            raise ValueError(f"{own.name} is of no use for {family.title.lower()}; options of their own: {allowed}")
    if (judge := options.classifier) is not None:
        if judge.model.hub_task != "image-classification":
            raise ValueError(f"classifier must be an image classifier, got {judge.name}: {judge.model.kind}")
        expected, size = checkpoint.model.config.image_size, judge.model.config.image_size
        if size != expected:
            raise ValueError(f"classifier must read images of size {expected}, got {judge.name}: {size}")


def check_repeats(record: dict, dataset: str, split: str, repeats: Sequence[Results]) -> None:
    """Raise `ValueError` if one of the results is not of the recipe, the data and the split, or one is there twice."""
    command, overrides = record.get("train_command"), record.get("overrides", [])
    if repeats and (command is None or "config" not in record):
        raise ValueError("repeats are of no use for a checkpoint without a record of its training")
    known = [_chance(record.get("seed"), overrides)]
    for other in repeats:
        if other.train_command is None:
            raise ValueError(f"repeats must have a record of their training, got {other.row} without one")
        for name, expected, got in (
            ("config", record["config"], other.config),
            ("dataset", dataset, other.dataset),
            ("split", split, other.split),
            (f"overrides but for {', '.join(MAY_DIFFER)}", _changes(overrides), _changes(other.overrides)),
            ("--from", option_value(command or "", "--from"), option_value(other.train_command, "--from")),
        ):
            if got != expected:
                raise ValueError(f"repeats must have {name} {expected!r}, got {other.row}: {got!r}")
        chance = _chance(other.seed, other.overrides)
        if chance in known:
            raise ValueError(f"repeats must be trainings with another seed, got {other.train_command!r} twice")
        known.append(chance)


def _changes(overrides: Sequence[str]) -> list[str]:
    """What all trainings of a recipe must share, of what they override in it."""
    return sorted(word for word in overrides if not word.startswith((*CHANGES_NOTHING, *MAY_DIFFER)))


def _chance(seed: int | None, overrides: Sequence[str]) -> tuple:
    """What makes one training of a recipe come out otherwise than another: its seed, and that of its labels."""
    return seed, *(word for word in overrides if word.startswith("dataset.label_seed="))


def with_repeats(results: Results, repeats: Sequence[Results]) -> Results:
    """The results with the scores of other trainings of their recipe, and mean and standard deviation over all."""
    trainings = [results, *repeats]
    shared = [name for name in results.metrics if all(name in training.metrics for training in trainings)]
    names = [name for name in shared if not name.endswith(STANDARD_ERROR)]
    values = {name: [training.metrics[name] for training in trainings] for name in names if repeats}
    return replace(
        results,
        repeats=[
            {
                "seed": other.seed,
                "command": other.train_command,
                "metrics": {name: other.metrics[name] for name in names},
            }
            for other in repeats
        ],
        spread={name: {"mean": float(np.mean(own)), "std": float(np.std(own, ddof=1))} for name, own in values.items()},
    )


def write_evaluation(evaluation: Evaluation, checkpoint: Path, folder: Path) -> Path:
    """Write `results.json`, pictures in `images/`, and copies of the files of the model to a folder, all or nothing.

    A calibration of these weights that knows another method, or other data, is kept. Weights that were read in bfloat16
    take half of the space: no score changes by it, and as config.json says they load as before, in float32.

    Args:
        evaluation: what to write.
        checkpoint: folder of the model that was measured.
        folder: where; made if it is missing.

    Raises:
        PermissionError: the folder cannot be written.
    """
    staging = _make_staging_folder(folder)
    try:
        (staging / "images").mkdir()
        _save_pictures(evaluation.pictures, staging / "images")
        # Drawn during training: what the model was like before it, and after some epochs.
        drawn = checkpoint / "samples" if (checkpoint / "samples").is_dir() else checkpoint / "images"
        for path in drawn.glob("*_epoch_*.png"):
            shutil.copy(path, staging / "images")
        results, calibration = evaluation.results, evaluation.calibration
        if calibration is not None and _is_fuller(checkpoint, calibration):
            calibration = Calibration.read(checkpoint)
        folder.mkdir(parents=True, exist_ok=True)
        if checkpoint.resolve() != folder.resolve():
            # A calibration that the folder holds may be fuller, and stays then.
            for name in (name for name in KEPT_FILES if calibration is None or name != CALIBRATION):
                source, target = checkpoint / name, staging / name
                if source.is_file():
                    target.parent.mkdir(exist_ok=True)
                    shutil.copyfile(source, target)
                    if evaluation.half and name == WEIGHTS:
                        _halve(target, evaluation.half)
                    if target.suffix == ".safetensors" and target.stat().st_size > MAX_WEIGHT_BYTES:
                        target.unlink()
                if not target.is_file():
                    (folder / name).unlink(missing_ok=True)
            if evaluation.half and (staging / WEIGHTS).is_file():
                digest = weights_sha256(staging)
                results = replace(results, weights_sha256=digest)
                calibration = calibration and replace(calibration, weights_sha256=digest)
        results.write(staging)
        if calibration is not None and not _is_fuller(folder, calibration):
            calibration.write(staging)
        # The results come last: where they are, all is.
        for path in sorted(staging.iterdir(), key=lambda path: path.name == FILE):
            if path.is_dir() and (folder / path.name).exists():
                shutil.rmtree(folder / path.name)
            path.rename(folder / path.name)
    finally:
        shutil.rmtree(staging)
    return folder


def _is_fuller(folder: Path, calibration: Calibration) -> bool:
    """Whether a folder holds a calibration of the same weights with a method, or with data, that this one lacks."""
    try:
        kept = Calibration.read(folder)
    except (OSError, ValueError):
        return False
    is_same = kept.weights_sha256 == calibration.weights_sha256
    return is_same and (kept.dataset != calibration.dataset or bool(kept.quantiles.keys() - calibration.quantiles))


def _halve(path: Path, names: Sequence[str]) -> None:
    """Rewrite a file of weights with those of these names in bfloat16."""
    weights = load_file(path)
    weights |= {name: weights[name].bfloat16() for name in names}
    # transformers refuses a file that does not say so.
    save_file(weights, path, {"format": "pt"})


def check_row(checkpoint: Path) -> str:
    """Name of the row that a run may become: that of its recipe, which it follows without overrides.

    Raises:
        ValueError: it has no record, its recipe was overridden, or it was trained from another checkpoint.
    """
    record = read_record(checkpoint)
    if not (checkpoint / RECORD).is_file() or not has_weights(checkpoint):
        raise ValueError(f"{checkpoint} cannot become a row: it lacks its weights, or {RECORD} of its training")
    if record.get("overrides"):
        row = Path(record["config"]).stem
        raise ValueError(f"{checkpoint} cannot become the row {row}: it overrides {record['overrides']}")
    if start := option_value(record["train_command"], "--from"):
        raise ValueError(f"{checkpoint} cannot become a row: it was trained from {start}, a row from nothing")
    return record["row"]


def _save_pictures(pictures: dict[str, Image.Image], folder: Path) -> None:
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png", optimize=True)


def _make_staging_folder(folder: Path) -> Path:
    """A new folder on the file system of `folder`, so that its files can be renamed into place.

    It lies in `folder`, or where that will be made: a failure must not leave an empty row behind.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        return Path(tempfile.mkdtemp(prefix=".evaluation-", dir=existing))
    except OSError as error:
        raise PermissionError(f"the output folder {folder} is not writable: {error}") from error
