"""Trains a row: python scripts/train.py configs/vae_digits.yaml [training.num_train_epochs=2 ...]

To start from a published model, on the images of a folder or of a data set on the Hub:

    python scripts/train.py configs/vae_digits.yaml dataset.name=path/to/images --from model_cards/vae_digits
"""

import argparse
import sys

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError

from hf_latentgen.training.recipes import load_recipe, train_recipe


def main() -> None:
    """Parses the command line and trains; a mistake in it ends with one line that says what is allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of the row, such as configs/vae_digits.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    parser.add_argument("--output_dir", help="folder for checkpoints and results (default: runs/<row>)")
    parser.add_argument("--data_dir", help="folder with local data files (default: $HF_LATENTGEN_DATA)")
    parser.add_argument("--from", dest="checkpoint", metavar="CHECKPOINT", help="folder or Hub id to start from")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    # Overrides may stand before and after the options.
    arguments = parser.parse_intermixed_args()
    try:
        recipe = load_recipe(arguments.config, arguments.overrides)
        folder = train_recipe(
            recipe, arguments.output_dir, arguments.data_dir, arguments.checkpoint, resume=arguments.resume
        )
    except (ValueError, OSError, FloatingPointError, StrictDataclassError) as error:
        sys.exit(f"error: {error}")
    process = PartialState()
    process.print(f"trained model, image processor and run.json: {folder}")
    # Gloo's threads may still hold tensors; should they free one while the interpreter ends, the process would abort.
    process.destroy_process_group()


if __name__ == "__main__":
    main()
