"""The command `hf-latentgen`. It lies beside the package, which imports torch: help has to come at once.

Every command is one function call; what it needs is imported when it runs.
"""

import contextlib
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="hf-latentgen",
    help="Latent generative models: train, score, sample and publish them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CheckpointArgument = Annotated[str, typer.Argument(help="Folder, row, or name on the Hub, of a model or a pipeline.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository on the Hub.")]
DataDir = Annotated[str | None, typer.Option(help="Folder with mnist/ and so on.  [default: $HF_LATENTGEN_DATA]")]
Seed = Annotated[int, typer.Option(help="Of every random number.")]


class Format(str, Enum):
    """How scores are printed."""

    table = "table"
    csv = "csv"
    json = "json"


class Output(str, Enum):
    """What is shown of the distribution of a pixel."""

    sample = "sample"
    mode = "mode"
    mean = "mean"


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Context in which a mistake ends the program with one line that says what is allowed."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except StrictDataclassError as error:
        sys.exit(f"error: {' '.join(str(error.__cause__ or error).split())}")
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        sys.exit(f"error: {error}")


def quiet() -> None:
    """Turn off the progress bars of loading and saving, which say nothing about the work at hand."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="YAML file, name of a row such as vae_digits, or a folder of images of your own.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values that replace the recipe's. Of a folder, size=."),
    ] = None,
    output_dir: Annotated[str | None, typer.Option(help="Folder to write.  [default: runs/<row or folder>]")] = None,
    data_dir: DataDir = None,
    start: Annotated[str | None, typer.Option("--from", help="Checkpoint to start from.")] = None,
    revision: Revision = None,
    allow_grey: Annotated[
        bool, typer.Option("--allow-grey", help="Train a model of grey images on coloured ones.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
) -> None:
    """Train a row, a recipe of your own, or a model of the images in a folder."""
    with one_line_errors():
        quiet()
        from hf_latentgen.hub.loading import load
        from hf_latentgen.rows.command import train_report
        from hf_latentgen.rows.own_images import folder_recipe, is_folder
        from hf_latentgen.rows.recipes import load_recipe, train_recipe

        if start is None and revision is not None:
            raise ValueError(f"revision is of no use without --from, got {revision!r}")
        checkpoint = None if start is None else load(start, revision, device="cpu")
        words = [*(overrides or []), *(["dataset.allow_grey=true"] if allow_grey else [])]
        if is_folder(recipe):
            made, sentences = folder_recipe(recipe, words, checkpoint)
            print(*sentences, sep="\n", flush=True)
            output_dir = output_dir or str(Path("runs", Path(recipe).resolve().name))
            if Path(output_dir).resolve().is_relative_to(Path(recipe).resolve()):
                raise ValueError(f"output_dir must lie outside of the images in {recipe}, got {output_dir}")
        else:
            made = load_recipe(recipe, words)
        folder = train_recipe(made, output_dir, data_dir, checkpoint, resume)
        from accelerate import PartialState

        # Of several processes one reports.
        if PartialState().is_main_process:
            train_report(folder)


@app.command()
def evaluate(
    checkpoint: CheckpointArgument,
    data: Annotated[
        str | None, typer.Option(help="Data set, Hub id or folder.  [default: that it was made for]")
    ] = None,
    output_dir: Annotated[
        str | None,
        typer.Option(help="Folder to write.  [default: that of a training run scored on its own test split]"),
    ] = None,
    row: Annotated[bool, typer.Option("--row", help="Write model_cards/<row>: of a run of its recipe only.")] = False,
    revision: Revision = None,
    split: Annotated[str, typer.Option(help="Split to score, all of it.")] = "test",
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 128,
    num_importance_samples: Annotated[
        int | None, typer.Option(help="K of the importance-weighted likelihood of a VAE.  [default: from --budget]")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time from which K follows: 90s, 10m, 2h.  [default: 10m, of a row K = 500]")
    ] = None,
    compile_pass: Annotated[
        bool | None, typer.Option("--compile", help="Compile the pass that is repeated K times.")
    ] = None,
    bf16: Annotated[
        bool | None, typer.Option("--bf16", help="Score in bfloat16: faster on processors that have it.")
    ] = None,
    classifier: Annotated[str | None, typer.Option(help="In-domain classifier that judges samples.")] = None,
    repeats: Annotated[
        list[str] | None, typer.Option(help="The same recipe with another seed, trained and evaluated; once for each.")
    ] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
) -> None:
    """Score a checkpoint on a whole split, and write results.json and pictures."""
    with one_line_errors():
        quiet()
        from hf_latentgen.evaluation.provenance import public_command
        from hf_latentgen.families.family import Options
        from hf_latentgen.rows.command import evaluate_command

        evaluate_command(
            checkpoint,
            data,
            output_dir,
            row,
            revision=revision,
            split=split,
            data_dir=data_dir,
            command=public_command(sys.argv[1:]),
            options=Options(batch_size, seed, num_importance_samples, compile=compile_pass, bf16=bf16),
            budget=budget,
            classifier=classifier,
            repeats=tuple(repeats or ()),
        )


@app.command()
def sample(
    checkpoint: CheckpointArgument,
    file: Annotated[str, typer.Option(help="PNG file to write.")] = "samples.png",
    num_images: Annotated[int, typer.Option(help="How many.")] = 64,
    columns: Annotated[int, typer.Option(min=1, help="Images in a row of the grid.")] = 8,
    output: Annotated[Output, typer.Option(help="Draw each pixel, or take its mode or mean.")] = Output.sample,
    temperature: Annotated[float, typer.Option(help="Of the latents, or of the logits.")] = 1.0,
    label: Annotated[int | None, typer.Option(help="Class to draw, of a model that has classes.")] = None,
    revision: Revision = None,
    seed: Seed = 0,
) -> None:
    """Draw images as one PNG grid."""
    with one_line_errors():
        quiet()
        import torch

        from hf_latentgen.evaluation.pictures import image_grid
        from hf_latentgen.hub.loading import load
        from hf_latentgen.hub.pipelines import LatentGenPipeline

        pipe = LatentGenPipeline(*load(checkpoint, revision).parts)
        pipe.set_progress_bar_config(disable=True)
        levels = pipe(
            num_images,
            torch.Generator().manual_seed(seed),
            temperature=temperature,
            class_labels=label,
            output=output.value,
            output_type="pt",
            return_dict=False,
        )[0]
        image_grid(levels, pipe.model.config.num_levels, columns).save(file, format="PNG")
    print(file)


@app.command()
def score(
    data: Annotated[str, typer.Argument(metavar="IMAGES_OR_TEXT", help="A file, or a folder of files.")],
    model: Annotated[str, typer.Option(help="Folder, row, or name on the Hub.")],
    file_format: Annotated[Format, typer.Option("--format", help="How to print the scores.")] = Format.table,
    method: Annotated[
        str | None, typer.Option(help="Also how unusual each image is: bits_per_dim, typicality, complexity_png, ...")
    ] = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="Also whether it is unusual, as this share of validation images is.")
    ] = None,
    background: Annotated[str | None, typer.Option(help="Second model, of likelihood_ratio.")] = None,
    revision: Revision = None,
    seed: Seed = 0,
) -> None:
    """Bits per dimension of each image, or bits per byte of each text, and how unusual each image is."""
    with one_line_errors():
        quiet()
        from hf_latentgen.rows.anomaly import score_command

        score_command(data, model, revision, method, false_alarm_rate, background, file_format.value, seed)


@app.command()
def calibrate(
    checkpoint: CheckpointArgument,
    data: Annotated[
        str | None, typer.Option(help="Data set, Hub id or folder.  [default: that it was made for]")
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option(help="Folder to write, with a copy of the model.  [default: its own]")
    ] = None,
    background: Annotated[str | None, typer.Option(help="Second model, of likelihood_ratio.")] = None,
    revision: Revision = None,
    data_dir: DataDir = None,
) -> None:
    """Score validation images, so that `score` can tell what is unusual; `evaluate` does so too."""
    with one_line_errors():
        quiet()
        from hf_latentgen.rows.anomaly import calibrate_command

        calibrate_command(checkpoint, data, output_dir, background, revision, data_dir)


@app.command()
def compress(
    data: Annotated[
        str, typer.Argument(metavar="IMAGES_OR_FILE", help="An image, a folder of images, or a file for a byte model.")
    ],
    model: Annotated[str | None, typer.Option(help="Folder, row, or name on the Hub.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="File to write.")] = None,
    info: Annotated[bool, typer.Option("--info", help="Say what the compressed FILE holds, and do nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    verify: Annotated[bool, typer.Option(help="Decode each chunk before it is written; twice the time.")] = True,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="A byte model learns from what it has coded: smaller, and slower.")
    ] = False,
    revision: Revision = None,
) -> None:
    """Compress images or a file with the likelihood of a model, without loss."""
    with one_line_errors():
        quiet()
        from hf_latentgen.rows.compression import compress_command, info_command

        if info:
            info_command(data)
        else:
            compress_command(data, model, output, revision, force, verify, adapt)


@app.command()
def decompress(
    file: Annotated[str, typer.Argument(help="A compressed file.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write, made if missing.")],
    model: Annotated[
        str | None, typer.Option(help="Folder, row, or name on the Hub.  [default: that named in the file]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    revision: Revision = None,
) -> None:
    """Bring back what was compressed: images as PNG files, or the bytes of a file."""
    with one_line_errors():
        quiet()
        from hf_latentgen.rows.compression import decompress_command

        decompress_command(file, output, model, revision, force)


@app.command()
def publish(
    checkpoint: Annotated[str, typer.Argument(help="Folder or row that was evaluated.")],
    repo_id: Annotated[str, typer.Option(help="namespace/name on the Hub, or name in your own namespace.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to, made if missing.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    with_code: Annotated[bool, typer.Option("--with-code", help="Add the code, for use without this package.")] = False,
    license_name: Annotated[
        str | None, typer.Option("--license", help="Of the weights, as the Hub names it.  [default: that of a row]")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.  [default: the name of the repository]")] = None,
    dataset_title: Annotated[str | None, typer.Option(help="Of the data.  [default: the name of the folder]")] = None,
    repository: Annotated[str | None, typer.Option(help="Address of the hf-latentgen repository you use.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list the files, and write the page, without network.")
    ] = False,
) -> None:
    """Publish weights, configuration, card and pictures on the Hub, in one commit."""
    with one_line_errors():
        quiet()
        from hf_latentgen.rows.cards import Choices
        from hf_latentgen.rows.command import publish_command

        choices = Choices(license_name, title, dataset_title, repository)
        publish_command(checkpoint, repo_id, private, revision, create_pr, with_code, dry_run, choices)


@app.command()
def rows(file_format: Annotated[Format, typer.Option("--format", help="How to print them.")] = Format.table) -> None:
    """List every published row with its score, size and where its weights are."""
    with one_line_errors():
        from hf_latentgen.rows.command import rows_command

        rows_command(file_format.value)


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[ROW]...", help="[default: all]")] = None,
    data_dir: DataDir = None,
    as_bytes: Annotated[
        bool, typer.Option("--bytes", help="Compress each row's test split to a file that another process decodes.")
    ] = False,
    record: Annotated[bool, typer.Option("--record", help="Keep the size of that file in results.json.")] = False,
) -> None:
    """Score published weights again and compare with results.json; exit code 1 where something differs."""
    with one_line_errors():
        quiet()
        from hf_latentgen.rows.command import verify_command
        from hf_latentgen.rows.compression import prove_command

        if record and not as_bytes:
            raise ValueError("record must go with --bytes: nothing else is written")
        is_fine = prove_command(names or [], data_dir, record) if as_bytes else verify_command(names or [], data_dir)
    raise typer.Exit(0 if is_fine else 1)


@app.command(name="app")
def serve(
    checkpoints: Annotated[
        list[str] | None, typer.Argument(metavar="[CHECKPOINT]...", help="[default: the rows of the clone]")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="[default: the first free one from 7860]")] = None,
    data_dir: DataDir = None,
) -> None:
    """Serve the demo: a page on which people try trained models."""
    with one_line_errors():
        quiet()
        from hf_latentgen.app import serve_demo

        serve_demo(checkpoints or [], port, data_dir)


@app.command()
def env() -> None:
    """Versions, device and threads: what a bug report needs."""
    with one_line_errors():
        from hf_latentgen.evaluation.provenance import environment
        from hf_latentgen.rows.command import print_table

        print_table(["", ""], [list(pair) for pair in environment().items()], "table")


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
