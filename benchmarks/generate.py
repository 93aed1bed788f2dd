"""Time per token and size of the cache of a small local transformer, after contexts of growing length.

    python benchmarks/generate.py
    python benchmarks/generate.py --contexts 256 1024

Every context is read in chunks; then tokens are generated one by one, the contexts in turn, so that a busy machine
slows them alike. A window makes both flat from the context on that fills it. Prints a table and writes `generate.json`
beside this.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import cast

import torch
from transformers import DynamicCache

from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.models.configuration_local_transformer import LocalTransformerConfig
from hf_latentgen.models.modeling_local_transformer import LocalTransformerForCausalLM

WINDOW = 256
NUM_LAYERS = 4
CHUNK = 4096
CONTEXTS = [256 * 4**power for power in range(5)]
# The longest context over this one, which fills the window four times.
BASE_CONTEXT = 1024
TARGET_TIME_RATIO = 1.1
TARGET_CACHE_RATIO = 1.0


def read_context(model: LocalTransformerForCausalLM, context: int) -> DynamicCache:
    """The cache after a random context, which is given to the model in chunks."""
    tokens = torch.randint(0, 256, (1, context), generator=torch.Generator().manual_seed(42))
    cache = DynamicCache(config=model.config)
    for chunk in tokens.split(CHUNK, 1):
        model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def seconds_per_token(model: LocalTransformerForCausalLM, cache: DynamicCache, num_tokens: int) -> float:
    """Median CPU seconds of one more token, the most likely one."""
    token = torch.zeros(1, 1, dtype=torch.int64)
    seconds = []
    for _ in range(num_tokens):
        started = time.process_time()
        token = model(input_ids=token, past_key_values=cache, use_cache=True).logits.argmax(-1)
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes that the keys and values hold on to, what their views do not show included."""
    states = [tensor for layer in cast(list, cache.layers) for tensor in (layer.keys, layer.values)]
    return sum(tensor.untyped_storage().nbytes() for tensor in states)


def main() -> None:
    """Measures, prints and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS, help="tokens (default: 256 ... 64k)")
    parser.add_argument("--num_tokens", type=int, default=64, help="tokens of one measurement (default: 64)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each context (default: 5)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(42)
    config = LocalTransformerConfig(window=WINDOW, num_hidden_layers=NUM_LAYERS)
    model = LocalTransformerForCausalLM(config).eval()
    contexts = sorted(arguments.contexts)
    with torch.no_grad():
        caches = {context: read_context(model, context) for context in contexts}
        seconds: dict[int, list[float]] = {context: [] for context in contexts}
        for _ in range(arguments.repeats):
            for context, cache in caches.items():
                seconds[context].append(seconds_per_token(model, cache, arguments.num_tokens))
    rows = [
        {"context": context, "seconds_per_token": min(seconds[context]), "cache_bytes": cache_bytes(cache)}
        for context, cache in caches.items()
    ]
    base = next(row for row in rows if row["context"] >= BASE_CONTEXT or row is rows[-1])
    ratios = {field: rows[-1][field] / base[field] for field in ("seconds_per_token", "cache_bytes")}
    record = {
        "window": WINDOW,
        "num_layers": NUM_LAYERS,
        "hidden_size": config.hidden_size,
        "num_tokens": arguments.num_tokens,
        "contexts": rows,
        "time_ratio": ratios["seconds_per_token"],
        "target_time_ratio": TARGET_TIME_RATIO,
        "cache_ratio": ratios["cache_bytes"],
        "target_cache_ratio": TARGET_CACHE_RATIO,
        "hardware": hardware(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")

    print(f"{'context':>10}{'ms per token':>16}{'cache, kB':>12}")
    for row in rows:
        print(f"{row['context']:>10,}{row['seconds_per_token'] * 1e3:>16.2f}{row['cache_bytes'] / 1e3:>12,.0f}")
    between = f"{rows[-1]['context']:,} / {base['context']:,}"
    print(f"{between}: time {record['time_ratio']:.2f} (target: at most {TARGET_TIME_RATIO})")
    print(f"{between}: cache {record['cache_ratio']:.2f} (target: at most {TARGET_CACHE_RATIO})")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
