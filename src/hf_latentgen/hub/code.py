"""The code that travels with a checkpoint, so that it loads where this package is not installed."""

import ast
import hashlib
import tempfile
from pathlib import Path
from typing import Any, cast

from huggingface_hub import CommitOperationAdd
from transformers.dynamic_module_utils import custom_object_save

from hf_latentgen.hub.files import INDEX
from hf_latentgen.models import bits
from hf_latentgen.models.pipeline_latentgen import LatentGenPipeline, write_code


def save_with_code(pipe: LatentGenPipeline, folder: str | Path) -> Path:
    """The folder with the pipeline and the code that loads it where this package is not installed:

        DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)

    Each part lies in a folder of its own beside the one file that its class needs, with everything that the file
    imports of the package copied into it: diffusers fetches no second one.
    """
    if not isinstance(pipe, LatentGenPipeline):
        raise TypeError(f"pipe must be a LatentGenPipeline, got {type(pipe).__name__}")
    folder = Path(folder)
    pipe.save_pretrained(folder)
    write_code(pipe, folder, lambda part: single_file(part.__module__.split(".")[-1]))
    return folder


def pipeline_code(pipe: LatentGenPipeline) -> dict[str, bytes]:
    """The sources that a pipeline needs, and the index that names their classes. Contents by name."""
    with tempfile.TemporaryDirectory() as saved:
        folder = save_with_code(pipe, saved)
        sources = (folder / INDEX, *sorted(folder.rglob("*.py")))
        return {str(path.relative_to(folder)): path.read_bytes() for path in sources}


def model_code(model: Any, processor: Any) -> dict[str, bytes]:
    """The sources that the model needs, and the configurations that name its classes. Contents by name."""
    config = model.config
    for item, auto in ((config, "AutoConfig"), (model, config.auto_model), (processor, config.auto_processor)):
        # Of this object alone: registering its class would add code to whatever is saved from then on.
        item._auto_class = auto
    with tempfile.TemporaryDirectory() as saved:
        custom_object_save(model, saved, config)
        config.save_pretrained(saved)
        processor.save_pretrained(saved)
        return {path.name: path.read_bytes() for path in Path(saved).iterdir()}


def content_tag(contents: dict[str, Path | bytes]) -> str:
    """Name of a tag for these contents: other weights or other code have another one."""
    files = [CommitOperationAdd(*file) for file in sorted(contents.items())]
    text = "".join(f"{file.path_in_repo}\0{file.upload_info.sha256.hex()}\n" for file in files)
    return f"code-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def single_file(stem: str) -> str:
    """Text of a file in `models/` with those of the files that it imports from there in front, each once."""
    return "\n\n".join(_texts(stem, set()))


def _texts(stem: str, written: set[str]) -> list[str]:
    """Texts of a file and of what it imports that is not in `written`, without imports of each other."""
    written.add(stem)
    source = Path(bits.__file__).with_name(f"{stem}.py").read_text(encoding="utf-8")
    lines, before = source.splitlines(), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is not None:
            for number in range(node.lineno, cast(int, node.end_lineno) + 1):
                lines[number - 1] = ""
            if node.module not in written:
                before += _texts(node.module, written)
    return [*before, "\n".join(lines).strip() + "\n"]
