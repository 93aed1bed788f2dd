"""What every test shares: no network, one thread, fixed seeds, and where the real data is."""

import gc
import os

# huggingface_hub reads these when it is first imported, so they are set before that; child processes inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
# A picture is written to a file, never shown.
os.environ["MPLBACKEND"] = "agg"

import random
from collections import Counter
from pathlib import Path

import pytest

# Failures in the shared test bodies show their values.
pytest.register_assert_rewrite("cards_common", "data_common", "modeling_common", "rows_common", "training_common")

REPOSITORY = Path(__file__).resolve().parents[1]

# What is imported and collected stays: looking for garbage in it takes a second. `pytest_collection_finish` ends this.
gc.disable()


def pytest_collection_modifyitems(items):
    """Put the files with slow tests first, those of few tests before the others: few tests, each of them long.

    A worker that takes such a file last would leave the other one idle for minutes.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, sizes[item.path], item.path))


def pytest_collection_finish(session):
    gc.enable()


# The process that hands the tests to workers needs neither NumPy nor torch, and begins so much sooner.
@pytest.fixture(scope="session", autouse=True)
def torch_settings():
    """Torch as all tests need it."""
    import torch

    # A data loader that is collected as garbage waits that many seconds for its workers, five otherwise.
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.1
    # Two workers of pytest-xdist with a thread pool each would fight for two cores.
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def small_heap():
    """Take what is there before the tests of a file out of the garbage collection.

    The Trainer collects garbage at the start of each training, which would look at all modules and tests: a third of a
    second each time, most of what a training of two steps takes.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    """The seed that Python, NumPy and torch are set to before each test."""
    import numpy as np
    import torch

    value = 42
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002 - libraries under test still read the global generator.
    torch.manual_seed(value)
    return value


@pytest.fixture
def generator(seed):
    """A torch generator of the test's own."""
    import torch

    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def repository():
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_root():
    """The folder of the real data sets (mnist, binarized_mnist, ...); tests that ask for it are skipped without it."""
    named = os.environ.get("HF_LATENTGEN_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; set HF_LATENTGEN_DATA to the one that holds mnist/")
    return folder
