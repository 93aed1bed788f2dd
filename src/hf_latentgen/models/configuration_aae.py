# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Configuration of the adversarial autoencoders."""

from huggingface_hub.dataclasses import strict

from .configuration_image_autoencoder import ImageAutoencoderConfig
from .configuration_latentgen import require

RECONSTRUCTIONS = ("mse", "categorical")
POSTERIORS = ("deterministic", "gaussian")
PRIORS = ("gaussian", "flower", "swiss_roll")
PLANAR_PRIORS = ("flower", "swiss_roll")


@strict
class AAEConfig(ImageAutoencoderConfig):
    """Configuration of [`AAEModel`] and [`AAEForImageClassification`]; its defaults are the course networks.

    Args, besides those of [`ImageAutoencoderConfig`], with `num_levels` 256, `latent_dim` 8, `hidden_act` "relu":
        reconstruction_weight (`float`, defaults to 0.995):
            lambda in `loss = lambda * reconstruction + (1 - lambda) * adversarial`. At 1 there is no adversary, at 0
            the reconstruction is measured but not optimised.
        reconstruction (`str`, defaults to `"mse"`):
            `"mse"`: the decoder ends with Tanh, the error is the squared one on [-1, 1]. `"categorical"`: the decoder
            gives a distribution over the levels of each pixel, as that of a VAE does.
        posterior (`str`, defaults to `"deterministic"`): `"deterministic"` or `"gaussian"` (diagonal).
        prior (`str`, defaults to `"gaussian"`):
            distribution that the codes are driven to: `"gaussian"` (standard), or in the plane `"flower"` (a mixture
            with a Gaussian for each class) and `"swiss_roll"`.
        labelled_prior (`bool`, defaults to `False`):
            the discriminator is told the class of an image and the part of the prior a sample comes from
            (`"flower"` and `"swiss_roll"`, with `num_labels` parts).
        discriminator_channels (`tuple`, defaults to `(512, 512)`):
            widths of the discriminator's hidden layers. The networks of the paper are `architecture="mlp"` with
            `hidden_channels=(1000, 1000)` and `discriminator_channels=(1000, 1000)`.
        discriminator_noise_std (`float`, defaults to 0.0): Gaussian noise on the discriminator's input in training.
        input_noise_std (`float`, defaults to 0.0): Gaussian noise on the images, scaled to [-1, 1], in training.
        input_shift (`int`, defaults to 0):
            the encoder sees each image shifted by up to this many pixels in both directions in training, black coming
            in; the decoder learns to put it back.
        input_affine_std (`float`, defaults to 0.0):
            the encoder sees each image through its own affine map of the plane in training: Gaussian noise of this
            standard deviation on the four coefficients of the identity, so that images are turned, sheared and scaled
            a little; the decoder learns to undo it.
        consistency_weight (`float`, defaults to 0.0):
            weight of the cross-entropy between the class codes of two views of each image, shifted, mapped and
            disturbed on their own in training (classifier only).
        balance_weight (`float`, defaults to 0.0):
            weight of minus the entropy of the mean class code of a batch in training: it keeps all classes in use
            (classifier only).
        supervised_weight (`float`, defaults to 1.0): weight of the cross-entropy of labelled images (classifier only).
        class_batch_norm (`bool`, defaults to `False`):
            the logits of the class code are normalised over the batch, so that no class can win or lose all images
            before the encoder has learned to tell them apart; a batch must hold two images in training (classifier
            only).
        num_clusters (`int`, *optional*): classes that are found without labels (classifier only).
        cluster_labels (`tuple`, *optional*): class that each cluster was named after training.
    """

    model_type = "latentgen_aae"
    keys_to_ignore_at_inference = ["latents", "decoded"]

    num_levels: int = 256
    latent_dim: int = 8
    hidden_act: str = "relu"
    reconstruction_weight: float | int = 0.995
    reconstruction: str = "mse"
    posterior: str = "deterministic"
    prior: str = "gaussian"
    labelled_prior: bool = False
    discriminator_channels: list[int] | tuple[int, ...] = (512, 512)
    discriminator_noise_std: float | int = 0.0
    input_noise_std: float | int = 0.0
    input_shift: int = 0
    input_affine_std: float | int = 0.0
    consistency_weight: float | int = 0.0
    balance_weight: float | int = 0.0
    supervised_weight: float | int = 1.0
    class_batch_norm: bool = False
    num_clusters: int | None = None
    cluster_labels: list[int] | tuple[int, ...] | None = None

    @property
    def auto_model(self) -> str:
        """Name of the Auto class of transformers that makes the model: `architectures` names a classifier."""
        classifies = any("Classification" in name for name in self.architectures or [])
        return "AutoModelForImageClassification" if classifies else "AutoModel"

    def described(self) -> dict:
        """The fields of [`LatentGenConfig.described`], the number of classes and, of a classifier, their names."""
        described = super().described() | {"num_labels": self.num_classes}
        if self.auto_model == "AutoModelForImageClassification":
            described["id2label"] = {str(number): name for number, name in (self.id2label or {}).items()}
        return described

    @property
    def num_classes(self) -> int:
        """Number of classes: what transformers calls `num_labels`."""
        return len(self.id2label or {})

    def validate_objective(self):
        """Raises `ValueError` if a field of the objective is unknown or out of range."""
        weight = self.reconstruction_weight
        require(0 <= weight <= 1, "reconstruction_weight", weight, "in [0, 1]")
        kind = self.reconstruction
        require(kind in RECONSTRUCTIONS, "reconstruction", kind, f"one of {RECONSTRUCTIONS}")
        require(self.posterior in POSTERIORS, "posterior", self.posterior, f"one of {POSTERIORS}")
        for field, value in (
            ("discriminator_noise_std", self.discriminator_noise_std),
            ("input_noise_std", self.input_noise_std),
            ("input_affine_std", self.input_affine_std),
            ("consistency_weight", self.consistency_weight),
            ("balance_weight", self.balance_weight),
            ("supervised_weight", self.supervised_weight),
        ):
            require(0 <= value < float("inf"), field, value, "at least 0 and finite")
        shift = self.input_shift
        require(0 <= shift < self.image_size, "input_shift", shift, "at least 0 and below image_size")

    def validate_adversary(self):
        """Raises `ValueError` if prior, latents and discriminator do not fit each other."""
        require(self.prior in PRIORS, "prior", self.prior, f"one of {PRIORS}")
        if self.prior in PLANAR_PRIORS:
            require(self.latent_dim == 2, "latent_dim", self.latent_dim, f"2 for prior={self.prior!r}")
            if self.prior == "flower":
                # Two classes are the default of transformers, and two petals are no flower.
                require(self.num_classes >= 3, "num_labels", self.num_classes, "at least 3, one petal for each class")
        elif self.labelled_prior:
            require(False, "prior", self.prior, f"one of {PLANAR_PRIORS} when labelled_prior is set")
        widths = self.discriminator_channels
        allowed = "one or more widths of at least 1"
        require(len(widths) > 0 and min(widths) >= 1, "discriminator_channels", widths, allowed)

    def validate_clusters(self):
        """Raises `ValueError` if clusters and their names do not fit each other."""
        if self.num_clusters is not None:
            require(self.num_clusters >= 2, "num_clusters", self.num_clusters, "at least 2, or None")
        names = self.cluster_labels
        if names is not None:
            require(self.num_clusters is not None, "cluster_labels", names, "None without num_clusters")
            allowed = f"{self.num_clusters} classes in 0 ... {self.num_classes - 1}, one for each of num_clusters"
            fits = len(names) == self.num_clusters and all(0 <= name < self.num_classes for name in names)
            require(fits, "cluster_labels", names, allowed)
