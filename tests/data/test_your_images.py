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


@pytest.fixture(scope="module")
def benchmark(repository):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        return importlib.import_module("data_memory")


@pytest.fixture(scope="module")
def photos(benchmark, tmp_path_factory):
    """A folder of 30 photos, each of which takes 4.5 MB when it is decoded."""
    folder = tmp_path_factory.mktemp("photos")
    benchmark.write_photos(folder, 30, 1500, 1000)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("way", ["folder", "folder_stream", "parquet_stream"])
def test_memory_does_not_grow_with_the_number_of_photos(benchmark, photos, way):
    measured = benchmark.read_photos(photos, way)
    assert measured["num_photos"] == 30
    assert measured["peak_megabytes"] - measured["before_megabytes"] < 30 * 2.5
