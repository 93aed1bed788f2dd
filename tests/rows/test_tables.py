"""Tables of rows, and the pages that are rendered from all of them."""

import json
import runpy
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from cards_common import change
from hf_latentgen.evaluation.results import Results
from hf_latentgen.rows.pages import BEGIN, END, render_all
from hf_latentgen.rows.tables import best_rows, cards_index, results_tables


@pytest.fixture
def rows(results):
    """Two rows of VAEs."""
    other = change(results, ("row",), "vae_mnist_4bit_fast")
    other["metrics"] = {"nll_nats_iw500": 84.5, "nll_nats_iw500_standard_error": 0.1}
    other["reference"] = [{"name": "IWAE", "metric": "nll_nats_iw5000", "value": 84.78, "source": "table 1"}]
    return [Results.from_dict(results), Results.from_dict(other)]


def test_tables_of_results(rows):
    title, _, *lines = results_tables(rows, "model_cards").splitlines()
    assert title == "## Variational autoencoders"
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == (
        "| [vae_digits](model_cards/vae_digits/README.md) | scikit-learn digits, 16 levels | 12,345 | 1.2346 ± 0.0123 "
        "| 54.32 | 53.46 (K = 500) | 1.111 bits/dim (a paper) | 1.4141 | 2 min 07 s |"
    )
    assert "| - | - | 84.50 ± 0.10 (K = 500) | 84.78 nats (IWAE) |" in lines[3]


def test_a_row_without_a_record_has_no_time(rows):
    unknown = [Results(**(vars(rows[0]) | {"train_seconds": None, "train_command": None, "reference": []}))]
    assert results_tables(unknown, "model_cards").splitlines()[-1].endswith("| - | 1.4141 | - |")


def test_best_rows_have_one_line_of_four_columns_for_each_family(rows):
    scores = {"vae_a": 0.52, "vae_b": 0.47, "vae_c": 0.61}
    mnist = [replace(rows[0], row=row, dataset="mnist", metrics={"bits_per_dim": bits}) for row, bits in scores.items()]
    # A lower score of other data, or of another kind, is no better one.
    lines = best_rows([replace(rows[0], metrics={"bits_per_dim": 0.1}), rows[1], *mnist], "model_cards").splitlines()
    assert lines[2:] == [
        "| Variational autoencoders | [vae_b](model_cards/vae_b/README.md) | MNIST, 16 levels | 0.4700 bits/dim |"
    ]
    assert {line.count("|") for line in lines} == {5}


def test_index_of_cards(rows):
    index = cards_index(rows)
    assert index.count("## Variational autoencoders") == 1
    assert '<img src="vae_digits/images/samples_mean.png"' in index
    assert "1.2346 bits/dim" in index


@pytest.fixture
def root(results, tmp_path):
    """A repository of one row, the best one of its family, without weights."""
    folder = tmp_path / "model_cards" / "vae_mnist_4bit_fast"
    (folder / "images").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "images" / "samples.png")
    (folder / "results.json").write_text(json.dumps(results | {"row": folder.name, "dataset": "mnist"}))
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/results.md"):
        (tmp_path / page).write_text(f"# Title\n\n{BEGIN}\n{END}\n\nThe rest.\n")
    return tmp_path


def test_pages_of_a_repository(root):
    pages = {str(path.relative_to(root)): text for path, text in render_all(root).items()}
    card = "model_cards/vae_mnist_4bit_fast/README.md"
    assert set(pages) == {card, "model_cards/README.md", "docs/results.md", "README.md"}
    assert "images/samples.png" in pages[card]
    assert "images/history.png" not in pages[card]
    ModelCard(pages[card])
    assert "| [vae_mnist_4bit_fast](../model_cards/vae_mnist_4bit_fast/README.md) |" in pages["docs/results.md"]
    for page in ("README.md", "docs/results.md"):
        assert pages[page].startswith(f"# Title\n\n{BEGIN}\n")
        assert pages[page].endswith(f"{END}\n\nThe rest.\n")
    # Nobody can check the score of a row without weights.
    assert "vae_mnist_4bit_fast" not in pages["README.md"]
    (root / "model_cards" / "vae_mnist_4bit_fast" / "model.safetensors").touch()
    assert (
        "| [vae_mnist_4bit_fast](model_cards/vae_mnist_4bit_fast/README.md) |" in render_all(root)[root / "README.md"]
    )


def test_mistakes_in_pages_are_named(root):
    (root / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match=r"README\.md must hold one pair of the lines .* got 0"):
        render_all(root)
    path = root / "model_cards" / "vae_mnist_4bit_fast" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"row": "vae_other"}))
    with pytest.raises(ValueError, match="has row 'vae_other', it must be 'vae_mnist_4bit_fast'"):
        render_all(root)


def test_script_writes_once_and_only_looks_when_asked_to(repository, root, monkeypatch, capsys):
    script = root / "scripts" / "cards.py"
    script.parent.mkdir()
    script.write_text((repository / "scripts" / "cards.py").read_text())
    main = runpy.run_path(str(script))["main"]
    monkeypatch.setattr("sys.argv", ["cards.py", "--check"])
    assert main() == 1
    assert not (root / "model_cards" / "README.md").exists()
    monkeypatch.setattr("sys.argv", ["cards.py"])
    assert main() == 0
    assert "written: model_cards/README.md" in capsys.readouterr().out
    assert main() == 0
    monkeypatch.setattr("sys.argv", ["cards.py", "--check"])
    assert main() == 0
    assert capsys.readouterr().out == ""
