"""Draws images from the prior of a model and writes them as one PNG grid.

python scripts/sample.py model_cards/vae_digits --num-images 64 --seed 1
python scripts/sample.py model_cards/vae_digits --output mean --file means.png
"""

import argparse
import sys

import torch

from hf_latentgen.evaluation.checkpoints import load_checkpoint
from hf_latentgen.evaluation.pictures import image_grid
from hf_latentgen.models.distributions import OUTPUTS
from hf_latentgen.models.modeling_aae import AAEModel
from hf_latentgen.models.modeling_local_transformer_image import LocalTransformerForImageGeneration
from hf_latentgen.models.modeling_vae import VAEModel


def main(argv: list[str] | None = None) -> None:
    """Parses the command line and samples; a mistake in it ends with one line that says what is allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub id of a model")
    parser.add_argument("--num-images", "--num_images", type=int, default=64, help="(default: 64)")
    parser.add_argument("--columns", type=int, default=8, help="images in a row (default: 8)")
    parser.add_argument("--output", choices=OUTPUTS, default="sample", help="draw each pixel, or its mode or mean")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the latents, or the logits (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--file", default="samples.png", help="PNG file to write (default: samples.png)")
    arguments = parser.parse_args(argv)
    try:
        model, _ = load_checkpoint(arguments.checkpoint)
        generator = torch.Generator().manual_seed(arguments.seed)
        if isinstance(model, VAEModel | LocalTransformerForImageGeneration):
            levels = model.sample(arguments.num_images, generator, arguments.output, arguments.temperature)
        elif not isinstance(model, AAEModel):
            raise ValueError(f"checkpoint must be a model of images, got {type(model).__name__}")
        elif arguments.temperature == 1:
            levels = model.sample(arguments.num_images, generator, arguments.output)
        else:
            raise ValueError(f"temperature must be 1 for an adversarial autoencoder, got {arguments.temperature}")
        image_grid(levels, model.config.num_levels, arguments.columns).save(arguments.file, format="PNG")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(arguments.file)


if __name__ == "__main__":
    main()
