# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""The adversarial autoencoder that classifies, with few labels or none."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import can_return_tuple

from .configuration_aae import AAEConfig
from .configuration_latentgen import require
from .distributions import DiagonalGaussian, PointMass
from .modeling_aae import UNLABELLED, AAEModel, AAEOutput, Adversary
from .modeling_latentgen import check_at_least
from .networks import Discriminator
from .priors import OneHot


class AAEForImageClassification(AAEModel):
    """Semi-supervised adversarial autoencoder: a class code and a style, each with its own discriminator.

    The encoder gives the probabilities of the classes y and a style z; the decoder reads both. One discriminator drives
    y to the corners of the simplex, all equally likely, the other drives z to its prior. Images with a label add their
    cross-entropy. Without any labels and with `num_clusters` the classes are clusters, which get their names later.
    With `consistency_weight` the class codes of two views of an image are drawn to each other, which is not in the
    paper: what is left for them to tell apart is what turning, shearing and shifting do not change. `balance_weight`
    keeps clusters from merging over it.

    Source: Makhzani et al. (2015), sections 5 and 6; for two views Hu et al. (2017), Learning Discrete Representations
    via Information Maximizing Self-Augmented Training, and Ji et al. (2019), Invariant Information Clustering.
    """

    hub_task = "image-classification"

    def __init__(self, config: AAEConfig):
        if config.labelled_prior:
            raise ValueError("labelled_prior must be False for AAEForImageClassification, whose class code is separate")
        super().__init__(config)

    def _make_networks(self) -> None:
        config = self.config
        self.num_codes = config.num_clusters or config.num_classes
        require(self.num_codes >= 2, "num_labels", self.num_codes, "at least 2, between which a classifier tells")
        super()._make_networks(self.num_codes)
        self.class_prior = OneHot(self.num_codes, self.num_codes)
        self.class_discriminator = Discriminator(self.num_codes, config.discriminator_channels)
        self.code_norm = nn.BatchNorm1d(self.num_codes) if config.class_batch_norm else nn.Identity()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        sample_posterior: bool | None = None,
        sample_prior: bool | None = None,
        generator: torch.Generator | None = None,
        return_loss: bool | None = None,
    ) -> AAEOutput:
        """The losses of each image, the class logits, and the objective.

        Arguments as in [`AAEModel.forward`], but every label other than -100 adds
        `supervised_weight * cross-entropy` to the objective; the sum over labelled images is divided by the whole
        batch. When `return_loss` is None there is a loss while training and with labels, as of any classifier: a
        pipeline divides an output into its images, and a loss is of none.

        Raises:
            ValueError: bad levels, labels out of range, or labels for a model with `num_clusters`.
        """
        self._check_levels(pixel_values)
        self._check_labels(labels, pixel_values.shape[0])
        if labels is not None and self.config.num_clusters is not None:
            raise ValueError(f"labels must be None with num_clusters={self.config.num_clusters}, got some")
        views = [self._view(pixel_values, generator)]
        if self.training and self.config.consistency_weight > 0:
            views.append(self._view(pixel_values, generator))
        batch_size = pixel_values.shape[0]
        all_logits, all_parameters = self._encode_both(*views, generator=generator)
        code_logits, parameters = all_logits[:batch_size], all_parameters[:batch_size]
        posterior = self._posterior(parameters)
        styles = posterior.sample(generator) if self._stochastic(sample_posterior) else posterior.mean
        classes = code_logits.softmax(1)
        output = self._decoded_output(pixel_values, torch.cat([classes, styles], 1))
        adversaries = [
            Adversary(styles, self.discriminator, self.prior, None),
            Adversary(classes, self.class_discriminator, self.class_prior, None),
        ]
        self._judge(output, adversaries, self._stochastic(sample_prior), generator)
        output.logits = self._class_logits(code_logits)
        if labels is not None:
            output.supervised_loss = F.cross_entropy(
                code_logits, labels.long(), ignore_index=UNLABELLED, reduction="none"
            )
        if len(views) == 2:
            output.consistency_loss = symmetric_cross_entropy(code_logits, all_logits[batch_size:])
        if self.training and self.config.balance_weight > 0:
            # Over the batch, the mean of p log(mean p) is minus the entropy of the mean.
            log_codes = all_logits.log_softmax(1)
            log_mean = log_codes.logsumexp(0) - math.log(len(log_codes))
            output.balance_loss = (log_codes.exp() * log_mean).sum(1).view(len(views), batch_size).mean(0)
        if self.training or labels is not None if return_loss is None else return_loss:
            output.loss = self._objective(output)
        return output

    def encode(self, pixel_values: Tensor) -> DiagonalGaussian | PointMass:
        """The posterior of the style of each image. Mean and standard deviation [B, latent_dim]."""
        self._check_levels(pixel_values)
        return self._posterior(self._encode_both(pixel_values)[1])

    def posterior(self, pixel_values: Tensor) -> PointMass:
        """Class probabilities and the mean of the style of each image, concatenated. [B, num_codes + latent_dim]."""
        self._check_levels(pixel_values)
        code_logits, parameters = self._encode_both(pixel_values)
        return PointMass(torch.cat([code_logits.softmax(1), self._posterior(parameters).mean], 1))

    @torch.no_grad()
    def classify(self, pixel_values: Tensor) -> Tensor:
        """Logits of the classes of each image, as in `forward`, but nothing is decoded. [B, num_labels]."""
        self._check_levels(pixel_values)
        return self._class_logits(self._encode_both(pixel_values)[0])

    @torch.no_grad()
    def code_probabilities(self, pixel_values: Tensor) -> Tensor:
        """Probability of each class code (each cluster, for a model with clusters) of each image. [B, num_codes]."""
        return self.posterior(pixel_values).mean[:, : self.num_codes]

    @property
    def num_sample_classes(self) -> int:
        """How many classes, or clusters, `sample` can be asked for."""
        return self.num_codes

    @property
    def code_names(self) -> list[str]:
        """What each class code stands for: the name of its class, of a cluster without a name its number."""
        labels = self.config.cluster_labels if self.config.num_clusters else range(self.num_codes)
        if labels is None:
            return [str(number) for number in range(self.num_codes)]
        names = cast(dict[int, str], self.config.id2label)
        # As transformers calls a class without a name.
        return [names[label].removeprefix("LABEL_") for label in labels]

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        generator: torch.Generator | None = None,
        output: str = "sample",
        labels: Tensor | None = None,
    ) -> Tensor:
        """Images of drawn styles and class codes, as levels. [num_images, C, H, W].

        Arguments as in [`AAEModel.sample`]; `labels` are the class codes (clusters, for a model with clusters), drawn
        when None.

        Raises:
            ValueError: an argument is out of range.
        """
        check_at_least("num_images", num_images, 1)
        like = torch.empty(0, device=self.device)
        if labels is not None:
            is_whole = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
            wrong = (
                not is_whole
                or tuple(labels.shape) != (num_images,)
                or ((labels < 0) | (labels >= self.num_codes)).any()
            )
            if wrong:
                allowed = f"{num_images} class codes in 0 ... {self.num_codes - 1}"
                given = labels.tolist() if isinstance(labels, Tensor) else labels
                raise ValueError(f"labels must be {allowed}, got {given}")
        classes = self.class_prior.sample(num_images, like, generator, labels)
        styles = self.prior.sample(num_images, like, generator)
        return self.decode(torch.cat([classes, styles], 1)).draw(output, generator)

    @torch.no_grad()
    def style_grid(self, num_styles: int, generator: torch.Generator | None = None, output: str = "mean") -> Tensor:
        """Images of drawn styles, each with every class code, as levels. [num_styles * num_codes, C, H, W].

        Row by row: one style a row, one class a column. Source: Makhzani et al. (2015), figure 7.

        Raises:
            ValueError: `num_styles` is below 1, or the output is unknown.
        """
        check_at_least("num_styles", num_styles, 1)
        like = torch.empty(0, device=self.device)
        styles = self.prior.sample(num_styles, like, generator).repeat_interleave(self.num_codes, 0)
        classes = torch.eye(self.num_codes, device=self.device).repeat(num_styles, 1)
        return self.decode(torch.cat([classes, styles], 1)).draw(output, generator)

    def _encode_both(self, *views: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the class codes of each image [B, num_codes], and the parameters of its style, view after view."""
        if self.training and self.config.class_batch_norm and views[0].shape[0] < 2:
            raise ValueError("pixel_values must hold at least 2 images in training with class_batch_norm, got 1")
        # One pass for all views, so that they are normalised together.
        code_logits, parameters = self._encode(torch.cat(views), generator).tensor_split([self.num_codes], 1)
        return self.code_norm(code_logits.to(self.dtype)).float(), parameters

    def _class_logits(self, code_logits: Tensor) -> Tensor:
        """Logits of the classes: those of the codes, or of named clusters summed over the clusters of a class."""
        names = self.config.cluster_labels
        if names is None:
            return code_logits
        member = F.one_hot(torch.as_tensor(names, device=code_logits.device), self.config.num_classes).bool()
        # A class without a cluster gets a very low, finite logit.
        log_probabilities = code_logits.log_softmax(1).unsqueeze(2).expand(-1, -1, self.config.num_classes)
        return log_probabilities.masked_fill(~member, -1e4).logsumexp(1)

    def _objective(self, output: AAEOutput) -> Tensor:
        objective = super()._objective(output)
        if output.supervised_loss is not None:
            objective = objective + self.config.supervised_weight * output.supervised_loss.mean()
        if output.consistency_loss is not None:
            objective = objective + self.config.consistency_weight * output.consistency_loss.mean()
        if output.balance_loss is not None:
            objective = objective + self.config.balance_weight * output.balance_loss.mean()
        return objective


def symmetric_cross_entropy(first: Tensor, second: Tensor) -> Tensor:
    """Mean of the cross-entropies of either distribution against the other, in nats, of logits [B, K]. [B].

    It is least where both are the same corner of the simplex: it makes codes agree, and sure.
    """
    one = F.cross_entropy(second, first.softmax(1), reduction="none")
    return (one + F.cross_entropy(first, second.softmax(1), reduction="none")) / 2
