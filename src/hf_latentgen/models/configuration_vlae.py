# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Configuration of the variational lossy autoencoder."""

from huggingface_hub.dataclasses import strict

from .configuration_latentgen import require
from .configuration_vae import VAEConfig

PIXEL_DECODERS = ("convolution", "neighborhood", "raster")


@strict
class VLAEConfig(VAEConfig):
    """Configuration of a [`VLAEModel`].

    Args, besides those of [`VAEConfig`]:
        decoder_radius (`int`, defaults to 3):
            how far back a pixel sees the image itself: at most this many rows above, and as many columns to each side.
            At 0 the model is a VAE, with a large radius a model of pixels.
        pixel_decoder (`str`, defaults to `"convolution"`):
            how a layer reads pixels. `"convolution"`: a masked convolution. `"neighborhood"`: attention to the
            same pixels. `"raster"`: attention to the last pixels in raster order, as many as the layer's radius has
            whole rows and some more, so that all of them see beyond `decoder_radius`.
        decoder_channels (`int`, defaults to 48): width of the pixel decoder.
        decoder_layers (`int`, defaults to 2): its layers. The levels of the pixels nearest are read first, then
            each layer reads values and states of pixels near; all of them divide the radius.
        decoder_heads (`int`, defaults to 4): heads of an attention.
    """

    model_type = "latentgen_vlae"

    architecture: str = "resnet"
    decoder_radius: int = 3
    pixel_decoder: str = "convolution"
    decoder_channels: int = 48
    decoder_layers: int = 2
    decoder_heads: int = 4

    @property
    def decoder_outputs(self) -> int:
        """What the decoder of the latents gives for each pixel and channel: a share of the pixel decoder's features."""
        return self.decoder_channels // self.num_channels

    @property
    def decoder_radii(self) -> list[int]:
        """How far the context and each layer of the pixel decoder read: together `decoder_radius`, evenly divided."""
        each, more = divmod(self.decoder_radius, 1 + self.decoder_layers)
        return [each + (part < more) for part in range(1 + self.decoder_layers)]

    def validate_decoder(self):
        """Raises `ValueError` if the fields of the pixel decoder are out of range."""
        kind, radius, heads = self.pixel_decoder, self.decoder_radius, self.decoder_heads
        require(kind in PIXEL_DECODERS, "pixel_decoder", kind, f"one of {PIXEL_DECODERS}")
        fits = 0 <= radius < self.image_size
        require(fits, "decoder_radius", radius, f"0 to {self.image_size - 1}, less than image_size")
        require(self.decoder_layers >= 1, "decoder_layers", self.decoder_layers, "at least 1")
        channels = self.decoder_channels
        require(heads >= 1, "decoder_heads", heads, "at least 1")
        divides = channels >= 1 and channels % heads == 0 and channels % self.num_channels == 0
        require(divides, "decoder_channels", channels, f"a multiple of decoder_heads ({heads}) and of num_channels")
