import itertools

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_latentgen import LocalTransformerForImageGeneration, LocalTransformerImageConfig
from hf_latentgen.models.bits import bits_per_dim_to_nats
from modeling_common import CommonModelTests, perturb

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "image_size": 5, "num_levels": 3}
VARIANTS = {
    "grey": {},
    "wide context": {"context_radius": 2},
    "colour, one row, classes": {
        "num_channels": 3,
        "window_rows": 1,
        "is_class_conditional": True,
        "num_labels": 4,
        "image_size": 4,
    },
}
SPANS = {
    "adaptive": {"attention_span": "adaptive", "span_ramp": 2},
    "trimmed": {"attention_span": "trimmed", "span_ramp": 2, "layer_windows": [[4, 10, 4, 5], 7]},
}


def build(variant="grey", **fields):
    torch.manual_seed(0)
    model = LocalTransformerForImageGeneration(LocalTransformerImageConfig(**(TINY | VARIANTS[variant] | fields)))
    perturb(model)
    return model.eval()


def images_of(config, number=3, seed=0):
    shape = (number, config.num_channels, config.image_size, config.image_size)
    return torch.randint(0, config.num_levels, shape, generator=torch.Generator().manual_seed(seed))


def labels_of(config, number=3):
    return {"labels": torch.arange(number) % 4} if config.is_class_conditional else {}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class TestCommonBehaviours(CommonModelTests):
    model_class = LocalTransformerForImageGeneration
    compiled = "colour, one row, classes"
    others = ("trimmed",)

    @pytest.fixture(params=VARIANTS | SPANS)
    def config(self, request):
        return LocalTransformerImageConfig(**(TINY | (VARIANTS | SPANS)[request.param]))

    def make_inputs(self, config, batch_size):
        return {"pixel_values": images_of(config, batch_size), **labels_of(config, batch_size)}

    # Enough images for every class and every level to occur in every context.
    def test_every_parameter_gets_a_gradient(self, config, model):
        super().test_every_parameter_gets_a_gradient(model, self.make_inputs(config, batch_size=16))


@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one():
    model = build(image_size=2, num_levels=3, window_rows=1)
    everything = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 1, 2, 2)
    assert (-model(everything).negative_log_likelihood).exp().sum().item() == pytest.approx(1, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_value_depends_on_those_before_it_only(variant):
    model = build(variant)
    config = model.config
    images = images_of(config, 1)
    labels = labels_of(config, 1)
    expected = model._images(torch.zeros(1, config.num_dims, 1))
    order = torch.arange(config.num_dims).view(1, config.image_size, config.image_size, config.num_channels)
    order = order.permute(0, 3, 1, 2)
    assert expected.shape == (1, 1, *order.shape[1:])
    before = model(images, **labels).logits
    for index in range(config.num_dims):
        changed = torch.where(order == index, (images + 1) % config.num_levels, images)
        differs = (model(changed, **labels).logits != before).any(1)
        assert not differs[order <= index].any()
        if index + 1 < config.num_dims:
            assert differs[order == index + 1].all()


@torch.no_grad()
@pytest.mark.parametrize(("radius", "is_seen"), [(1, False), (2, True)])
def test_neighbours_are_seen_beyond_the_window_of_attention(radius, is_seen):
    """The first pixel is no key of the one in the middle, nor an input of any of its keys, but its neighbour."""
    model = build(num_hidden_layers=1, window_rows=1, context_radius=radius)
    images = images_of(model.config, 1)
    changed = images.clone()
    changed[0, 0, 0, 0] = (images[0, 0, 0, 0] + 1) % 3
    differs = (model(images).logits != model(changed).logits).any(1)[0, 0]
    assert differs[2, 2] == is_seen


@torch.no_grad()
def test_every_neighbour_in_the_radius_has_an_embedding_of_its_own():
    """The pixel in the middle predicts from its own neighbours what a loop over them finds."""
    model = build("wide context", num_hidden_layers=1, window_rows=1)
    config, images = model.config, images_of(model.config, 1)
    embeddings = model.model.embed_tokens.weight.unflatten(0, (-1, config.num_levels + 1))
    around = [(0, -1), (-1, 0), (-1, -1), (-1, 1), (-1, -2), (-1, 2), (-2, 0), (-2, -1), (-2, 1), (-2, -2), (-2, 2)]
    around += [(0, -2)]
    assert len(embeddings) == len(around)
    for row, column in itertools.product(range(config.image_size), repeat=2):
        expected = model.row_embedding.weight[row] + model.column_embedding.weight[column]
        expected = expected + model.channel_embedding.weight[0]
        for embedding, (down, right) in zip(embeddings, around, strict=True):
            y, x = row + down, column + right
            # What comes before the first pixel of a row is the last one of the row above.
            if (down, right) == (0, -1) and column == 0:
                y, x = row - 1, config.image_size - 1
            inside = y >= 0 and 0 <= x < config.image_size
            expected = expected + embedding[images[0, 0, y, x] if inside else config.num_levels]
        position = row * config.image_size + column
        found = model._inputs(images.flatten(1), None, position, position + 1)[0, 0]
        torch.testing.assert_close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_exact_and_count_every_dimension(variant):
    model = build(variant)
    images, labels = images_of(model.config), labels_of(model.config)
    output = model(images, **labels)
    log_probabilities = output.logits.log_softmax(1).gather(1, images.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(output.negative_log_likelihood, -log_probabilities.flatten(1).sum(1))
    scores = model.bits_per_dim(images, **labels)
    torch.testing.assert_close(bits_per_dim_to_nats(scores, model.config.num_dims), output.negative_log_likelihood)
    torch.testing.assert_close(output.loss, scores.mean())
    bits = model.code_lengths(images, **labels)
    assert bits.shape == images.shape
    torch.testing.assert_close(bits.flatten(1).mean(1), scores)


@pytest.mark.parametrize(("num_levels", "bits"), [(2, 1.0), (16, 4.0), (256, 8.0)])
@torch.no_grad()
def test_zero_weights_give_every_level_the_same_probability(num_levels, bits):
    model = build(num_levels=num_levels)
    for parameter in model.parameters():
        parameter.zero_()
    torch.testing.assert_close(model.bits_per_dim(images_of(model.config)), torch.full((3,), bits))


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_drawing_with_the_cache_equals_drawing_without(variant, rows):
    model = build(variant)
    config, labels = model.config, labels_of(model.config)
    given = images_of(config)
    found = model.complete(given, rows, output="mode", **labels)
    assert torch.equal(found[:, :, :rows], given[:, :, :rows])
    values = model._sequence(given.clone())
    for position in range(rows * config.row_length, config.num_dims):
        logits = model(model._images(values.unsqueeze(2)).squeeze(1), **labels).logits
        values[:, position] = logits.permute(0, 3, 4, 2, 1).flatten(1, 3)[:, position].argmax(1)
    assert torch.equal(found, model._images(values.unsqueeze(2)).squeeze(1))


@pytest.mark.parametrize("output", ["sample", "mode", "mean"])
def test_completion_by_row_shows_each_row_once_and_ends_as_the_whole(output):
    model = build()
    given = images_of(model.config)
    steps = list(model.complete_by_row(given, 2, seeded(), output))
    assert len(steps) == 1 + 3
    assert torch.equal(steps[0].long(), given)
    for drawn, (before, after) in enumerate(itertools.pairwise(steps)):
        assert torch.equal(before[:, :, : 2 + drawn], after[:, :, : 2 + drawn])
        assert torch.equal(after[:, :, 3 + drawn :].long(), given[:, :, 3 + drawn :])
    assert torch.equal(steps[-1], model.complete(given, 2, seeded(), output))


@torch.no_grad()
def test_samples_follow_the_model():
    model = build(image_size=2, num_levels=2, window_rows=1)
    everything = torch.tensor(list(itertools.product(range(2), repeat=4))).view(-1, 1, 2, 2)
    expected = (-model(everything).negative_log_likelihood).exp()
    drawn = model.sample(4000, generator=seeded()).flatten(1)
    index = (drawn * torch.tensor([8, 4, 2, 1])).sum(1)
    found = torch.bincount(index, minlength=16) / 4000
    assert (found - expected).abs().max() < 0.03


def test_samples_are_reproducible_and_leave_the_global_generator_alone():
    for variant in VARIANTS:
        model = build(variant)
        labels = labels_of(model.config)
        state = torch.get_rng_state()
        first, second = (model.sample(3, generator=seeded(1), **labels) for _ in range(2))
        assert torch.equal(first, second)
        assert first.dtype == torch.int64
        assert first.shape == images_of(model.config).shape
        mean = model.sample(3, generator=seeded(1), output="mean", **labels)
        assert mean.is_floating_point()
        assert ((mean >= 0) & (mean <= 2)).all()
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.sample(0), "num_images must be a whole number of at least 1, got 0"),
        (lambda m: m.sample(2, output="median"), "output must be one of .*, got 'median'"),
        (lambda m: m.sample(2, temperature=0), "temperature must be above 0 and finite, got 0"),
        (lambda m: m.sample(2, temperature=float("inf")), "temperature must be above 0 and finite, got inf"),
        (lambda m: m.sample(2, temperature=float("nan")), "temperature must be above 0 and finite, got nan"),
        (lambda m: m.complete(images_of(m.config), 6), r"rows must be a whole number in 0 \.\.\. 5, got 6"),
        (lambda m: m.complete(images_of(m.config), -1), r"rows must be a whole number in 0 \.\.\. 5, got -1"),
        (lambda m: m.complete(images_of(m.config), 1.5), r"rows must be a whole number in 0 \.\.\. 5, got 1.5"),
        (lambda m: m.complete(images_of(m.config), None), r"rows must be a whole number in 0 \.\.\. 5, got None"),
        (lambda m: m.complete(images_of(m.config), "2"), r"rows must be a whole number in 0 \.\.\. 5, got '2'"),
        (
            lambda m: m.complete(images_of(m.config), float("nan")),
            r"rows must be a whole number in 0 \.\.\. 5, got nan",
        ),
        (lambda m: m(torch.zeros(1, 1, 4, 4).long()), r"pixel_values must have shape \[B, 1, 5, 5\]"),
        (lambda m: m(torch.full((1, 1, 5, 5), 3)), r"levels in 0 \.\.\. 2, got values from 3 to 3"),
        (lambda m: m(torch.zeros(1, 1, 5, 5)), "pixel_values must be integer levels, got torch.float32"),
        (
            lambda m: m(torch.zeros(1, 1, 5, 5).long(), labels=torch.zeros(1).long()),
            "labels must be None for a model without is_class_conditional",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(build())


def test_bad_labels_are_named():
    model = build("colour, one row, classes")
    images = images_of(model.config)
    for labels, message in (
        (None, r"labels must be a tensor of whole numbers of shape \[3\], got NoneType"),
        ([0, 1, 2], r"labels must be a tensor of whole numbers of shape \[3\], got list"),
        (torch.tensor([0, 1]), r"labels must be a tensor of whole numbers of shape \[3\], got \(torch.int64, \[2\]\)"),
        (torch.zeros(3), r"labels must be a tensor of whole numbers of shape \[3\], got \(torch.float32, \[3\]\)"),
        (torch.tensor([0, 1, 4]), r"labels must be in 0 \.\.\. 3, got \[0, 1, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model(images, labels=labels)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 0),
        ("num_channels", 0),
        ("num_levels", 1),
        ("num_levels", 257),
        ("window_rows", 0),
        ("context_radius", 0),
        ("context_radius", TINY["image_size"] + 1),
    ],
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(StrictDataclassError, match=f"{field} must be .*, got {value}"):
        LocalTransformerImageConfig(**(TINY | {field: value}))


def test_what_follows_from_the_image_cannot_be_given():
    config = LocalTransformerImageConfig(**TINY)
    assert LocalTransformerImageConfig(**(TINY | {"window": config.window})).window == config.window
    for field, value in (("window", 300), ("vocab_size", 5)):
        expected = f"{field} must be {getattr(config, field)}, which follows from the fields of the image, got {value}"
        with pytest.raises(StrictDataclassError, match=expected):
            LocalTransformerImageConfig(**(TINY | {field: value}))


@torch.no_grad()
def test_hidden_states_are_those_of_the_sequence():
    model = build("colour, one row, classes")
    images = images_of(model.config)
    inputs = {"pixel_values": images, **labels_of(model.config)}
    output = model(**inputs, output_hidden_states=True)
    assert [states.shape for states in output.hidden_states] == [(3, 4 * 4 * 3, 16)] * 3
    torch.testing.assert_close(model._images(model.lm_head(output.hidden_states[-1])), output.logits)
    assert model(**inputs).hidden_states is None
    shows = build("colour, one row, classes", output_hidden_states=True)
    torch.testing.assert_close(shows(**inputs).hidden_states, output.hidden_states)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_pixel_to_the_left_is_read_in_its_own_channel(num_channels):
    config = LocalTransformerImageConfig(
        image_size=4, num_levels=4, num_channels=num_channels, context_radius=2, hidden_size=16, num_attention_heads=2
    )
    # With one channel that is the value just before, which is read in any case.
    assert ((0, -1) in config.neighbors) == (num_channels > 1)
    assert (0, -2) in config.neighbors
