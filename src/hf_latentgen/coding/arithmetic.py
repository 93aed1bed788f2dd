"""What encoder and decoder share bit for bit: frozen weights, one thread, and how probabilities reach the coder."""

import copy
import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_latentgen.models.modeling_latentgen import LatentGenModel

# What differs between a model and the same model saved and loaded.
VOLATILE_FIELDS = {"architectures", "dtype", "transformers_version", "_name_or_path"}


def entropy_coder() -> ModuleType:
    """The streams of the package constriction.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import constriction
    except ImportError as error:
        raise ImportError("compression needs constriction: pip install 'hf-latentgen[compress]'") from error
    return constriction.stream  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def fixed_arithmetic() -> Iterator[None]:
    """One thread, whole float32 and deterministic kernels, for the whole process; afterwards what it was before."""
    threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills, precision = memory.fill_uninitialized_memory, torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    # The sums of an `IntegerRing` are exact in whole float32.
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(True)
    # Every tensor would be written twice.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fills
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)


def frozen(model: LatentGenModel) -> LatentGenModel:
    """A copy of the model on the CPU in float64 and `eval()` mode.

    Raises:
        ValueError: a weight is not finite.
    """
    twin = copy.deepcopy(model).to(device="cpu", dtype=torch.float64)  # pyright: ignore[reportCallIssue]
    for name, weight in twin.state_dict().items():
        if not weight.isfinite().all():
            raise ValueError(f"weights must be finite, got {name} with NaN or infinity")
    return twin.eval().requires_grad_(False)


def weights_sha256(twin: LatentGenModel) -> str:
    """SHA-256 of names, shapes and values of the weights of a `frozen` model, in whichever dtype they were stored."""
    digest = hashlib.sha256()
    for name, weight in sorted(twin.state_dict().items()):
        digest.update(f"{name}{list(weight.shape)}".encode())
        digest.update(weight.contiguous().numpy().astype("<f8"))
    return digest.hexdigest()


def config_digest(model: LatentGenModel) -> str:
    """First 16 hexadecimal digits of the SHA-256 of all that the configuration says of the function."""
    fields = {key: value for key, value in model.config.to_dict().items() if key not in VOLATILE_FIELDS}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]


def build() -> dict[str, str]:
    """What the arithmetic depends on besides the model: versions, and the platform with its vector instructions."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "torch": torch.__version__,
        "constriction": version("constriction"),
        "package": version("hf-latentgen"),
        "platform": f"{platform.system()} {platform.machine()} {capability}",
    }


def probabilities(logits: Tensor) -> np.ndarray:
    """Probabilities of the last axis, float64, as the entropy coder takes them. [symbols, K].

    Raises:
        ValueError: they are not finite.
    """
    found = logits.double().softmax(-1).flatten(0, -2).numpy()
    if not np.isfinite(found.sum()):
        raise ValueError("probabilities must be finite, got NaN: the weights overflow")
    return found


def words_to_bytes(words: np.ndarray) -> bytes:
    """Compressed words, little-endian on every machine."""
    return words.astype("<u4").tobytes()


def bytes_to_words(content: bytes) -> np.ndarray:
    """Inverse of `words_to_bytes`. uint32 [words]."""
    return np.frombuffer(content, "<u4").astype(np.uint32)
