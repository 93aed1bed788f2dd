"""What ways to read the pixels before each one are worth in equal time: a VLAE of 4-bit MNIST, on the full test split.

    python benchmarks/pixel_decoders.py --data_dir DATA

All have the network of configs/vlae_mnist_4bit.yaml but for its pixel decoder, and are trained for as many steps as fit
into the same time, the learning rate falling to zero:

- convolution, neighborhood, raster: the three kinds of `pixel_decoder`;
- none: a radius of 0, which is a VAE.

Prints a line for each and writes `pixel_decoders.json` beside this, after each: one that is there already is not
trained again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from transformers import set_seed

from hf_latentgen.evaluation.likelihood import evaluate_likelihood, shares_of_latents
from hf_latentgen.evaluation.provenance import git_commit, hardware, versions
from hf_latentgen.families.family import Setup
from hf_latentgen.families.inputs import read_levels
from hf_latentgen.models.image_processing_levels import LevelsImageProcessor
from hf_latentgen.models.modeling_latentgen import LatentGenModel
from hf_latentgen.rows.recipes import load_recipe
from hf_latentgen.training.trainer import LatentTrainer

ROW = "vlae_mnist_4bit"
CONTESTANTS = {
    "convolution": ["model.pixel_decoder=convolution"],
    "neighborhood": ["model.pixel_decoder=neighborhood"],
    "raster": ["model.pixel_decoder=raster"],
    "none": ["model.decoder_radius=0"],
}
# Shares of the training, so that short and long ones are alike.
SCHEDULE = ("training.warmup_steps=0.1", "training.kl_warmup_steps=0.3", "training.logging_steps=0.25")
NOTHING_ELSE = (
    *("training.eval_strategy=no", "training.save_strategy=no", "training.load_best_model_at_end=false"),
    *("training.sample_epochs=[]", "training.disable_tqdm=true"),
)


def trained(overrides: list[str], num_steps: int, data_dir: str | None) -> LatentTrainer:
    """The trainer of a contestant, after its training."""
    recipe = load_recipe(ROW, [*overrides, *SCHEDULE, *NOTHING_ELSE, f"training.max_steps={num_steps}"])
    with tempfile.TemporaryDirectory() as folder:
        # Not `train_recipe`, which also tells what the training came to, and takes minutes for it.
        arguments = recipe.family.arguments(output_dir=folder, **recipe.training)
        set_seed(arguments.seed)
        parts = recipe.family.make_parts(Setup(recipe.model, recipe.dataset, data_dir, arguments.seed, None))
        trainer = recipe.family.trainer(args=arguments, **parts)
        trainer.train()
    return trainer


def compare(overrides: list[str], seconds: float, num_trial_steps: int, data_dir: str | None) -> dict:
    """Scores of a contestant on the test split after a training of about so many seconds."""
    trial = trained(overrides, num_trial_steps, data_dir).elapsed_seconds
    num_steps = max(round(seconds / trial * num_trial_steps), 1)
    trainer = trained(overrides, num_steps, data_dir)
    taken, model = trainer.elapsed_seconds, cast(LatentGenModel, trainer.model)
    processor = cast(LevelsImageProcessor, trainer.processing_class)
    test = read_levels(processor, load_recipe(ROW).dataset["name"], "test", data_dir)
    # As `hf-latentgen evaluate --bf16`.
    with trainer.evaluated_weights(), torch.autocast(model.device.type, torch.bfloat16):
        scores = evaluate_likelihood(model, test.levels, num_importance_samples=0).metrics()
        other = shares_of_latents(model, test.levels)["distortion_of_other_code_nats"]
    return {
        "train_seconds": taken,
        "steps": num_steps,
        "num_parameters": model.num_parameters(),
        **{name: scores[name] for name in ("bits_per_dim", "bits_per_dim_standard_error", "rate_nats")},
        "other_code_costs_nats": other - scores["distortion_nats"],
    }


def main() -> None:
    """Trains, measures, prints and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder with mnist/")
    parser.add_argument("--seconds", type=float, default=120, help="of each training (default: 120)")
    parser.add_argument("--trial_steps", type=int, default=40, help="that tell how long a step takes (default: 40)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    is_new = not arguments.output.is_file()
    record: dict[str, Any] = {"runs": {}} if is_new else json.loads(arguments.output.read_text())
    if record.get("seconds", arguments.seconds) != arguments.seconds:
        raise SystemExit(f"--seconds must be {record['seconds']}, that of {arguments.output}, or name another --output")
    for name, overrides in CONTESTANTS.items():
        if name not in record["runs"]:
            run = compare(overrides, arguments.seconds, arguments.trial_steps, arguments.data_dir)
            record |= {"seconds": arguments.seconds, "hardware": hardware(), "versions": versions()}
            record |= {"git_commit": git_commit(), "runs": record["runs"] | {name: run}}
            arguments.output.write_text(json.dumps(record, indent=2) + "\n")
        run = record["runs"][name]
        print(
            f"{name:<14}{run['steps']:6d} steps in {run['train_seconds']:4.0f} s"
            f"{run['bits_per_dim']:8.4f} bits/dim{run['rate_nats']:7.1f} nats of rate"
            f"{run['other_code_costs_nats']:7.1f} nats more with another code"
        )
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
