"""Model cards and tables of scores, in which every measured number is read from a `results.json`."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from transformers import AutoConfig

from hf_latentgen.cards.metrics import FLOORS, describe_metric, words
from hf_latentgen.models.auto import auto_class

TASK = "unconditional-image-generation"
CLASSIFIER_TASK = "image-classification"
TEXT_TASK = "text-generation"
NAMESPACE = "hf-latentgen"
KINDS = {str: "a text", int: "a whole number", float: "a finite number", dict: "an object", list: "a list"}
REQUIRED_KEYS = {
    **dict.fromkeys(("row", "config", "dataset", "split", "train_command", "evaluate_command", "git_commit"), str),
    **dict.fromkeys(("seed", "num_images", "num_parameters"), int) | {"train_seconds": float, "hardware": object},
    **dict.fromkeys(("metrics", "floor", "model", "training", "versions"), dict),
    **dict.fromkeys(("reference", "history"), list),
}
EVALUATION = "scripts/evaluate.py writes it"
REFERENCE_KEYS = {"name": str, "metric": str, "value": float, "source": str}
STANDARD_ERROR = "_standard_error"
# The scores that the best code without a network stands beside.
COMPARABLE = ("bits_per_dim", "exact_bits_per_dim", "bits_per_byte", "dynamic_bits_per_byte")


@dataclass(frozen=True)
class DataSource:
    """What a card says about a data set. `hub_id` is None where there is nothing to link on the Hub."""

    title: str
    hub_id: str | None
    description: str


# What people search the Hub for.
FURTHER_TAGS = {
    "vae": ["variational-autoencoder", "image-generation"],
    "aae": ["adversarial-autoencoder", "image-generation"],
    "prior": ["latent-diffusion", "image-generation"],
    "local_transformer": ["byte-level", "local-attention"],
    "local_transformer_image": ["autoregressive", "local-attention", "image-generation"],
}
MODEL_CLASSES = {
    "vae": "VAEModel",
    "aae": "AAEModel",
    "local_transformer": "LocalTransformerForCausalLM",
    "local_transformer_image": "LocalTransformerForImageGeneration",
}
PICTURE_OF_EPOCH = re.compile(r"(samples|reconstructions|completions)_epoch_(\d+)\.png")
MNIST_SPLITS = (
    "The official test split. The official training images are divided 54,000 / 6,000 into train and validation by "
    "`torch.randperm(60000)` with seed 42."
)
DATA_SOURCES = {
    "digits": DataSource(
        "scikit-learn digits",
        "sklearn-docs/digits",
        "Real handwritten digits, 8x8 grey pixels, shipped with scikit-learn: nothing is downloaded. Divided at "
        "random, stratified by class, into train, validation and test, with seed 42.",
    ),
    "mnist": DataSource("MNIST", "ylecun/mnist", MNIST_SPLITS),
    "fashion_mnist": DataSource("Fashion-MNIST", "zalando-datasets/fashion_mnist", MNIST_SPLITS),
    "binarized_mnist": DataSource(
        "Binarized MNIST",
        None,
        "The fixed (static) binarization of Larochelle and Murray, with its own train, validation and test files. "
        "Scores on images that are binarized anew at every epoch are not comparable. The files are not on the Hub: the "
        "environment variable `HF_LATENTGEN_DATA` names the folder that holds them.",
    ),
    "tinyshakespeare": DataSource(
        "tiny Shakespeare",
        None,
        "1,115,394 bytes of plays in one file, divided by position: the first 90 % train, the next 5 % validation, the "
        "last 5 % test.",
    ),
}

CAPTIONS = {
    "samples.png": "Samples from the prior",
    "samples_mode.png": "The same latents, the most likely level of each pixel",
    "samples_mean.png": "The same latents, the mean level of each pixel",
    "samples_own_prior.png": "Samples from the prior that the autoencoder was trained with",
    "samples_own_prior_mean.png": "The same latents, the mean level of each pixel",
    "samples_above_nearest_training_images.png": "Samples, each above the training image nearest to it",
    "reconstructions.png": "Test images, each above its reconstruction from the latent mean",
    "completions.png": "Test images on the left, and ways to go on from their upper halves",
    "interpolations.png": "Decoder means on the line between the latents of two test images, one pair a row",
    "manifold.png": "Decoder means over the latent plane, at equally spaced normal quantiles",
    "styles.png": "One style a row, one class code a column",
    "latents.png": "Latent means of the test images, one colour per class",
    "history.png": "Validation score against epochs",
}

# A transformer has neither a prior nor latents.
CAPTIONS_OF_PIXELS = {"samples.png": "Samples", "samples_mode.png": "Samples, each pixel at its most likely level"}


def read_json(path: Path, origin: str, kinds: Mapping[str, type] | None = None) -> dict:
    """The object in a file that `origin` tells who writes, with fields of these kinds.

    Raises `FileNotFoundError` or `ValueError`, naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {origin}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    check_fields(found, kinds or {}, str(path), origin=origin)
    return found


def read_results(folder: str | Path) -> dict:
    """The contents of `folder/results.json`, checked as a card needs it. Errors as in `read_json`, `check_results`."""
    path = Path(folder) / "results.json"
    results = read_json(path, EVALUATION)
    check_results(results, str(path))
    return results


def check_results(results: dict, source: str = "results.json") -> None:
    """Raises `ValueError` naming `source` and the keys a card needs but `results` lacks, or one of another kind."""
    check_fields(results, REQUIRED_KEYS, source)
    check_fields(results["model"], {"model_type": str}, source, "model.")
    for part in ("metrics", "floor", "diagnostics"):
        scores = results.get(part, {})
        check_fields(scores, dict.fromkeys(scores, float), source, f"{part}.")
    for part, kinds in (("reference", REFERENCE_KEYS), ("history", {})):
        for index, entry in enumerate(results[part]):
            check_fields(entry, kinds, source, f"{part}[{index}].")


def check_fields(found: object, kinds: Mapping[str, type], source: str, place: str = "", origin=EVALUATION) -> None:
    """Raises `ValueError` naming `source` and what of `kinds` is missing in `found`, or of another kind."""
    if not isinstance(found, dict):
        raise ValueError(f"{source}: {place.rstrip('.') or 'it'} must be an object, got {found!r}")
    if missing := [place + key for key in kinds if key not in found]:
        raise ValueError(f"{source} lacks {', '.join(missing)}; {origin}")
    for key, kind in kinds.items():
        value, accepted = found[key], (int, float) if kind is float else kind
        is_wrong = isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))
        if is_wrong or not isinstance(value, accepted):
            raise ValueError(f"{source}: {place}{key} must be {KINDS[kind]}, got {value!r}")


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
    results: dict, repo_id: str, pictures: Sequence[str] | None = None, code_tag: str | None = None
) -> ModelCard:
    """The model card of a row: Hub metadata and Markdown.

    Args:
        results: contents of a `results.json`.
        repo_id: name on the Hub that the loading snippet uses, "namespace/name".
        pictures: names of the files in `images/` beside the card; when None, those `scripts/evaluate.py` always writes.
        code_tag: the tag of the published code, for a repository that also loads without this package.

    Raises:
        ValueError: a key is missing, or there is no template for the model family.
    """
    check_results(results, f"results.json of {results.get('row', 'a row without a name')}")
    folder, template = Path(__file__).parent, f"{family(results)}.md.jinja"
    if not (folder / template).is_file():
        known = sorted(path.name for path in folder.glob("*.md.jinja"))
        raise ValueError(f"model.model_type {results['model']['model_type']!r} has no template, there are {known}")
    pictures = ["samples.png", "reconstructions.png", "history.png"] if pictures is None else list(pictures)
    config = AutoConfig.for_model(**image_model(results))
    data = data_source(results["dataset"])
    # Not every row has further numbers that tell whether to trust its scores.
    diagnostics = results.get("diagnostics", {})
    environment = Environment(loader=FileSystemLoader(folder), undefined=StrictUndefined, keep_trailing_newline=True)
    text = environment.get_template(template).render(
        card_data=_metadata(results, data, pictures).to_yaml(),
        repo_id=repo_id,
        code_tag=code_tag,
        auto_class=auto_class(config).__name__,
        results=results,
        config=config,
        data=data,
        headline=headline(results),
        scores=_score_rows(results),
        references=[
            (entry["name"], f"{entry['value']:g}", describe_metric(entry["metric"]), entry["source"])
            for entry in results["reference"]
        ],
        best_floor=best_floor(results),
        floors=[(FLOORS.get(key, words(key)), f"{value:.4f}") for key, value in results["floor"].items()],
        history=_history_summary(results["history"]),
        history_title=f"validation {_history_metric(results['history'])[1]}",
        is_classifier=_is_classifier(results),
        model_class=_model_class(results),
        num_labelled=results.get("num_labelled"),
        runs=[f"{error:.4f}" for error in results.get("test_errors_of_draws", [])],
        num_parameters=f"{results['num_parameters']:,}",
        num_images=f"{results['num_images']:,}",
        train_time=duration(results["train_seconds"]),
        training=[
            (f"`{key}`", _show(value))
            for key, value in (results["training"] | results.get("dataset_options", {})).items()
            if key != "seed"
        ],
        diagnostics=[(words(key), describe_metric(key).show(value)) for key, value in diagnostics.items()],
        evaluation=_evaluation_summary(results.get("evaluation", {})),
        pictures=[(name, _caption(name, family(results))) for name in pictures],
        environment=_show(results["versions"]),
        hardware=_show(results["hardware"]),
    )
    # Blocks of a template that are empty leave their line breaks behind.
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text))


def card_text(folder: str | Path, repo_id: str, code_tag: str | None = None) -> str:
    """Text of the `README.md` of a row, from `results.json` and `images/` in `folder`. Errors as in `render_card`."""
    return f"{str(render_card(read_results(folder), repo_id, list_pictures(folder), code_tag)).rstrip()}\n"


def _caption(name: str, model_family: str) -> str:
    """What the picture of this name shows, of a model of this family."""
    if model_family == "local_transformer_image" and name in CAPTIONS_OF_PIXELS:
        return CAPTIONS_OF_PIXELS[name]
    if match := PICTURE_OF_EPOCH.fullmatch(name):
        kind, epoch = match.group(1).capitalize(), int(match.group(2))
        return f"{kind} after {epoch} epoch{'s' if epoch > 1 else ''}" if epoch else f"{kind} before training"
    return CAPTIONS.get(name, words(name.removesuffix(".png")))


def family(results: dict) -> str:
    """Short name of the model family: the model type without the prefix of the package, as in "vae"."""
    return results["model"]["model_type"].removeprefix("latentgen_")


def data_source(dataset: str) -> DataSource:
    """What is known of a data set by the name given to `load_images`: a built-in name, a Hub id or a folder."""
    if dataset in DATA_SOURCES:
        return DATA_SOURCES[dataset]
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", dataset) is not None and not Path(dataset).exists()
    return DataSource(Path(dataset).name, dataset if is_hub_id else None, "")


def headline(results: dict) -> str:
    """The main score of a row, as in "0.5190 bits/dim" or "classification error 0.0310". Empty if nothing was measured.

    It is the first one measured, but the mean over draws of the labels where there were several.
    """
    for key in ("test_error_mean", *results["metrics"]):
        if key in results["metrics"]:
            metric = describe_metric(key)
            value = metric.show(results["metrics"][key])
            if metric.unit in ("bits/dim", "nats", "bits/byte"):
                return f"{value} {metric.unit}"
            return f"{metric.title[0].lower()}{metric.title[1:]} {value}"
    return ""


def duration(seconds: float) -> str:
    """A time in hours and minutes, or minutes and seconds, as in "1 h 05 min" and "2 min 07 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _metadata(results: dict, data: DataSource, pictures: Sequence[str]) -> ModelCardData:
    scores = {key: value for key, value in results["metrics"].items() if not key.endswith(STANDARD_ERROR)}
    task = CLASSIFIER_TASK if _is_classifier(results) else TEXT_TASK if reads_text(results) else TASK
    # Of a local data set only the name of its folder is told, not where it lies.
    dataset_tag = Path(results["dataset"]).name.replace("_", "-").lower()
    eval_results = [
        EvalResult(
            task_type=task,
            dataset_type=data.hub_id or Path(results["dataset"]).name,
            dataset_name=data_title(results),
            dataset_split=results["split"],
            metric_type=key,
            metric_name=f"{describe_metric(key).title} ({describe_metric(key).kind})",
            metric_value=round(value, describe_metric(key).decimals),
        )
        for key, value in scores.items()
    ]
    return ModelCardData(
        license="apache-2.0",
        library_name="diffusers" if family(results) == "prior" else "transformers",
        pipeline_tag=task,
        language="en" if results["dataset"] == "tinyshakespeare" else None,
        model_name=results["row"],
        tags=["hf_latentgen", family(results), *FURTHER_TAGS.get(family(results), []), dataset_tag],
        datasets=[data.hub_id] if data.hub_id else None,
        metrics=list(scores),
        widget=[{"text": _caption(name, family(results)), "output": {"url": f"images/{name}"}} for name in pictures],
        eval_results=eval_results,
    )


def _score_rows(results: dict) -> list[tuple[str, str, str, str, str]]:
    """Title with unit, kind, value, reference and floor of each measured number."""
    rows = []
    for key in results["metrics"]:
        if key.endswith(STANDARD_ERROR):
            continue
        metric = describe_metric(key)
        title = f"{metric.title} ({metric.unit})" if metric.unit else metric.title
        is_comparable = key in COMPARABLE and results["floor"]
        floor = "{1:.4f} ({0})".format(*best_floor(results)) if is_comparable else ""
        rows.append((title, metric.kind, cell(results, key), _reference_cell(results, key), floor))
    return rows


def cell(results: dict, key: str) -> str:
    """A score with its standard error where there is one, or "-"."""
    metrics = results["metrics"]
    if key not in metrics:
        return "-"
    shown = describe_metric(key).show(metrics[key])
    error = metrics.get(key + STANDARD_ERROR)
    return shown if error is None else f"{shown} ± {describe_metric(key).show(error)}"


def _reference_cell(results: dict, key: str) -> str:
    entries = [entry for entry in results["reference"] if entry["metric"] == key]
    return "; ".join(f"{entry['value']:g}" for entry in entries)


def best_floor(results: dict) -> tuple[str, float]:
    """Description and bits per dimension of the best code without a network."""
    if not results["floor"]:
        return "", float("inf")
    key = min(results["floor"], key=results["floor"].__getitem__)
    return FLOORS.get(key, words(key)), results["floor"][key]


def data_title(results: dict) -> str:
    """Title of the data set and the number of levels of a row."""
    title = data_source(results["dataset"]).title
    return title if reads_text(results) else f"{title}, {image_model(results)['num_levels']} levels"


def image_model(results: dict) -> dict:
    """Fields of the configuration of the model that draws pixels or bytes: of a prior, its autoencoder's."""
    return results.get("autoencoder") or results["model"]


def _history_metric(history: Sequence[dict]) -> tuple[str, str]:
    """Name and title of the score that the evaluations of a history have in common."""
    scored = {name for entry in history for name in entry}
    if "eval_reconstruction_loss" in scored:
        return "eval_reconstruction_loss", "reconstruction loss"
    if "eval_velocity_mse" in scored:
        return "eval_velocity_mse", "mean squared error of the velocity"
    if "eval_bits_per_byte" in scored:
        return "eval_bits_per_byte", "bits/byte"
    return "eval_bits_per_dim", "bits/dim"


def _history_summary(history: Sequence[dict]) -> str:
    """First and best validation score with their epochs. Empty without any."""
    name, _ = _history_metric(history)
    scored = [entry for entry in history if name in entry]
    if not scored:
        return ""
    best = min(scored, key=lambda entry: entry[name])
    first, best = (f"{entry[name]:.4f} (epoch {entry['epoch']:g})" for entry in (scored[0], best))
    return f"{first} at the first evaluation, {best} at the best"


def reads_text(results: dict) -> bool:
    """Whether a row is a model of texts, not of images."""
    return family(results) == "local_transformer"


def _is_classifier(results: dict) -> bool:
    return "Classification" in _model_class(results)


def _model_class(results: dict) -> str:
    """Name of the class that loads the model."""
    default = MODEL_CLASSES.get(family(results), "")
    return (results["model"].get("architectures") or [default])[0]


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
