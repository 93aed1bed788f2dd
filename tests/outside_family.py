"""A family that the package knows nothing of: each pixel has a distribution of its own, the same for all images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.utils import ModelOutput

from hf_latentgen import LevelsImageProcessor, LikelihoodTrainer
from hf_latentgen.evaluation.baselines import image_baselines
from hf_latentgen.evaluation.likelihood import exact_metrics
from hf_latentgen.evaluation.metrics import best_baseline, show
from hf_latentgen.evaluation.pictures import image_grid
from hf_latentgen.evaluation.samples import NUM_SAMPLES, prior_samples
from hf_latentgen.families.family import Family, Measured
from hf_latentgen.families.inputs import image_data, image_parts
from hf_latentgen.models.bits import nats_to_bits_per_dim
from hf_latentgen.models.configuration_latentgen import LatentGenConfig, require
from hf_latentgen.models.distributions import CategoricalPixels
from hf_latentgen.models.hub import IMAGE_TASK
from hf_latentgen.models.modeling_latentgen import LatentGenModel


@strict
class HistogramConfig(LatentGenConfig):
    model_type = "histogram"

    image_size: int = 28
    num_channels: int = 1
    num_levels: int = 16

    @property
    def num_dims(self):
        return self.num_channels * self.image_size**2

    def validate_image(self):
        require(2 <= self.num_levels <= 256, "num_levels", self.num_levels, "2 to 256")


@dataclass
class HistogramOutput(ModelOutput):
    loss: Tensor | None = None
    negative_log_likelihood: Tensor | None = None


class HistogramModel(LatentGenModel):
    config_class = HistogramConfig
    main_input_name = "pixel_values"
    kind = "histogram of each pixel"
    likelihood = "exact"
    draws_images = True

    def __init__(self, config):
        super().__init__(config)
        size = config.image_size
        self.logits = nn.Parameter(torch.zeros(config.num_levels, config.num_channels, size, size))
        self.post_init()

    def pixels(self, count):
        return CategoricalPixels(self.logits.expand(count, *self.logits.shape))

    def forward(self, pixel_values, return_loss=True):
        nats = -self.pixels(len(pixel_values)).log_prob(pixel_values)
        loss = nats_to_bits_per_dim(nats.mean(), self.config.num_dims) if return_loss else None
        return HistogramOutput(loss, nats)

    @torch.no_grad()
    def score(self, pixel_values, generator=None):
        return nats_to_bits_per_dim(self(pixel_values).negative_log_likelihood, self.config.num_dims)

    @torch.no_grad()
    def sample(self, num_images, generator=None, output="sample"):
        return self.pixels(num_images).draw(output, generator)


def measure(checkpoint, data, options):
    metrics = exact_metrics(checkpoint.model, data.test, options.batch_size)
    return Measured(metrics, {}, image_baselines(*data, checkpoint.model.config.num_levels))


def verify(checkpoint, data, options):
    return exact_metrics(checkpoint.model, data.test, options.batch_size)


def draw(checkpoint, data, results, seed):
    samples = prior_samples(checkpoint.model, NUM_SAMPLES, seed, ("sample",))["sample"]
    return {"samples": image_grid(samples, checkpoint.model.config.num_levels)}


def columns(results):
    return {"Bits/dim (exact)": show(results, "exact_bits_per_dim"), "Best baseline": best_baseline(results)[1]}


AutoConfig.register("histogram", HistogramConfig)
AutoModel.register(HistogramConfig, HistogramModel)
AutoImageProcessor.register(HistogramConfig, image_processor_classes={"pil": LevelsImageProcessor})

HISTOGRAM = Family(
    model_type="histogram",
    title="Histograms",
    classes={"HistogramModel": IMAGE_TASK},
    trainer=LikelihoodTrainer,
    make_parts=image_parts,
    load_data=image_data,
    measure=measure,
    verify=verify,
    draw=draw,
    columns=columns,
    template=Path(__file__).with_suffix(".md.jinja"),
    best_by=("digits", "exact_bits_per_dim"),
)
