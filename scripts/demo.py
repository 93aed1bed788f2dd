"""Train the VAE on the embedded digits, score it, and leave the model, its pictures and its card in runs/demo.

python scripts/demo.py [training.num_train_epochs=20 ...]

What an earlier demo left in runs/demo is replaced.
"""

import shutil
import sys
from pathlib import Path

from hf_latentgen import load
from hf_latentgen.families.family import Options
from hf_latentgen.rows.cards import card_text
from hf_latentgen.rows.evaluation import evaluate, write_evaluation
from hf_latentgen.rows.recipes import load_recipe, train_recipe
from hf_latentgen_cli import one_line_errors, quiet


def main() -> None:
    """Train, evaluate and render the card; print the score beside the baselines, and where everything is."""
    folder = Path("runs", "demo")
    quiet()
    with one_line_errors():
        # Before anything is deleted: a mistake costs nothing.
        recipe = load_recipe("vae_digits", sys.argv[1:])
        shutil.rmtree(folder, ignore_errors=True)
        train_recipe(recipe, folder)
        options = Options(num_importance_samples=100)
        evaluation = evaluate(load(folder), options=options, command="python scripts/demo.py")
        write_evaluation(evaluation, folder, folder)
        (folder / "README.md").write_text(card_text(folder, "hf-latentgen/vae_digits"))
    results = evaluation.results
    print(f"\ntest score, all {results.num_images} images, one-sample bound, bits per dimension")
    print(f"  this VAE, trained for {results.train_seconds:.0f} s    {results.metrics['bits_per_dim']:.3f}")
    print(f"  before training                {results.diagnostics['untrained_bits_per_dim']:.3f}")
    print(f"  one distribution for each pixel {results.baseline['per_pixel_bits_per_dim']:.3f}")
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
