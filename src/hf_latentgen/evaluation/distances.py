"""How near two sets of vectors or images are: codes against the prior, samples against data."""

import contextlib
import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from prdc import compute_prdc
from scipy.spatial.distance import cdist
from scipy.special import rel_entr
from torch import Tensor

Array = np.ndarray | Tensor

# Kernel values held at a time: 32 MB in float32.
CHUNK_ELEMENTS = 2**23


def energy_distance_test(
    first: Array, second: Array, num_permutations: int = 200, seed: int = 0
) -> tuple[float, float]:
    """Energy distance of two sets, in the unit of the vectors, and its permutation p-value, at least 1 / (1 + P).

    `2 E|X - Y| - E|X - X'| - E|Y - Y'|` as a V-statistic: a vector's distance to itself counts, so equal sets give 0,
    no value is negative, and two sets of one distribution give `(1/N + 1/M) E|X - X'|` on average. The p-value is the
    fraction of the splits of the pooled vectors, the given one and P random ones, that are at least as far apart.

    Shape: `first` [N, L], `second` [M, L]. Memory: `8 (N + M)^2` bytes.

    Raises:
        ValueError: an empty set, different numbers of columns, values that are not finite, no permutation.

    Source: Szekely & Rizzo (2013), the two-sample test.
    """
    first, second = _vectors(first=first, second=second)
    if num_permutations < 1:
        raise ValueError(f"num_permutations must be at least 1, got {num_permutations}")
    n, m = len(first), len(second)
    pooled = np.concatenate([first, second])
    distances = cdist(pooled, pooled)
    # One row for each split: 1 where a vector is in the first part. Row 0 is the given split.
    splits = np.zeros((1 + num_permutations, n + m))
    splits[:, :n] = 1
    splits[1:] = np.random.default_rng(seed).permuted(splits[1:], axis=1)
    within_first = (splits @ distances * splits).sum(axis=1)
    between = splits @ distances.sum(axis=1) - within_first
    within_second = distances.sum() - within_first - 2 * between
    energies = 2 * between / (n * m) - within_first / n**2 - within_second / m**2
    # Splits that are equal but for rounding count as equal; this matters for small sets and repeated vectors.
    as_far = energies[1:] >= energies[0] - 1e-10 * distances.mean()
    return max(float(energies[0]), 0.0), float((1 + as_far.sum()) / (1 + num_permutations))


def moment_scores(codes: Array) -> dict[str, float]:
    """Largest absolute mean, and least and largest standard deviation, of a dimension of the codes, in their unit.

    A standard normal gives 0, 1 and 1. With N of its codes the mean of each dimension is off by about `1 / sqrt(N)` and
    the standard deviation by `1 / sqrt(2 N)`; the extremes over many dimensions are off by a few times that.

    Shape: `codes` [N, L].

    Raises:
        ValueError: an empty set, values that are not finite.
    """
    (codes,) = _vectors(codes=codes)
    stds = codes.std(axis=0)
    return {
        "code_max_abs_mean": float(np.abs(codes.mean(axis=0)).max()),
        "code_min_std": float(stds.min()),
        "code_max_std": float(stds.max()),
    }


def frechet_distance(first: Array, second: Array) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features, in squared units of the features.

    `|mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))`. Few vectors make it too large, so that only values of equally
    large sets and the same features compare. Singular covariances, as of fewer vectors than columns, are allowed.

    Shape: `first` [N, F], `second` [M, F].

    Raises:
        ValueError: fewer than two vectors in a set, different numbers of columns, values that are not finite.

    Source: Heusel et al. (2017), eq. 6.
    """
    first, second = _vectors(least=2, first=first, second=second)
    difference = first.mean(axis=0) - second.mean(axis=0)
    # Factors R of the covariances, C = R^T R. The eigenvalues of C_1 C_2 are the squared singular values of R_1 R_2^T,
    # so the trace of its root is their sum: nothing turns complex, and no covariance has to be inverted.
    factors = [np.linalg.qr(x - x.mean(axis=0)).R / math.sqrt(len(x) - 1) for x in (first, second)]
    root_trace = np.linalg.norm(factors[0] @ factors[1].T, ord="nuc")
    squared = difference @ difference + sum(np.square(factor).sum() for factor in factors) - 2 * root_trace
    # Below 0 only by rounding.
    return max(float(squared), 0.0)


def class_histogram_kl(classes: Array, reference: Array, num_classes: int) -> float:
    """KL of the class histogram of samples to that of the data, in nats; infinite if a class of samples has no data.

    Shape: `classes` [N] and `reference` [M], integers below `num_classes`.

    Raises:
        ValueError: an empty set, classes that are not integers, classes out of range.
    """
    fractions = []
    for name, values in {"classes": classes, "reference": reference}.items():
        labels = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if labels.ndim != 1 or len(labels) == 0 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} must be integers [N] with N >= 1, got {labels.dtype} {list(labels.shape)}")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"{name} must be in 0 ... {num_classes - 1}, got {labels.min()} ... {labels.max()}")
        fractions.append(np.bincount(labels.astype(np.int64), minlength=num_classes) / len(labels))
    return float(rel_entr(*fractions).sum())


def coverage_and_recall(real_features: Array, fake_features: Array, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage of fake features: fractions in [0, 1], but density can exceed 1.

    A vector's neighbourhood reaches to its k-th nearest neighbour in its own set. Precision: fakes in the neighbourhood
    of a real vector. Recall: real vectors in that of a fake. Density: the real neighbourhoods that a fake is in, over
    k. Coverage: real vectors with a fake in their neighbourhood.

    Shape: `real_features` [N, F], `fake_features` [M, F].

    Raises:
        ValueError: an empty set, different numbers of columns, values that are not finite, k out of range.

    Source: Kynkaanniemi et al. (2019) for precision and recall, Naeem et al. (2020) for density and coverage.
    """
    real, fake = _vectors(real_features=real_features, fake_features=fake_features)
    # The library partitions each set at rank k + 1, counted from the vector itself.
    most = min(len(real), len(fake)) - 2
    if not 1 <= k <= most:
        raise ValueError(f"k must be in 1 ... {most} for {len(real)} real and {len(fake)} fake features, got {k}")
    # The library prints the sizes of the sets.
    with contextlib.redirect_stdout(io.StringIO()):
        scores = compute_prdc(real.astype(np.float32), fake.astype(np.float32), nearest_k=k)
    return {name: float(score) for name, score in scores.items()}


def parzen_log_likelihood(
    samples: Array, validation: Array, test: Array, bandwidths: Sequence[float]
) -> tuple[float, float, float]:
    """Mean log-likelihood of test images under Gaussian kernels at samples, in nats, its standard error, the bandwidth.

    The bandwidth is the one of the highest validation log-likelihood; one at an end of the list means that the list is
    too short. Images are reals in [0, 1], 784 of them in Makhzani et al. (2015), so this density does not compare with
    the probability of discrete levels. The score is discredited: Theis et al. (2016) show that it is far from the true
    log-likelihood and ranks k-means above the data themselves. It is kept because Makhzani et al. report it.

    Shape: `samples` [M, D], `validation` [K, D], `test` [N, D].

    Raises:
        ValueError: fewer than two images in a set, different numbers of columns, values outside [0, 1], no bandwidth,
            a bandwidth that is not positive.

    Source: Makhzani et al. (2015), section 3.
    """
    samples, validation, test = _vectors(least=2, samples=samples, validation=validation, test=test)
    for name, images in {"samples": samples, "validation": validation, "test": test}.items():
        # A mean over levels can leave the range by a rounding error.
        if images.min() < -1e-3 or images.max() > 1 + 1e-3:
            raise ValueError(f"{name} must be in [0, 1], got values in [{images.min():g}, {images.max():g}]")
    if len(bandwidths) == 0 or not all(0 < bandwidth < math.inf for bandwidth in bandwidths):
        raise ValueError(f"bandwidths must be one or more positive numbers, got {list(bandwidths)}")
    scores = _kernel_log_likelihoods(samples, validation, bandwidths).mean(axis=1)
    bandwidth = float(bandwidths[scores.argmax()])
    (nats,) = _kernel_log_likelihoods(samples, test, [bandwidth])
    return float(nats.mean()), float(nats.std(ddof=1) / math.sqrt(len(nats))), bandwidth


def _kernel_log_likelihoods(samples: np.ndarray, images: np.ndarray, bandwidths: Sequence[float]) -> np.ndarray:
    """Log-likelihood of each of the images [N, D] under Gaussian kernels at the samples [M, D], in nats. [K, N]."""
    # Shorter vectors lose fewer digits in |x|^2 + |s|^2 - 2 x s, which a matrix product computes fastest.
    mean = samples.mean(axis=0)
    centres, points = (torch.from_numpy(array - mean).float() for array in (samples, images))
    lengths = centres.square().sum(1)
    results = []
    for chunk in points.split(max(1, CHUNK_ELEMENTS // len(centres))):
        squares = torch.addmm(lengths, chunk, centres.T, alpha=-2).add_(chunk.square().sum(1, keepdim=True))
        results.append(torch.stack([torch.logsumexp(squares * (-0.5 / h**2), dim=1) for h in bandwidths]))
    sums = torch.cat(results, dim=1).double().numpy()
    variances = np.square(np.asarray(bandwidths, dtype=np.float64))
    normalisers = math.log(len(centres)) + 0.5 * centres.shape[1] * np.log(2 * math.pi * variances)
    return sums - normalisers[:, None]


def _vectors(least: int = 1, **sets: Array) -> list[np.ndarray]:
    """The sets, by name, as float64 arrays of equally many columns; each must hold at least `least` vectors."""
    arrays: list[np.ndarray] = []
    for name, values in sets.items():
        array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)
        if array.ndim != 2 or len(array) < least or array.shape[1] == 0:
            raise ValueError(f"{name} must have shape [N, D] with N >= {least} and D >= 1, got {list(array.shape)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must hold finite numbers, got {(~np.isfinite(array)).sum()} others")
        arrays.append(array)
        columns = arrays[0].shape[1]
        if array.shape[1] != columns:
            raise ValueError(f"{name} must have {columns} columns, as {next(iter(sets))} has, got {array.shape[1]}")
    return arrays
