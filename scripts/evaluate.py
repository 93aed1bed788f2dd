"""Scores a checkpoint on the full test split and writes results.json, pictures and copies of the model files.

python scripts/evaluate.py runs/vae_digits
python scripts/evaluate.py runs/vae_mnist_4bit --num-importance-samples 5000
"""

import argparse
import shlex
import sys
from pathlib import Path

from hf_latentgen.evaluation.results import evaluate_checkpoint


def main(argv: list[str] | None = None) -> None:
    """Parses the command line and evaluates; a mistake in it ends with one line that says what is allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder that scripts/train.py wrote, such as runs/vae_digits")
    parser.add_argument("--output-dir", "--output_dir", help="folder to write (default: model_cards/<row>)")
    parser.add_argument("--split", default="test", help="split to score, all of its images (default: test)")
    parser.add_argument("--batch-size", "--batch_size", type=int, default=128, help="images at once (default: 128)")
    parser.add_argument(
        "--num-importance-samples",
        "--num_importance_samples",
        type=int,
        default=500,
        help="K of the importance-weighted likelihood (default: 500)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the pass that is repeated K times (needs a C++ compiler)"
    )
    parser.add_argument(
        "--classifier", help="in-domain classifier that judges the samples of an AAE (default: no such scores)"
    )
    parser.add_argument(
        "--draws", nargs="+", default=[], help="folders of the same recipe trained with other labels or seeds"
    )
    parser.add_argument("--data-dir", "--data_dir", help="folder with local data files (default: $HF_LATENTGEN_DATA)")
    parser.add_argument("--seed", type=int, default=0, help="of every random number (default: 0)")
    arguments = parser.parse_args(argv)
    try:
        folder = evaluate_checkpoint(
            arguments.checkpoint,
            arguments.output_dir,
            split=arguments.split,
            batch_size=arguments.batch_size,
            num_importance_samples=arguments.num_importance_samples,
            compile_likelihood=arguments.compile,
            classifier=arguments.classifier,
            draws=arguments.draws,
            data_dir=arguments.data_dir,
            seed=arguments.seed,
            command=command_line(parser, arguments),
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"results.json and images: {folder}")


def command_line(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The command that gives the same numbers elsewhere: without folders of this machine, and without defaults."""
    checkpoint = Path(arguments.checkpoint)
    if checkpoint.is_absolute():
        inside = checkpoint.is_relative_to(Path.cwd())
        checkpoint = checkpoint.relative_to(Path.cwd()) if inside else Path(checkpoint.name)
    words = ["python", "scripts/evaluate.py", str(checkpoint)]
    for name in ("split", "batch_size", "num_importance_samples", "classifier", "seed"):
        value = vars(arguments)[name]
        if value != parser.get_default(name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--draws", *(f"runs/{Path(draw).name}" for draw in arguments.draws)] if arguments.draws else []
    words += ["--compile"] if arguments.compile else []
    return shlex.join(words)


if __name__ == "__main__":
    main()
