"""Time and peak memory of sliding-window attention beside its peers, on one thread of a CPU.

    python benchmarks/attention.py
    python benchmarks/attention.py --lengths 1024 2048 --windows 256
    python benchmarks/attention.py --contestants "copied blocks"
    python benchmarks/attention.py --draw

Every measurement is a process of its own, one after the other: CPU time of the fastest repetition, and how far the
memory in use grew over the inputs. Windowed peers are first compared with the reference, so all compute the same. The
arithmetic floor is what the scores inside the windows take at the rate at which this machine multiplies large matrices.
Prints tables and the targets, writes `attention.json` beside this and draws `attention.png`.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.models.local_attention import local_attention, local_attention_reference

HEADS, HEAD_DIM = 8, 64
LENGTHS = [1024 * 2**power for power in range(7)]
WINDOWS = [128, 256]
FORWARD, BOTH = "forward", "forward+backward"
OURS, FULL, DENSE, COPIED = "ours", "full causal SDPA", "SDPA, dense mask", "copied blocks"
FLEX, PACKAGE, FLOOR = "flex attention, compiled", "local-attention", "arithmetic floor"
# Both multiply all pairs of queries and keys, whatever the window.
ANY_WINDOW = (FULL, DENSE)
# A forward pass multiplies two pairs of matrices, a backward pass five, the scores once more among them.
WORK_OF_BOTH = 3.5
LONGEST_CHECKED = 2048
# No window divides it.
ERROR_LENGTH = 1001
# The same in each panel, also where one is missing.
COLORS = {
    **{OURS: "black", COPIED: "tab:blue", PACKAGE: "tab:orange", FLEX: "tab:green"},
    **{FULL: "tab:red", DENSE: "tab:purple", FLOOR: "tab:gray"},
}
MAX_REPEATS, MAX_SECONDS = 10, 20
# Of forward and backward at window 256: at least this many times as fast at 16k.
SPEED_TARGETS = {FULL: 15, DENSE: 30, PACKAGE: 3, COPIED: 1.4}
DOUBLING_TARGET = (1.8, 2.3)
MEMORY_TARGET_BYTES = 1.5e9

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def band(rows: Tensor, columns: Tensor, window: int) -> Tensor:
    """Which keys a query sees. Booleans, the two shapes broadcast."""
    return (columns <= rows) & (columns > rows - window)


def prepare_ours(_length: int, window: int) -> Attend:
    """`local_attention` of this package."""
    return lambda query, key, value: local_attention(query, key, value, window)


def prepare_full(_length: int, _window: int) -> Attend:
    """Causal attention without a window."""
    return lambda query, key, value: F.scaled_dot_product_attention(query, key, value, is_causal=True)


def prepare_dense(length: int, window: int) -> Attend:
    """The window as a mask of all pairs, as transformers' `sdpa` has it."""
    positions = torch.arange(length)
    mask = band(positions.unsqueeze(1), positions, window)
    return lambda query, key, value: F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def prepare_copied(length: int, window: int) -> Attend:
    """Blocks of one window that see copies of their own and of the previous block."""
    mask = band(torch.arange(window, 2 * window).unsqueeze(1), torch.arange(2 * window), window)
    mask = mask.repeat((length + window - 1) // window, 1, 1)
    mask[0, :, :window] = False
    # With three axes the fused kernel of a CPU would not take it.
    mask = mask.unsqueeze(0)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        states = [F.pad(tensor, (0, 0, 0, -length % window)) for tensor in (query, key, value)]
        query, key, value = (tensor[0].unflatten(1, (-1, window)) for tensor in states)
        key, value = (torch.cat([F.pad(tensor, (0, 0, 0, 0, 1, -1)), tensor], 2) for tensor in (key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).flatten(1, 2)[None, :, :length]

    return attend


def prepare_flex(length: int, window: int) -> Attend:
    """`flex_attention`, which skips blocks of 128 that the window leaves out."""

    def is_visible(_batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return band(row, column, window)

    block_mask = torch.compile(create_block_mask)(is_visible, None, None, length, length, device="cpu")
    attend = torch.compile(flex_attention)
    return lambda query, key, value: attend(query, key, value, block_mask=block_mask)


def prepare_package(_length: int, window: int) -> Attend:
    """The PyPI package; with its exact flag a query sees one key more than `window_size`."""
    from local_attention import LocalAttention  # pyright: ignore[reportMissingImports]

    return LocalAttention(
        window_size=window - 1,
        causal=True,
        look_backward=1,
        look_forward=0,
        exact_windowsize=True,
        autopad=True,
        use_rotary_pos_emb=False,
    )


CONTESTANTS = {
    OURS: prepare_ours,
    COPIED: prepare_copied,
    PACKAGE: prepare_package,
    FLEX: prepare_flex,
    FULL: prepare_full,
    DENSE: prepare_dense,
}


def memory_bytes(field: str) -> int:
    """Memory of this process in use, `VmRSS`, or its highest since the last reset, `VmHWM`, in bytes. Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def measure(name: str, length: int, window: int, direction: str) -> dict[str, float]:
    """CPU seconds of the fastest repetition and the growth of memory, in bytes, of one contestant."""
    generator = torch.Generator().manual_seed(42)
    query, key, value, gradient = (torch.randn(1, HEADS, length, HEAD_DIM, generator=generator) for _ in range(4))
    inputs = [states.requires_grad_(direction == BOTH) for states in (query, key, value)]
    before = memory_bytes("VmRSS")
    attend = CONTESTANTS[name](length, window)

    def run() -> None:
        output = attend(*inputs)
        if direction == BOTH:
            torch.autograd.grad(output, inputs, gradient)

    # The first run compiles what is to be compiled.
    run()
    Path("/proc/self/clear_refs").write_text("5")
    seconds, peak = [], 0
    while len(seconds) < MAX_REPEATS and sum(seconds) < MAX_SECONDS:
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
        peak = peak or memory_bytes("VmHWM") - before
    if name != FULL and length <= LONGEST_CHECKED:
        with torch.no_grad():
            expected = local_attention_reference(query, key, value, window)
            torch.testing.assert_close(attend(query, key, value), expected, atol=1e-5, rtol=0)
    result: dict[str, float] = {"seconds": min(seconds), "repeats": len(seconds)}
    # What the compiler took would stand in for what the attention takes.
    return result if name == FLEX else result | {"peak_bytes": peak}


def measure_multiplication() -> dict[str, float]:
    """Floating-point operations per second of a large matrix product."""
    size = 2048
    left, right = torch.randn(2, size, size)
    seconds = []
    for _ in range(MAX_REPEATS):
        started = time.process_time()
        torch.mm(left, right)
        seconds.append(time.process_time() - started)
    return {"flops_per_second": 2 * size**3 / min(seconds)}


def measure_errors() -> dict[str, dict[str, float]]:
    """Largest float32 differences from the float64 reference, of outputs and gradients: `local_attention` and SDPA."""
    generator = torch.Generator().manual_seed(42)
    *states, gradient = (torch.randn(1, HEADS, ERROR_LENGTH, HEAD_DIM, generator=generator) for _ in range(4))
    errors: dict[str, dict[str, float]] = {}
    for name in (OURS, DENSE):
        errors[name] = {"outputs": 0.0, "gradients": 0.0}
        for window in WINDOWS:
            results = []
            for dtype in (torch.float32, torch.float64):
                inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in states]
                is_exact = dtype == torch.float64
                attend = CONTESTANTS[name](ERROR_LENGTH, window)
                output = local_attention_reference(*inputs, window=window) if is_exact else attend(*inputs)
                results.append([output, *torch.autograd.grad(output, inputs, gradient.to(dtype))])
            differences = [(one - other).abs().max().item() for one, other in zip(*results, strict=True)]
            errors[name]["outputs"] = max(errors[name]["outputs"], differences[0])
            errors[name]["gradients"] = max(errors[name]["gradients"], *differences[1:])
    return errors


def reason_to_skip(name: str, length: int, direction: str) -> str | None:
    """Why a measurement cannot be made or would take too long or too much memory, or None."""
    if name == PACKAGE and importlib.util.find_spec("local_attention") is None:
        return 'not installed: pip install "hf-latentgen[benchmark]"'
    if name == FLEX and direction == BOTH:
        return "no backward pass on a CPU"
    if name == DENSE and length >= 32_768:
        return f"scores and mask of {length:,} x {length:,} need {length**2 * 5 / 1e9:.0f} GB"
    if name == FULL and direction == BOTH and length >= 65_536:
        return "minutes for each repetition"
    return None


def in_fresh_process(arguments: list[str], time_limit: float) -> dict:
    """What a process of this script on one thread measures, or why it does not."""
    command = [sys.executable, __file__, "--measure", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=time_limit, check=False)
    except subprocess.TimeoutExpired:
        return {"skipped": f"took over {time_limit:g} s"}
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return {"skipped": f"failed with code {done.returncode}: {''.join(last)}"[:200]}
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(names: list[str], lengths: list[int], windows: list[int], time_limit: float) -> list[dict]:
    """One record of each contestant, direction, window (None for any) and length, each printed once measured."""
    records: list[dict] = []
    for direction in (FORWARD, BOTH):
        for name in names:
            for window in [None] if name in ANY_WINDOW else windows:
                for length in lengths:
                    reason = reason_to_skip(name, length, direction)
                    case = [name, str(length), str(window or windows[-1]), direction]
                    result = {"skipped": reason} if reason else in_fresh_process(case, time_limit)
                    key = {"contestant": name, "direction": direction, "window": window, "length": length}
                    records.append(key | result | {"git_commit": git_commit()})
                    print(records[-1], flush=True)
    return records


def value_of(record: dict, field: str, name: str, direction: str, window: int, length: int) -> float | None:
    """A measured field, or None where there is none; the floor is computed from the rate of multiplication."""
    if name == FLOOR:
        work = 4 * length * window * HEADS * HEAD_DIM * (WORK_OF_BOTH if direction == BOTH else 1)
        return work / record["flops_per_second"] if field == "seconds" else None
    key = {"contestant": name, "direction": direction, "length": length}
    key |= {"window": None if name in ANY_WINDOW else window}
    found = [one for one in record["measurements"] if key.items() <= one.items()]
    return found[0].get(field) if found else None


def targets(record: dict) -> list[dict]:
    """Each target with the value measured, None where a length or a peer is missing, and whether it is reached."""
    found = []

    def add(text: str, value: float | None, low: float = 0.0, high: float = float("inf")) -> None:
        bounds = f"at least {low:g}" if high == float("inf") else f"at most {high:g}" if not low else f"{low} to {high}"
        reached = None if value is None else low <= value <= high
        found.append({"target": text, "value": value, "bounds": bounds, "reached": reached})

    def ours(field: str, length: int) -> float | None:
        return value_of(record, field, OURS, BOTH, 256, length)

    for name, factor in SPEED_TARGETS.items():
        peer, own = value_of(record, "seconds", name, BOTH, 256, 16_384), ours("seconds", 16_384)
        add(f"times as fast as {name}, 16k", peer / own if peer and own else None, low=factor)
    for length in (8192, 16_384, 32_768):
        short, long = ours("seconds", length), ours("seconds", 2 * length)
        add(
            f"time of {length // 512}k over time of {length // 1024}k",
            long / short if short and long else None,
            *DOUBLING_TARGET,
        )
    peak = ours("peak_bytes", 65_536)
    add("GB of memory, 64k", peak and peak / 1e9, high=MEMORY_TARGET_BYTES / 1e9)
    return found


def print_tables(record: dict) -> None:
    """Milliseconds and megabytes of every contestant, then the targets."""
    lengths = record["lengths"]
    for window in record["windows"]:
        for direction in (FORWARD, BOTH):
            print(f"\n{f'window {window}, {direction}: ms (MB)':<36}" + "".join(f"{length:>16,}" for length in lengths))
            for name in (*CONTESTANTS, FLOOR):
                line = f"{name:<36}"
                for length in lengths:
                    case = (name, direction, window, length)
                    seconds, peak = (value_of(record, field, *case) for field in ("seconds", "peak_bytes"))
                    memory = "" if peak is None else f" ({peak / 1e6:,.0f})"
                    line += f"{'-' if seconds is None else f'{seconds * 1e3:,.1f}{memory}':>16}"
                print(line)
    for name, errors in record["errors"].items():
        print(f"\nfloat32 errors of {name}: outputs {errors['outputs']:.1e}, gradients {errors['gradients']:.1e}")
    print(f"\n{f'targets: window 256, {BOTH}':<52}{'measured':>10}   target")
    for one in record["targets"]:
        verdict = {None: "not measured", True: "reached", False: "missed"}[one["reached"]]
        value = "-" if one["value"] is None else f"{one['value']:.2f}"
        print(f"{one['target']:<52}{value:>10}   {one['bounds']}: {verdict}")


def draw(record: dict, path: Path) -> None:
    """Writes a picture of time and memory over length, both axes logarithmic, for the widest window."""
    lengths, window = record["lengths"], record["windows"][-1]
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    panels = (("seconds", FORWARD, 1), ("seconds", BOTH, 1), ("peak_bytes", BOTH, 1e9))
    for axes, (field, direction, unit) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in (*CONTESTANTS, FLOOR):
            values = [value_of(record, field, name, direction, window, length) for length in lengths]
            points = [(length, value / unit) for length, value in zip(lengths, values, strict=True) if value]
            style = {OURS: {"linewidth": 2.5}, FLOOR: {"linestyle": "--"}}
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    markersize=4,
                    color=COLORS[name],
                    label=name,
                    **style.get(name, {}),
                )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(lengths, [f"{length // 1024}k" for length in lengths])
        axes.set_xlabel("tokens")
        axes.set_title(f"{direction}: " + ("peak memory, GB" if field == "peak_bytes" else "CPU seconds"))
        axes.grid(which="major", alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(f"Causal attention, window {window}, {HEADS} heads of {HEAD_DIM}, float32, one thread")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, prints, writes the record and draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens (default: 1k ... 64k)")
    parser.add_argument("--windows", type=int, nargs="+", default=WINDOWS, help="keys of a window (default: 128 256)")
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=list(CONTESTANTS),
        help="measure these only, and keep what the JSON file holds of the others (default: all)",
    )
    parser.add_argument("--time_limit", type=float, default=600, help="seconds for one measurement (default: 600)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--draw", action="store_true", help="only print and draw what the JSON file holds")
    parser.add_argument("--measure", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure is not None:
        if len(arguments.measure) == 4:
            name, length, window, direction = arguments.measure
            result = measure(name, int(length), int(window), direction)
        else:
            result = measure_multiplication() | {"errors": measure_errors()}
        print(json.dumps(result))
        return
    if arguments.draw:
        record = json.loads(arguments.output.read_text())
    else:
        record = {
            "heads": HEADS,
            "head_dim": HEAD_DIM,
            "lengths": sorted(arguments.lengths),
            "windows": sorted(arguments.windows),
            **in_fresh_process([], arguments.time_limit),
        }
        names = arguments.contestants
        others = set(CONTESTANTS) - set(names)
        kept = json.loads(arguments.output.read_text())["measurements"] if others else []
        measured = measure_all(names, record["lengths"], record["windows"], arguments.time_limit)
        record["measurements"] = [one for one in kept if one["contestant"] in others] + measured
        record["targets"] = targets(record)
        record |= {"hardware": hardware(), "versions": versions()}
        if importlib.util.find_spec("local_attention") is not None:
            record["versions"][PACKAGE] = importlib.metadata.version(PACKAGE)
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print_tables(record)
    draw(record, arguments.output.with_suffix(".png"))
    print(f"\nwritten to {arguments.output} and {arguments.output.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
