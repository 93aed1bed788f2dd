"""The command that serves the demo, up to the moment at which it serves."""

import pytest
from typer.testing import CliRunner

from hf_latentgen import app as demo
from hf_latentgen.app import checkpoints
from hf_latentgen.hub import loading
from hf_latentgen_cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["app", *arguments])


def test_mistakes_end_with_one_line(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason='gradio is not installed: pip install -e ".[app]"')
    monkeypatch.setattr(loading, "ROWS", tmp_path / "nowhere")
    ended = run()
    assert ended.exit_code == 1
    assert ended.output.startswith("error: CHECKPOINT must be given")
    (tmp_path / "row").mkdir()
    ended = run(str(tmp_path / "row"))
    assert ended.exit_code == 1
    assert "row/config.json does not exist" in ended.output
    assert len(ended.output.splitlines()) == 1


@pytest.mark.parametrize("port", ["99999", "65536", "0", "-1"])
def test_a_port_that_cannot_be_is_refused(port, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_checkpoints", lambda *_: pytest.fail("loaded before the port was read"))
    ended = run("nowhere", "--port", port)
    assert ended.exit_code == 2
    assert "--port" in ended.output
    assert ("65535" if int(port) > 1 else "1") in ended.output


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    ended = run()
    assert ended.exit_code == 1
    assert ended.output == 'error: the demo needs gradio: install hf-latentgen with the extra "app"\n'
