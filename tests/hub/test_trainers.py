"""Every trainer, and the command, pushes the averaged weights, and trains on with its own."""

import pytest

FAMILIES = ["vae", "aae", "aae-classifier", "local-text", "local-image", "prior", "command"]


@pytest.mark.timeout(300)
def test_averaged_weights_are_pushed_and_training_weights_come_back(hub, run_client, repository, tmp_path):
    lines = run_client("train_all", tmp_path, repository).splitlines()
    assert [line for line in lines if line in FAMILIES] == FAMILIES
    for name in FAMILIES:
        assert "model.safetensors" in hub.files(f"ada/all-{name}") or name == "prior"
        assert not any(path.endswith((".bin", ".pt")) for path in hub.files(f"ada/all-{name}"))
