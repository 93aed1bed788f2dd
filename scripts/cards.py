"""Render the model cards, their index and the README's results table from the results.json files.

`python scripts/cards.py` writes what has changed; with `--check` it writes nothing and exits with 1 if something would.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from hf_latentgen.cards.model_card import NAMESPACE, card_text, read_results
from hf_latentgen.cards.tables import cards_index, results_table

BEGIN, END = "<!-- results: rendered by make cards -->", "<!-- /results -->"


def render_all(root: Path) -> dict[Path, str]:
    """Text of every rendered file by its path: the cards, their index and the README of the repository at `root`.

    Raises:
        FileNotFoundError: there is no README.
        ValueError: a results.json is incomplete or in the wrong folder, or the README has not the two markers.
    """
    folders = sorted(path.parent for path in (root / "model_cards").glob("*/results.json"))
    rows, pages = [], {}
    for folder in folders:
        results = read_results(folder)
        if results["row"] != folder.name:
            raise ValueError(f"{folder / 'results.json'} has row {results['row']!r}, it must be {folder.name!r}")
        pages[folder / "README.md"] = card_text(folder, f"{NAMESPACE}/{results['row']}")
        rows.append(results)
    pages[root / "model_cards" / "README.md"] = cards_index(rows)
    readme = root / "README.md"
    pages[readme] = _between_markers(readme, results_table(rows))
    return pages


def _between_markers(path: Path, block: str) -> str:
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    found = len(pattern.findall(text))
    if found != 1:
        raise ValueError(f"{path} must hold one pair of the lines {BEGIN!r} and {END!r}, got {found}")
    return pattern.sub(lambda _: f"{BEGIN}\n{block}\n{END}", text)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 if `--check` finds a file that is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if something would change")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the repository")
    arguments = parser.parse_args(argv)
    try:
        pages = render_all(arguments.root)
    except (OSError, ValueError) as error:
        raise SystemExit(f"cards: {error}") from error
    changed = [path for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        print(f"{'out of date' if arguments.check else 'written'}: {path.relative_to(arguments.root)}")
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages[path], encoding="utf-8")
    return int(arguments.check and bool(changed))


if __name__ == "__main__":
    raise SystemExit(main())
