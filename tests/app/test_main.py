import pytest

from hf_latentgen.app import __main__ as program
from hf_latentgen.app import checkpoints


def test_mistakes_end_with_one_line(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason='gradio is not installed: pip install -e ".[app]"')
    monkeypatch.setattr(program, "default_checkpoints", lambda: checkpoints.default_checkpoints(tmp_path))
    with pytest.raises(SystemExit, match="error: CHECKPOINT must be given"):
        program.main([])
    (tmp_path / "row").mkdir()
    with pytest.raises(SystemExit, match=r"error: .*config.json"):
        program.main([str(tmp_path / "row")])


@pytest.mark.parametrize("port", ["99999", "65536", "0", "-1"])
def test_a_port_that_cannot_be_is_refused_in_one_line(port, monkeypatch, capsys):
    monkeypatch.setattr(program, "load_checkpoints", lambda *_: pytest.fail("loaded before the port was read"))
    with pytest.raises(SystemExit) as ended:
        program.main(["nowhere", "--port", port])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: --port must be in 1 ... 65535, got {port}\n")


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(program, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=r"error: the demo needs gradio: pip install \"hf-latentgen\[app\]\""):
        program.main([])


def test_the_help_names_the_arguments(capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("checkpoint", "--port", "--data-dir", "python -m hf_latentgen.app"))
