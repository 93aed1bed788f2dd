"""The path that large files take to the Hub by default: chunks in a content-addressed store, here a local folder."""

import hashlib

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_weights_go_through_xet_and_come_back(hub, run_client, rows, tmp_path):
    hf_xet = pytest.importorskip("hf_xet", reason="hf_xet is not installed: large files go to the Hub over LFS")
    weights = rows / "vae" / "model.safetensors"
    # The Hub asks its store for this; here the store is a folder that only hf_xet reads.
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    hub.xet_hashes = {sha256: hf_xet.hash_files([str(weights)])[0].hash}
    hub.xet_store = str(tmp_path / "store")
    run_client("xet", rows / "vae", HF_HUB_DISABLE_XET="0")
    assert hub.repositories["models", "ada/xet"].find("main").files["model.safetensors"].oid == sha256
    assert sha256 not in hub.blobs
    asked = [call.path.split("/")[5] for call in hub.server.requests if "xet" in call.path and "token" in call.path]
    assert set(asked) == {"xet-write-token", "xet-read-token"}
