"""Every example in README.md runs, and every command there and on the model cards names what exists.

The examples of the cards are run by `hub/test_cards.py`.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    path for path in [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("model_cards/*/README.md"))] if path.is_file()
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A model on the Hub under the project's name; in a clone the same files lie in model_cards/<row>.
HUB_ID = re.compile(r"(?<=[\"'])hf-latentgen/([\w.-]+)(?=[\"'])")
DATA_SET = re.compile(r"load_images\(\s*[\"'](\w+)[\"']")
# The only data set that needs neither the network nor files.
EMBEDDED = "digits"
FOLDERS = ("benchmarks/", "configs/", "model_cards/", "scripts/", "src/", "tests/", ".ci/")
SECONDS = 100


class Block(NamedTuple):
    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def find_blocks(pages: list[Path], language: str, root: Path = REPOSITORY) -> list[Block]:
    return [
        Block(str(page.relative_to(root)), text[: match.start()].count("\n") + 1, match[2])
        for page in pages
        for text in [page.read_text(encoding="utf-8")]
        for match in FENCE.finditer(text)
        if match[1] == language
    ]


def missing_weights(code: str, root: Path = REPOSITORY) -> list[str]:
    """The rows that an example loads and whose weights are not in the clone."""
    rows = set(HUB_ID.findall(code)) | set(re.findall(r"[\"']model_cards/([\w.-]+)[\"']", code))
    return sorted(row for row in rows if not any((root / "model_cards" / row).rglob("*.safetensors")))


def run_example(code: str, folder: Path, root: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run an example as if in the repository; `folder` gets links to what that holds, and keeps what is written."""
    for entry in root.iterdir():
        if entry.name not in {".git", ".venv", "runs"}:
            (folder / entry.name).symlink_to(entry)
    local = HUB_ID.sub(lambda match: f"model_cards/{match[1]}", code)
    command = [sys.executable, "-c", local]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)


def unknown_names(commands: str, root: Path = REPOSITORY) -> list[str]:
    """Words of a shell block that look like a file of the repository or a make target and are none."""
    targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    unknown = []
    for line in commands.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        files = [word.removeprefix("./") for word in words if word.removeprefix("./").startswith(FOLDERS)]
        unknown += [name for name in files if "<" not in name and not (root / name).exists()]
        if words[:1] == ["make"]:
            unknown += [f"make {word}" for word in words[1:2] if "=" not in word and word not in targets]
    return unknown


def test_the_readme_has_examples():
    assert find_blocks(PAGES[:1], "python")
    assert find_blocks(PAGES[:1], "bash")


@pytest.mark.parametrize("block", find_blocks(PAGES[:1], "python"), ids=str)
def test_python_example_runs(block, tmp_path, request, monkeypatch):
    if missing := missing_weights(block.text):
        pytest.skip(f"the weights of {', '.join(missing)} are not in this clone")
    if set(DATA_SET.findall(block.text)) - {EMBEDDED}:
        monkeypatch.setenv("HF_LATENTGEN_DATA", str(request.getfixturevalue("data_root")))
    result = run_example(block.text, tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("block", find_blocks([*PAGES, REPOSITORY / "CONTRIBUTING.md"], "bash"), ids=str)
def test_commands_name_what_exists(block):
    assert unknown_names(block.text) == []


def test_checkers_refuse(tmp_path):
    (tmp_path / "Makefile").write_text("test: x\n\techo\n")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").touch()
    page = tmp_path / "README.md"
    page.write_text(
        "```python\nx = 1\n```\n\n```bash\nmake test\nmake tset\n"
        "python scripts/train.py \\\n  configs/none.yaml  # scripts/ignored.py\n```\n"
        "```python\nfrom_pretrained('hf-latentgen/row')\n```\n"
    )
    examples, commands = find_blocks([page], "python", tmp_path), find_blocks([page], "bash", tmp_path)
    assert [str(block) for block in examples] == ["README.md:1", "README.md:11"]
    assert unknown_names(commands[0].text, tmp_path) == ["make tset", "configs/none.yaml"]
    assert missing_weights(examples[0].text, tmp_path) == []
    assert missing_weights(examples[1].text, tmp_path) == ["row"]


def test_examples_run_where_the_repository_is_and_write_elsewhere(tmp_path):
    root, folder = tmp_path / "root", tmp_path / "folder"
    (root / "model_cards" / "row").mkdir(parents=True)
    (root / "model_cards" / "row" / "config.json").write_text("{}")
    folder.mkdir()
    code = "from pathlib import Path\nPath('out.txt').write_text(Path('hf-latentgen/row', 'config.json').read_text())"
    assert run_example(code, folder, root).returncode == 0
    assert (folder / "out.txt").read_text() == "{}"
    assert not (root / "out.txt").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "ZeroDivisionError" in run_example("1 / 0", folder, empty).stderr


def test_the_numbers_of_the_attention_are_those_of_its_record():
    record = json.loads((REPOSITORY / "benchmarks" / "attention.json").read_text())
    text = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    seconds = {
        (one["contestant"], one["length"]): one["seconds"]
        for one in record["measurements"]
        if one["direction"] == "forward+backward" and one["window"] in (256, None) and "seconds" in one
    }
    ours = seconds["ours", 16_384]
    assert f"| `local_attention` | {ours:.2f} | 1 |" in text
    for contestant in ("copied blocks", "local-attention", "full causal SDPA", "SDPA, dense mask"):
        taken = seconds[contestant, 16_384]
        shown = f"{taken:.1f}" if taken > 10 else f"{taken:.2f}"
        assert f"| {shown} | {taken / ours:.1f} |" in text, contestant
    longest = seconds["ours", 65_536]
    assert f"65,536 tokens take {longest:.2f} s, {longest / seconds['ours', 32_768]:.1f} times as long" in text
    errors = record["errors"]["ours"]
    assert f"within {errors['outputs']:.1e}".replace("e-0", "e-") in text
    assert f"within {errors['gradients']:.1e}".replace("e-0", "e-") in text
    assert f"package local-attention {record['versions']['local-attention']} |" in text
