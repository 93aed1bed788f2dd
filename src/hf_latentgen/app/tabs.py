"""The tabs of the page: their controls and outputs, and the events between. What a tab does is in `inference`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import gradio as gr  # pyright: ignore[reportMissingImports]
from PIL import Image
from torch import Tensor

from hf_latentgen.app import inference
from hf_latentgen.app.checkpoints import NEEDS, Checkpoint, Checkpoints

# How many requests are computed at a time, of each kind: more would keep the server from answering at all.
QUICK = {"concurrency_id": "quick", "concurrency_limit": 2}
SLOW = {"concurrency_id": "slow", "concurrency_limit": 2}
SHEET_HEIGHT = 125
MAX_SEED = 2**31 - 1
SMALL_TEMPERATURE = 0.1
OUTPUTS = [("smooth: the mean of each pixel", "mean"), ("grainy: each pixel is drawn", "sample")]
PROMPTS = ["ROMEO:\n", "To be, or not", "KING HENRY:\nMy lords,"]


@contextmanager
def readable_errors() -> Iterator[None]:
    """Shows a mistake of the person at the page as a message there."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error


def own_file(picture: Image.Image) -> Image.Image:
    """The picture with a mark, so that it is written to a file that no other request uses.

    gradio names a file by its content, and writes it again while somebody else may be reading it.
    """
    picture = picture.copy()
    picture.info["request"] = uuid4().hex
    return picture


def _model_choice(checkpoints: Checkpoints, need: str, explanation: str) -> gr.Dropdown:
    """The choice among the models that fit, below what the tab is about."""
    gr.Markdown(explanation)
    fitting = checkpoints.fitting(need)
    if not fitting:
        gr.Markdown(
            f"**No model for this tab is loaded.** It needs {NEEDS[need][0]}: "
            "`hf-latentgen app CHECKPOINT` loads one from a folder or from the Hub."
        )
    # Another name is answered by a message that says what would fit.
    choices = [(checkpoint.title, checkpoint.name) for checkpoint in fitting]
    value = choices[0][1] if choices else None
    return gr.Dropdown(choices, value=value, label="Model", allow_custom_value=True)


def _temperature(value: float, interactive: bool = True) -> gr.Slider:
    label = "Temperature: low is typical, high is adventurous"
    return gr.Slider(SMALL_TEMPERATURE, 2, value, step=0.1, label=label, interactive=interactive)


def _seed() -> gr.Number:
    return gr.Number(0, label="Seed: the same seed gives the same result", precision=0, minimum=0, maximum=MAX_SEED)


def _picture(title: str, **options: Any) -> gr.Image:
    """A picture below its title: a label of gradio's own would lie upon it."""
    gr.Markdown(f"**{title}**")
    return gr.Image(label=title, show_label=False, format="png", interactive=False, buttons=[], **options)


def _pixels(title: str, **options: Any) -> gr.Image:
    return _picture(title, elem_classes="pixels", **options)


def _sheet(title: str, checkpoint: Checkpoint | None, **options: Any) -> gr.Image:
    """The test images to choose from by a click."""
    value = inference.digit_sheet(checkpoint) if checkpoint else None
    return _pixels(title, value=value, height=SHEET_HEIGHT, **options)


def _first(checkpoints: Checkpoints, need: str) -> Checkpoint | None:
    return next(iter(checkpoints.fitting(need)), None)


def _source(checkpoint: Checkpoint | None) -> str:
    return f"The digits to choose from: {checkpoint.digits.source}." if checkpoint else ""


def _clicked(checkpoints: Checkpoints, need: str) -> Callable:
    """A handler that turns a click on a sheet into the number of the image."""

    def choose(name: str, event: gr.SelectData) -> int:
        with readable_errors():
            return inference.sheet_digit(checkpoints.pick(name, need), *event.index)

    return choose


def sample_tab(checkpoints: Checkpoints) -> dict:
    """The event that draws samples."""

    def sample(
        model: str, number: float, temperature: float, label: int, output: str, seed: float
    ) -> Iterator[Image.Image]:
        with readable_errors():
            checkpoint = checkpoints.pick(model, "sample")
            yield from map(own_file, inference.sample(checkpoint, number, temperature, label, output, seed))

    def adapt(model: str, label: int) -> tuple[gr.Slider, gr.Dropdown]:
        with readable_errors():
            checkpoint = checkpoints.pick(model, "sample")
        free = checkpoint.has_temperature
        temperature = gr.Slider(interactive=True) if free else gr.Slider(value=1, interactive=False)
        known = label if label in range(checkpoint.num_classes) else inference.ANY_CLASS
        return temperature, gr.Dropdown(_classes(checkpoint), value=known, visible=checkpoint.num_classes > 0)

    first = _first(checkpoints, "sample")
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            model = _model_choice(checkpoints, "sample", "The model invents images that nobody has drawn.")
            number = gr.Slider(1, inference.MAX_IMAGES, 36, step=1, label="Number of images")
            temperature = _temperature(1, interactive=first is None or first.has_temperature)
            label = gr.Dropdown(
                _classes(first),
                value=inference.ANY_CLASS,
                label="Class",
                allow_custom_value=True,
                visible=bool(first and first.num_classes),
            )
            output = gr.Radio(OUTPUTS, value="mean", label="Pixels")
            seed = _seed()
            with gr.Row():
                draw = gr.Button("Draw", variant="primary")
                other = gr.Button("Next seed")
        with gr.Column(scale=3):
            picture = _pixels("Samples", elem_id="sample_picture", height=590)
    inputs = [model, number, temperature, label, output, seed]
    event = {"fn": sample, "inputs": inputs, "outputs": picture, **SLOW}
    draw.click(**event, api_name="sample")
    other.click(lambda seed: (seed or 0) + 1, seed, seed, api_visibility="private").then(
        **event, api_visibility="private"
    )
    adapted = model.change(adapt, [model, label], [temperature, label], api_visibility="private")
    adapted.then(**event, api_visibility="private")
    examples = _sample_examples(checkpoints)
    if examples:
        names, rows = list(examples), list(examples.values())
        gr.Examples(rows, inputs, example_labels=names, label="Try", api_visibility="private")
    return event


def _sample_examples(checkpoints: Checkpoints) -> dict[str, list]:
    """Arguments of the event that draws samples, by what they show."""
    fitting, examples = checkpoints.fitting("sample"), {}
    for found in fitting:
        if found.has_temperature:
            examples["typical"] = [found.name, 36, 0.5, inference.ANY_CLASS, "mean", 1]
            examples["adventurous"] = [found.name, 36, 2, inference.ANY_CLASS, "mean", 1]
            break
    for found in fitting:
        if found.num_classes > 3:
            examples["only threes"] = [found.name, 36, 1, 3, "mean", 1]
            break
    return examples


def _classes(checkpoint: Checkpoint | None) -> list[tuple[str, int]]:
    names = checkpoint.class_names if checkpoint else []
    return [("any", inference.ANY_CLASS), *((name, label) for label, name in enumerate(names))]


def map_tab(checkpoints: Checkpoints) -> None:
    """A tab with the latent plane."""

    def latent_map(model: str, first: float, second: float) -> tuple[Image.Image, Image.Image]:
        with readable_errors():
            checkpoint = checkpoints.pick(model, "map")
            picture = inference.marked_map(checkpoint, first, second)
            return own_file(picture), own_file(inference.decode_point(checkpoint, first, second))

    def clicked(model: str, event: gr.SelectData) -> tuple[float, float]:
        with readable_errors():
            return inference.clicked_point(checkpoints.pick(model, "map"), *event.index)

    with gr.Tab("Latent map") as tab, gr.Row():
        with gr.Column(scale=2, min_width=320):
            text = (
                "These models describe each digit by two numbers only: a place on a map. Dots are test digits, "
                "coloured by class; behind them is what the model draws at each place. **Click on the map.**"
            )
            model = _model_choice(checkpoints, "map", text)
            first = gr.Slider(-4, 4, 0, step=0.05, label="First latent number: left to right", elem_id="first")
            second = gr.Slider(-4, 4, 0, step=0.05, label="Second latent number: bottom to top", elem_id="second")
            decoded = _pixels("What the model draws there", elem_id="decoded", height=260)
        with gr.Column(scale=3):
            picture = _picture("Map", elem_id="map")
    event = {"fn": latent_map, "inputs": [model, first, second], "outputs": [picture, decoded], **QUICK}
    gr.on(
        [first.change, second.change, model.input],
        **event,
        api_name="latent_map",
        trigger_mode="always_last",
        show_progress="hidden",
    )
    picture.select(clicked, model, [first, second], api_visibility="private", show_progress="hidden")
    if checkpoints.fitting("map"):
        tab.select(**event, api_visibility="private")


def reconstruct_tab(checkpoints: Checkpoints) -> None:
    """The contents of the tab that draws a picture again."""
    need = "autoencoder"

    def shown(model: str, levels_of: Callable[[Checkpoint], Tensor], seed: float) -> tuple:
        with readable_errors():
            checkpoint = checkpoints.pick(model, need)
            *pictures, words = inference.reconstruct(checkpoint, levels_of(checkpoint), seed)
            return *map(own_file, pictures), words

    def drawn_on(sheet: Any) -> Image.Image | None:
        # A browser has sent the content before, a program names a file.
        composite: Any = drawing.blob_storage.pop(sheet.id, sheet).composite if sheet else None
        with readable_errors():
            content = composite.path if isinstance(composite, gr.FileData) else composite
            return inference.open_picture(content) if content else None

    def reconstruct(model: str, drawing: Image.Image | None, seed: float) -> tuple:
        return shown(model, lambda found: inference.levels_from_drawing(found, drawing), seed)

    def reconstruct_file(model: str, file: str | None, seed: float) -> tuple:
        return shown(model, lambda found: inference.levels_from_picture(found, inference.open_picture(file)), seed)

    def reconstruct_digit(model: str, index: float, seed: float) -> tuple:
        return shown(model, lambda found: inference.digit(found, index), seed)

    def adapt(model: str) -> tuple:
        with readable_errors():
            checkpoint = checkpoints.pick(model, need)
            return own_file(inference.digit_sheet(checkpoint)), _source(checkpoint)

    first = _first(checkpoints, need)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            text = (
                "The model squeezes a picture into a few numbers and draws it again from them. Draw a digit, or "
                "something that is none."
            )
            model = _model_choice(checkpoints, need, text)
            drawing = gr.Sketchpad(
                label="Draw here",
                type="pil",
                canvas_size=(280, 280),
                fixed_canvas=True,
                height=360,
                layers=False,
                transforms=(),
                brush=gr.Brush(default_size=20, colors=["#000000"], color_mode="fixed"),
                elem_id="drawing",
            )
            # gradio would read all layers, whatever their size, and answer a mistake with paths of the server.
            drawing.preprocess = drawn_on  # pyright: ignore[reportAttributeAccessIssue]
            draw = gr.Button("Reconstruct the drawing", variant="primary")
            sheet = _sheet("Or click a digit", first, elem_id="digits")
            gr.Markdown("**Or give a picture file**")
            file = gr.File(show_label=False, file_types=["image"], type="filepath", height=140, elem_id="file")
            source = gr.Markdown(_source(first))
            seed = _seed()
        with gr.Column(scale=3):
            with gr.Row():
                with gr.Column(min_width=200):
                    seen = _pixels("What the model sees", elem_id="seen", height=240)
                with gr.Column(min_width=200):
                    drawn = _pixels("What it draws", elem_id="reconstruction", height=240)
            words = gr.Markdown(elem_id="score")
            figure = _picture("How usual is it?", height=330)
            index = gr.Number(0, precision=0, visible=False)
    # One sign of progress or of a mistake is enough for four outputs.
    event = {"outputs": [seen, drawn, figure, words], "show_progress_on": drawn, **QUICK}
    draw.click(reconstruct, [model, drawing, seed], api_name="reconstruct", **event)
    file.upload(reconstruct_file, [model, file, seed], api_name="reconstruct_file", **event)
    clicked = sheet.select(_clicked(checkpoints, need), model, index, api_visibility="private")
    clicked.then(reconstruct_digit, [model, index, seed], api_name="reconstruct_digit", **event)
    model.input(adapt, model, [sheet, source], api_visibility="private")


def interpolate_tab(checkpoints: Checkpoints) -> None:
    """A tab with the images between two digits."""
    need = "autoencoder"

    def interpolate(model: str, first: float, second: float, steps: float) -> Image.Image:
        with readable_errors():
            return own_file(inference.interpolate(checkpoints.pick(model, need), first, second, steps))

    def adapt(model: str) -> tuple:
        with readable_errors():
            checkpoint = checkpoints.pick(model, need)
            sheet, chosen = own_file(inference.digit_sheet(checkpoint)), inference.chosen_digits(checkpoint)
            return sheet, sheet, chosen[0], chosen[-1], _source(checkpoint)

    start = _first(checkpoints, need)
    chosen = inference.chosen_digits(start) if start else [0]
    with gr.Tab("Interpolate") as tab:
        text = "Between the numbers of one digit and those of another lie the numbers of digits in between."
        model = _model_choice(checkpoints, need, text)
        with gr.Row():
            with gr.Column():
                from_sheet = _sheet("From: click a digit", start, elem_id="from_sheet")
            with gr.Column():
                to_sheet = _sheet("To: click a digit", start, elem_id="to_sheet")
        with gr.Row():
            first = gr.Number(chosen[0], label="From image number", precision=0, minimum=0, elem_id="from")
            second = gr.Number(chosen[-1], label="To image number", precision=0, minimum=0, elem_id="to")
            steps = gr.Slider(3, 15, 9, step=1, label="Steps")
        picture = _pixels("Left and right the two digits, between them what the model draws", elem_id="interpolation")
        source = gr.Markdown(_source(start))
    event = {"fn": interpolate, "inputs": [model, first, second, steps], "outputs": picture, **QUICK}
    triggers = [first.change, second.change, steps.change]
    gr.on(triggers, **event, api_name="interpolate", trigger_mode="always_last")
    for sheet, number in ((from_sheet, first), (to_sheet, second)):
        sheet.select(_clicked(checkpoints, need), model, number, api_visibility="private")
    adapted = model.input(adapt, model, [from_sheet, to_sheet, first, second, source], api_visibility="private")
    adapted.then(**event, api_visibility="private")
    if start:
        tab.select(**event, api_visibility="private")


def complete_tab(checkpoints: Checkpoints) -> None:
    """The contents of the tab that finishes a digit."""
    need = "complete"

    def complete(
        model: str, index: float, given: float, number: float, temperature: float, seed: float
    ) -> Iterator[Image.Image]:
        with readable_errors():
            checkpoint = checkpoints.pick(model, need)
            yield from map(own_file, inference.complete(checkpoint, index, given, number, temperature, seed))

    def adapt(model: str) -> tuple:
        with readable_errors():
            checkpoint = checkpoints.pick(model, need)
            sheet, chosen = own_file(inference.digit_sheet(checkpoint)), inference.chosen_digits(checkpoint)
            return sheet, chosen[0], _source(checkpoint)

    first = _first(checkpoints, need)
    text = "The model sees the upper part of a digit and draws the rest pixel by pixel, each time differently."
    model = _model_choice(checkpoints, need, text)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            sheet = _sheet("Click a digit", first, elem_id="sheet")
            source = gr.Markdown(_source(first))
            start = inference.chosen_digits(first)[0] if first else 0
            index = gr.Number(start, label="Image number", precision=0, minimum=0)
        with gr.Column(scale=2, min_width=320):
            given = gr.Slider(0, 100, 50, step=5, label="Percentage of the rows that the model sees")
            number = gr.Slider(1, 8, 5, step=1, label="How many times")
            temperature = _temperature(1)
            seed = _seed()
            with gr.Row():
                run = gr.Button("Complete", variant="primary")
                stop = gr.Button("Stop")
    picture = _pixels("The digit, what the model sees, and how it goes on", elem_id="completion")
    inputs = [model, index, given, number, temperature, seed]
    event = {"fn": complete, "inputs": inputs, "outputs": picture, **SLOW}
    running = run.click(**event, api_name="complete")
    chosen = sheet.select(_clicked(checkpoints, need), model, index, api_visibility="private")
    again = chosen.then(**event, api_visibility="private")
    stop.click(None, cancels=[running, again])
    model.input(adapt, model, [sheet, index, source], api_visibility="private")


def text_tab(checkpoints: Checkpoints) -> None:
    """The contents of the tab that continues a text."""

    def text(model: str, prompt: str, length: float, temperature: float, seed: float) -> Iterator[str]:
        with readable_errors():
            yield from inference.continue_text(checkpoints.pick(model, "text"), prompt, length, temperature, seed)

    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            model = _model_choice(checkpoints, "text", "The model goes on from a beginning, one byte after the other.")
            prompt = gr.Textbox(
                "ROMEO:\n", label="Beginning", lines=3, max_length=inference.MAX_PROMPT, elem_id="prompt"
            )
            length = gr.Slider(1, inference.MAX_LENGTH, 300, step=1, label="How many bytes to write")
            temperature = _temperature(0.8)
            seed = _seed()
            with gr.Row():
                run = gr.Button("Write", variant="primary")
                stop = gr.Button("Stop")
            gr.Examples([[prompt] for prompt in PROMPTS], [prompt], label="Try")
        with gr.Column(scale=3):
            written = gr.Textbox(label="The model writes", lines=22, interactive=False, elem_id="written")
    running = run.click(text, [model, prompt, length, temperature, seed], written, api_name="text", **SLOW)
    stop.click(None, cancels=running)
