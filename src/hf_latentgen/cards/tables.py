"""Tables of all rows: for the README, and for the index of the cards."""

from collections.abc import Sequence

from hf_latentgen.cards.metrics import IMPORTANCE_ESTIMATE, describe_metric
from hf_latentgen.cards.model_card import (
    best_floor,
    cell,
    data_title,
    duration,
    family,
    headline,
    reads_text,
)

FAMILIES = {
    "vae": "Variational autoencoders",
    "aae": "Adversarial autoencoders",
    "prior": "Latent diffusion priors",
    "local_transformer_image": "Local-attention transformers over pixels",
    "local_transformer": "Local-attention transformers over bytes",
}


def results_table(rows: Sequence[dict], folder: str = "model_cards") -> str:
    """A Markdown table for each family, one line a row, that links to the cards in `folder`."""
    tables = []
    for name, title in FAMILIES.items():
        members = [results for results in rows if family(results) == name]
        if members:
            lines = [COLUMNS[name](results, folder) for results in members]
            headers = list(lines[0])
            table = [f"| {' | '.join(headers)} |", f"|---|---|{'--:|' * (len(headers) - 2)}"]
            table += [f"| {' | '.join(line.values())} |" for line in lines]
            tables.append(f"{title}\n\n" + "\n".join(table))
    return "\n\n".join(tables)


def _vae_columns(results: dict, folder: str) -> dict[str, str]:
    """Cells of a VAE by the title of their column; the reference is the first one in bits per dimension."""
    return {
        "Row": _link(results, folder),
        "Data": data_title(results),
        "Parameters": f"{results['num_parameters']:,}",
        "Bits/dim (bound)": cell(results, "bits_per_dim"),
        "Nats (bound)": cell(results, "negative_elbo_nats"),
        "Nats (tighter bound)": "; ".join(_tighter_bounds(results)) or "-",
        "Reference": _main_reference(results, "bits_per_dim"),
        "Best floor": f"{best_floor(results)[1]:.4f}" if results["floor"] else "-",
        "Training": duration(results["train_seconds"]),
    }


def _aae_columns(results: dict, folder: str) -> dict[str, str]:
    """Cells of an AAE by the title of their column; the error of several draws of labels is their mean."""
    metrics = results["metrics"]
    error = cell(results, "test_error")
    if "test_error_mean" in metrics:
        error = f"{cell(results, 'test_error_mean')} ± {cell(results, 'test_error_std')}"
    return {
        "Row": _link(results, folder),
        "Data": data_title(results),
        "lambda": f"{results['model']['reconstruction_weight']:g}",
        "MSE on [-1, 1]": cell(results, "reconstruction_mse_minus1_1"),
        "Codes: largest mean": cell(results, "code_max_abs_mean"),
        "Codes: std": f"{cell(results, 'code_min_std')} to {cell(results, 'code_max_std')}",
        "Frechet, in-domain": cell(results, "in_domain_frechet_distance"),
        "Coverage": cell(results, "in_domain_coverage"),
        "Recall": cell(results, "in_domain_recall"),
        "Class KL": cell(results, "class_histogram_kl_nats"),
        "Test error": error,
        "Reference": _main_reference(results, "test_error"),
        "Training": duration(results["train_seconds"]),
    }


def _prior_columns(results: dict, folder: str) -> dict[str, str]:
    """Cells of a latent diffusion prior, beside the prior that its autoencoder was trained with."""
    names = {"Frechet": "in_domain_frechet_distance", "Coverage": "in_domain_coverage"}
    scores = {}
    for title, metric in names.items():
        scores[f"{title}, diffusion"] = cell(results, metric)
        scores[f"{title}, own prior"] = cell(results, f"{metric}_of_own_prior")
    return {
        "Row": _link(results, folder),
        "Data": data_title(results),
        "Parameters": f"{results['num_parameters']:,}",
        **scores,
        "Training": duration(results["train_seconds"]),
    }


def _local_columns(results: dict, folder: str) -> dict[str, str]:
    """Cells of a local-attention transformer, over pixels or bytes, by the title of their column."""
    if reads_text(results):
        scores = {"Bits/byte (exact)": "bits_per_byte", "Dynamic evaluation": "dynamic_bits_per_byte"}
    else:
        scores = {"Bits/dim (exact)": "exact_bits_per_dim", "Nats (exact)": "nll_nats"}
    return {
        "Row": _link(results, folder),
        "Data": data_title(results),
        "Parameters": f"{results['num_parameters']:,}",
        **{title: cell(results, metric) for title, metric in scores.items()},
        "Reference": _main_reference(results, next(iter(scores.values()))),
        "Best floor": f"{best_floor(results)[1]:.4f}",
        "Training": duration(results["train_seconds"]),
    }


COLUMNS = {
    "vae": _vae_columns,
    "aae": _aae_columns,
    "prior": _prior_columns,
    "local_transformer_image": _local_columns,
    "local_transformer": _local_columns,
}


def cards_index(rows: Sequence[dict]) -> str:
    """The Markdown page that lists all rows by family, with a thumbnail and the score of each."""
    lines = ["# Model cards", "", "Rendered by `make cards` from the `results.json` of each folder.", ""]
    for name, title in FAMILIES.items():
        members = [results for results in rows if family(results) == name]
        if not members:
            continue
        lines += [f"## {title}", "", "| | Row | Data | Parameters | Score |", "|---|---|---|--:|--:|"]
        for results in members:
            row = results["row"]
            name, what = ("history", "training") if reads_text(results) else ("samples", "samples")
            picture = f'<img src="{row}/images/{name}.png" width="160" alt="{what} of {row}">'
            cells = (picture, f"[{row}]({row}/README.md)", data_title(results), f"{results['num_parameters']:,}")
            lines.append(f"| {' | '.join(cells)} | {headline(results)} |")
        lines.append("")
    return "\n".join(lines)


def _link(results: dict, folder: str) -> str:
    return f"[{results['row']}]({folder}/{results['row']}/README.md)"


def _main_reference(results: dict, metric: str) -> str:
    """The first published value of a metric or, without any, the first one of all, or "-"."""
    if not results["reference"]:
        return "-"
    entry = min(results["reference"], key=lambda entry: entry["metric"] != metric)
    return f"{entry['value']:g} {describe_metric(entry['metric']).unit} ({entry['name']})"


def _tighter_bounds(results: dict) -> list[str]:
    matches = ((IMPORTANCE_ESTIMATE.fullmatch(key), key) for key in results["metrics"])
    return [f"{cell(results, key)} (K = {match[2]})" for match, key in matches if match and match[1] == "nll_nats"]
