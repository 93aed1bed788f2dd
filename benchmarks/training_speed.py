"""Training images per second of `ELBOTrainer` beside a bare PyTorch loop, and the time the fast recipe takes to 0.52.

    python benchmarks/training_speed.py --data_dir DATA

Everything is measured in one process, the contestants in turn, so that a busy machine slows them alike. The time to
0.52 bits per dimension of a row is the number of images after which its validation score in model_cards/ was first at
most that, over the speed of its recipe measured here. That of the VLAE is the time of a whole training of so few steps
that its score on the full test split is not far below. Prints a table and writes `training_speed.json` beside this.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, TrainerCallback

from hf_latentgen import load
from hf_latentgen.data import LevelsDataset, collate_levels, dataset_from_arrays
from hf_latentgen.evaluation.likelihood import evaluate_likelihood
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.families.inputs import read_levels
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.rows.recipes import Recipe, load_recipe, train_recipe
from hf_latentgen.training.arguments import LatentTrainingArguments
from hf_latentgen.training.elbo import ELBOTrainer

ROOT = Path(__file__).resolve().parents[1]
COURSE, FAST, LOSSY = "vae_mnist_4bit", "vae_mnist_4bit_fast", "vlae_mnist_4bit"
TARGET_BITS_PER_DIM = 0.52
TARGET_SHARE_OF_BARE_LOOP = 0.95
TARGET_SHARE_OF_COURSE_TIME, TARGET_SHARE_OF_LOSSY = 1 / 3, 1 / 20
# What is trained of the VLAE, and shares of it.
LOSSY_STEPS = 300
LOSSY_SCHEDULE = (
    *(f"training.max_steps={LOSSY_STEPS}", "training.warmup_steps=0.1", "training.kl_warmup_steps=0.3"),
    *("training.eval_strategy=no", "training.save_strategy=no", "training.load_best_model_at_end=false"),
    *("training.logging_steps=0.5", "training.sample_epochs=[]", "training.disable_tqdm=true"),
)
NUM_IMAGES = 54_000
BATCH_SIZE = 128
# Fields of a recipe's training section that change the work of one step.
STEP_FIELDS = (
    *("learning_rate", "muon_learning_rate", "weight_decay", "max_grad_norm", "ema_decay", "bf16", "channels_last"),
    "optim",
)


class StepTimes(TrainerCallback):
    """Collects the moment at which each step ends."""

    def __init__(self):
        self.moments: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        """Notes the time."""
        self.moments.append(time.perf_counter())


def seconds_per_step(moments: list[float]) -> float:
    """Mean time of a step, in seconds, the first five steps not counted."""
    return (moments[-1] - moments[4]) / (len(moments) - 5)


def trainer_step_seconds(recipe: Recipe, levels: LevelsDataset, num_steps: int) -> float:
    """Seconds per step of `ELBOTrainer` with the model and the step settings of a recipe."""
    settings = {key: value for key, value in recipe.training.items() if key in STEP_FIELDS}
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        arguments = LatentTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH_SIZE,
            max_steps=num_steps,
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        model = AutoModel.from_config(AutoConfig.for_model(**recipe.model))
        ELBOTrainer(model, arguments, train_dataset=levels, callbacks=[times]).train()
    return seconds_per_step(times.moments)


def bare_step_seconds(recipe: Recipe, levels: LevelsDataset, num_steps: int) -> float:
    """Seconds per step of a loop in plain PyTorch over the same model and data, with the precision of the recipe."""
    loader = torch.utils.data.DataLoader(levels, batch_size=BATCH_SIZE, shuffle=True, collate_fn=collate_levels)
    model = AutoModel.from_config(AutoConfig.for_model(**recipe.model)).train()
    if recipe.training.get("channels_last", False):
        torch.nn.Module.to(model, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.training["learning_rate"])
    moments: list[float] = []
    while len(moments) < num_steps:
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.training.get("bf16", False)):
                loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            moments.append(time.perf_counter())
            if len(moments) == num_steps:
                break
    return seconds_per_step(moments)


def images_to_target(row: str) -> int | None:
    """Images after which the validation score of a published row was first at most the target, None if never."""
    results = ROOT / "model_cards" / row / "results.json"
    if not results.is_file():
        return None
    scores = {entry["epoch"]: entry.get("eval_bits_per_dim") for entry in json.loads(results.read_text())["history"]}
    reached = [epoch for epoch, score in scores.items() if score is not None and score <= TARGET_BITS_PER_DIM]
    return round(min(reached) * NUM_IMAGES) if reached else None


def lossy_run(data_dir: str | None) -> dict[str, float]:
    """Seconds of a short training of the VLAE, and its score on the full test split."""
    with tempfile.TemporaryDirectory() as folder:
        train_recipe(load_recipe(LOSSY, list(LOSSY_SCHEDULE)), folder, data_dir)
        seconds = json.loads(Path(folder, "run.json").read_text())["train_seconds"]
        found = load(folder)
    test = read_levels(found.processor, "mnist", "test", data_dir)
    scores = evaluate_likelihood(found.model, test.levels, num_importance_samples=0).metrics()
    return {"train_seconds": seconds, "steps": LOSSY_STEPS, "bits_per_dim": scores["bits_per_dim"]}


def main() -> None:
    """Measures, prints and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_steps", type=int, default=60, help="steps of one measurement (default: 60)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each contestant (default: 5)")
    parser.add_argument("--data_dir", help="folder with mnist/")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    # What the pixels show does not change the time, so the measurement needs no data files.
    images = np.random.default_rng(42).integers(0, 256, (8_192, 28, 28), dtype=np.uint8)
    dataset = dataset_from_arrays(images, split="train")
    levels = LevelsDataset(dataset, LevelsImageProcessor(size=28, num_levels=16))
    recipes = {row: load_recipe(ROOT / "configs" / f"{row}.yaml") for row in (COURSE, FAST)}
    contestants = {
        "bare loop, course network": lambda: bare_step_seconds(recipes[COURSE], levels, arguments.num_steps),
        "ELBOTrainer, course network": lambda: trainer_step_seconds(recipes[COURSE], levels, arguments.num_steps),
        "ELBOTrainer, fast recipe": lambda: trainer_step_seconds(recipes[FAST], levels, arguments.num_steps),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.repeats):
        for name, measure in contestants.items():
            seconds[name].append(measure())
    images_per_second = {name: BATCH_SIZE / statistics.median(values) for name, values in seconds.items()}
    bare, course, fast = images_per_second.values()
    record = {
        "batch_size": BATCH_SIZE,
        "images_per_second": images_per_second,
        "step_seconds": seconds,
        "trainer_share_of_bare_loop": course / bare,
        "target_share_of_bare_loop": TARGET_SHARE_OF_BARE_LOOP,
    }
    course_images, fast_images = images_to_target(COURSE), images_to_target(FAST)
    if course_images and fast_images:
        record["seconds_to_0.52"] = {COURSE: course_images / course, FAST: fast_images / fast}
        record["fast_share_of_course_time"] = record["seconds_to_0.52"][FAST] / record["seconds_to_0.52"][COURSE]
        record["target_share_of_course_time"] = TARGET_SHARE_OF_COURSE_TIME
    lossy = record["lossy_run"] = lossy_run(arguments.data_dir)
    if "seconds_to_0.52" in record and lossy["bits_per_dim"] <= TARGET_BITS_PER_DIM:
        record["seconds_to_0.52"][LOSSY] = lossy["train_seconds"]
        record["lossy_share_of_course_time"] = lossy["train_seconds"] / record["seconds_to_0.52"][COURSE]
        record["target_share_of_lossy"] = TARGET_SHARE_OF_LOSSY
    record |= {"hardware": hardware(), "versions": versions(), "git_commit": git_commit()}
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")

    for name, value in images_per_second.items():
        print(f"{name:<44}{value:8.0f} images/s")
    print(f"{'ELBOTrainer / bare loop':<44}{course / bare:8.3f} (target: at least {TARGET_SHARE_OF_BARE_LOOP})")
    for row, value in record.get("seconds_to_0.52", {}).items():
        print(f"{'to 0.52 bits/dim, ' + row:<44}{value:8.0f} s")
    if "fast_share_of_course_time" in record:
        share = record["fast_share_of_course_time"]
        print(f"{'fast recipe / course recipe':<44}{share:8.3f} (target: at most {TARGET_SHARE_OF_COURSE_TIME:.3f})")
    print(f"{f'VLAE, {LOSSY_STEPS} steps':<44}{lossy['bits_per_dim']:8.4f} bits/dim")
    if "lossy_share_of_course_time" in record:
        share = record["lossy_share_of_course_time"]
        print(f"{'VLAE / course recipe':<44}{share:8.3f} (target: at most {TARGET_SHARE_OF_LOSSY:.3f})")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
