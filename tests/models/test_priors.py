import math

import pytest
import torch

from hf_latentgen.models.priors import Flower, OneHot, StandardGaussian, SwissRoll

PARTS = 5
PRIORS = {
    "gaussian": StandardGaussian(3),
    "flower": Flower(2, PARTS),
    "swiss_roll": SwissRoll(2, PARTS),
    "one_hot": OneHot(PARTS, PARTS),
}
WITH_PARTS = ("flower", "swiss_roll", "one_hot")
# Samples in a statistical test, whose errors are then about 0.01 standard deviations.
MANY = 20_000


@pytest.fixture(params=PRIORS)
def prior(request):
    return PRIORS[request.param]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(prior, parts=None, num_samples=MANY, seed=0):
    parts = None if parts is None else torch.full((num_samples,), parts)
    return prior.sample(num_samples, torch.empty(0), seeded(seed), parts)


def petal(codes):
    """The part of the flower that each code is nearest to in angle. [B]."""
    angle = torch.atan2(codes[:, 1], codes[:, 0])
    return (angle / (2 * math.pi / PARTS)).round().long() % PARTS


def stretch(codes):
    """The part of the roll that each code lies on, by its radius: parts end at radius `3 * sqrt(k / PARTS)`. [B]."""
    return ((codes.norm(dim=1) / 3).square() * PARTS).long().clamp(max=PARTS - 1)


def part_of(prior, codes):
    """The part that each code was drawn from, found from the geometry of the prior. [B]."""
    if isinstance(prior, OneHot):
        return codes.argmax(1)
    return petal(codes) if isinstance(prior, Flower) else stretch(codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_shape_and_dtype_of_codes(prior, dtype):
    samples = prior.sample(7, torch.empty(0, dtype=dtype))
    assert samples.shape == (7, prior.dim)
    assert samples.dtype == dtype
    assert samples.isfinite().all()


def test_generator_decides_and_the_global_one_is_left_alone(prior):
    state = torch.get_rng_state()
    first, again, other = (draw(prior, num_samples=50, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_generator_the_global_one_decides(prior):
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(prior.sample(50, torch.empty(0)))
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("name", WITH_PARTS)
def test_label_chooses_the_part(name):
    prior = PRIORS[name]
    assert prior.num_parts == PARTS
    wanted = torch.arange(PARTS).repeat(400)
    found = part_of(prior, prior.sample(len(wanted), torch.empty(0), seeded(), wanted))
    if name == "flower":
        # The feet of neighbouring petals overlap near the origin.
        assert (found == wanted).float().mean() > 0.97
        assert all((found[wanted == part] == part).float().mean() > 0.9 for part in range(PARTS))
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", WITH_PARTS)
def test_negative_label_means_any_part_and_leaves_the_others(name):
    prior = PRIORS[name]
    wanted = torch.tensor([-100, 3]).repeat(MANY // 2)
    found = part_of(prior, prior.sample(MANY, torch.empty(0), seeded(), wanted))
    assert (found[1::2] == 3).float().mean() > 0.95
    shares = torch.bincount(found[::2], minlength=PARTS) / (MANY // 2)
    torch.testing.assert_close(shares, torch.full((PARTS,), 1 / PARTS), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", WITH_PARTS)
def test_all_parts_are_equally_likely(name):
    prior = PRIORS[name]
    shares = torch.bincount(part_of(prior, draw(prior)), minlength=PARTS) / MANY
    torch.testing.assert_close(shares, torch.full((PARTS,), 1 / PARTS), atol=0.015, rtol=0)


def test_gaussian_is_standard_normal():
    samples = draw(PRIORS["gaussian"])
    torch.testing.assert_close(samples.mean(0), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(samples.T), torch.eye(3), atol=0.04, rtol=0)


@pytest.mark.parametrize("part", range(PARTS))
def test_petal_lies_along_its_ray(part):
    angle = 2 * math.pi * part / PARTS
    samples = draw(PRIORS["flower"], part).double()
    along = samples @ torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    across = samples @ torch.tensor([-math.sin(angle), math.cos(angle)], dtype=torch.float64)
    assert along.mean().item() == pytest.approx(1.4, abs=0.02)
    assert along.std().item() == pytest.approx(0.5, rel=0.03)
    assert across.mean().item() == pytest.approx(0, abs=0.005)
    assert across.std().item() == pytest.approx(0.1, rel=0.03)
    assert torch.corrcoef(torch.stack([along, across]))[0, 1].abs() < 0.03


def test_flower_has_the_moments_of_its_mixture():
    samples = draw(PRIORS["flower"])
    torch.testing.assert_close(samples.mean(0), torch.zeros(2), atol=0.03, rtol=0)
    # Three or more directions spread evenly over the circle share the second moment between the axes.
    second = (1.4**2 + 0.5**2 + 0.1**2) / 2
    torch.testing.assert_close(torch.cov(samples.T), second * torch.eye(2), atol=0.04, rtol=0)


def test_swiss_roll_is_a_spiral_of_two_turns_with_radius_three():
    samples = draw(PRIORS["swiss_roll"])
    radius = samples.norm(dim=1)
    assert radius.max() <= 3 + 1e-5
    assert radius.max() > 2.99
    assert radius.min() < 0.1
    # On the spiral the angle is 4 pi at radius 3, and grows with the radius.
    angle = 4 * math.pi * radius / 3
    torch.testing.assert_close(
        samples, radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1), atol=1e-4, rtol=0
    )
    # The square of the radius is uniform on [0, 9].
    assert radius.square().mean().item() == pytest.approx(4.5, abs=0.06)
    assert radius.square().var().item() == pytest.approx(81 / 12, rel=0.03)


@pytest.mark.parametrize("part", range(PARTS))
def test_stretch_of_the_roll_is_filled(part):
    share = (draw(PRIORS["swiss_roll"], part).norm(dim=1) / 3).square() * PARTS - part
    assert share.min() > -1e-4
    assert share.max() < 1 + 1e-4
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)


def test_one_hot_codes_are_corners_of_the_simplex():
    samples = draw(PRIORS["one_hot"])
    assert set(samples.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(samples.sum(1), torch.ones(MANY))
    torch.testing.assert_close(samples.mean(0), torch.full((PARTS,), 1 / PARTS), atol=0.015, rtol=0)
    covariance = torch.eye(PARTS) / PARTS - 1 / PARTS**2
    torch.testing.assert_close(torch.cov(samples.T), covariance, atol=0.01, rtol=0)
