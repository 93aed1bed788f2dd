"""The VLAE: how far the pixel decoder sees, that drawing and scoring agree, and what latents and pixels share."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from hf_latentgen import VAEConfig, VAEModel, VLAEConfig, VLAEModel
from hf_latentgen.evaluation.likelihood import shares_of_latents
from hf_latentgen.models.pixel_decoders import MaskedConvolution, NeighborhoodAttention, neighbors
from modeling_common import CommonModelTests, perturb

TINY = {
    "image_size": 5,
    "num_levels": 4,
    "latent_dim": 3,
    "hidden_channels": (6, 8),
    "ladder_channels": (2,),
    "decoder_channels": 12,
    "decoder_heads": 2,
    "decoder_radius": 2,
}
DECODERS = {
    "convolution": {},
    "neighborhood": {"pixel_decoder": "neighborhood"},
    "raster": {"pixel_decoder": "raster"},
    "colour": {
        "num_channels": 3,
        "num_levels": 16,
        "pixel_likelihood": "logistic_mixture",
        "num_mixtures": 2,
        # With more, perturbed weights give means far beyond the levels.
        "decoder_layers": 1,
    },
}


def make(name="convolution", **fields):
    torch.manual_seed(0)
    model = VLAEModel(VLAEConfig(**(TINY | DECODERS[name] | fields)))
    perturb(model)
    return model.eval()


def random_levels(config, number):
    return torch.randint(config.num_levels, (number, config.num_channels, config.image_size, config.image_size))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=DECODERS)
def model(request):
    return make(request.param)


class TestCommonBehaviours(CommonModelTests):
    model_class = VLAEModel
    compiled, others = "convolution", ("neighborhood", "raster", "colour")

    @pytest.fixture(params=DECODERS)
    def config(self, request):
        return VLAEConfig(**(TINY | DECODERS[request.param]))

    def make_inputs(self, config, batch_size):
        return {"pixel_values": random_levels(config, batch_size)}


@torch.no_grad()
def test_drawing_pixel_by_pixel_asks_for_the_probabilities_that_are_scored(model):
    levels = random_levels(model.config, 3)
    pixels = model.decode(torch.randn(3, model.num_latents))
    found = torch.zeros(levels.shape)
    for place, values in pixels.parts(levels):
        found[place] = values.logits.log_softmax(1).gather(1, levels[place].unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found, pixels.log_probs(levels), rtol=1e-4, atol=1e-5)


def read_by(kind, radius, size):
    """Of each pixel, by its place in raster order, those that one layer reads."""
    if kind == "raster":
        return [set(range(max(place - radius * size - radius, 0), place)) for place in range(size**2)]
    near = []
    for row, column in itertools.product(range(size), repeat=2):
        places = [(row - up, column + right) for up, right in neighbors(radius)]
        near.append({up * size + right for up, right in places if up >= 0 and 0 <= right < size})
    return near


@torch.no_grad()
@pytest.mark.parametrize("kind", ["convolution", "neighborhood", "raster"])
@pytest.mark.parametrize(("radius", "num_layers"), [(1, 1), (2, 1), (3, 2), (4, 1)])
def test_a_pixel_sees_what_context_and_layers_reach_and_no_other(kind, radius, num_layers):
    size = 7
    model = make(kind, decoder_radius=radius, decoder_layers=num_layers, image_size=size)
    first, *others = model.config.decoder_radii
    assert first + sum(others) == radius
    seen = read_by("convolution", first, size)
    for step in others:
        # What is read has seen what is before it.
        near = read_by(kind, step, size) if step else [set()] * size**2
        seen = [own.union(near[place], *(seen[other] for other in near[place])) for place, own in enumerate(seen)]
    levels = random_levels(model.config, 1)
    pixels = model.decode(torch.randn(1, model.num_latents))
    before = pixels.log_probs(levels).flatten()
    for other in range(size**2):
        changed = levels.flatten().clone()
        changed[other] = (changed[other] + 1) % 4
        is_other = pixels.log_probs(changed.view_as(levels)).flatten() != before
        expected = {other, *(place for place in range(size**2) if other in seen[place])}
        assert set(is_other.nonzero().flatten().tolist()) == expected


def compare_with_reference(layer, found, expected, inputs):
    """Outputs, and gradients of the inputs and all parameters."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    asked = [*inputs, *layer.parameters()]
    for mine, other in zip(
        torch.autograd.grad(found.square().sum(), asked, retain_graph=True),
        torch.autograd.grad(expected.square().sum(), asked),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("radius", [1, 3])
def test_a_masked_convolution_is_a_weighted_sum_of_the_neighbours(radius):
    size = 6
    layer = MaskedConvolution(VLAEConfig(**TINY), radius)
    pixels = torch.randn(2, 12, radius + size, size + 2 * radius, requires_grad=True)
    expected = layer.above.bias[:, None, None]
    for up, right in neighbors(radius):
        # Where a row or column of the image begins, a neighbour's stands as much earlier in the margin.
        read = pixels[:, :, radius - up :, radius + right :][:, :, :size, :size]
        weight = layer.above.weight[:, :, radius - up, radius + right] if up else layer.left.weight[:, :, 0, right]
        expected = expected + torch.einsum("oi,bihw->bohw", weight, read)
    compare_with_reference(layer, layer(None, pixels), expected, [pixels])


@pytest.mark.parametrize("radius", [1, 3])
def test_neighborhood_attention_attends_to_the_neighbours_of_each_pixel(radius):
    size = 5
    layer = NeighborhoodAttention(VLAEConfig(**TINY), radius)
    torch.nn.init.normal_(layer.places)
    hidden_states = torch.randn(2, 12, size, size, requires_grad=True)
    pixels = torch.randn(2, 12, radius + size, size + 2 * radius, requires_grad=True)
    queries, keys_values = layer.query(hidden_states), layer.key_value(pixels)
    rows = []
    for row, column in itertools.product(range(size), repeat=2):
        near = [keys_values[:, :, radius + row - up, radius + column + right] for up, right in neighbors(radius)]
        keys, values = torch.stack(near, 2).unflatten(1, (4, -1)).chunk(2, 1)  # [B, heads, D, places]
        query = queries[:, :, row, column].unflatten(1, (2, -1))
        scores = torch.einsum("bnd,bndp->bnp", query, keys + layer.places) / keys.shape[2] ** 0.5
        rows.append(torch.einsum("bnp,bndp->bnd", scores.softmax(-1), values).flatten(1))
    expected = layer.output(torch.stack(rows, 2).unflatten(2, (size, size)))
    compare_with_reference(layer, layer(hidden_states, pixels), expected, [hidden_states, pixels])


@torch.no_grad()
def test_radius_zero_is_a_vae():
    model = make(decoder_radius=0)
    levels = random_levels(model.config, 4)
    pixels = model.decode(model(levels).latents)
    # A change anywhere leaves the probabilities of all other pixels as they are.
    changed = levels.clone()
    changed[..., 0, 0] = (changed[..., 0, 0] + 1) % 4
    is_same = pixels.log_probs(changed) == pixels.log_probs(levels)
    assert is_same.flatten(1)[:, 1:].all()
    assert not is_same[..., 0, 0].all()


@torch.no_grad()
def test_likelihoods_of_all_images_given_latents_sum_to_one():
    model = make(image_size=3, num_levels=2, hidden_channels=(4,), ladder_channels=(), decoder_radius=1)
    images = torch.tensor(list(itertools.product(range(2), repeat=9))).view(-1, 1, 3, 3)
    pixels = model.decode(torch.randn(1, 3).expand(len(images), -1))
    assert pixels.log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_samples_given_latents_follow_their_likelihood():
    model = make(image_size=2, num_levels=2, hidden_channels=(4,), ladder_channels=(), decoder_radius=1)
    images = torch.tensor(list(itertools.product(range(2), repeat=4))).view(-1, 1, 2, 2)
    latents = torch.randn(1, 3)
    expected = model.decode(latents.expand(16, -1)).log_prob(images).exp()
    count = 10_000
    drawn = model.decode(latents.expand(count, -1)).sample(seeded())
    numbers = (drawn.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    frequencies = torch.bincount(numbers, minlength=16) / count
    torch.testing.assert_close(frequencies, expected, atol=4 * 0.5 / count**0.5, rtol=0)


@torch.no_grad()
def test_importance_weights_reach_the_evidence_of_a_small_model():
    # One latent dimension: the evidence is a sum over a fine grid.
    model = make(latent_dim=1, ladder_channels=())
    levels = random_levels(model.config, 2)
    grid = torch.linspace(-8, 8, 4001)
    log_prior = -0.5 * (grid**2 + math.log(2 * math.pi))
    step = math.log(16 / 4000)
    for image in levels:
        log_probs = model.decode(grid.unsqueeze(1)).log_prob(image.expand(4001, -1, -1, -1))
        evidence = (log_probs + log_prior).logsumexp(0) + step
        bound = model(image.expand(400, -1, -1, -1), sample_posterior=True, generator=seeded())
        estimate = model.log_likelihood(image.unsqueeze(0), 20_000, generator=seeded())
        assert estimate.item() == pytest.approx(evidence.item(), abs=0.3)
        assert -(bound.distortion + bound.rate).mean().item() < evidence.item() + 0.1


@torch.no_grad()
def test_rows_that_are_given_stay_and_the_others_are_drawn(model):
    levels = random_levels(model.config, 2)
    steps = list(model.complete_by_row(levels, 3, seeded()))
    assert len(steps) == 1 + 2
    assert all(torch.equal(step[:, :, :3], levels[:, :, :3]) for step in steps)
    assert not torch.equal(steps[-1], model.complete(levels, 3, seeded(1)))
    # Nothing is read below the given rows.
    hidden = levels.clone()
    hidden[:, :, 3:] = 0
    assert torch.equal(model.complete(hidden, 3, seeded()), steps[-1])
    assert torch.equal(model.complete(levels, 5, seeded()), levels)


@torch.no_grad()
def test_drawing_all_rows_is_sampling(model):
    drawn = model.complete(model.blank(2), 0, seeded())
    assert torch.equal(drawn, model.sample(2, seeded()))


@torch.no_grad()
@pytest.mark.parametrize("output", ["sample", "mode", "mean"])
def test_images_are_made_in_every_way(model, output):
    levels = random_levels(model.config, 2)
    last = model.config.num_levels - 1
    for images in (
        model.sample(2, seeded(), output),
        model.reconstruct(levels, output, seeded()),
        model.interpolate(levels[:1], levels[1:], 2, output)[0],
        model.complete(levels, 3, seeded(), output),
    ):
        assert images.shape == levels.shape
        assert images.is_floating_point() == (output == "mean")
        assert images.min() >= 0
        assert images.max() <= last


@torch.no_grad()
def test_images_are_drawn_from_a_code_where_nothing_else_is_said():
    model, levels = make(), random_levels(make().config, 2)
    assert torch.equal(model.reconstruct(levels, generator=seeded()), model.reconstruct(levels, "sample", seeded()))
    assert not torch.equal(model.reconstruct(levels, generator=seeded()), model.reconstruct(levels, "mode"))
    path = model.interpolate(levels[:1], levels[1:], 2, generator=seeded())
    assert torch.equal(path, model.interpolate(levels[:1], levels[1:], 2, "sample", seeded()))


@torch.no_grad()
@pytest.mark.parametrize(("channels", "pixel_decoder"), [(1, "convolution"), (3, "convolution"), (3, "neighborhood")])
def test_a_mixture_starts_at_the_mean_of_the_pixels_above_and_to_the_left(channels, pixel_decoder):
    fields = {"num_channels": channels, "num_levels": 256, "pixel_likelihood": "logistic_mixture"}
    torch.manual_seed(0)
    model = VLAEModel(VLAEConfig(**(TINY | fields | {"pixel_decoder": pixel_decoder}))).eval()
    levels = random_levels(model.config, 2)
    values = levels * (2 / 255) - 1
    outputs = torch.zeros(2, model.config.outputs_per_dim, *levels.shape[1:])
    radius = model.config.decoder_radius
    with_margin = F.pad(values, (radius, radius, radius, 0))
    means = model.pixel_decoder.prediction(outputs, with_margin)[:, 5:10]
    expected = (values[:, :, :-1, 1:] + values[:, :, 1:, :-1]) / 2
    torch.testing.assert_close(means[:, :, :, 1:, 1:], expected.unsqueeze(1).expand(-1, 5, -1, -1, -1))
    # Where neighbours are alike, that tells something from the first step on.
    smooth = torch.full_like(levels, 200)
    bits = model.bits_per_dim(smooth, seeded())
    model.pixel_decoder.prediction.weight.zero_()
    assert (bits < model.bits_per_dim(smooth, seeded()) - 0.5).all()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        *(((8,), "rows"), ((2.0,), "rows"), ((True,), "rows"), ((3, None, "median"), "output")),
        *(((3, None, "sample", 0), "temperature"), ((3, 0), "generator")),
    ],
)
def test_a_completion_out_of_range_is_refused(arguments, field):
    model = make()
    with pytest.raises(ValueError, match=f"{field} must be"):
        model.complete(random_levels(model.config, 1), *arguments)


@pytest.mark.parametrize("output", ["sample", "mode", "mean"])
def test_a_seed_is_no_generator(output):
    model = make()
    with pytest.raises(ValueError, match="generator must be a torch.Generator or None, got 3"):
        model.reconstruct(random_levels(model.config, 1), output, 3)


@pytest.mark.parametrize("temperature", [-1, math.nan, math.inf])
def test_a_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be at least 0 and finite"):
        make().sample(1, temperature=temperature, output="mode")


def test_a_seed_draws_the_same_manifold():
    model = make(latent_dim=2, ladder_channels=())
    assert torch.equal(model.manifold(2, seeded()), model.manifold(2, seeded()))


@torch.no_grad()
def test_half_precision_scores_a_decoded_latent_as_its_own(model):
    model = model.bfloat16()
    levels = random_levels(model.config, 3)
    output = model(levels, sample_posterior=False)
    log_prob = model.decode(output.latents).log_prob(levels)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob, -output.distortion, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_every_parameter_is_trained(radius):
    model = make(decoder_radius=radius)
    model(random_levels(model.config, 3), sample_posterior=True).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_no_image_has_its_own_code_as_that_of_another(batch_size, monkeypatch):
    model, levels = make(), random_levels(make().config, 7)
    codes, asked = [], []
    forward, decode = model.forward, model.decode
    monkeypatch.setattr(model, "forward", lambda *given, **named: codes.append(forward(*given, **named)) or codes[-1])
    monkeypatch.setattr(model, "decode", lambda latents: asked.append(latents) or decode(latents))
    shares = shares_of_latents(model, levels, batch_size)
    own = torch.cat([output.latents for output in codes])
    assert not (own == torch.cat(asked)).all(1).any()
    assert len(own) == 7
    assert math.isfinite(shares["distortion_of_other_code_nats"])
    with pytest.raises(ValueError, match="levels must hold at least 2 images, got 1"):
        shares_of_latents(model, levels[:1])


def test_classes_are_refused():
    model = make()
    with pytest.raises(ValueError, match="labels must be None"):
        model.complete(random_levels(model.config, 1), 3, labels=torch.tensor([1]))


@pytest.mark.parametrize("scope", ["dimension", "group", "total"])
@pytest.mark.parametrize("model_class", [VAEModel, VLAEModel])
def test_free_bits_count_where_they_are_asked_for(model_class, scope):
    fields = {"image_size": 7, "hidden_channels": (6, 8), "ladder_channels": (2,), "architecture": "resnet"}
    config = {VAEModel: VAEConfig, VLAEModel: VLAEConfig}[model_class](**fields, free_bits=2.0, free_bits_of=scope)
    model = model_class(config).eval()
    perturb(model)
    levels = random_levels(config, 5)
    output, rates = model(levels), model.encode(levels).kl_to_standard_normal()
    parts = {"dimension": rates, "group": output.group_rates, "total": output.rate.unsqueeze(1)}[scope]
    expected = output.distortion + parts.clamp(min=2).sum(1)
    torch.testing.assert_close(output.loss, expected.mean() / (49 * math.log(2)))
    assert output.group_rates.shape == (5, 2)
    torch.testing.assert_close(output.group_rates.sum(1), output.rate)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"decoder_radius": -1}, "decoder_radius"),
        ({"decoder_radius": 28}, "decoder_radius"),
        ({"pixel_decoder": "recurrent"}, "pixel_decoder"),
        ({"decoder_channels": 50}, "decoder_channels"),
        ({"decoder_heads": 0}, "decoder_heads"),
        ({"decoder_layers": 0}, "decoder_layers"),
        ({"free_bits": -1}, "free_bits"),
        ({"free_bits_of": "pixel"}, "free_bits_of"),
    ],
)
def test_fields_out_of_range_are_refused(fields, field):
    with pytest.raises(Exception, match=field):
        VLAEConfig(**fields)


@torch.no_grad()
def test_an_untrained_model_needs_about_the_bits_of_uniform_levels():
    torch.manual_seed(0)
    model = VLAEModel(VLAEConfig()).eval()
    assert model.bits_per_dim(random_levels(model.config, 4), seeded()).mean().item() == pytest.approx(4, abs=0.2)
