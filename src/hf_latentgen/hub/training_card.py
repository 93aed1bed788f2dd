"""The card of a model that has been trained but not yet evaluated: what a trainer pushes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_latentgen.hub.pipelines import LatentGenPipeline
from hf_latentgen.models.hub import IMAGE_TASK

# Measurements of time, which say nothing about the model.
TIMING = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")


def training_card(
    model: Any, repo_id: str, training: Mapping[str, object], history: Sequence[Mapping[str, float]]
) -> str:
    """Text of the `README.md` of a model that was trained: how, and its validation scores.

    Args:
        model: what was trained, a model or a pipeline; of a pipeline the denoiser.
        repo_id: name on the Hub that the loading snippet uses.
        training: the training arguments that are worth telling.
        history: `log_history` of a trainer.
    """
    evaluations = [entry for entry in history if any(key.startswith("eval_") for key in entry)]
    scores = sorted({key for entry in evaluations for key in entry if key.startswith("eval_")} - set(TIMING))
    is_pipeline = isinstance(model, LatentGenPipeline)
    tag = "prior" if is_pipeline else model.config.model_type.removeprefix("latentgen_")
    card = ModelCard.from_template(
        ModelCardData(
            library_name="diffusers" if is_pipeline else "transformers",
            pipeline_tag=IMAGE_TASK if is_pipeline else model.hub_task,
            tags=["hf_latentgen", tag],
        ),
        template_path=str(Path(__file__).with_name("training.md.jinja")),
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        model_class=type(model).__name__,
        is_pipeline=is_pipeline,
        num_parameters=f"{(model.denoiser if is_pipeline else model).num_parameters():,}",
        training=[(f"`{key}`", str(value).replace("|", "\\|")) for key, value in training.items()],
        columns=["epoch", *(key.removeprefix("eval_") for key in scores)],
        evaluations=[
            [f"{entry['epoch']:g}", *(f"{entry[key]:.4f}" if key in entry else "" for key in scores)]
            for entry in evaluations
        ],
    )
    return str(card)
