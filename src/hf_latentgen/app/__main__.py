"""Serves the demo: python -m hf_latentgen.app [CHECKPOINT ...].

python -m hf_latentgen.app                                   the trained models of model_cards/
python -m hf_latentgen.app runs/mine hf-latentgen/vae_digits  folders and Hub ids
"""

import argparse
import sys
from importlib.util import find_spec

from hf_latentgen.app.checkpoints import default_checkpoints, load_checkpoints


def main(argv: list[str] | None = None) -> None:
    """Loads the checkpoints and serves until it is stopped; a mistake ends with one line that says what is allowed."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_latentgen.app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="*", help="folder or Hub id of a model (default: those of model_cards/)")
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    parser.add_argument("--data-dir", "--data_dir", help="folder with mnist/ and so on (default: HF_LATENTGEN_DATA)")
    arguments = parser.parse_args(argv)
    if arguments.port is not None and not 0 < arguments.port < 65536:
        parser.error(f"--port must be in 1 ... 65535, got {arguments.port}")
    if find_spec("gradio") is None:
        sys.exit('error: the demo needs gradio: pip install "hf-latentgen[app]"')
    from hf_latentgen.app.interface import build, launch

    try:
        checkpoints = load_checkpoints(arguments.checkpoint or default_checkpoints(), arguments.data_dir)
        launch(build(checkpoints), arguments.port)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
