"""The card of a model that has been trained but not yet evaluated: what a trainer pushes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import PreTrainedModel

from hf_latentgen.hub.pipelines import LatentGenPipeline
from hf_latentgen.models.hub import IMAGE_TASK
from hf_latentgen.models.modeling_latentgen import LatentGenModel

# Measurements of time, which say nothing about the model.
TIMING = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")


def training_card(
    model: PreTrainedModel | LatentGenPipeline,
    repo_id: str,
    training: Mapping[str, object],
    history: Sequence[Mapping[str, float]],
) -> str:
    """Text of the `README.md` of a model that was trained: how, and its validation scores.

    Args:
        model: what was trained; of a pipeline the denoiser.
        repo_id: name on the Hub that the loading snippet uses.
        training: the training arguments that are worth telling.
        history: `log_history` of a trainer.
    """
    evaluations = [entry for entry in history if any(key.startswith("eval_") for key in entry)]
    scores = sorted({key for entry in evaluations for key in entry if key.startswith("eval_") and key not in TIMING})
    is_pipeline = isinstance(model, LatentGenPipeline)
    model_type = "prior" if is_pipeline else model.config.model_type
    task = IMAGE_TASK if isinstance(model, LatentGenPipeline) else cast(LatentGenModel, model).hub_task
    folder = Path(__file__).parent
    metadata = ModelCardData(
        library_name="diffusers" if is_pipeline else "transformers",
        pipeline_tag=task,
        tags=["hf_latentgen", model_type.removeprefix("latentgen_")],
    )
    environment = Environment(loader=FileSystemLoader(folder), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("training.md.jinja").render(
        card_data=metadata.to_yaml(),
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
