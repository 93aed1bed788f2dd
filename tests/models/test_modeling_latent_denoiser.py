import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from hf_latentgen.models.modeling_latent_denoiser import LatentDenoiser


def make_denoiser(**fields):
    torch.manual_seed(0)
    return LatentDenoiser(**({"latent_dim": 3, "hidden_size": 16, "num_blocks": 2} | fields))


@pytest.mark.parametrize("step", [torch.tensor(7), torch.tensor([7, 7, 7, 7])])
def test_velocity_has_the_shape_of_the_latents(step):
    velocity = make_denoiser()(torch.randn(4, 3), step).sample
    assert velocity.shape == (4, 3)
    assert velocity.dtype == torch.float32


def test_every_parameter_learns_and_the_step_matters():
    denoiser = make_denoiser()
    sample = torch.randn(4, 3)
    early, late = (denoiser(sample, torch.tensor(step)).sample for step in (0, 999))
    # Blocks start as the identity, and with them the time has no effect yet.
    assert torch.equal(early, late)
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (denoiser(sample, torch.tensor([1, 10, 100, 900])).sample - 1).square().mean().backward()
        optimizer.step()
    assert [name for name, parameter in denoiser.named_parameters() if not parameter.grad.any()] == []
    early, late = (denoiser(sample, torch.tensor(step)).sample for step in (0, 999))
    assert not torch.allclose(early, late)


def test_examples_do_not_depend_on_each_other():
    denoiser, sample, steps = make_denoiser(), torch.randn(4, 3), torch.tensor([1, 10, 100, 900])
    torch.nn.init.normal_(denoiser.blocks[0].last.weight)
    together = denoiser(sample, steps).sample
    alone = torch.cat([denoiser(sample[i : i + 1], steps[i]).sample for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_standardise_and_restore():
    denoiser = make_denoiser(latents_mean=[1.0, 2.0, 3.0], latents_std=[0.5, 1.0, 2.0])
    latents = torch.tensor([[1.5, 2.0, 1.0]])
    assert torch.equal(denoiser.standardise(latents), torch.tensor([[1.0, 0.0, -1.0]]))
    assert torch.equal(denoiser.restore(denoiser.standardise(latents)), latents)
    assert torch.equal(make_denoiser().standardise(latents), latents)


def test_saved_denoiser_is_the_same(tmp_path):
    denoiser = make_denoiser(latents_mean=[0.1, 0.2, 1 / 3], latents_std=[1.0, 2.0, 1e-3])
    torch.nn.init.normal_(denoiser.blocks[0].last.weight)
    denoiser.save_pretrained(tmp_path)
    loaded = LatentDenoiser.from_pretrained(tmp_path, use_safetensors=True)
    sample = torch.randn(4, 3)
    torch.testing.assert_close(loaded(sample, torch.tensor(5)).sample, denoiser(sample, torch.tensor(5)).sample)
    assert torch.equal(loaded.restore(sample), denoiser.restore(sample))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"num_blocks": 0}, "num_blocks must be at least 1, got 0"),
        ({"hidden_size": 15}, "hidden_size must be an even number of at least 4, got 15"),
        ({"latents_mean": [0.0]}, "latents_mean must hold latent_dim=3 numbers, got 1"),
        ({"latents_std": [1.0] * 4}, "latents_std must hold latent_dim=3 numbers, got 4"),
        ({"latents_std": [1.0, math.nan, 1.0]}, "latents_std must hold finite numbers, got"),
        ({"latents_mean": [1.0, math.inf, 1.0]}, "latents_mean must hold finite numbers, got"),
        ({"latents_std": [1.0, 0.0, 1.0]}, "latents_std must be above 0, got 0.0"),
    ],
)
def test_bad_arguments(fields, message):
    with pytest.raises(ValueError, match=message):
        make_denoiser(**fields)


def test_the_true_velocity_of_a_gaussian_is_sampled_as_that_gaussian():
    """The scheduler's conventions: with the best possible denoiser the samples have the mean and spread of the data."""
    mean, std = 2.0, 0.5
    training = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)
    scheduler = DDIMScheduler.from_config(training.config, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(4000, 1, generator=generator)
    for step in scheduler.timesteps:
        share = training.alphas_cumprod[step]
        signal, noise = share.sqrt(), (1 - share).sqrt()
        # E[latents | sample] and E[noise | sample] for latents ~ N(mean, std^2).
        gain = (sample - signal * mean) / (share * std**2 + 1 - share)
        velocity = signal * noise * gain - noise * (mean + signal * std**2 * gain)
        sample = scheduler.step(velocity, step, sample).prev_sample
    assert sample.mean() == pytest.approx(mean, abs=0.03)
    assert sample.std() == pytest.approx(std, abs=0.03)
