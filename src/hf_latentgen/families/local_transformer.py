"""Local-attention transformers over bytes."""

from pathlib import Path

from PIL import Image

from hf_latentgen.evaluation.metrics import best_baseline, main_reference, show
from hf_latentgen.evaluation.results import Results
from hf_latentgen.evaluation.text import (
    PROMPT_LENGTH,
    full_context,
    measure_text,
    sample_text,
    text_baselines,
    text_scores,
)
from hf_latentgen.families.family import Data, Family, Measured, Options
from hf_latentgen.families.inputs import text_codes, text_data, text_parts
from hf_latentgen.hub.loading import Checkpoint
from hf_latentgen.training.likelihood import LikelihoodTrainer


def measure(checkpoint: Checkpoint, data: Data, options: Options) -> Measured:
    """The exact score of all test documents, see [`measure_text`], and a sample."""
    model = checkpoint.model
    baseline = text_baselines(b"".join(data.train), b"".join(data.test))
    metrics, diagnostics = measure_text(model, data.train, data.validation, data.test, options.seed)
    return Measured(metrics, diagnostics, baseline, sample_text(model, data.test[0][:PROMPT_LENGTH], options.seed))


def verify(checkpoint: Checkpoint, data: Data, options: Options) -> dict[str, float]:
    """The exact score of all test documents."""
    scores = text_scores(checkpoint.model, data.test, full_context(checkpoint.model))
    return {name: scores[name] for name in ("bits_per_byte", "nll_nats")}


def draw(checkpoint: Checkpoint, data: Data, results: Results, seed: int) -> dict[str, Image.Image]:
    """Nothing: a model of texts has no pictures of its own."""
    return {}


def columns(results: Results) -> dict[str, str]:
    """Cells by the title of their column."""
    return {
        "Parameters": f"{results.num_parameters:,}",
        "Bits/byte (exact)": show(results, "bits_per_byte"),
        "Dynamic evaluation": show(results, "dynamic_bits_per_byte"),
        "Reference": main_reference(results, "bits_per_byte"),
        "Best baseline": best_baseline(results)[1],
    }


LOCAL_TRANSFORMER = Family(
    model_type="latentgen_local_transformer",
    title="Local-attention transformers over bytes",
    classes={"LocalTransformerForCausalLM": "text-generation"},
    trainer=LikelihoodTrainer,
    dataset_keys=("name", "streaming", "block_size", "renamed_copies"),
    make_parts=text_parts,
    load_data=text_data,
    measure=measure,
    baselines=text_codes,
    verify=verify,
    draw=draw,
    columns=columns,
    template=Path(__file__).with_name("local_transformer.md.jinja"),
    history=("bits_per_byte", "bits/byte"),
    tags=("byte-level", "local-attention"),
    thumbnail="history",
    best_by=("tinyshakespeare", "bits_per_byte"),
)
