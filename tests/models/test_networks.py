import copy
import math

import pytest
import torch
from torch import nn

from hf_latentgen import VAEConfig, VAEModel
from hf_latentgen.models.networks import DECODERS, ENCODERS, ConvBlock, LadderPosterior, ResidualBlock, upsampling
from modeling_common import gradients, perturb

TINY = {
    "course": {"architecture": "course", "hidden_channels": (4, 6, 8)},
    "resnet": {"architecture": "resnet", "hidden_channels": (4, 6), "ladder_channels": (3, 2), "blocks_per_stage": 2},
    "resnet without ladder": {"architecture": "resnet", "hidden_channels": (4, 6, 8)},
    "mlp": {"architecture": "mlp", "hidden_channels": (10, 9)},
}


def make(config):
    return ENCODERS[config.architecture](config, 2 * config.latent_dim), DECODERS[config.architecture](
        config, config.latent_dim, config.num_levels
    )


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("latent_dim", "in_encoder", "in_decoder"), [(20, 142_920, 127_696), (2, 106_020, 109_264)])
def test_course_network_has_the_published_size(latent_dim, in_encoder, in_decoder):
    model = VAEModel(VAEConfig(latent_dim=latent_dim))
    assert (count(model.encoder), count(model.decoder)) == (in_encoder, in_decoder)
    assert model.num_parameters() == {20: 270_616, 2: 215_284}[latent_dim]


def course_reference():
    """The networks of tutorial 9, layer by layer."""
    gelu = nn.GELU()
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, stride=2, padding=1), gelu),
        *(nn.Conv2d(32, 32, 3, padding=1), gelu),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), gelu),
        *(nn.Conv2d(64, 64, 3, padding=1), gelu),
        *(nn.Conv2d(64, 64, 3, stride=2, padding=1), gelu),
        *(nn.Flatten(), nn.Linear(1024, 40)),
    )
    decoder = nn.Sequential(
        *(nn.Linear(20, 1024), gelu, nn.Unflatten(1, (64, 4, 4))),
        *(nn.ConvTranspose2d(64, 64, 3, stride=2, padding=1, output_padding=0), gelu),
        *(nn.Conv2d(64, 64, 3, padding=1), gelu),
        *(nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1), gelu),
        *(nn.Conv2d(32, 32, 3, padding=1), gelu),
        nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1),
    )
    return encoder, decoder


@torch.no_grad()
def test_course_network_is_that_of_the_tutorial():
    references = course_reference()
    encoder, decoder = make(VAEConfig())
    for network, reference in zip((encoder, decoder), references, strict=True):
        reference.load_state_dict(dict(zip(reference.state_dict(), network.state_dict().values(), strict=True)))
    images, codes = torch.rand(2, 1, 28, 28) * 2 - 1, torch.randn(2, 20)
    torch.testing.assert_close(encoder.posterior(0, encoder(images)[0], None), references[0](images))
    logits = decoder.finish(decoder.advance(0, codes, None))
    torch.testing.assert_close(logits, references[1](codes).unsqueeze(2))


@torch.no_grad()
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("image_size", [1, 5, 7, 8, 28])
@pytest.mark.parametrize("network", TINY)
def test_shapes(network, image_size, num_channels):
    config = VAEConfig(**TINY[network], image_size=image_size, num_channels=num_channels, num_levels=5, latent_dim=3)
    encoder, decoder = make(config)
    # At its start a network carries so little of an image of one pixel that float32 loses it.
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        nn.init.normal_(parameter, std=0.5)
    features = encoder(torch.rand(2, num_channels, image_size, image_size) * 2 - 1)
    assert len(features) == len(config.latent_shapes)
    state = None
    for group, shape in enumerate(config.latent_shapes):
        parameters = encoder.posterior(group, features[group], state)
        assert parameters.shape == (2, 2 * math.prod(shape))
        state = decoder.advance(group, parameters.chunk(2, 1)[0], state)
    logits = decoder.finish(state)
    assert logits.shape == (2, 5, num_channels, image_size, image_size)
    assert torch.isfinite(logits).all()
    # Neither the images nor the pixels of one image are treated alike.
    assert logits.std() > 0
    assert not torch.equal(logits[0], logits[1])


@torch.no_grad()
def test_channels_of_the_logits_are_not_mixed_with_the_levels():
    config = VAEConfig(architecture="mlp", image_size=2, num_channels=3, num_levels=5, hidden_channels=(4,))
    _, decoder = make(config)
    last = decoder.layers[-1]
    last.weight.zero_()
    last.bias.copy_(torch.arange(60.0))
    logits = decoder.finish(decoder.advance(0, torch.zeros(1, 20), None))
    assert torch.equal(logits, torch.arange(60.0).view(1, 5, 3, 2, 2))


@torch.no_grad()
@pytest.mark.parametrize("ladder_channels", [(2,), (2, 1)])
def test_ladder_starts_with_the_posterior_at_the_prior(ladder_channels):
    config = VAEConfig(architecture="resnet", image_size=8, hidden_channels=(4, 6), ladder_channels=ladder_channels)
    posterior = VAEModel(config).encode(torch.randint(0, 16, (3, 1, 8, 8)))
    ladder = slice(config.latent_dim, None)
    assert posterior.mean[:, ladder].shape[1] == sum(math.prod(shape) for shape in config.latent_shapes[1:]) > 0
    assert not posterior.mean[:, ladder].any()
    assert not posterior.log_std[:, ladder].any()
    assert posterior.mean[:, : config.latent_dim].any()


@torch.no_grad()
def test_residual_blocks_start_as_the_identity():
    model = VAEModel(VAEConfig(**TINY["resnet"], image_size=8))
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    # Two blocks at each of the two stages of encoder and decoder, and one merge for each latent group of the ladder.
    assert len(blocks) == 4 + 4 + 2
    for block in blocks:
        channels = block.last.out_channels
        hidden, extra = torch.randn(2, channels, 4, 4), torch.randn(2, block.first.in_channels - channels, 4, 4)
        assert torch.equal(block(hidden, extra), hidden)
        nn.init.normal_(block.last.weight)
        assert not torch.equal(block(hidden, extra), hidden)


@torch.no_grad()
def test_ladder_posterior_sees_image_and_coarser_latents():
    posterior = LadderPosterior(4, 2)
    features, state = torch.randn(2, 1, 4, 3, 3)
    expected = posterior(features, state)
    assert expected.shape == (1, 2 * 2 * 9)
    assert not torch.equal(posterior(features + 1, state), expected)
    assert not torch.equal(posterior(features, state + 1), expected)


@torch.no_grad()
def test_merged_latents_reach_the_logits():
    config = VAEConfig(**TINY["resnet"], image_size=8)
    _, decoder = make(config)
    codes = [torch.randn(1, math.prod(shape)) for shape in config.latent_shapes]

    def logits(changed=None):
        state = None
        for group, code in enumerate(codes):
            state = decoder.advance(group, code + (group == changed), state)
        return decoder.finish(state)

    expected = logits()
    assert all(not torch.equal(logits(group), expected) for group in range(3))


@torch.no_grad()
def test_stride_halves_the_resolution_rounding_up():
    assert ConvBlock(1, 2, stride=2)(torch.zeros(1, 1, 7, 7)).shape == (1, 2, 4, 4)
    assert ConvBlock(1, 2)(torch.zeros(1, 1, 7, 7)).shape == (1, 2, 7, 7)


def initialised_layers(model):
    """The layers that start as PyTorch starts them: not the last ones of residual blocks, which start at zero."""
    zero = {id(m.last) for m in model.modules() if isinstance(m, ResidualBlock | LadderPosterior)}
    layers = (m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d))
    return [layer for layer in layers if id(layer) not in zero]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["course", "resnet", "mlp"])
def test_start_has_the_distribution_of_pytorch_defaults(architecture):
    layers = initialised_layers(VAEModel(VAEConfig(architecture=architecture)))
    assert len(layers) >= 8
    biases = []
    for layer in layers:
        default = copy.deepcopy(layer)
        default.reset_parameters()
        assert not torch.equal(default.weight, layer.weight)
        if layer.weight.numel() > 1000:
            # Both are uniform: the bound decides the largest value and the standard deviation.
            for statistic in (torch.std, lambda weight: weight.abs().max()):
                assert statistic(layer.weight).item() == pytest.approx(statistic(default.weight).item(), rel=0.07)
        biases.append((layer.bias, default.bias))
    mine, defaults = (torch.cat(values) for values in zip(*biases, strict=True))
    assert mine.std().item() == pytest.approx(defaults.std().item(), rel=0.15)
    assert mine.abs().max().item() == pytest.approx(defaults.abs().max().item(), rel=0.1)


@torch.no_grad()
def test_transposed_convolutions_stay_exact_under_autocast_on_a_cpu():
    layer, images = upsampling(6, 5, 4, 7), torch.randn(3, 6, 4, 4)
    plain = nn.functional.conv_transpose2d(images, layer.weight, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(images), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(images.bfloat16()), layer(images.bfloat16().float()), atol=0, rtol=0)
        assert layer(images).dtype == torch.float32
        torch.testing.assert_close(layer(images), plain)
    assert layer.bfloat16()(images.bfloat16()).dtype == torch.bfloat16


# transformers says so of what is tested here.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", TINY)
def test_checkpointing_of_either_kind_keeps_the_gradients(name, use_reentrant):
    model = VAEModel(VAEConfig(**TINY[name], latent_dim=3, image_size=12))
    perturb(model)
    inputs = {"pixel_values": torch.randint(0, 16, (2, 1, 12, 12))}
    expected = gradients(model.train(), inputs)
    assert all(gradient is not None for gradient in expected.values())
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.testing.assert_close(gradients(model, inputs), expected)
    assert not inputs["pixel_values"].requires_grad
