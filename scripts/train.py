"""Train a row, as `hf-latentgen train` does; a file, so that `accelerate launch` can start it on several devices.

python scripts/train.py configs/vae_digits.yaml training.num_train_epochs=2
"""

import gc
import sys

from accelerate import PartialState

from hf_latentgen_cli import app


def main() -> None:
    """Train; a mistake ends with one line that says what is allowed."""
    app(["train", *sys.argv[1:]], standalone_mode=False)
    # Gloo's threads end with the last reference to the group, which a trained model may hold in a cycle. A thread that
    # still runs while the interpreter ends can abort the process.
    gc.collect()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
