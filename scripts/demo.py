"""Trains the VAE on the embedded digits, scores it, and leaves the model, its pictures and its card in runs/demo.

python scripts/demo.py [training.num_train_epochs=20 ...]

What an earlier demo left in runs/demo is replaced.
"""

import json
import shutil
import sys
from pathlib import Path

from hf_latentgen.cards.model_card import card_text
from hf_latentgen.evaluation.results import evaluate_checkpoint
from hf_latentgen.training.recipes import load_recipe, train_recipe

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Trains, evaluates and renders the card; prints the score beside the floor, and where everything is."""
    folder = Path("runs", "demo")
    shutil.rmtree(folder, ignore_errors=True)
    recipe = load_recipe(ROOT / "configs" / "vae_digits.yaml", sys.argv[1:])
    train_recipe(recipe, folder)
    evaluate_checkpoint(folder, folder, num_importance_samples=100, command="python scripts/demo.py")
    (folder / "README.md").write_text(card_text(folder, "hf-latentgen/vae_digits"))
    results = json.loads((folder / "results.json").read_text())
    metrics, floor = results["metrics"], results["floor"]
    print(f"\ntest score, all {results['num_images']} images, one-sample bound, bits per dimension")
    print(f"  this VAE, trained for {results['train_seconds']:.0f} s    {metrics['bits_per_dim']:.3f}")
    print(f"  before training                {results['diagnostics']['untrained_bits_per_dim']:.3f}")
    print(f"  one distribution for each pixel {floor['per_pixel_bits_per_dim']:.3f}")
    print("\nlook at")
    for name, what in (
        ("images/samples.png", "samples from the prior"),
        ("images/reconstructions.png", "test digits, each above its reconstruction"),
        ("images/manifold.png", "the latent plane, decoded"),
        ("README.md", "the model card"),
    ):
        print(f"  {folder / name!s:36} {what}")
    print(f'\nload it: VAEModel.from_pretrained("{folder}")')


if __name__ == "__main__":
    main()
