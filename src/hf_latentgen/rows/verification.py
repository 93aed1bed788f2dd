"""Published scores, computed again from the weights that lie beside them."""

from dataclasses import dataclass
from pathlib import Path

from hf_latentgen.evaluation.metrics import STANDARD_ERROR, describe_metric
from hf_latentgen.evaluation.provenance import option_value
from hf_latentgen.evaluation.results import Results
from hf_latentgen.families import FAMILIES, find_family
from hf_latentgen.families.family import Family, Options
from hf_latentgen.hub.files import has_weights
from hf_latentgen.hub.loading import load

# Another processor may round otherwise.
RELATIVE_TOLERANCE = 1e-4
STANDARD_ERRORS = 4


@dataclass(frozen=True)
class Verification:
    """What came out for one row: its published and its new scores by name, and what is wrong.

    Args:
        row: its name.
        scores: by name, the published one, the new one, and by how much they may differ.
        missing: why nothing could be scored, or None.
    """

    row: str
    scores: dict[str, tuple[float, float, float]]
    missing: str | None = None

    @property
    def differing(self) -> list[str]:
        """Names of the scores that differ by more than they may."""
        return [name for name, (told, found, most) in self.scores.items() if not abs(told - found) <= most]

    @property
    def is_fine(self) -> bool:
        """Whether all scores are there and agree."""
        return self.missing is None and not self.differing


def verify_row(
    folder: str | Path, data_dir: str | None = None, families: tuple[Family, ...] = FAMILIES
) -> Verification:
    """The scores of a row's weights on all of its test split, beside those in its `results.json`.

    Scores of bounds are sampled, and may differ by four standard errors; others by 1e-4 of their value, or by what
    their family allows.

    Raises:
        ValueError: the results or the weights are damaged.
        OSError: the data is missing.
    """
    results = Results.read(folder)
    if not has_weights(Path(folder)):
        return Verification(results.row, {}, "no weights")
    family = find_family(results.model_type, families)
    checkpoint = load(folder)
    data = family.load_data(checkpoint, results.dataset, results.split, data_dir)
    seed, batch_size = results.evaluation.get("seed", 0), results.evaluation.get("batch_size", 128)
    named = option_value(results.evaluate_command, "--classifier") if "classifier" in family.options else None
    classifier = None if named is None else load(named if Path(named).is_dir() else Path(named).name)
    found = family.verify(checkpoint, data, Options(batch_size=batch_size, seed=seed, classifier=classifier))
    scores = {}
    for name, value in found.items():
        if name.endswith(STANDARD_ERROR) or name not in results.metrics:
            continue
        told = results.metrics[name]
        error = results.metrics.get(name + STANDARD_ERROR)
        most = RELATIVE_TOLERANCE * abs(told)
        if error is not None and describe_metric(name).kind != "exact":
            most = STANDARD_ERRORS * error
        scores[name] = (told, value, family.tolerances.get(name, most))
    return Verification(results.row, scores)
