"""What the commands print, and where they write."""

import csv
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_latentgen.evaluation.metrics import STANDARD_ERROR, best_baseline, describe_metric, headline, show
from hf_latentgen.evaluation.provenance import RECORD
from hf_latentgen.evaluation.results import Results
from hf_latentgen.families import find_family
from hf_latentgen.families.family import Options
from hf_latentgen.hub.files import has_weights, read_json
from hf_latentgen.hub.loading import ROWS, find_folder, load, row_folders
from hf_latentgen.hub.publishing import Upload, full_repo_id, publish
from hf_latentgen.rows.cards import Choices
from hf_latentgen.rows.evaluation import check_row, evaluate, write_evaluation
from hf_latentgen.rows.publishing import prepare_upload
from hf_latentgen.rows.verification import verify_row

# Time for importance samples where nothing else is said.
BUDGET = "10m"
# Where pages are looked at before anything is public.
PAGES = Path("runs", "to_publish")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]], file_format: str) -> None:
    """Print rows as a table for people, as CSV, or as a JSON list of objects."""
    if file_format == "json":
        print(json.dumps([dict(zip(headers, row, strict=True)) for row in rows], indent=2))
    elif file_format == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([headers, *rows])
    else:
        table = Table(*headers, box=None, show_header=any(headers), pad_edge=False)
        for row in rows:
            # A text as it is: brackets in the name of a file are no markup.
            table.add_row(*(Text(_shown(cell), overflow="fold") for cell in row))
        # A file or another program takes lines of any length.
        Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def _shown(cell: object) -> str:
    """A cell as people read it."""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.4f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)


def parse_budget(text: str) -> float:
    """Seconds in a time such as "90s", "10m" or "1.5h".

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None:
        raise ValueError(f"budget must be a number with s, m or h, such as 10m, got {text!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def train_report(folder: Path) -> None:
    """Print what a training came to, as its `run.json` says, and where the model is."""
    verdict = read_json(folder / RECORD, "a training writes it").get("verdict")
    if verdict is not None:
        print(f"score on all {verdict['num_examples']:,} validation examples, {verdict['unit']}, lower is better")
        print_table(["", ""], [[name, float(score)] for name, score in verdict["scores"].items()], "table")
        print(verdict["sentence"])
    print(f"trained model, its processor and run.json: {folder}")


def evaluate_command(
    checkpoint: str,
    data: str | None,
    output_dir: str | None,
    row: bool,
    *,
    revision: str | None,
    split: str,
    data_dir: str | None,
    command: str,
    options: Options,
    budget: str | None,
    classifier: str | None,
    repeats: tuple[str, ...],
) -> None:
    """Evaluate a checkpoint, print its scores, and write them where that was asked for.

    Where the number of importance samples is not given it follows from a budget of time, but for a row, whose number
    is the same on every machine.

    A training run keeps its own results, those of its test split. A row of the repository is written only when asked
    for, by a run of its own recipe without overrides. What was only loaded is left as it is.
    """
    folder = find_folder(checkpoint, revision)
    target = None
    if row:
        if data is not None or output_dir is not None or split != "test":
            raise ValueError("row must be alone: a row is what its recipe gives on its own test split")
        target = Path("model_cards", check_row(folder))
    elif output_dir is not None:
        target = Path(output_dir)
    elif (folder / RECORD).is_file() and data is None and split == "test":
        target = folder
    judge = None if classifier is None else load(classifier)
    others = [Results.read(find_folder(repeat)) for repeat in repeats]
    loaded = replace(load(folder), name=checkpoint)
    if budget is None and not row and options.num_importance_samples is None:
        budget = BUDGET if "budget" in find_family(loaded.model_type).options else None
    seconds = None if budget is None else parse_budget(budget)
    evaluation = evaluate(
        loaded,
        data,
        split=split,
        data_dir=data_dir,
        options=replace(options, classifier=judge, budget=seconds),
        repeats=others,
        command=command,
        say=print,
    )
    results = evaluation.results
    print(f"{results.row} on all {results.num_images:,} of {results.dataset}, {results.split} split")
    scores = [name for name in results.metrics if not name.endswith(STANDARD_ERROR)]
    print_table(
        ["score", "", "kind"],
        [
            [f"{metric.title}{f' ({metric.unit})' if metric.unit else ''}", show(results, name), metric.kind]
            for name in scores
            for metric in [describe_metric(name)]
        ],
        "table",
    )
    if results.baseline:
        print("best code without a network: {1} ({0})".format(*best_baseline(results)))
    if not results.has_provenance:
        print(f"how it was trained is not known: {folder} holds no {RECORD}")
    if target is None:
        print("nothing was written; --output-dir names a folder for results.json and pictures")
    else:
        print(f"results.json and images: {write_evaluation(evaluation, folder, target)}")


def publish_command(
    checkpoint: str,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    with_code: bool = False,
    dry_run: bool = False,
    choices: Choices | None = None,
) -> None:
    """List what is published of a row, and publish it, or with `dry_run` write its page to look at.

    Errors as in [`publish`].
    """
    folder = next((folder for folder in (Path(checkpoint), ROWS / checkpoint) if folder.is_dir()), Path(checkpoint))
    upload = prepare_upload(folder, repo_id if dry_run else full_repo_id(repo_id), with_code, choices=choices)
    for name, size in upload.sizes().items():
        print(f"{size:>12,} bytes  {name}")
    if upload.left_out:
        print(f"left out: {', '.join(upload.left_out)}")
    if dry_run:
        print(f"the page to look at: {write_page(upload)}")
        return
    commit = publish(upload, private or None, revision, create_pr)
    print(commit.pr_url or commit.commit_url)
    if commit.pr_url and upload.tag:
        print(f"the card names the tag {upload.tag}: publish once more when the pull request is merged, which sets it")


def write_page(upload: Upload) -> Path:
    """The card of what is going to be published, written with its pictures to a folder of its own."""
    folder = PAGES / upload.repo_id.split("/")[-1]
    for name, content in upload.contents.items():
        if Path(name).suffix in (".md", ".png"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder / "README.md"


def rows_command(file_format: str) -> None:
    """Print every row of the clone."""
    folders = row_folders()
    if not folders:
        raise FileNotFoundError(f"no rows are at hand: {ROWS} does not exist; a clone of the repository has them")
    lines = []
    for folder in folders:
        results = Results.read(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        where = f"model_cards/{folder.name}" if has_weights(folder) else "no weights"
        lines.append([results.row, headline(results), results.num_parameters, size, where])
    print_table(["row", "score", "parameters", "bytes", "weights"], lines, file_format)


def verify_command(names: Sequence[str], data_dir: str | None) -> bool:
    """Print one line for each row; whether all of them could be scored and agree."""
    folders = [find_folder(name) for name in names] or row_folders()
    outcomes = []
    for folder in folders:
        try:
            found = verify_row(folder, data_dir)
        except (OSError, ValueError) as error:
            print(f"{folder.name}: not verified: {error}", flush=True)
            outcomes.append(False)
            continue
        shown = ", ".join(
            f"{name} {new:.6g} (published {told:.6g}{', DIFFERS' if name in found.differing else ''})"
            for name, (told, new, _) in found.scores.items()
        )
        state = found.missing or ("verified" if found.is_fine else "DIFFERS")
        published = [name for name in Results.read(folder).metrics if not name.endswith(STANDARD_ERROR)]
        # Importance samples, probes and the like take hours, and are told apart from what was checked.
        rest = ", ".join(name for name in published if name not in found.scores)
        shown += f"; published and not computed again: {rest}" if found.scores and rest else ""
        print(f"{found.row}: {state}{f': {shown}' if shown else ''}", flush=True)
        outcomes.append(found.is_fine)
    return bool(outcomes) and all(outcomes)
