"""Draw images in Python and save them as one grid. `hf-latentgen sample` does the same from the command line.

python scripts/sample.py model_cards/vae_digits
"""

import sys

import torch

from hf_latentgen import LatentGenPipeline
from hf_latentgen.evaluation.pictures import image_grid


def main(name: str, file: str = "samples.png") -> None:
    """Draw 64 images, whatever the family of the checkpoint."""
    pipe = LatentGenPipeline.from_pretrained(name)
    levels = pipe(batch_size=64, generator=torch.Generator().manual_seed(0), output_type="pt", return_dict=False)[0]
    image_grid(levels, pipe.model.config.num_levels).save(file)
    print(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
