"""A compressed file names the model on the Hub that reads it, on another machine, and no other weights do."""

import copy

import numpy as np
import pytest
from huggingface_hub import constants

from hf_latentgen.coding import CompressedFileError, read_info
from hf_latentgen.rows.compression import compress_command, decompress_command

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.mark.parametrize("name", ["local-image", "vae", "local-text"])
def test_a_file_is_read_with_the_model_of_the_hub_that_it_names(hub, families, name, tmp_path, monkeypatch):
    model, processor = copy.deepcopy(families[name].model), families[name].processor
    for part in (model, processor):
        part.push_to_hub(f"ada/coded-{name}")
    first = hub.commits(f"ada/coded-{name}")[-1]
    if name == "local-text":
        source = tmp_path / "play.txt"
        source.write_bytes(b"to be or not to be")
        sources = [source]
    else:
        source = tmp_path / "images"
        source.mkdir()
        levels = np.random.default_rng(0).integers(0, 16, (3, 1, 8, 8))
        sources = [source / f"{number}.png" for number in range(3)]
        for path, image in zip(sources, processor.post_process_images(levels), strict=True):
            image.save(path)
    file = tmp_path / "a.hlg"
    compress_command(str(source), f"ada/coded-{name}", str(file), None, False, True, False)
    with file.open("rb") as opened:
        assert read_info(opened).header.model_id == f"ada/coded-{name}"

    def come_back(place, revision):
        # The other side has downloaded nothing yet.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"cache-{place}"))
        decompress_command(str(file), str(tmp_path / place), None, revision, False)
        return {path.name: path.read_bytes() for path in (tmp_path / place).iterdir()}

    expected = {path.name: path.read_bytes() for path in sources}
    assert come_back("same", None) == expected
    next(model.parameters()).data.view(-1)[0] += 1
    model.push_to_hub(f"ada/coded-{name}")
    with pytest.raises(CompressedFileError, match=rf"weights_sha256 must be .* ada/coded-{name} compressed"):
        come_back("other", None)
    assert come_back("revision", first.oid) == expected
