"""The page on users' images names a test for each of its lines, and memory is as it says."""

import importlib
import re
from pathlib import Path

import pytest


def test_each_line_of_the_page_names_tests_that_exist(repository):
    page = (repository / "docs" / "your_images.md").read_text(encoding="utf-8")
    files = [*(repository / "tests" / "data").glob("test_*.py")]
    files.append(repository / "tests" / "models" / "test_image_processing_levels.py")
    defined = set(re.findall(r"^def (test_\w+)", "\n".join(path.read_text() for path in files), re.MULTILINE))
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.endswith("| Test |")]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.split("|")[-2])
        assert named, row
        assert set(named) <= defined, row


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("way", ["folder", "folder_stream", "parquet_stream"])
def test_memory_does_not_grow_with_the_number_of_photos(repository, tmp_path, monkeypatch, way):
    monkeypatch.syspath_prepend(repository / "benchmarks")
    benchmark = importlib.import_module("data_memory")
    benchmark.write_photos(tmp_path, 30, 2000, 1500)
    measured = benchmark.read_photos(tmp_path, way)
    assert measured["num_photos"] == 30
    # A decoded photo takes 9 MB.
    assert (measured["peak_megabytes"] - measured["before_megabytes"]) / 30 < 5
