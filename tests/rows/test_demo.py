import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_demo_leaves_a_loadable_model_its_pictures_and_a_card_and_prints_the_score(tmp_path):
    left_before = tmp_path / "runs" / "demo" / "of_an_earlier_demo.txt"
    left_before.parent.mkdir(parents=True)
    left_before.touch()
    steps = ["training.max_steps=4", "training.eval_steps=2", "training.save_steps=2"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", *steps],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "demo"
    assert not left_before.exists()
    images = {path.name for path in (folder / "images").iterdir()}
    assert {"samples.png", "reconstructions.png", "manifold.png"} <= images
    score = json.loads((folder / "results.json").read_text())["metrics"]["bits_per_dim"]
    assert f"{score:.3f}" in done.stdout
    assert f"{score:.4f}" in (folder / "README.md").read_text()
    assert (folder / "model.safetensors").is_file()
    assert str(Path("runs", "demo", "README.md")) in done.stdout
