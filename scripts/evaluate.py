"""Score a checkpoint in Python: load, evaluate, write. `hf-latentgen evaluate` does the same from the command line.

python scripts/evaluate.py model_cards/vae_digits
"""

import sys
from pathlib import Path

from hf_latentgen import load
from hf_latentgen.evaluation.metrics import show
from hf_latentgen.rows.evaluation import evaluate, write_evaluation


def main(name: str, output_dir: str = "runs/evaluated") -> None:
    """Print the bound or the exact score of a checkpoint, and write everything that was measured."""
    checkpoint = load(name)
    evaluation = evaluate(checkpoint, split="test", command=f"python scripts/evaluate.py {name}")
    for metric in evaluation.results.metrics:
        print(f"{metric}: {show(evaluation.results, metric)}")
    print(write_evaluation(evaluation, checkpoint.folder, Path(output_dir)))


if __name__ == "__main__":
    main(*sys.argv[1:])
