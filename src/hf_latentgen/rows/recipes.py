"""Recipes: the YAML files in configs/, one per published row, and the training they describe."""

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import CONFIG_MAPPING, TrainerCallback, set_seed
from yaml import YAMLError

from hf_latentgen.evaluation.provenance import git_commit, hardware, public_command, versions
from hf_latentgen.families import FAMILIES, find_family
from hf_latentgen.families.family import Family, Setup
from hf_latentgen.hub.files import has_weights
from hf_latentgen.hub.loading import Checkpoint
from hf_latentgen.rows.verdict import judge
from hf_latentgen.training.resume import (
    check_checkpoint_files,
    check_resumed_settings,
    complete_checkpoints,
    earlier_parts,
    record_part,
)
from hf_latentgen.training.trainer import LatentTrainer

# In the wheel the recipes lie in the package, in a clone beside it.
PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next((folder for folder in (PACKAGE / "configs", PACKAGE.parents[1] / "configs") if folder.is_dir()), PACKAGE)

# Overrides after which published values are of something else.
CHANGES_SCORES = ("dataset.name=", "model.num_levels=", "model.image_size=", "model.num_channels=")


@dataclass
class Recipe:
    """What is needed to train a row again.

    Args:
        path: the YAML file.
        overrides: `section.key=value` words given on the command line.
        dataset: `name`, a data set name or folder, and further keys, those of the family.
        model: `model_type` and the fields of its config, and `architectures` with the class of a classifier; or the
            keys of the family.
        training: fields of the training arguments of the family.
        reference: published values that the row is compared with, each with `name`, `metric`, `value`, `source`; none
            if other images are scored than those of the file.
        family: what kind of model it is.
    """

    path: Path
    overrides: list[str]
    dataset: dict
    model: dict
    training: dict
    reference: list[dict]
    family: Family

    @property
    def row(self) -> str:
        """Name of the row: the file's, without its ending."""
        return self.path.stem


def recipe_files() -> list[Path]:
    """The recipes that come with the package, sorted."""
    return sorted(CONFIGS.glob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: as named, or of the row of that name among those that come with the package.

    Raises:
        FileNotFoundError: there is no such file; names the nearest row.
    """
    if Path(name).is_file():
        return Path(name)
    packed = CONFIGS / f"{Path(name).stem}.yaml"
    if packed.is_file() and str(name) in (packed.stem, f"configs/{packed.name}"):
        return packed
    nearest = difflib.get_close_matches(Path(name).stem, [path.stem for path in recipe_files()], n=1, cutoff=0.0)
    hint = f"; the nearest row is {nearest[0]}" if nearest else ""
    raise FileNotFoundError(
        f"no recipe and no folder of images at {name}; a recipe is a YAML file, or the name of a row{hint}"
    )


def load_recipe(
    name: str | Path, overrides: list[str] | None = None, families: tuple[Family, ...] = FAMILIES
) -> Recipe:
    """The recipe in a YAML file or of a row, with `section.key=value` overrides.

    A file may describe several `sizes`, each with values for its sections; `size` names the one that is taken, and can
    be overridden too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key is unknown (names the nearest one), or the file or an override is malformed.
    """
    path = find_recipe(name)
    for override in overrides or []:
        if "=" not in override:
            raise ValueError(f"an override must have the form section.key=value, got {override!r}")
    try:
        base, words = OmegaConf.load(path), OmegaConf.from_dotlist(overrides or [])
        merged = OmegaConf.merge(base, _of_size(base, words), words)
        given = cast(dict, OmegaConf.to_container(merged, resolve=True))
    except (YAMLError, OmegaConfBaseException, OSError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} with {overrides or 'no overrides'} is no mapping of sections: {error}") from error
    if given.pop("sizes", None):
        del given["size"]
    _check_keys("", given, ("dataset", "model", "training", "reference"))
    sections = {"dataset": {"name": "digits"}, "model": {}, "training": {}, "reference": [], **given}
    for key, section in sections.items():
        kind = list if key == "reference" else dict
        if not isinstance(section, kind):
            raise ValueError(f"{key} in {path} must be a {kind.__name__}, got {section!r}")
    if "output_dir" in sections["training"]:
        raise ValueError("training.output_dir must be left out of a recipe: --output-dir names the folder")
    model_type = sections["model"].setdefault("model_type", families[0].model_type)
    try:
        family = find_family(model_type, families)
    except ValueError as error:
        raise ValueError(f"model.{error}") from error
    # YAML reads the word no as false.
    for key, value in sections["training"].items():
        if key.endswith("_strategy") and value is False:
            sections["training"][key] = "no"
    if any(override.startswith(CHANGES_SCORES) for override in overrides or []):
        sections["reference"] = []
    known = family.model_keys
    if known is None:
        known = ("model_type", "num_labels", *(own.name for own in fields(CONFIG_MAPPING[model_type])))
    arguments = [own.name for own in fields(family.arguments)]
    for section, keys in (("model", known), ("dataset", family.dataset_keys), ("training", arguments)):
        _check_keys(f"{section}.", sections[section], keys)
    for key, kind in {"name": str, "streaming": bool, "skip_broken": bool, "allow_grey": bool}.items():
        if not isinstance(value := sections["dataset"].get(key, kind()), kind):
            allowed = "a text, in quotes if need be" if kind is str else "true or false"
            raise ValueError(f"dataset.{key} must be {allowed}, got {value!r}")
    return Recipe(path, list(overrides or []), **sections, family=family)


def _of_size(base: Any, words: Any) -> Any:
    """The values of the size that overrides, or else the file, ask for; none of a file without sizes.

    Raises:
        ValueError: there is no such size.
    """
    sizes = base.get("sizes", {}) if OmegaConf.is_dict(base) else {}
    if not sizes:
        return {}
    size = words.get("size", base.get("size"))
    if size not in sizes:
        raise ValueError(f"size must be one of {', '.join(sizes)}, got {size!r}")
    return sizes[size]


def train_recipe(
    recipe: Recipe,
    output_dir: str | Path | None = None,
    data_dir: str | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
) -> Path:
    """The folder with the trained model, its processor and `run.json`, which says how it came about.

    Args:
        recipe: what to train.
        output_dir: folder to write; `runs/<row>` when None.
        data_dir: folder with local data files.
        checkpoint: a loaded model to start from; its config and processor are kept.
        resume: go on from the last complete checkpoint in `output_dir`.

    Raises:
        ValueError: checkpoints are missing for `resume`, or a model is there without it, or the model section is
            overridden although the model comes from a checkpoint, or the checkpoint is of another family.
        PermissionError: `output_dir` cannot be written.
    """
    output_dir = Path(output_dir or Path("runs", recipe.row))
    last_checkpoint = next(iter(complete_checkpoints(output_dir)), None)
    if resume and last_checkpoint is None:
        raise ValueError(f"cannot resume: {output_dir} holds no complete checkpoint (a folder checkpoint-<step>)")
    if not resume and last_checkpoint is not None:
        raise ValueError(f"{output_dir} holds {last_checkpoint.name} already: resume it, or name another output folder")
    if not resume and has_weights(output_dir):
        raise ValueError(f"{output_dir} holds a model already: name another output folder")
    if checkpoint is not None:
        check_start(recipe, checkpoint)
    arguments, step = recipe.family.arguments(output_dir=str(output_dir), **recipe.training), 0
    if resume and last_checkpoint is not None:
        step = int(last_checkpoint.name.split("-")[1])
        if 0 < arguments.max_steps < step:
            raise ValueError(
                f"training.max_steps must be at least the {step} of {last_checkpoint.name}, got {arguments.max_steps}"
            )
        # The trainer asks as well; here it costs no data.
        earlier_parts(output_dir, {"first_step": step, "dataset": recipe.dataset, "model": recipe.model})
        check_resumed_settings(arguments, last_checkpoint)
        check_checkpoint_files(last_checkpoint, bool(arguments.ema_decay))
    set_seed(arguments.seed)
    skipped: dict[str, str] | None = {} if recipe.dataset.get("skip_broken") else None
    setup = Setup(recipe.model, recipe.dataset, data_dir, arguments.seed, checkpoint, skipped)
    parts = recipe.family.make_parts(setup)
    # Only now, so that a mistake in the recipe leaves no folder behind.
    with _writable(output_dir):
        trainer = recipe.family.trainer(args=arguments, **parts)
        # Noted before training: the source tree may move on during a long one.
        commit = git_commit()
        record = run_record(trainer, recipe, checkpoint, commit)
        told = ("dataset", "model", "training", "overrides", "train_command", "git_commit", "hardware", "versions")
        part = _Part(output_dir, {"first_step": step, **{key: record[key] for key in told}})
        trainer.add_callback(part)
        trainer.train(resume_from_checkpoint=str(last_checkpoint) if resume else None)
        trainer.save_model()
    if trainer.is_world_process_zero():
        record = run_record(trainer, recipe, checkpoint, commit) | {"parts": part.recorded}
        if skipped is not None:
            # Folders are nobody else's business.
            record["skipped"] = {_inside(name, recipe.dataset["name"]): reason for name, reason in skipped.items()}
        if trainer.args.world_size == 1:
            record["verdict"] = asdict(judge(trainer, recipe.family))
        Path(output_dir, "run.json").write_text(json.dumps(record, indent=2) + "\n")
    return output_dir


def run_record(trainer: LatentTrainer, recipe: Recipe, checkpoint: Checkpoint | None, commit: str) -> dict:
    """The provenance of a trained model: recipe, command, time, hardware, versions, commit, and validation history."""
    # Where the file lies is nobody else's business, and only those that come with the package are rows.
    config = Path(*recipe.path.parts[-2:] if recipe.path.resolve().parent == CONFIGS else recipe.path.parts[-1:])
    command = ["train", str(config), *recipe.overrides]
    if checkpoint is not None:
        is_relative = Path(checkpoint.name).is_dir() and not Path(checkpoint.name).is_absolute()
        # So that it is not taken for a name on the Hub.
        command += ["--from", f"./{checkpoint.name}" if is_relative else checkpoint.name]
    unwanted = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_beta")
    return {
        # What is not the row of the recipe has the name of its folder.
        "row": Path(str(trainer.args.output_dir)).absolute().name if recipe.overrides or checkpoint else recipe.row,
        "config": str(config),
        "overrides": recipe.overrides,
        "train_command": public_command(command),
        "train_seconds": trainer.elapsed_seconds,
        "seed": trainer.args.seed,
        "hardware": hardware(),
        "versions": versions(),
        "git_commit": commit,
        "dataset": recipe.dataset,
        "model": recipe.model,
        "training": recipe.training,
        "num_parameters": trainer.model.num_parameters(),
        "reference": recipe.reference,
        "history": [
            {key: value for key, value in entry.items() if key not in unwanted}
            for entry in evaluations(trainer.state.log_history, trainer.score)
        ],
    }


def evaluations(logs: list[dict], score: str) -> list[dict]:
    """The evaluations among the logs of a training; `train_<score>` is the mean of the training logs in between."""
    found, since = [], []
    for entry in logs:
        if "eval_loss" in entry:
            found.append(entry | ({f"train_{score}": sum(since) / len(since)} if since else {}))
            since = []
        elif score in entry:
            since.append(entry[score])
    return found


def _inside(name: str, folder: str) -> str:
    """The name of a file relative to the folder of the data, where it lies there; a row as it is."""
    path, top = Path(name), Path(folder).absolute()
    return path.relative_to(top).as_posix() if path.is_relative_to(top) else path.name


def check_start(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raise `ValueError` unless a training can start from a checkpoint."""
    overridden = [override for override in recipe.overrides if override.startswith("model.")]
    if overridden:
        raise ValueError(f"the model comes from {checkpoint.name}: its fields cannot be overridden, got {overridden}")
    if checkpoint.model_type != recipe.family.model_type:
        expected = f"{recipe.family.model_type!r}, as in {recipe.path}"
        raise ValueError(f"the model type of {checkpoint.name} must be {expected}, got {checkpoint.model_type!r}")


class _Part(TrainerCallback):
    """Records a part of a training when it begins: a mistake that shows until then leaves no record."""

    def __init__(self, output_dir: Path, part: dict):
        self.output_dir, self.part = output_dir, part
        self.recorded: list[dict] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.recorded = record_part(self.output_dir, self.part)


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Context in which files can be written to `folder`, which is made if it is missing, and removed if it stays empty.

    Raises `PermissionError` unless files can be written.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        # Another process of the same training may have been faster.
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise PermissionError(f"the output folder {folder} is not writable: {error}") from error
    try:
        yield
    finally:
        if is_new:
            # Fails where there are files.
            with contextlib.suppress(OSError):
                folder.rmdir()


def _check_keys(section: str, given: dict, allowed: Iterable[str]) -> None:
    """Raise `ValueError` for a key of `given` that is not allowed, with the nearest one that is."""
    allowed = list(allowed)
    for key in given:
        if key not in allowed:
            nearest = difflib.get_close_matches(key, allowed, n=1, cutoff=0.0)
            raise ValueError(f"unknown key {section}{key}; the nearest valid key is {section}{nearest[0]}")
