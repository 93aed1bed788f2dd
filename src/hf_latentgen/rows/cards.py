"""Model cards, in which every measured number is read from a `results.json`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from transformers import AutoConfig

from hf_latentgen.data.descriptions import DataSource, describe_data
from hf_latentgen.data.sources import HUB_ID
from hf_latentgen.evaluation.metrics import (
    BASELINES,
    STANDARD_ERROR,
    best_baseline,
    describe_metric,
    headline,
    show,
    show_spread,
    words,
)
from hf_latentgen.evaluation.provenance import option_value
from hf_latentgen.evaluation.results import Results
from hf_latentgen.families import FAMILIES, find_family
from hf_latentgen.families.family import Family
from hf_latentgen.rows.recipes import recipe_files

NAMESPACE = "hf-latentgen"
CLASSIFIER_TASK = "image-classification"
# The scores that the best code without a network stands beside.
COMPARABLE = (
    *("bits_per_dim", "exact_bits_per_dim", "bits_per_dim_on_disk"),
    *("bits_per_byte", "dynamic_bits_per_byte", "bits_per_byte_on_disk"),
)
PICTURE_OF_EPOCH = re.compile(r"(samples|reconstructions|completions)_epoch_(\d+)\.png")
CAPTIONS = {
    "samples_mean.png": "Samples: the mean level of each pixel",
    "samples_mode.png": "The same latents, the most likely level of each pixel",
    "samples.png": "Samples from the prior",
    "samples_own_prior_mean.png": "Samples from the prior that the autoencoder was trained with: the mean levels",
    "samples_own_prior.png": "The same latents, each pixel drawn from its distribution",
    "samples_above_nearest_training_images.png": "Samples, each above the training image nearest to it",
    "reconstructions.png": "Test images, each above its reconstruction from the latent mean",
    "completions.png": "Test images on the left, and ways to go on from their upper halves",
    "interpolations.png": "Decoder means on the line between the latents of two test images, one pair a row; the test "
    "images stand at the ends",
    "manifold.png": "Decoder means over the latent plane: the first latent number grows to the right, the second "
    "upwards, both in steps of equal probability under the prior",
    "styles.png": "One style a row, one class code a column, below the class it stands for",
    "latents.png": "Latent means of the test images, one colour per class",
    "history.png": "Validation score while training",
}
LICENSE = "apache-2.0"
# Overrides that leave a model as it is.
CHANGES_NOTHING = ("training.disable_tqdm=", "training.report_to=")


@dataclass(frozen=True)
class Choices:
    """What the card of a model of one's own says by choice.

    Args:
        license: of the weights, as the Hub names it, such as "cc-by-4.0".
        title: of the page; the name of the repository when None.
        dataset_title: of the data; the name of their folder when None.
        repository: address of the hf-latentgen repository from which it is used.
    """

    license: str | None = None
    title: str | None = None
    dataset_title: str | None = None
    repository: str | None = None


def list_pictures(folder: str | Path) -> list[str]:
    """Names of the PNG files in `folder/images`, in the order of the card. Raises: ValueError for a link or no PNG."""
    paths = sorted(path for path in (Path(folder) / "images").glob("*.png") if path.is_file() or path.is_symlink())
    for path in paths:
        try:
            if path.is_symlink():
                raise ValueError("it is a link")
            with Image.open(path, formats=["PNG"]) as picture:
                picture.verify()
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} must be a PNG file: {error}") from error
    names = [path.name for path in paths]
    return [name for name in CAPTIONS if name in names] + [name for name in names if name not in CAPTIONS]


def render_card(
    results: Results,
    repo_id: str,
    pictures: Sequence[str],
    code_tag: str | None = None,
    families: tuple[Family, ...] = FAMILIES,
    choices: Choices | None = None,
) -> ModelCard:
    """The model card of a row, or of a model of one's own: Hub metadata and Markdown.

    Args:
        results: what was measured.
        repo_id: name on the Hub that the loading snippet uses, "namespace/name".
        pictures: names of the files in `images/` beside the card.
        code_tag: the tag of the published code, for a repository that also loads without this package.
        families: those that are known.
        choices: what somebody chose for this page; a row has its own title and licence otherwise.

    Raises:
        ValueError: no family has this model type.
    """
    family = find_family(results.model_type, families)
    config = AutoConfig.for_model(**results.drawing_model)
    choices = choices or Choices()
    is_own = not is_row(results)
    choices = replace(
        choices,
        license=choices.license or (None if is_own else LICENSE),
        title=choices.title or (repo_id.split("/")[-1] if is_own else results.row),
    )
    data = describe_data(results.dataset)
    data = replace(data, title=choices.dataset_title or data.title)
    loader = FileSystemLoader([Path(__file__).parent, family.template.parent])
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    (name, unit), lead = family.history, f"{family.thumbnail}.png"
    text = environment.get_template(family.template.name).render(
        card_data=_metadata(results, family, data, pictures, choices).to_yaml(),
        choices=choices,
        own_license=choices.license if choices.license != LICENSE or is_own else None,
        start=option_value(results.train_command or "", "--from"),
        repo_id=repo_id,
        code_tag=code_tag,
        auto_class=config.auto_model,
        results=results,
        config=config,
        data=data,
        headline=headline(results),
        on_disk=_on_disk(results),
        scores=_score_rows(results),
        references=[
            (entry["name"], f"{entry['value']:g}", describe_metric(entry["metric"]), entry["source"])
            for entry in results.reference
        ],
        best_baseline=best_baseline(results),
        baselines=[(BASELINES.get(key, words(key)), f"{value:.4f}") for key, value in results.baseline.items()],
        history=_history_summary(results.history, f"eval_{name}"),
        history_title=f"validation {unit}",
        is_classifier=family.task(results.model) == CLASSIFIER_TASK,
        model_class=family.model_class(results.model),
        trainings=_training_rows(results),
        num_parameters=f"{results.num_parameters:,}",
        num_images=f"{results.num_images:,}",
        train_time=None if results.train_seconds is None else duration(results.train_seconds),
        training=[
            (f"`{key}`", _show(value))
            for key, value in (results.training | results.dataset_options).items()
            if key != "seed"
        ],
        diagnostics=[(words(key), describe_metric(key).show(value)) for key, value in results.diagnostics.items()],
        evaluation=_evaluation_summary(results.evaluation),
        pictures=[(name, _caption(name, family)) for name in pictures],
        lead=lead if lead in pictures and lead.startswith("samples") else None,
        environment=_show(results.versions),
    )
    # Blocks of a template that are empty leave their line breaks behind.
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text))


def is_row(results: Results) -> bool:
    """Whether a model is what a recipe of this package gives, unchanged; any other one is somebody's own."""
    is_packed = results.config in [f"configs/{path.name}" for path in recipe_files()]
    changes = [override for override in results.overrides if not override.startswith(CHANGES_NOTHING)]
    return is_packed and not changes and option_value(results.train_command or "", "--from") is None


def card_text(
    folder: str | Path,
    repo_id: str,
    code_tag: str | None = None,
    families: tuple[Family, ...] = FAMILIES,
    choices: Choices | None = None,
) -> str:
    """Text of the `README.md` of a row, from `results.json` and `images/` in `folder`.

    Errors as in `render_card`, [`Results.read`] and `list_pictures`.
    """
    card = render_card(Results.read(folder), repo_id, list_pictures(folder), code_tag, families, choices)
    return f"{str(card).rstrip()}\n"


def data_title(results: Results) -> str:
    """Title of the data set and, of images, the number of levels."""
    return _with_levels(describe_data(results.dataset).title, results)


def _with_levels(title: str, results: Results) -> str:
    levels = results.drawing_model.get("num_levels")
    return title if levels is None else f"{title}, {levels} levels"


def duration(seconds: float) -> str:
    """A time in hours and minutes, or minutes and seconds, as in "1 h 05 min" and "2 min 07 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _title(key: str) -> str:
    metric = describe_metric(key)
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def _training_rows(results: Results) -> list[tuple[str, list[str]]]:
    """Of each score of several trainings its title, what each of them came to, and their mean with its deviation."""
    rows = []
    for key in results.spread:
        metric = describe_metric(key)
        values = [training[key] for training in (results.metrics, *(repeat["metrics"] for repeat in results.repeats))]
        rows.append((_title(key), [*map(metric.show, values), show_spread(results, key)]))
    return rows


def _caption(name: str, family: Family) -> str:
    """What the picture of this name shows, of a model of this family."""
    if name in family.captions:
        return family.captions[name]
    if match := PICTURE_OF_EPOCH.fullmatch(name):
        kind, epoch = match.group(1).capitalize(), int(match.group(2))
        return f"{kind} after {epoch} epoch{'s' if epoch > 1 else ''}" if epoch else f"{kind} before training"
    return CAPTIONS.get(name, words(name.removesuffix(".png")))


def _base_model(results: Results) -> str | None:
    """The name on the Hub of what the training started from; None without any, or of a folder."""
    start = option_value(results.train_command or "", "--from")
    if start in [path.stem for path in recipe_files()]:
        return f"{NAMESPACE}/{start}"
    return start if start and HUB_ID.fullmatch(start) else None


def _metadata(
    results: Results, family: Family, data: DataSource, pictures: Sequence[str], choices: Choices
) -> ModelCardData:
    scores = {key: value for key, value in results.metrics.items() if not key.endswith(STANDARD_ERROR)}
    task = family.task(results.model)
    # Of a local data set only the name of its folder is told, not where it lies.
    folder = Path(results.dataset).name
    eval_results = [
        EvalResult(
            task_type=task,
            dataset_type=data.hub_id or folder,
            dataset_name=_with_levels(data.title, results),
            dataset_split=results.split,
            metric_type=key,
            metric_name=f"{describe_metric(key).title} ({describe_metric(key).kind})",
            metric_value=round(value, describe_metric(key).decimals),
        )
        for key, value in scores.items()
    ]
    return ModelCardData(
        license=choices.license,
        library_name=family.library,
        pipeline_tag=task,
        language="en" if results.dataset == "tinyshakespeare" else None,
        model_name=choices.title,
        base_model=_base_model(results),
        tags=["hf_latentgen", family.name, *family.tags, folder.replace("_", "-").lower()],
        datasets=[data.hub_id] if data.hub_id else None,
        metrics=list(scores),
        widget=[{"text": _caption(name, family), "output": {"url": f"images/{name}"}} for name in pictures],
        eval_results=eval_results,
    )


def _on_disk(results: Results) -> str:
    """What a file of the whole split costs, as in " reported, 0.4052 on disk". Empty where none was written."""
    found = [describe_metric(key).show(value) for key, value in results.metrics.items() if key.endswith("_on_disk")]
    return f" reported, {found[0]} on disk" if found else ""


def _score_rows(results: Results) -> list[tuple[str, str, str, str, str]]:
    """Title with unit, kind, value, reference and baseline of each measured number."""
    rows = []
    for key in results.metrics:
        if key.endswith(STANDARD_ERROR):
            continue
        metric = describe_metric(key)
        published = "; ".join(f"{entry['value']:g}" for entry in results.reference if entry["metric"] == key)
        is_comparable = key in COMPARABLE and results.baseline
        baseline = "{1} ({0})".format(*best_baseline(results)) if is_comparable else ""
        rows.append((_title(key), metric.kind, show(results, key), published, baseline))
    return rows


def _history_summary(history: Sequence[dict], name: str) -> str:
    """First and best validation score of this name with their epochs. Empty without any."""
    scored = [entry for entry in history if name in entry]
    if not scored:
        return ""
    best = min(scored, key=lambda entry: entry[name])
    first, best = (f"{entry[name]:.4f} (epoch {entry['epoch']:g})" for entry in (scored[0], best))
    return f"{first} at the first evaluation, {best} at the best"


def _evaluation_summary(evaluation: dict) -> str:
    """Circumstances of the evaluation, times in words. Empty if they were not recorded."""
    named = {"wall time" if key == "seconds" else words(key): (key, value) for key, value in evaluation.items()}
    return "; ".join(
        f"{name} {duration(value) if key == 'seconds' else _show(value)}" for name, (key, value) in named.items()
    )


def _show(value: object) -> str:
    """A value of `results.json` as one line of text that cannot break a Markdown table."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_show(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(_show(entry) for entry in value) or "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
