"""The pipeline: every family, every option, every mistake."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from hf_latentgen import LatentGenPipeline, LevelsImageProcessor, VLAEConfig, VLAEModel, load_images
from pipelines_common import FAMILIES, levels, make_denoiser, make_model, make_pipe, make_scheduler, make_text_model


@pytest.fixture(params=FAMILIES)
def pipe(request):
    """A pipeline of each family with new weights."""
    return make_pipe(request.param)


@pytest.fixture(scope="module")
def digits():
    """Four real digits."""
    return load_images("digits", "test")[:4]["image"]


def test_draws_what_the_model_draws():
    for family in ("vae", "aae", "classifier", "pixels", "classes"):
        pipe = make_pipe(family)
        expected = pipe.model.sample(5, torch.Generator().manual_seed(0))
        assert torch.equal(levels(pipe, batch_size=5), expected), family


def test_types_of_output(pipe):
    drawn = levels(pipe, batch_size=2)
    assert drawn.shape == (2, 1, 8, 8)
    assert drawn.dtype == torch.int64
    pictures = pipe(2, torch.Generator().manual_seed(0)).images
    assert [(picture.mode, picture.size) for picture in pictures] == [("L", (8, 8))] * 2
    (array,) = pipe(2, torch.Generator().manual_seed(0), output_type="np", return_dict=False)
    assert array.shape == (2, 8, 8, 1)
    assert np.allclose(array[..., 0] * (pipe.model.config.num_levels - 1), drawn[:, 0])
    assert np.array_equal(np.asarray(pictures[0]), np.rint(array[0, ..., 0] * 255))
    assert levels(pipe, output="mean").is_floating_point()


def test_one_seed_gives_one_result(pipe):
    assert torch.equal(levels(pipe, batch_size=3), levels(pipe, batch_size=3))
    assert not torch.equal(levels(pipe, batch_size=3), levels(pipe, 1, batch_size=3))


def test_temperature_is_the_spread_of_the_latents_or_of_the_logits():
    vae = make_pipe("vae")
    expected = vae.model.sample(4, torch.Generator().manual_seed(0), temperature=0.5)
    assert torch.equal(levels(vae, batch_size=4, temperature=0.5), expected)
    pixels = make_pipe("pixels")
    cold = levels(pixels, batch_size=4, temperature=1e-4)
    assert torch.equal(cold, levels(pixels, batch_size=4, output="mode"))


@pytest.mark.parametrize("family", ["labelled", "classifier", "classes"])
def test_class_labels_choose_the_class(family):
    pipe = make_pipe(family)
    assert pipe.num_classes == 10
    labels = torch.tensor([3, 3, 3])
    expected = pipe.model.sample(3, torch.Generator().manual_seed(0), labels=labels)
    for given in (3, [3, 3, 3], labels):
        assert torch.equal(levels(pipe, batch_size=3, class_labels=given), expected)
    assert not torch.equal(levels(pipe, batch_size=3, class_labels=[3, 4, 5]), expected)


@pytest.mark.parametrize("family", ["pixels", "classes"])
def test_completions_keep_the_upper_rows(family, digits):
    pipe = make_pipe(family)
    given = pipe.processor(digits, return_tensors="pt")["pixel_values"]
    options = {"class_labels": [0, 1, 2, 3]} if family == "classes" else {}
    completed = levels(pipe, batch_size=3, images=digits, **options).unflatten(0, (4, 3))
    assert (completed[..., :4, :] == given.unsqueeze(1)[..., :4, :]).all()
    assert not torch.equal(completed[:, 0], completed[:, 1])
    completed = levels(pipe, images=digits[0], rows=7)
    assert torch.equal(completed[..., :7, :], given[:1, :, :7].long())
    assert torch.equal(levels(pipe, images=digits, rows=8), given.long())


# diffusers hands tensors to numpy in a way of old.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_the_scheduler_can_be_replaced(name):
    pipe = make_pipe("prior")
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    drawn = levels(pipe, batch_size=3, num_inference_steps=5)
    assert drawn.shape == (3, 1, 8, 8)
    assert torch.equal(drawn, levels(pipe, batch_size=3, num_inference_steps=5))


def test_progress_bar_counts_rows_and_denoising_steps(capsys):
    for family, total in (("pixels", "8/8"), ("prior", "7/7")):
        pipe = make_pipe(family)
        pipe.set_progress_bar_config(disable=False)
        pipe(1, **({"num_inference_steps": 7} if family == "prior" else {}))
        assert total in capsys.readouterr().err, family


def test_prior_is_the_scheduler_applied_to_the_denoiser():
    pipe = make_pipe("prior")
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(4, 3, generator=generator)
    scheduler = make_scheduler()
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for step in scheduler.timesteps:
            sample = scheduler.step(pipe.denoiser(sample, step).sample, step, sample).prev_sample
    latents = pipe.prior_latents(4, torch.Generator().manual_seed(0), 5)
    torch.testing.assert_close(latents, 2 * sample + 0.5)
    expected = pipe.model.decode(latents).mode
    assert torch.equal(levels(pipe, batch_size=4, num_inference_steps=5, output="mode"), expected)
    assert not torch.equal(pipe.prior_latents(4, torch.Generator().manual_seed(0), 6), latents)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    assert levels(pipe, batch_size=2).shape == (2, 1, 8, 8)


MISTAKES = [
    ("vae", {"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    *[
        ("vae", {"batch_size": given}, f"^batch_size must be a whole number of at least 1, got {shown}$")
        for given, shown in [(2.0, "2.0"), (1.5, "1.5"), (True, "True"), ("2", "'2'"), (None, "None"), ([1], r"\[1\]")]
    ],
    ("prior", {"batch_size": float("inf")}, "batch_size must be a whole number of at least 1, got inf"),
    ("vae", {"generator": [torch.Generator()]}, "generator must be one torch.Generator or None, got list"),
    *[
        (family, {"temperature": given}, f"^temperature must be a number above 0 and finite, got {given!r}$")
        for family in ("vae", "aae", "pixels", "prior")
        for given in (0, -1.0, float("nan"), float("inf"), "1", None)
    ],
    ("aae", {"temperature": 0.5}, "temperature must be 1 for AAEModel, got 0.5"),
    (
        "prior",
        {"images": torch.zeros(1, 1, 8, 8)},
        "by a model that draws pixel by pixel only, got latents that a denoi",
    ),
    ("prior", {"temperature": 0.5}, "temperature must be 1 for latents that a denoiser draws, got 0.5"),
    ("vae", {"output_type": "jpeg"}, r"output_type must be one of \('pil', 'np', 'pt'\), got 'jpeg'"),
    ("vae", {"output": "median"}, "output must be one of"),
    ("vae", {"class_labels": 1}, "class_labels must be None for a model that has no classes"),
    ("pixels", {"class_labels": 1}, "class_labels must be None for a model that has no classes"),
    ("prior", {"class_labels": 1}, "class_labels must be None for a model that has no classes"),
    ("classifier", {"class_labels": 10}, "class_labels must be in 0 ... 9, got 10"),
    ("classes", {"class_labels": [0, -1], "batch_size": 2}, r"class_labels must be in 0 ... 9, got \[0, -1\]"),
    ("classifier", {"class_labels": [0, 1]}, r"class_labels must be a class or 1 of them, whole numbers, got \[0, 1\]"),
    ("classifier", {"class_labels": 0.5}, "whole numbers, got 0.5"),
    ("classifier", {"class_labels": "3"}, "class_labels must be a class or 1 of them, whole numbers, got '3'"),
    ("classes", {"class_labels": [None]}, r"class_labels must be a class or 1 of them, whole numbers, got \[None\]"),
    ("classes", {"class_labels": [[1], [1, 2]]}, "class_labels must be a class or 1 of them, whole numbers"),
    ("classes", {"class_labels": 2**70}, "class_labels must be a class or 1 of them, whole numbers"),
    ("vae", {"num_inference_steps": 5}, "num_inference_steps must be None without a denoiser, got 5"),
    ("prior", {"num_inference_steps": 0}, "num_inference_steps must be a whole number in 1 ... 1000, got 0"),
    ("prior", {"num_inference_steps": 1001}, "num_inference_steps must be a whole number in 1 ... 1000, got 1001"),
    *[
        ("prior", {"num_inference_steps": given}, f"num_inference_steps must be .* in 1 ... 1000, got {given!r}$")
        for given in ("a", 2.0, True, float("nan"))
    ],
    ("pixels", {"rows": 3}, "rows must be None without images to complete, got 3"),
    ("vae", {"images": "digits"}, "images can be completed by .* only, got VAEModel"),
    ("pixels", {"images": "digits", "rows": 9}, "rows must be a whole number in 0 ... 8, got 9"),
    ("pixels", {"images": "digits", "rows": -1}, "rows must be a whole number in 0 ... 8, got -1"),
]


@pytest.mark.parametrize(("family", "options", "message"), MISTAKES)
def test_mistakes_are_named(family, options, message, digits):
    options = options | ({"images": digits} if "images" in options else {})
    with pytest.raises(ValueError, match=message):
        make_pipe(family)(**options)


def test_parts_must_fit_together():
    processor, denoiser = LevelsImageProcessor(size={"height": 8, "width": 8}), make_denoiser()
    text = make_text_model()
    with pytest.raises(ValueError, match="model must be .*, got LocalTransformerForCausalLM"):
        LatentGenPipeline(text, processor)
    with pytest.raises(ValueError, match="denoiser and scheduler must be given together"):
        LatentGenPipeline(make_model("vae"), processor, denoiser)
    with pytest.raises(ValueError, match="denoiser must be None for LocalTransformerForImageGeneration"):
        LatentGenPipeline(make_model("pixels"), processor, denoiser, make_scheduler())
    with pytest.raises(ValueError, match="denoiser must be one of the 3 latents of the model, got one of 4"):
        LatentGenPipeline(make_model("vae"), processor, make_denoiser(4), make_scheduler())
    with pytest.raises(ValueError, match="denoiser must be there"):
        make_pipe("vae").prior_latents(2)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 2.0"):
        make_pipe("prior").prior_latents(2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_levels": 256}, "num_levels of the image processor must be 16.*, got 256"),
        ({"num_channels": 3}, "num_channels of the image processor must be 1.*, got 3"),
        ({"size": {"height": 8, "width": 9}}, r"size of the image processor must be \(8, 8\).*, got \(8, 9\)"),
    ],
)
def test_a_processor_that_gives_what_the_model_does_not_read_is_refused(changes, message):
    processor = LevelsImageProcessor(**({"size": {"height": 8, "width": 8}, "num_levels": 16} | changes))
    with pytest.raises(ValueError, match=message):
        LatentGenPipeline(make_model("vae"), processor)
    LatentGenPipeline(make_model("vae"), LevelsImageProcessor.for_config(make_model("vae").config))


@pytest.mark.parametrize("family", ["vae", "prior"])
def test_a_pipeline_is_made_of_the_parts_of_another(family):
    pipe = make_pipe(family)
    again = LatentGenPipeline.from_pipe(pipe)
    assert again.components == pipe.components
    assert torch.equal(levels(again), levels(pipe))


def test_a_part_that_is_given_takes_the_place_of_that_of_the_other_pipeline():
    pipe = make_pipe("prior")
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    again = LatentGenPipeline.from_pipe(pipe, scheduler=scheduler)
    assert again.scheduler is scheduler
    assert again.denoiser is pipe.denoiser
    with pytest.raises(TypeError, match="vae"):
        LatentGenPipeline.from_pipe(pipe, vae=pipe.model)


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    for options, got in (({"variant": "fp16"}, "True and 'fp16'"), ({"safe_serialization": False}, "False and None")):
        with pytest.raises(ValueError, match=f"safe_serialization must be True and variant None, got {got}"):
            make_pipe("vae").save_pretrained(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers_too():
    drawn = levels(make_pipe("vae"), batch_size=np.int64(2), temperature=np.float32(0.5))
    assert torch.equal(drawn, levels(make_pipe("vae"), batch_size=2, temperature=0.5))


def test_latents_of_a_model_that_draws_pixel_by_pixel_are_those_of_its_denoiser():
    torch.manual_seed(0)
    config = VLAEConfig(image_size=8, num_levels=16, latent_dim=3, hidden_channels=[8], decoder_channels=8)
    parts = {"denoiser": make_denoiser(), "scheduler": make_scheduler()}
    pipe = LatentGenPipeline(VLAEModel(config), LevelsImageProcessor.for_config(config), **parts)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    expected = pipe.model.decode(pipe.prior_latents(2, generator, 5)).sample(generator)
    assert torch.equal(levels(pipe, batch_size=2, num_inference_steps=5), expected)
