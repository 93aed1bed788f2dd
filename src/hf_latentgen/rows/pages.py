"""The pages of a clone that are rendered from the `results.json` of its rows."""

import re
from pathlib import Path

from hf_latentgen.evaluation.results import Results
from hf_latentgen.families import FAMILIES
from hf_latentgen.families.family import Family
from hf_latentgen.hub.files import has_weights
from hf_latentgen.rows.cards import NAMESPACE, card_text
from hf_latentgen.rows.tables import best_rows, cards_index, results_tables

BEGIN, END = "<!-- results: rendered by make cards -->", "<!-- /results -->"


def render_all(root: Path, families: tuple[Family, ...] = FAMILIES) -> dict[Path, str]:
    """Text of every rendered page by its path: cards, their index, docs/results.md, and README.md.

    Rows without weights, whose scores nobody can check, are not in the README's table.

    Raises:
        ValueError: a `results.json` is incomplete or lies in the wrong folder, or a page has not the two markers.
    """
    folders = sorted(path.parent for path in (root / "model_cards").glob("*/results.json"))
    rows, pages = [], {}
    for folder in folders:
        results = Results.read(folder)
        if results.row != folder.name:
            raise ValueError(f"{folder / 'results.json'} has row {results.row!r}, it must be {folder.name!r}")
        pages[folder / "README.md"] = card_text(folder, f"{NAMESPACE}/{results.row}", families=families)
        rows.append(results)
    pages[root / "model_cards" / "README.md"] = cards_index(rows, families)
    checkable = [results for results, folder in zip(rows, folders, strict=True) if has_weights(folder)]
    for page, block in (
        (root / "docs" / "results.md", results_tables(rows, "../model_cards", families)),
        (root / "README.md", best_rows(checkable, "model_cards", families)),
    ):
        pages[page] = _between_markers(page, block)
    return pages


def _between_markers(path: Path, block: str) -> str:
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    found = len(pattern.findall(text))
    if found != 1:
        raise ValueError(f"{path} must hold one pair of the lines {BEGIN!r} and {END!r}, got {found}")
    return pattern.sub(lambda _: f"{BEGIN}\n{block}\n{END}", text)
