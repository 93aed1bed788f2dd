"""Render the pages that are made of results.json: each card, their index, docs/results.md and the README's table.

`make cards` runs it; with --check nothing is written, and it fails if something would change.

python scripts/cards.py --redraw ROW [ROW ...]

draws the pictures of rows again before, after a change of how pictures are drawn. HF_LATENTGEN_DATA names the folder of
MNIST.
"""

import sys
from pathlib import Path

from hf_latentgen.rows.evaluation import redraw
from hf_latentgen.rows.pages import render_all


def main() -> int:
    """Exit code: 0, or 1 if `--check` finds a page that is not up to date."""
    root, is_check = Path(__file__).parents[1], "--check" in sys.argv[1:]
    rows = sys.argv[2:] if sys.argv[1:2] == ["--redraw"] else []
    try:
        for row in rows:
            redraw(root / "model_cards" / row)
        pages = render_all(root)
    except (OSError, ValueError) as error:
        sys.exit(f"cards: {error}")
    changed = [path for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        print(f"{'out of date' if is_check else 'written'}: {path.relative_to(root)}")
        if not is_check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages[path], encoding="utf-8")
    return int(is_check and bool(changed))


if __name__ == "__main__":
    raise SystemExit(main())
