import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import entropy, kstest
from sklearn.neighbors import KernelDensity

from hf_latentgen.evaluation import distances
from hf_latentgen.evaluation.distances import (
    class_histogram_kl,
    coverage_and_recall,
    energy_distance_test,
    frechet_distance,
    moment_scores,
    parzen_log_likelihood,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def energy_reference(first, second):
    def mean_distance(left, right):
        return np.mean([math.dist(x, y) for x in left for y in right])

    return 2 * mean_distance(first, second) - mean_distance(first, first) - mean_distance(second, second)


def with_moments(vectors, mean, factor):
    """The vectors moved to exactly this mean and to exactly the covariance `factor @ factor.T`."""
    centred = vectors - vectors.mean(axis=0)
    whitening = np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(centred.T))))
    return centred @ whitening.T @ np.asarray(factor).T + mean


def prdc_reference(real, fake, k):
    def radii(vectors):
        return [sorted(math.dist(x, y) for y in vectors)[k] for x in vectors]

    inside_real = np.array(
        [[math.dist(x, y) < radius for y in fake] for x, radius in zip(real, radii(real), strict=True)]
    )
    inside_fake = np.array(
        [[math.dist(x, y) < radius for x in real] for y, radius in zip(fake, radii(fake), strict=True)]
    )
    return {
        "precision": inside_real.any(axis=0).mean(),
        "recall": inside_fake.any(axis=0).mean(),
        "density": inside_real.sum() / (k * len(fake)),
        "coverage": inside_real.any(axis=1).mean(),
    }


def kernel_reference(samples, images, bandwidth):
    return KernelDensity(kernel="gaussian", bandwidth=bandwidth).fit(samples).score_samples(images)


def test_energy_matches_the_sum_over_pairs(rng):
    first, second = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 1
    energy, _ = energy_distance_test(first, second)
    assert energy == pytest.approx(energy_reference(first, second), rel=1e-12)
    assert energy == pytest.approx(energy_distance_test(second, first)[0], rel=1e-12)
    assert energy_distance_test(torch.tensor(first, requires_grad=True), torch.tensor(second))[0] == energy


def test_energy_of_two_normal_distributions_matches_the_closed_form(rng):
    shift = 2.0
    # E|X| of a normal X of variance 2 and this mean.
    folded = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    expected = 2 * folded - 4 / math.sqrt(math.pi)
    energy, _ = energy_distance_test(rng.normal(size=(1500, 1)), rng.normal(size=(1500, 1)) + shift, 1)
    assert energy == pytest.approx(expected, abs=0.1)


def test_equal_sets_have_no_distance(rng):
    vectors = rng.normal(size=(30, 4))
    energy, p_value = energy_distance_test(vectors, vectors[::-1])
    assert energy == pytest.approx(0, abs=1e-12)
    assert energy >= 0
    assert p_value == 1


def test_p_value_is_the_fraction_of_splits_at_least_as_far(rng):
    first, second = rng.normal(size=(4, 2)), rng.normal(size=(3, 2)) + 0.8
    pooled = np.concatenate([first, second])
    energies = []
    for chosen in itertools.combinations(range(7), 4):
        others = [index for index in range(7) if index not in chosen]
        energies.append(energy_reference(pooled[list(chosen)], pooled[others]))
    # The first of the splits is the given one.
    exact = np.mean([energy >= energies[0] - 1e-12 for energy in energies])
    assert 0.05 < exact < 0.95
    assert energy_distance_test(first, second, 20000)[1] == pytest.approx(exact, abs=0.01)


def test_splits_equal_but_for_rounding_count(rng):
    # Two of the six splits part the two near vectors from the two far ones.
    for _ in range(50):
        first, second = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)) + 10
        assert energy_distance_test(first, second, 2000)[1] == pytest.approx(1 / 3, abs=0.05)
    assert energy_distance_test(np.full((4, 2), 0.1), np.full((9, 2), 0.1)) == (0, 1)


def test_p_values_of_one_distribution_are_uniform(rng):
    results = [
        energy_distance_test(rng.normal(size=(20, 2)), rng.normal(size=(30, 2)), 99, seed) for seed in range(300)
    ]
    energies, p_values = np.array(results).T
    assert kstest(p_values, "uniform").pvalue > 0.01
    # The value that the docstring gives; the mean distance of two standard normals in the plane is the root of pi.
    expected = (1 / 20 + 1 / 30) * math.sqrt(math.pi)
    assert energies.mean() == pytest.approx(expected, abs=4 * energies.std() / math.sqrt(300))


@pytest.mark.parametrize("change", [lambda x: x + 0.5, lambda x: 2 * x, lambda x: x[:, :1] * [1, 1]])
def test_other_mean_scale_or_dependence_is_found(rng, change):
    first, second = rng.normal(size=(200, 2)), change(rng.normal(size=(200, 2)))
    assert energy_distance_test(first, second, 99)[1] == 1 / 100


def test_energy_test_is_seeded(rng):
    first, second = rng.normal(size=(20, 2)), rng.normal(size=(20, 2))
    assert energy_distance_test(first, second, 50, seed=3) == energy_distance_test(first, second, 50, seed=3)
    assert len({energy_distance_test(first, second, 50, seed)[1] for seed in range(5)}) > 1


def test_moments_of_known_codes():
    scores = moment_scores(torch.tensor([[1.0, -5.0, 0.0], [3.0, -5.0, 6.0]]))
    assert scores == {"code_max_abs_mean": 5, "code_min_std": 0, "code_max_std": 3}


def test_moments_of_a_standard_normal(rng):
    scores = moment_scores(rng.normal(size=(20000, 8)).astype(np.float32))
    assert scores["code_max_abs_mean"] < 0.03
    assert 0.98 < scores["code_min_std"] < 1 < scores["code_max_std"] < 1.02


def test_frechet_of_one_feature_matches_the_closed_form(rng):
    first = with_moments(rng.normal(size=(50, 1)), 3.0, [[2.0]])
    second = with_moments(rng.normal(size=(40, 1)), -1.0, [[0.5]])
    assert frechet_distance(first, second) == pytest.approx(4.0**2 + 1.5**2)


def test_frechet_of_independent_features_matches_the_closed_form(rng):
    stds = np.array([[1.0, 2.0, 0.1], [3.0, 0.0, 0.1]])
    means = np.array([[0.0, 1.0, 2.0], [0.5, 1.0, 0.0]])
    first, second = (
        with_moments(rng.normal(size=(60, 3)), mean, np.diag(std)) for mean, std in zip(means, stds, strict=True)
    )
    expected = np.square(means[0] - means[1]).sum() + np.square(stds[0] - stds[1]).sum()
    assert frechet_distance(first, second) == pytest.approx(expected)


def test_frechet_of_correlated_features_matches_the_matrix_square_root(rng):
    first = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6))
    second = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
    covariances = np.cov(first.T), np.cov(second.T)
    root = np.real(np.asarray(sqrtm(covariances[0] @ covariances[1])))
    difference = first.mean(0) - second.mean(0)
    expected = difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(torch.tensor(second), torch.tensor(first)) == pytest.approx(expected, rel=1e-10)


def test_frechet_of_singular_covariances(rng):
    # Four vectors each, so covariances of rank three; the ranges are orthogonal, so the root is zero.
    first, second = np.zeros((4, 20)), np.zeros((4, 20))
    first[:, :10], second[:, 10:] = rng.normal(size=(4, 10)), rng.normal(size=(4, 10))
    difference = first.mean(0) - second.mean(0)
    expected = difference @ difference + first.var(0, ddof=1).sum() + second.var(0, ddof=1).sum()
    assert frechet_distance(first, second) == pytest.approx(expected)
    assert frechet_distance(np.zeros((3, 5)), np.ones((2, 5))) == pytest.approx(5)


@pytest.mark.parametrize("shape", [(500, 30), (5, 30)])
def test_frechet_of_equal_sets_is_zero_and_not_below(rng, shape):
    features = 100 + rng.normal(size=shape)
    distance = frechet_distance(features, features[::-1])
    assert distance == pytest.approx(0, abs=1e-9)
    assert distance >= 0


def test_histogram_kl_matches_scipy(rng):
    classes, reference = rng.integers(0, 10, 300), rng.integers(0, 10, 1000)
    counts = np.bincount(classes, minlength=10), np.bincount(reference, minlength=10)
    expected = entropy(counts[0] / 300, counts[1] / 1000)
    assert class_histogram_kl(classes, reference, 10) == pytest.approx(expected)
    tensors = torch.tensor(classes), torch.tensor(reference, dtype=torch.uint8)
    assert class_histogram_kl(*tensors, 10) == pytest.approx(expected)


def test_histogram_kl_of_missing_classes():
    all_classes = np.arange(10)
    assert class_histogram_kl(all_classes.repeat(3), all_classes, 10) == pytest.approx(0)
    # A model that makes one digit only.
    assert class_histogram_kl(np.full(7, 4), all_classes, 10) == pytest.approx(math.log(10))
    assert class_histogram_kl(all_classes, np.full(7, 4), 10) == math.inf


@pytest.mark.parametrize("k", [1, 5, 28])
def test_coverage_and_recall_match_the_definitions(rng, k, capfd):
    real = rng.normal(size=(40, 3)).astype(np.float32)
    fake = (rng.normal(size=(30, 3)) * 0.7 + 0.4).astype(np.float32)
    scores = coverage_and_recall(torch.tensor(real), torch.tensor(fake), k)
    assert scores == pytest.approx(prdc_reference(real, fake, k))
    assert all(type(score) is float for score in scores.values())
    assert capfd.readouterr().out == ""


def test_coverage_and_recall_of_a_collapsed_model(rng):
    real = rng.normal(size=(200, 4))
    scores = coverage_and_recall(real, real[0] + 1e-3 * rng.normal(size=(200, 4)))
    assert scores["precision"] == 1
    assert scores["recall"] < 0.05
    assert scores["coverage"] < 0.2
    same = coverage_and_recall(real, real)
    assert same["precision"] == same["recall"] == same["coverage"] == 1


@pytest.mark.parametrize("chunk_elements", [7, 300, 2**23])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_parzen_matches_kernel_density(rng, monkeypatch, columns, chunk_elements):
    monkeypatch.setattr(distances, "CHUNK_ELEMENTS", chunk_elements)
    samples, validation, test = (rng.uniform(size=(size, columns)) for size in (60, 20, 33))
    mean, standard_error, bandwidth = parzen_log_likelihood(samples, validation, test, [0.2])
    expected = kernel_reference(samples, test, 0.2)
    assert mean == pytest.approx(expected.mean(), abs=1e-5)
    assert standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(33), abs=1e-5)
    assert bandwidth == 0.2


def test_parzen_chooses_the_bandwidth_on_the_validation_images(rng):
    # Validation images right at the samples want narrow kernels, test images far away want wide ones.
    samples = rng.uniform(0, 0.3, (50, 2))
    validation, test = samples + 0.001, rng.uniform(0.6, 0.9, (40, 2))
    bandwidths = [0.5, 0.01, 0.1]
    scores = [kernel_reference(samples, validation, bandwidth).mean() for bandwidth in bandwidths]
    assert np.argmax(scores) == 1
    mean, _, bandwidth = parzen_log_likelihood(torch.tensor(samples), validation, test, bandwidths)
    assert bandwidth == 0.01
    assert mean == pytest.approx(kernel_reference(samples, test, 0.01).mean(), rel=1e-5)


@pytest.mark.parametrize("bandwidth", [0.05, 0.2])
def test_parzen_is_precise_for_images(rng, bandwidth):
    # Bright images are long vectors, at which distances from a matrix product lose most digits.
    prototypes = 1 - rng.random((20, 784)) * (rng.random((20, 784)) < 0.2)
    samples, test = (
        np.clip(prototypes[rng.integers(0, 20, size)] + 0.1 * rng.normal(size=(size, 784)), 0, 1) for size in (300, 40)
    )
    squares = np.square(test[:, None] - samples).sum(axis=2)
    kernels = -squares / (2 * bandwidth**2) - 392 * math.log(2 * math.pi * bandwidth**2)
    expected = np.logaddexp.reduce(kernels, axis=1) - math.log(300)
    mean, standard_error, _ = parzen_log_likelihood(samples, test, test, [bandwidth])
    # Float32 errs by 1.4e-3 of 320 nats at the narrow bandwidth on some processors.
    assert mean == pytest.approx(expected.mean(), abs=5e-3)
    assert standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(40), abs=1e-3)


def test_parzen_takes_binary_images():
    images = torch.tensor([[0, 1], [1, 1], [0, 0]], dtype=torch.uint8)
    expected = kernel_reference(images.numpy(), images.numpy(), 0.5).mean()
    assert parzen_log_likelihood(images, images, images, (0.5,))[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (energy_distance_test, ["first", "second"]),
        (frechet_distance, ["first", "second"]),
        (coverage_and_recall, ["real_features", "fake_features"]),
        (
            lambda samples, validation, test: parzen_log_likelihood(samples, validation, test, [0.1]),
            ["samples", "validation", "test"],
        ),
        (moment_scores, ["codes"]),
    ],
)
def test_wrong_sets_are_refused_by_name(function, names):
    for position, name in enumerate(names):
        sets = [np.zeros((10, 3)) for _ in names]

        def call(wrong, sets=sets, position=position):
            function(*sets[:position], wrong, *sets[position + 1 :])

        with pytest.raises(ValueError, match=rf"{name} must have shape .* got \[0, 3\]"):
            call(np.zeros((0, 3)))
        with pytest.raises(ValueError, match=rf"{name} must have shape .* got \[10\]"):
            call(torch.zeros(10))
        with pytest.raises(ValueError, match=f"{name} must hold finite numbers, got 1"):
            call(np.diag([math.nan, 0, 0]))
        if position:
            with pytest.raises(ValueError, match=f"{name} must have 3 columns, as {names[0]} has, got 2"):
                call(np.zeros((10, 2)))


def test_wrong_numbers_of_vectors_are_refused():
    with pytest.raises(ValueError, match="second must have shape .* N >= 2"):
        frechet_distance(np.zeros((5, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="test must have shape .* N >= 2"):
        parzen_log_likelihood(np.zeros((5, 3)), np.zeros((5, 3)), np.zeros((1, 3)), [0.1])
    with pytest.raises(ValueError, match="num_permutations must be at least 1, got 0"):
        energy_distance_test(np.zeros((5, 3)), np.zeros((5, 3)), 0)


@pytest.mark.parametrize("k", [0, 9])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=rf"k must be in 1 \.\.\. 8 for 20 real and 10 fake features, got {k}"):
        coverage_and_recall(np.zeros((20, 3)), np.zeros((10, 3)), k)


@pytest.mark.parametrize("wrong", [[10], [-1], [0.0], [], [[1]]])
def test_wrong_classes_are_refused(wrong):
    with pytest.raises(ValueError, match="classes must be .*, got"):
        class_histogram_kl(np.array(wrong), np.arange(10), 10)
    with pytest.raises(ValueError, match="reference must be .*, got"):
        class_histogram_kl(np.arange(10), torch.tensor(wrong), 10)


@pytest.mark.parametrize("wrong", [[], [0.1, 0], [-0.1], [math.nan], [math.inf]])
def test_wrong_bandwidths_are_refused(wrong):
    images = np.zeros((5, 3))
    with pytest.raises(ValueError, match="bandwidths must be one or more positive numbers, got"):
        parzen_log_likelihood(images, images, images, wrong)


@pytest.mark.parametrize(("value", "text"), [(15, r"\[0, 15\]"), (-1, r"\[-1, 0\]")])
def test_images_outside_the_unit_interval_are_refused(value, text):
    images, wrong = np.zeros((5, 3)), np.diag([value, 0, 0])
    with pytest.raises(ValueError, match=rf"samples must be in \[0, 1\], got values in {text}"):
        parzen_log_likelihood(wrong, images, images, [0.1])
    with pytest.raises(ValueError, match=rf"test must be in \[0, 1\], got values in {text}"):
        parzen_log_likelihood(images, images, wrong, [0.1])
