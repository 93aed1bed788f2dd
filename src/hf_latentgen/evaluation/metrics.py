"""How each measured number is named and shown, by its key in a `results.json`."""

import re
from dataclasses import dataclass, replace

from hf_latentgen.evaluation.results import Results


@dataclass(frozen=True)
class Metric:
    """How a number is shown: its title, unit, decimals and kind (a bound, exact, or a plain measurement)."""

    title: str
    unit: str
    decimals: int
    kind: str

    def show(self, value: float) -> str:
        """The value with the fixed number of decimals of this metric, none of them being minus zero."""
        return f"{round(value, self.decimals) + 0.0:,.{self.decimals}f}"


METRICS = {
    "bits_per_dim": Metric("Bits per dimension, one posterior sample", "bits/dim", 4, "upper bound"),
    "exact_bits_per_dim": Metric("Bits per dimension", "bits/dim", 4, "exact"),
    "bits_per_dim_on_disk": Metric("Bits per dimension of a file of all images", "bits/dim", 4, "on disk, decoded"),
    "bits_per_byte_on_disk": Metric("Bits per byte of a file of all texts", "bits/byte", 4, "on disk, decoded"),
    "negative_elbo_nats": Metric("Negative ELBO, one posterior sample", "nats", 2, "upper bound"),
    "distortion_nats": Metric("Distortion", "nats", 2, "part of the bound"),
    "rate_nats": Metric("Rate", "nats", 2, "part of the bound"),
    "nll_nats": Metric("Negative log-likelihood", "nats", 2, "exact"),
    "active_units": Metric("Active units", "latent dimensions", 0, "measurement"),
    "linear_probe_accuracy": Metric("Linear probe on the latent means, accuracy", "fraction", 4, "measurement"),
    "reconstruction_mse": Metric("Reconstruction, mean squared error", "levels scaled to [0, 1]", 5, "measurement"),
    "test_error": Metric("Classification error", "fraction", 4, "measurement"),
    "reconstruction_mse_minus1_1": Metric("Reconstruction, mean squared error", "values on [-1, 1]", 4, "measurement"),
    "code_max_abs_mean": Metric("Codes, largest absolute mean of a dimension", "", 3, "measurement"),
    "code_min_std": Metric("Codes, least standard deviation of a dimension", "", 3, "measurement"),
    "code_max_std": Metric("Codes, largest standard deviation of a dimension", "", 3, "measurement"),
    "code_energy_distance": Metric("Codes to prior, energy distance", "", 4, "measurement"),
    "code_energy_p_value": Metric("Codes to prior, p-value of the energy distance", "", 3, "measurement"),
    "parzen_nats": Metric("Parzen-window log-likelihood, 10,000 samples", "nats", 1, "not a measure of quality"),
    "in_domain_frechet_distance": Metric("Frechet distance, in-domain classifier", "", 2, "measurement"),
    "class_histogram_kl_nats": Metric("Classes of samples to those of the data, KL", "nats", 4, "measurement"),
    "in_domain_coverage": Metric("Coverage, in-domain features", "fraction", 3, "measurement"),
    "in_domain_recall": Metric("Recall, in-domain features", "fraction", 3, "measurement"),
    "in_domain_precision": Metric("Precision, in-domain features", "fraction", 3, "measurement"),
    "in_domain_density": Metric("Density, in-domain features", "", 3, "measurement"),
    "bits_per_byte": Metric("Bits per byte", "bits/byte", 4, "exact"),
    "dynamic_bits_per_byte": Metric("Bits per byte, dynamic evaluation", "bits/byte", 4, "exact"),
    "dynamic_learning_rate": Metric("Dynamic evaluation, learning rate", "", 5, "measurement"),
    "distortion_of_other_code_nats": Metric("Distortion, with the code of another image", "nats", 2, "measurement"),
    "context": Metric("Ids before a scored byte", "ids", 0, "measurement"),
    "num_bytes": Metric("Scored bytes", "bytes", 0, "measurement"),
}
# Ending of the name of a standard error.
STANDARD_ERROR = "_standard_error"
# What the end of a name adds to its metric.
VARIANTS = {
    "_of_own_prior": "latents from the prior that the autoencoder was trained with",
    "_of_encoded": "latents of training images",
    "_of_means": "decoder means instead of drawn pixels",
    "_after_two_minutes": "after two minutes of training",
}
# The number of samples is part of the name, as in nll_nats_iw500.
IMPORTANCE_ESTIMATE = re.compile(r"(nll_nats|bits_per_dim)_iw(\d+)")

RATE_OF_GROUP = re.compile(r"rate_of_group_(\d+)_nats")

BASELINES = {
    "order0_bits_per_dim": "one histogram of levels for all pixels",
    "per_pixel_bits_per_dim": "one histogram of levels per pixel position",
    "counting_4_bits_per_dim": "counts of 4 neighbours: W, N, NW, NE",
    "bz2_bits_per_dim": "bz2, whole split in one file",
    "xz_bits_per_dim": "xz, whole split in one file",
    "png_bits_per_dim": "PNG, one file per image",
    "jpeg_xl_bits_per_dim": "JPEG XL at effort 9, whole split as a mosaic",
    "bz2_bits_per_byte": "bz2, after the training split",
    "xz_bits_per_byte": "xz, after the training split",
    "counting_0_bits_per_byte": "one histogram of bytes",
    "counting_4_bits_per_byte": "counts after the 4 bytes before (Witten-Bell)",
}


def describe_metric(key: str) -> Metric:
    """How the metric of this name is shown. An unknown one is shown under its own name with 4 decimals."""
    if match := IMPORTANCE_ESTIMATE.fullmatch(key):
        quantity, num_samples = match.groups()
        base = METRICS[quantity]
        title = "Negative log-likelihood" if quantity == "nll_nats" else "Bits per dimension"
        return Metric(f"{title}, K = {num_samples} importance samples", base.unit, base.decimals, "tighter upper bound")
    if match := RATE_OF_GROUP.fullmatch(key):
        return Metric(f"Rate of latent group {match.group(1)}, from the coarsest", "nats", 2, "part of the bound")
    for ending, addition in VARIANTS.items():
        if key.endswith(ending):
            base = describe_metric(key.removesuffix(ending))
            return replace(base, title=f"{base.title}; {addition}")
    return METRICS.get(key, Metric(words(key), "", 4, "measurement"))


def words(key: str) -> str:
    """The key of a number as words, for one without a title of its own."""
    return key.replace("_", " ")


def show(results: Results, key: str) -> str:
    """A score with its standard error where there is one, or "-"."""
    if key not in results.metrics:
        return "-"
    shown = describe_metric(key).show(results.metrics[key])
    error = results.metrics.get(key + STANDARD_ERROR)
    return shown if error is None else f"{shown} ± {describe_metric(key).show(error)}"


def show_spread(results: Results, key: str) -> str:
    """The mean of a score over several trainings with its standard deviation, or else the score."""
    if key not in results.spread:
        return show(results, key)
    return " ± ".join(describe_metric(key).show(results.spread[key][part]) for part in ("mean", "std"))


def headline(results: Results) -> str:
    """The main score, as in "0.5190 bits/dim" or "classification error 0.0310". Empty if nothing was measured.

    It is the first one measured, its mean where the recipe was trained several times.
    """
    if not results.metrics:
        return ""
    key = next(iter(results.metrics))
    metric = describe_metric(key)
    value = metric.show(results.spread[key]["mean"] if key in results.spread else results.metrics[key])
    several = f", mean of {1 + len(results.repeats)} trainings" if key in results.spread else ""
    if metric.unit in ("bits/dim", "nats", "bits/byte"):
        return f"{value} {metric.unit}{several}"
    # A name keeps its capital.
    title = metric.title if metric.title.startswith("Frechet") else metric.title[0].lower() + metric.title[1:]
    return f"{title}{several}: {value}" if several else f"{title} {value}"


def best_baseline(results: Results) -> tuple[str, str]:
    """Description and score of the best code without a network, or "-" twice."""
    if not results.baseline:
        return "-", "-"
    key = min(results.baseline, key=results.baseline.__getitem__)
    return BASELINES.get(key, words(key)), f"{results.baseline[key]:.4f}"


def main_reference(results: Results, metric: str) -> str:
    """The first published value of a metric or, without any, the first one of all, or "-"."""
    if not results.reference:
        return "-"
    entry = min(results.reference, key=lambda entry: entry["metric"] != metric)
    return f"{entry['value']:g} {describe_metric(entry['metric']).unit} ({entry['name']})"


def tighter_bounds(results: Results) -> list[str]:
    """The importance-weighted estimates in nats, each with its number of samples."""
    matches = ((IMPORTANCE_ESTIMATE.fullmatch(key), key) for key in results.metrics)
    return [f"{show(results, key)} (K = {match[2]})" for match, key in matches if match and match[1] == "nll_nats"]
