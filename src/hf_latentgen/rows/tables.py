"""Tables of all rows: for the README, for the page of results, and for the index of the cards."""

from collections.abc import Sequence

from hf_latentgen.evaluation.metrics import headline
from hf_latentgen.evaluation.results import Results
from hf_latentgen.families import FAMILIES
from hf_latentgen.families.family import Family
from hf_latentgen.rows.cards import data_title, duration


def results_tables(rows: Sequence[Results], folder: str, families: tuple[Family, ...] = FAMILIES) -> str:
    """A Markdown table for each family, one line a row, that links to the cards in `folder`."""
    tables = []
    for family in families:
        members = [results for results in rows if results.model_type == family.model_type]
        if members:
            lines = [_cells(results, family, folder) for results in members]
            headers = list(lines[0])
            table = [f"| {' | '.join(headers)} |", f"|---|---|{'--:|' * (len(headers) - 2)}"]
            table += [f"| {' | '.join(line.values())} |" for line in lines]
            tables.append(f"## {family.title}\n\n" + "\n".join(table))
    return "\n\n".join(tables)


def best_rows(rows: Sequence[Results], folder: str, families: tuple[Family, ...] = FAMILIES) -> str:
    """A Markdown table with the best row of each family, by the data set and metric that its object names."""
    lines = ["| Family | Best row | Data | Score |", "|---|---|---|--:|"]
    for family in families:
        dataset, metric = family.best_by or (None, "")
        measured = [row for row in rows if row.model_type == family.model_type and row.dataset == dataset]
        compared = [row for row in measured if metric in row.metrics]
        if compared:
            best = min(compared, key=lambda row: row.metrics[metric])
            link = f"[{best.row}]({folder}/{best.row}/README.md)"
            lines.append(f"| {family.title} | {link} | {data_title(best)} | {headline(best)} |")
    return "\n".join(lines)


def cards_index(rows: Sequence[Results], families: tuple[Family, ...] = FAMILIES) -> str:
    """The Markdown page that lists all rows by family, with a thumbnail and the score of each."""
    lines = ["# Model cards", "", "Rendered by `make cards` from the `results.json` of each folder.", ""]
    for family in families:
        members = [results for results in rows if results.model_type == family.model_type]
        if not members:
            continue
        lines += [f"## {family.title}", "", "| | Row | Data | Parameters | Score |", "|---|---|---|--:|--:|"]
        for results in members:
            row, name = results.row, family.thumbnail
            what = "training" if name == "history" else "samples"
            picture = f'<img src="{row}/images/{name}.png" width="160" alt="{what} of {row}">'
            cells = (picture, f"[{row}]({row}/README.md)", data_title(results), f"{results.num_parameters:,}")
            lines.append(f"| {' | '.join(cells)} | {headline(results)} |")
        lines.append("")
    return "\n".join(lines)


def _cells(results: Results, family: Family, folder: str) -> dict[str, str]:
    return {
        "Row": f"[{results.row}]({folder}/{results.row}/README.md)",
        "Data": data_title(results),
        **family.columns(results),
        "Training": "-" if results.train_seconds is None else duration(results.train_seconds),
    }
