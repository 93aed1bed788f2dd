"""Time saved by trimming a byte model to the attention spans it has learned, at the same loss.

    python benchmarks/adaptive_span.py

Trains a model of four layers and eight heads on tinyshakespeare with a window of 1,024 bytes and a price on spans,
trims it, and measures the CPU time of a forward pass, and of a forward and backward pass, of each model in turn and in
one process, so that a busy machine slows them alike:

- untrimmed: while spans are learned, which needs their gradient in the backward pass;
- frozen: the same spans, no longer learned, over the whole window;
- window: the plain window, without spans (another function, so its loss is another);
- trimmed: what the spans reach.

Prints a table, and writes `adaptive_span.json` and a picture of the spans, `adaptive_span.png`, beside this.
"""

import argparse
import copy
import json
import math
import statistics
import time
from pathlib import Path

import torch
from datasets import Dataset

from hf_latentgen import LocalTransformerConfig, LocalTransformerForCausalLM, TokenBlocksDataset, load_text
from hf_latentgen.evaluation.pictures import span_plot
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions

WINDOW = 1_024
LEARNING_RATE = 2e-3
# A span moves by at most this share of the window in a step.
SPAN_LEARNING_RATE = 1e-2
TARGET_SPEEDUP = 1.3
TARGET_LOSS_DIFFERENCE = 1e-4


def train(model: LocalTransformerForCausalLM, blocks: TokenBlocksDataset, steps: int, batch_size: int) -> None:
    """Trains the model on random blocks, the spans with a learning rate of their own."""
    spans = [parameter for name, parameter in model.named_parameters() if name.endswith("share")]
    weights = [parameter for name, parameter in model.named_parameters() if not name.endswith("share")]
    groups = [{"params": weights}, {"params": spans, "lr": SPAN_LEARNING_RATE}]
    optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(steps):
        indices = torch.randint(0, len(blocks), (batch_size,), generator=generator).tolist()
        loss = model(**blocks.gather(indices), use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.3f} nats  mean span {model.spans().mean():6.1f}", flush=True)


@torch.no_grad()
def nats_per_byte(model: LocalTransformerForCausalLM, blocks: TokenBlocksDataset) -> float:
    """Mean loss of the model over full blocks, without the price of spans."""
    model.eval()
    # The last block is filled up with padding.
    losses = [model(**blocks.gather([index]), use_cache=False).loss.item() for index in range(len(blocks) - 1)]
    return statistics.mean(losses)


def cpu_seconds(model: LocalTransformerForCausalLM, batch: dict[str, torch.Tensor], backward: bool) -> float:
    """CPU seconds of a forward pass, and of the backward pass if wanted."""
    model.train(backward)
    model.zero_grad()
    start = time.process_time()
    with torch.set_grad_enabled(backward):
        loss = model(**batch, use_cache=False).loss
        if backward:
            loss.backward()
    return time.process_time() - start


def main() -> None:
    """Trains, trims, measures, prints and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: 200)")
    parser.add_argument("--length", type=int, default=4_096, help="bytes of a block (default: 4096)")
    parser.add_argument("--batch_size", type=int, default=1, help="blocks of a batch (default: 1)")
    parser.add_argument("--hidden_size", type=int, default=128, help="width of the model (default: 128)")
    parser.add_argument("--span_weight", type=float, default=0.05, help="price of the whole window (default: 0.05)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each model (default: 7)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LocalTransformerConfig(
        hidden_size=arguments.hidden_size,
        intermediate_size=3 * arguments.hidden_size,
        num_attention_heads=8,
        window=WINDOW,
        attention_span="adaptive",
        span_weight=arguments.span_weight,
    )
    untrimmed = LocalTransformerForCausalLM(config)
    training, validation = (
        TokenBlocksDataset(texts, arguments.length)
        for split in ("train", "validation")
        if isinstance(texts := load_text("tinyshakespeare", split), Dataset)
    )
    train(untrimmed, training, arguments.steps, arguments.batch_size)
    trimmed = untrimmed.trim_spans()
    frozen = copy.deepcopy(untrimmed)
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_(not name.endswith("share"))
    fixed = LocalTransformerForCausalLM(
        LocalTransformerConfig.from_dict(config.to_dict() | {"attention_span": "fixed"})
    )
    fixed.load_state_dict(untrimmed.state_dict(), strict=False)
    models = {"untrimmed": untrimmed, "frozen": frozen, "window": fixed, "trimmed": trimmed}

    losses = {name: nats_per_byte(models[name], validation) for name in ("untrimmed", "trimmed")}
    batch = training.gather(list(range(arguments.batch_size)))
    seconds: dict[str, dict[str, list[float]]] = {name: {"forward": [], "forward_backward": []} for name in models}
    for _ in range(arguments.repeats + 1):
        for name, model in models.items():
            for key, values in seconds[name].items():
                values.append(cpu_seconds(model, batch, backward=key == "forward_backward"))
    # The first measurement of each warms up.
    medians = {
        name: {key: statistics.median(values[1:]) for key, values in own.items()} for name, own in seconds.items()
    }
    speedups = {key: medians["untrimmed"][key] / medians["trimmed"][key] for key in medians["trimmed"]}
    spans = untrimmed.spans()
    record = {
        "settings": {key: value for key, value in vars(arguments).items() if key != "output"} | {"window": WINDOW},
        "bits_per_byte": {name: loss / math.log(2) for name, loss in losses.items()},
        "loss_difference_nats": abs(losses["trimmed"] - losses["untrimmed"]),
        "target_loss_difference_nats": TARGET_LOSS_DIFFERENCE,
        "cpu_seconds": medians,
        "speedup_of_trimmed": speedups,
        "target_speedup": TARGET_SPEEDUP,
        "spans": spans.tolist(),
        "layer_windows": trimmed.config.layer_windows,
        "hardware": hardware(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    span_plot(spans.numpy(), WINDOW).save(arguments.output.with_suffix(".png"))

    print(f"{'':<12}{'forward':>12}{'and backward':>14}{'bits per byte':>16}")
    for name, own in medians.items():
        score = f"{record['bits_per_byte'][name]:16.6f}" if name in losses else ""
        print(f"{name:<12}{own['forward'] * 1e3:9.0f} ms{own['forward_backward'] * 1e3:11.0f} ms{score}")
    for key, value in speedups.items():
        print(f"untrimmed / trimmed, {key.replace('_', ' and ')}: {value:.2f} (target: at least {TARGET_SPEEDUP})")
    print(
        f"difference of the loss: {record['loss_difference_nats']:.1e} nats (target: at most {TARGET_LOSS_DIFFERENCE})"
    )
    print(f"written to {arguments.output} and {arguments.output.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
