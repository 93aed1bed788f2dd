"""What is published of a row, checked: its files load, are those that were measured, and its card is complete."""

from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from hf_latentgen.evaluation.anomaly import Calibration
from hf_latentgen.evaluation.results import Results
from hf_latentgen.families import FAMILIES
from hf_latentgen.families.family import Family
from hf_latentgen.hub.code import content_tag, model_code, pipeline_code
from hf_latentgen.hub.files import CALIBRATION, INDEX, model_files, weights_sha256
from hf_latentgen.hub.loading import Checkpoint, load
from hf_latentgen.hub.pipelines import LatentGenPipeline
from hf_latentgen.hub.publishing import Upload
from hf_latentgen.rows.cards import Choices, card_text, is_row, list_pictures

REQUIRED_METADATA = ("license", "library_name", "pipeline_tag", "model_name", "eval_results")


def prepare_upload(
    folder: str | Path,
    repo_id: str,
    with_code: bool = False,
    families: tuple[Family, ...] = FAMILIES,
    choices: Choices | None = None,
) -> Upload:
    """The files of a row, checked: they load, the card is complete and tells of this model. Needs no network.

    The card is rendered for `repo_id`, so that its snippet loads what is published.

    Args:
        folder: what an evaluation leaves: weights, configurations, results.json and images/.
        repo_id: name on the Hub, "namespace/name", or "name" where nothing is going to be published.
        with_code: add the code of the model, so that it loads where this package is not installed.
        families: those that are known.
        choices: what the card says by choice; of a model of one's own that is at least the licence.

    Raises:
        FileNotFoundError: the folder, the weights, a configuration or results.json is missing.
        ValueError: bad `repo_id`, no licence, weights that do not load or are not those that were
            measured, a calibration of others, or an incomplete card.
    """
    folder = Path(folder)
    validate_repo_id(repo_id)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    contents: dict[str, Path | bytes] = {name: folder / name for name in model_files(folder)}
    results = Results.read(folder)
    if not is_row(results) and (choices is None or choices.license is None):
        told = f"license must be chosen for {folder}, which is no row of hf-latentgen: --license with"
        raise ValueError(f"{told} the name that the Hub has for it, such as apache-2.0, mit, cc-by-4.0 or other")
    loaded = _load_measured(folder, results)
    if CALIBRATION in contents:
        Calibration.read(folder)
    if with_code:
        is_pipeline = (folder / INDEX).is_file()
        contents |= pipeline_code(LatentGenPipeline(*loaded.parts)) if is_pipeline else model_code(*loaded.parts[:2])
    tag = content_tag(contents) if with_code else None
    card = card_text(folder, repo_id, tag, families, choices)
    data = ModelCard(card).data
    if missing := [key for key in REQUIRED_METADATA if not data.get(key)]:
        raise ValueError(f"the card of {folder} lacks the metadata {', '.join(missing)}; is results.json complete?")
    contents["README.md"] = card.encode()
    contents |= {f"images/{name}": folder / "images" / name for name in list_pictures(folder)}
    published = {name.split("/")[0] for name in contents}
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in published)
    return Upload(repo_id, contents, left_out, tag)


def _load_measured(folder: Path, results: Results) -> Checkpoint:
    """The checkpoint. `ValueError` if it does not load completely, or another was measured."""
    try:
        loaded = load(folder, device="cpu")
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} does not load: {error}") from error
    trained = loaded.model if loaded.denoiser is None else loaded.denoiser
    measured: dict[str, tuple] = {"num_parameters": (trained.num_parameters(), results.num_parameters)}
    if results.weights_sha256 is not None:
        # Results of before weights had a hash tell no more of them than how many there are.
        measured["weights_sha256"] = (weights_sha256(folder), results.weights_sha256)
    for name, (actual, told) in measured.items():
        if actual != told:
            different = f"its {name} is {actual}, that in results.json is {told}; evaluate this checkpoint again"
            raise ValueError(f"{folder} does not hold the model that was measured: {different}")
    return loaded
