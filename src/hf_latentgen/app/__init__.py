"""The demo: a page on which people try trained models. `hf-latentgen app` serves it."""

from collections.abc import Sequence
from importlib.util import find_spec


def serve_demo(checkpoints: Sequence[str], port: int | None = None, data_dir: str | None = None) -> None:
    """Load checkpoints, those of the clone when none is named, and serve the page until it is stopped.

    Raises:
        ImportError: gradio is not installed.
        ValueError: no checkpoint is at hand, or one of them does not load.
    """
    if find_spec("gradio") is None:
        raise ImportError('the demo needs gradio: install hf-latentgen with the extra "app"')
    from hf_latentgen.app.checkpoints import default_checkpoints, load_checkpoints
    from hf_latentgen.app.interface import build, launch

    launch(build(load_checkpoints(list(checkpoints) or default_checkpoints(), data_dir)), port)
