r"""How well scores of a model tell images of other data from those of its own, on full test splits.

    python benchmarks/anomaly.py --fashion CHECKPOINT --mnist CHECKPOINT --background CHECKPOINT=BACKGROUND \
        --left_out 4=CHECKPOINT --data_dir DATA

`--fashion` takes models of Fashion-MNIST, to which MNIST is shown; `--mnist` models of MNIST, to which Fashion-MNIST is
shown, and MNIST flipped; `--left_out` models of MNIST that were trained without a digit, which is shown to them among
the others (`dataset.leave_out_classes`). A model with a `--background` also has the likelihood ratio. Usual images are
those of the model's own test split.

Prints a table, and writes `anomaly.json` and histograms of the scores, `anomaly.png`, beside this, after each pair:
a pair that is there already is not measured again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from hf_latentgen import anomaly_scores, load
from hf_latentgen.evaluation.anomaly import MAX_IMAGES, detection_metrics, image_bits, methods_of
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.evaluation.samples import spread_indices
from hf_latentgen.families.inputs import read_levels
from hf_latentgen.hub.loading import Checkpoint

NUM_BINS = 60
COLUMNS = ("auroc", "average_precision", "fpr_at_95_tpr")


def spread(levels: Tensor, most: int | None) -> Tensor:
    """At most so many images, spread evenly; test images of one data set are sorted by class."""
    return levels if most is None else levels[spread_indices(len(levels), min(len(levels), most))]


def all_scores(
    checkpoint: Checkpoint, images: Tensor, background: Checkpoint | None, usual_bits: float
) -> dict[str, np.ndarray]:
    """The scores of images by each method that there can be. Each [N]."""
    model, second = checkpoint.model, background and background.model
    missing = {"likelihood_ratio"} if background is None else set()
    given: dict = {"background": second, "usual_bits": usual_bits, "bits": image_bits(model, images)}
    return {
        method: anomaly_scores(model, images, method, **given) for method in methods_of(model) if method not in missing
    }


def compare(usual: np.ndarray, unusual: np.ndarray) -> dict:
    """How well scores [N] and [M] differ, and their histograms between the extreme hundredths."""
    both = np.concatenate([usual, unusual])
    low, high = np.quantile(both, [0.005, 0.995]).tolist()
    edges = np.linspace(low, high, NUM_BINS + 1)
    counts = {
        name: np.histogram(np.clip(scores, low, high), edges)[0].tolist()
        for name, scores in (("usual", usual), ("unusual", unusual))
    }
    return detection_metrics(usual, unusual) | {"edges": edges.tolist(), **counts}


def draw(pairs: dict, path: Path) -> None:
    """Histograms of the scores: a row for each pair, a column for each method."""
    methods = list(dict.fromkeys(method for pair in pairs.values() for method in pair["scores"]))
    figure = Figure(figsize=(2.6 * len(methods), 0.4 + 1.9 * len(pairs)), dpi=100, layout="constrained")
    grid = figure.subplots(len(pairs), len(methods), squeeze=False)
    for row, (name, pair) in zip(grid, pairs.items(), strict=True):
        for axes, method in zip(row, methods, strict=True):
            axes.set_yticks([])
            axes.tick_params(labelsize=6)
            if method not in pair["scores"]:
                axes.set_axis_off()
                continue
            found = pair["scores"][method]
            for kind, color in (("usual", "tab:blue"), ("unusual", "tab:orange")):
                shares = np.array(found[kind]) / sum(found[kind])
                axes.stairs(shares, found["edges"], fill=True, alpha=0.6, color=color, label=kind)
            axes.set_title(f"{method.replace('_', ' ')}: AUROC {found['auroc']:.3f}", fontsize=7)
        row[0].set_ylabel(name.replace(": ", ":\n"), fontsize=6)
    grid[0, 0].legend(fontsize=6)
    figure.supxlabel("bits per dimension, higher is more unusual", fontsize=8)
    figure.savefig(path)


def jobs(arguments: argparse.Namespace) -> list[tuple[str, str, str, int | None]]:
    """Checkpoint, its data, what is shown to it, and the digit that it was trained without; of each pair."""
    found: list[tuple[str, str, str, int | None]] = []
    found += [(name, "fashion_mnist", "mnist", None) for name in arguments.fashion]
    shown = ("fashion_mnist", "mnist flipped left to right", "mnist flipped upside down")
    found += [(name, "mnist", other, None) for name in arguments.mnist for other in shown]
    for word in arguments.left_out:
        digit, _, name = word.partition("=")
        found.append((name, f"mnist without {digit}", f"the digit {digit}", int(digit)))
    return found


def measure(
    checkpoint: Checkpoint,
    background: Checkpoint | None,
    shown: str,
    digit: int | None,
    arguments: argparse.Namespace,
    known: dict[str, dict[str, np.ndarray]],
) -> dict:
    """How well each method tells what is shown from a model's own test images, whose scores are kept in `known`."""
    started, processor, most = time.monotonic(), checkpoint.processor, arguments.num_images
    own = "fashion_mnist" if shown == "mnist" else "mnist"
    test, validation = (read_levels(processor, own, split, arguments.data_dir) for split in ("test", "validation"))
    usual, seen = test.levels, validation.levels
    if digit is not None and test.labels is not None and validation.labels is not None:
        usual, seen = usual[test.labels != digit], seen[validation.labels != digit]
        unusual = test.levels[test.labels == digit]
    elif "flipped" in shown:
        unusual = usual.flip(-1 if "left" in shown else -2)
    else:
        unusual = read_levels(processor, shown, "test", arguments.data_dir).levels
    usual, unusual = spread(usual, most), spread(unusual, most)
    usual_bits = float(image_bits(checkpoint.model, spread(seen, most or MAX_IMAGES)).mean())
    key = f"{checkpoint.name}, {own}, {digit}"
    if key not in known:
        known[key] = all_scores(checkpoint, usual, background, usual_bits)
    scores = all_scores(checkpoint, unusual, background, usual_bits)
    return {
        "num_usual": len(usual),
        "num_unusual": len(unusual),
        "background": background and background.name,
        "scores": {method: compare(known[key][method], scores[method]) for method in scores},
        "seconds": round(time.monotonic() - started, 1),
        "hardware": hardware(),
        "git_commit": git_commit(),
    }


def main() -> None:
    """Measures each pair that is missing, prints, and writes the record and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", nargs="*", default=[], metavar="CHECKPOINT")
    parser.add_argument("--mnist", nargs="*", default=[], metavar="CHECKPOINT")
    parser.add_argument("--left_out", nargs="*", default=[], metavar="DIGIT=CHECKPOINT")
    parser.add_argument("--background", nargs="*", default=[], metavar="CHECKPOINT=BACKGROUND")
    parser.add_argument("--data_dir")
    parser.add_argument("--num_images", type=int, help="only so many of each set, for a trial")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    backgrounds = dict(word.split("=", 1) for word in arguments.background)
    record: dict = {"pairs": {}}
    if arguments.output.is_file():
        record = json.loads(arguments.output.read_text())
    torch.manual_seed(0)
    known: dict[str, dict[str, np.ndarray]] = {}
    for name, own, shown, digit in jobs(arguments):
        key = f"{Path(name).name}: {own} -> {shown}"
        if key in record["pairs"]:
            print(f"{key}: measured before", flush=True)
            continue
        background = load(backgrounds[name]) if name in backgrounds else None
        record["pairs"][key] = pair = measure(load(name), background, shown, digit, arguments, known)
        record |= {"num_images": arguments.num_images, "versions": versions()}
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")
        draw(record["pairs"], arguments.output.with_suffix(".png"))
        print(f"{key}, {pair['seconds']} s", flush=True)
        for method, found in pair["scores"].items():
            print(f"  {method:<20}" + "".join(f"{column} {found[column]:.4f}  " for column in COLUMNS), flush=True)
    print(f"written to {arguments.output} and {arguments.output.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
