"""README and guides are true: blocks run, commands and links name what exists, numbers are those on record.

The examples of the cards are run by `hub/test_cards.py`.
"""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.testing import CliRunner

import hf_latentgen_cli
from hf_latentgen.rows.recipes import load_recipe

REPOSITORY = Path(__file__).resolve().parents[1]
GUIDES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
CARDS = sorted(REPOSITORY.glob("model_cards/**/README.md"))
OTHERS = [REPOSITORY / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?:\]\(|src=\")([^)\s\"]+)")
FOLDERS = ("benchmarks/", "configs/", "docs/", "scripts/", "src/", "tests/", ".ci/")
# Words that stand for something of the reader's.
PLACEHOLDERS = {"PATH", "CHECKPOINT", "NAMESPACE/NAME"}
# Commands that need neither data nor minutes, and are run where a page has them.
SHORT = {"calibrate", "env", "rows", "sample", "score"}
COMMANDS = typer.main.get_command(hf_latentgen_cli.app).commands
# typer brings a click of its own or takes the one that is installed.
UsageError = typer.BadParameter.__base__


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of each line of a shell block, without comments and variables that are set before."""
        lines = [shlex.split(line, comments=True) for line in self.text.replace("\\\n", " ").splitlines()]
        return [words for words in lines if words]


def find_blocks(page: Path, root: Path = REPOSITORY) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(root))
    return [Block(name, text[: match.start()].count("\n") + 1, match[1], match[2]) for match in FENCE.finditer(text)]


def is_short(words: list[str]) -> bool:
    """Whether a command is run: a short one that names nothing of the reader's, or a dry run."""
    if words[0] != "hf-latentgen":
        return False
    return "--dry-run" in words or (words[1] in SHORT and not PLACEHOLDERS & set(words))


def run_page(page: Path, folder: Path, monkeypatch, root: Path = REPOSITORY) -> int:
    """Run the Python blocks of a page in turn, which share their names, and its short commands; how many were run.

    It is done as if in the repository; `folder` gets links to what that holds, and keeps what is written.
    """
    for entry in root.iterdir():
        if entry.name not in {".git", ".venv", "runs", "site"}:
            (folder / entry.name).symlink_to(entry)
    monkeypatch.chdir(folder)
    names, count = {"__name__": "__main__"}, 0
    for block in find_blocks(page, root):
        if block.language == "python":
            # Empty lines before, so that an error names the line of the page.
            exec(compile("\n" * block.line + block.text, page, "exec"), names)
            count += 1
        elif block.language == "bash":
            for words in filter(is_short, block.commands()):
                result = CliRunner().invoke(hf_latentgen_cli.app, words[1:])
                assert result.exit_code == 0, f"{block}: {shlex.join(words)}\n{result.output}"
                count += 1
    return count


def faults(words: list[str], root: Path = REPOSITORY) -> list[str]:
    """What a command names that does not exist: files, make targets, commands, options, keys of a recipe."""
    files = [word.removeprefix("./") for word in words if word.removeprefix("./").startswith(FOLDERS)]
    found = [name for name in files if not (root / name).exists()]
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        found += [f"make {word}" for word in words[1:2] if "=" not in word and word not in targets]
    if words[0] == "hf-latentgen":
        found += faults_of_command(words[1], words[2:])
    if "scripts/train.py" in words:
        found += faults_of_command("train", words[words.index("scripts/train.py") + 1 :])
    return found


def faults_of_command(name: str, arguments: list[str]) -> list[str]:
    """What a command of hf-latentgen gets wrong: its name, options, values, keys of a recipe, rows."""
    if name not in COMMANDS:
        return [name]
    try:
        given = COMMANDS[name].make_context(name, arguments).params
        if name == "train":
            load_recipe("own_images" if given["recipe"] in PLACEHOLDERS else given["recipe"], given["overrides"])
    except (UsageError, OSError, ValueError) as error:
        return [str(error)]
    checkpoints = [given.get(key) for key in ("checkpoint", "model", "start")] + list(given.get("names") or ())
    # What a run has made is the reader's.
    rows = [row for row in checkpoints if row and not row.startswith("runs/") and row not in PLACEHOLDERS]
    return [row for row in rows if not (REPOSITORY / "model_cards" / row / "results.json").is_file()]


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
    targets = [link.split("#")[0] for link in LINK.findall(text) if "://" not in link]
    return [target for target in targets if target and not (page.parent / target).exists()]


def page_id(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def trains(page: Path) -> bool:
    return any("Trainer(" in block.text or "evaluate(" in block.text for block in find_blocks(page))


# Schedulers of diffusers convert tensors in a way that numpy is going to drop.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page_id(page), marks=[pytest.mark.slow] if trains(page) else [])
        for page in GUIDES
        if any(block.language in ("python", "bash") for block in find_blocks(page))
    ],
)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    run_page(page, tmp_path, monkeypatch)


def test_the_pages_have_examples():
    counts = {page_id(page): len([b for b in find_blocks(page) if b.language == "python"]) for page in GUIDES}
    guides = [f"docs/{name}.md" for name in ("quickstart", "vae", "aae", "local_attention", "training", "text")]
    for name in ("README.md", *guides):
        assert counts[name] >= 1, name


@pytest.mark.parametrize("page", [*GUIDES, *OTHERS, *CARDS], ids=page_id)
def test_commands_and_links_name_what_exists(page):
    commands = [words for block in find_blocks(page) if block.language == "bash" for words in block.commands()]
    assert [fault for words in commands for fault in faults(words)] == []
    assert broken_links(page) == []


def test_every_guide_is_in_the_menu_of_the_site():
    lines = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").splitlines()
    named = {line.split(": ")[-1] for line in lines}
    assert [page_id(page) for page in GUIDES if page_id(page) not in named] == []


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("make tset", "make tset"),
        ("python scripts/none.py", "scripts/none.py"),
        ("accelerate launch scripts/train.py configs/vae_digits.yaml training.num_train_epoch=2", "num_train_epochs"),
        ("hf-latentgen trian vae_digits", "trian"),
        ("hf-latentgen train vae_digits --outputdir x", "--outputdir"),
        ("hf-latentgen train vae_digitz", "vae_digits"),
        ("hf-latentgen train vae_digits model.latent=2", "latent_dim"),
        ("hf-latentgen train PATH size=huge", "small, base, large"),
        ("hf-latentgen app --port seven", "integer"),
        ("hf-latentgen evaluate vae_none", "vae_none"),
        ("hf-latentgen score x --model none", "none"),
        ("make test ARGS='-k vae'", None),
        ("hf-latentgen train vae_digits dataset.name=PATH --output-dir runs/mine", None),
        ("hf-latentgen evaluate runs/mine --data PATH", None),
        ("hf-latentgen train PATH size=base", None),
    ],
)
def test_the_checker_of_commands_refuses(command, fault):
    found = faults(shlex.split(command))
    assert any(fault in text for text in found) if fault else found == []


def test_a_page_runs_where_the_repository_is_and_writes_elsewhere(tmp_path, monkeypatch):
    root, folder = tmp_path / "root", tmp_path / "folder"
    (root / "model_cards").mkdir(parents=True)
    folder.mkdir()
    (root / "model_cards" / "name").write_text("row")
    page = root / "page.md"
    page.write_text(
        "[here](page.md) [nowhere](none.md#part) [away](https://example.org)\n"
        "```python\nfrom pathlib import Path\n```\n\n"
        "```python\nPath('out').write_text(Path('model_cards/name').read_text())\n```\n"
    )
    assert run_page(page, folder, monkeypatch, root) == 2
    assert (folder / "out").read_text() == "row"
    assert not (root / "out").exists()
    assert broken_links(page) == ["none.md"]
    page.write_text("\n\n```python\n1 / 0\n```\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(page, elsewhere, monkeypatch, root)
    assert caught.traceback[-1].lineno + 1 == 4


def test_the_numbers_of_the_attention_are_those_of_its_record(read_record, guide):
    record, text = read_record("attention"), guide("local_attention")
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


def test_the_numbers_of_spans_and_of_generation_are_those_of_their_records(read_record, guide):
    text, record = guide("local_attention"), read_record("adaptive_span")
    faster, seconds = record["speedup_of_trimmed"], record["cpu_seconds"]
    assert f"is {faster['forward']:.1f} times as fast forward and twice as fast in training" in text
    assert f"({faster['forward_backward']:.1f} times in training as while it learns the spans" in text
    assert 1.9 <= seconds["frozen"]["forward_backward"] / seconds["trimmed"]["forward_backward"] < 2.1
    contexts = read_record("generate")["contexts"]
    assert {f"{one['seconds_per_token'] * 1000:.1f}" for one in contexts} == {"1.0"}
    assert {one["cache_bytes"] for one in contexts} == {2**20}
    assert "Generation takes 1.0 ms a token" in text
    assert "with a cache of 1 MB" in text


def test_the_numbers_of_adversarial_training_are_those_of_its_record(read_record, guide):
    record, text = read_record("adversarial_speed"), guide("aae")
    speed = {name: f"{value:,.0f}" for name, value in record["images_per_second"].items()}
    ours = [speed[f"AdversarialTrainer{how}"] for how in ("", ", channels last", ", channels last, bf16")]
    assert f"| `AdversarialTrainer` | {' | '.join(ours)} |" in text
    assert f"| a bare loop with two optimizers | {speed['bare two-optimizer loop']} |" in text
    assert f"GPUs only | {speed['pythae']} |" in text
    times = record["times_pythae"]
    assert f"{times['AdversarialTrainer, channels last, bf16']:.1f} times as fast as pythae's" in text
    assert f"({times['AdversarialTrainer']:.2f} times, with channels last" in text
    assert f"with channels last {times['AdversarialTrainer, channels last']:.2f})" in text


def test_codes_beside_the_rows_are_those_of_their_results(repository, guide):
    text = guide("compression")
    codes = ("png", "xz", "bz2", "counting_4", "jpeg_xl")
    found = {}
    for row in ("local_mnist_4bit", "vae_mnist_4bit_resnet", "local_binarized_mnist", "vae_binarized_mnist"):
        results = json.loads((repository / "model_cards" / row / "results.json").read_text(encoding="utf-8"))
        found[row] = [results["baseline"][f"{code}_bits_per_dim"] for code in codes]
        found[row].append(next(value for key, value in results["metrics"].items() if key.endswith("bits_per_dim")))
    assert found["local_mnist_4bit"][:-1] == pytest.approx(found["vae_mnist_4bit_resnet"][:-1], rel=1e-3)
    lines = [*zip(found["local_mnist_4bit"][:-1], found["local_binarized_mnist"][:-1], strict=True)]
    lines.append((found["vae_mnist_4bit_resnet"][-1], found["vae_binarized_mnist"][-1]))
    lines.append((found["local_mnist_4bit"][-1], found["local_binarized_mnist"][-1]))
    for four_bits, binarized in lines:
        assert f"| {four_bits:.4f} | {binarized:.4f} |" in text


def test_codes_of_the_picture_are_those_of_the_guide_and_of_the_rows(read_record, repository, guide):
    record, text = read_record("compression"), guide("compression")
    assert record["settings"] == {"num_images": None, "num_each": None}
    images = [record["codes"][name] for name in ("mnist_4bit", "binarized_mnist")]
    for line, code, kind in (
        ("xz, all in one file", "xz", "one file"),
        ("bz2, all in one file", "bz2", "one file"),
        ("JPEG XL at effort 9, all images as a mosaic", "JPEG XL, effort 9", "mosaic"),
    ):
        four_bits, binarized = (codes[code][kind] for codes in images)
        assert f"| {line} | {four_bits:.4f} | {binarized:.4f} |" in text
    # After another evaluation, benchmarks/compression.py reads the rows again; it measures nothing twice.
    for name, sizes in ((name, sizes) for rows in record["rows"].values() for name, sizes in rows.items()):
        metrics = json.loads((repository / "model_cards" / name / "results.json").read_text(encoding="utf-8"))[
            "metrics"
        ]
        ((kind, size),) = sizes.items()
        on_disk = [value for key, value in metrics.items() if key.endswith("_on_disk")]
        assert (kind == "on disk") == bool(on_disk), name
        assert size in (on_disk or metrics.values()), name


@pytest.fixture
def read_record(repository):
    return lambda name: json.loads((repository / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def guide(repository):
    return lambda name: " ".join((repository / "docs" / f"{name}.md").read_text(encoding="utf-8").split())


def test_unusual_images_of_the_guide_are_those_that_were_measured(read_record, guide):
    record, text = read_record("anomaly"), guide("anomaly")
    assert record["num_images"] is None
    methods = (
        "bits_per_dim",
        "typicality",
        "complexity_png",
        "complexity_jpeg_xl",
        "likelihood_ratio",
        "likelihood_regret",
    )
    for name, pair in record["pairs"].items():
        model, data = name.split(": ")
        found = [pair["scores"].get(method) for method in methods]
        cells = " | ".join(f"{scores['auroc']:.3f}" if scores else "-" for scores in found)
        assert f"| {model} | {data.replace(' -> ', ' | ')} | {cells} |" in text, name


def test_modes_of_the_guide_are_those_that_were_measured(read_record, guide):
    record, text = read_record("mode_coverage"), guide("mode_coverage")
    assert f"{record['settings']['num_images']:,} images" in text
    assert f"{record['classifier_test_error']:.2%}".replace("%", " %") in text
    scores = ("modes", "kl_to_uniform_nats", "coverage", "recall", "in_domain_frechet_distance")

    def cells(found):
        modes, *others, distance = (found[score] for score in scores)
        return " | ".join([f"{modes:,}", *(f"{value:.3f}" for value in others), f"{distance:,.0f}"])

    assert f"| real test images | | {cells(record['yardstick'])} |" in text
    for run in record["runs"].values():
        assert f"| `{run['contestant']}` | {run['seed']} | {cells(run)} |" in text
