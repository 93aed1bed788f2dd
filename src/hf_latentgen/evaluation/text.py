"""What is measured of a byte model: its likelihood in windows with a stated context, beside codes without a network."""

import bz2
import copy
import lzma
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_latentgen.evaluation.likelihood import BAR, fresh_model
from hf_latentgen.models.bits import nats_to_bits_per_byte
from hf_latentgen.models.modeling_latentgen import LatentGenModel
from hf_latentgen.models.tokenization_bytes import BOS_TOKEN_ID, EOS_TOKEN_ID, NUM_BYTES, ByteTokenizer

# Ids that are scored at once, and before each step of dynamic evaluation.
STRIDE, DYNAMIC_STRIDE = 1024, 256
# Of dynamic evaluation; the validation split chooses.
LEARNING_RATES = (5e-5, 1e-4, 2e-4, 4e-4)
# Bytes before the one to predict that the counting baseline looks at.
ORDER = 4
SAMPLE_LENGTH = 600
# Test bytes that a sample goes on from.
PROMPT_LENGTH = 64


def measure_text(
    model: LatentGenModel, train: Sequence[bytes], validation: Sequence[bytes], test: Sequence[bytes], seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """The exact score of all test documents, each byte given everything before it that the model can see.

    Then the same by dynamic evaluation, see [`text_scores`]; the validation split chooses the learning rate. Beside
    them the score of as many training bytes, which tells how much was learned by heart, that of the validation split,
    that of validation and test together, which others call validation, and the untrained one.
    """
    context = full_context(model)
    scores, held_out = text_scores(model, test, context), text_scores(model, validation, context)
    dynamic = {rate: text_scores(model, validation, context, rate)["bits_per_byte"] for rate in LEARNING_RATES}
    rate = min(dynamic, key=dynamic.__getitem__)
    scores["dynamic_bits_per_byte"] = text_scores(model, test, context, rate)["bits_per_byte"]
    fresh = fresh_model(model, seed)
    num_bytes = sum(map(len, test))
    seen = b"".join(train)[:num_bytes]
    diagnostics = {
        "context": context,
        "num_bytes": scores.pop("num_bytes"),
        "training_bits_per_byte": text_scores(model, [seen], context)["bits_per_byte"],
        "validation_bits_per_byte": held_out["bits_per_byte"],
        "validation_and_test_bits_per_byte": nats_to_bits_per_byte(
            scores["nll_nats"] + held_out["nll_nats"], num_bytes + int(held_out["num_bytes"])
        ),
        "dynamic_learning_rate": rate,
        "validation_dynamic_bits_per_byte": dynamic[rate],
        "untrained_bits_per_byte": text_scores(fresh, test, context)["bits_per_byte"],
    }
    return scores, diagnostics


def sample_text(model: LatentGenModel, prompt: bytes, seed: int = 0) -> str:
    """The prompt and how the model goes on from it, drawn at temperature 1; what is not UTF-8 is shown as U+FFFD."""
    most = model.config.max_position_embeddings or SAMPLE_LENGTH + len(prompt) + 2
    ids = torch.tensor([[BOS_TOKEN_ID, *prompt[: most - 2]]], device=model.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            ids, do_sample=True, top_k=0, max_new_tokens=min(SAMPLE_LENGTH, most - ids.shape[1])
        )
    return cast(str, ByteTokenizer(errors="replace").decode(drawn[0], skip_special_tokens=True))


def token_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """`-log p` of each id after the first, given those before it, in nats, and 0 where a label is -100. [B, N - 1].

    Shape: `logits` [B, N, vocab_size]; `labels` [B, N], the ids themselves: they are shifted here.
    """
    return F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none")


def count_bytes(labels: Tensor) -> Tensor:
    """How many bytes the nats of `token_nats` score in each example: special ids are none. [B]."""
    scored = labels[:, 1:]
    return ((scored >= 0) & (scored < NUM_BYTES)).sum(1)


def full_context(model: PreTrainedModel) -> int:
    """The ids before the one to predict that can change its probability: the windows of all layers, one upon another.

    With a layer of full attention it is unbounded, and 8,192 stands for that. With `max_position_embeddings` it is at
    most half of them, so that as many can be scored at once.
    """
    windows, most = model.config.head_windows, model.config.max_position_embeddings
    context = 1 + sum(max(layer) - 1 for layer in windows) if all(windows) else 8192
    return context if most is None else min(context, max(most // 2, 1))


def document_nats(
    model: PreTrainedModel,
    content: bytes,
    context: int,
    stride: int = STRIDE,
    optimizer: torch.optim.Optimizer | None = None,
) -> float:
    """`-log p` of a document, its bytes and its end, in nats.

    It is read in windows of `context + stride` ids, of which the last `stride` are scored: each id is scored once, and
    given at least the `context` ids before it, or all that there are. The model is put into `eval()` mode. An
    `optimizer` takes a step after each window, on the ids that have just been scored.

    Raises:
        ValueError: `context` or `stride` is below 1, or the context reaches `max_position_embeddings`.
    """
    for name, value in (("context", context), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if (most := getattr(model.config, "max_position_embeddings", None)) is not None:
        if context >= most:
            raise ValueError(f"context must be less than max_position_embeddings={most}, got {context}")
        stride = min(stride, most - context)
    model.eval()
    ids = np.concatenate([[BOS_TOKEN_ID], np.frombuffer(content, np.uint8), [EOS_TOKEN_ID]])
    ids = torch.from_numpy(ids.astype(np.int64)).to(model.device)
    total = 0.0
    with torch.set_grad_enabled(optimizer is not None):
        for start in tqdm(range(1, len(ids), stride), f"context of {context} ids", **BAR):
            window = ids[max(start - context, 0) : start + stride].unsqueeze(0)
            nats = token_nats(model(input_ids=window, use_cache=False).logits, window)[0]
            nats = nats[-len(ids[start : start + stride]) :]
            total += nats.detach().double().sum().item()
            if optimizer is not None:
                optimizer.zero_grad()
                nats.mean().backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
    return total


def text_scores(
    model: PreTrainedModel, documents: Sequence[bytes], context: int, learning_rate: float | None = None
) -> dict[str, float]:
    """`nll_nats` of all documents together, `num_bytes`, and their `bits_per_byte`, which is no mean of means.

    With a learning rate it is dynamic evaluation: a copy of the model goes on learning from each part of the documents
    once that is scored, by Adam. That too is the length of a code, as that of the counts in [`text_baselines`], which
    go on in the same way.

    Source: Krause, Kahembwe, Murray and Renals (2018), Dynamic Evaluation of Neural Sequence Models.
    """
    stride, optimizer = STRIDE, None
    if learning_rate is not None:
        stride, model = DYNAMIC_STRIDE, copy.deepcopy(model)
        optimizer = torch.optim.Adam(model.parameters(), learning_rate, betas=(0.9, 0.99))
    num_bytes = sum(map(len, documents))
    nats = sum(document_nats(model, content, context, stride, optimizer) for content in documents)
    return {"bits_per_byte": nats_to_bits_per_byte(nats, num_bytes), "nll_nats": nats, "num_bytes": num_bytes}


def text_baselines(train: bytes, test: bytes) -> dict[str, float]:
    """Bits per byte of the test bytes for codes without a network that have read the training bytes first.

    bz2 and xz: how many bytes longer the compressed training bytes get when the test bytes follow them. (bz2 looks back
    900,000 bytes at most.) Counting: see `counting_bits_per_byte`; order 0 is one histogram.
    """
    scores = {}
    for name, compress in (("bz2", bz2.compress), ("xz", lzma.compress)):
        scores[f"{name}_bits_per_byte"] = 8 * (len(compress(train + test)) - len(compress(train))) / len(test)
    for order in (0, ORDER):
        scores[f"counting_{order}_bits_per_byte"] = counting_bits_per_byte(train, test, order)
    return scores


def counting_bits_per_byte(train: bytes, test: bytes, order: int) -> float:
    """Bits per byte of the test bytes under counts of each byte after the `order` bytes before it.

    The counts of a context are mixed with the estimate for the context that is one byte shorter, which weighs as much
    as there are different bytes after the context; all bytes are equally likely where nothing was counted. The counts
    go on while the test bytes are read.

    Source: Witten and Bell (1991), method C, interpolated.
    """
    counts: dict[bytes, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    content = train + test
    bits = 0.0
    for position in range(len(content)):
        byte = content[position]
        probability = 1 / NUM_BYTES
        for length in range(min(order, position) + 1):
            seen = counts[content[position - length : position]]
            if position >= len(train) and seen:
                different = len(seen)
                probability = (seen.get(byte, 0) + different * probability) / (sum(seen.values()) + different)
            seen[byte] += 1
        if position >= len(train):
            bits -= np.log2(probability)
    return float(bits / len(test))
