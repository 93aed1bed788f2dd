"""The tabs of the page: their controls and outputs, and the events between. What a tab does is in `inference`.

On a narrow page columns stand below each other: a result is the next thing after what makes it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from PIL import Image
from torch import Tensor

from hf_latentgen.app import inference
from hf_latentgen.app.bits import costs, heat_map, rated, table
from hf_latentgen.app.checkpoints import Checkpoint, Checkpoints
from hf_latentgen.app.parts import (
    choose_brush,
    clicked_digit,
    dots_of,
    drawing_pad,
    figure_of,
    model_choice,
    own_file,
    pixels_of,
    readable_errors,
    reveal,
    seed_number,
    sheet_of,
    shown_once,
    source_of,
    temperature_slider,
)

# How many requests are computed at a time, of each kind: more would keep the server from answering at all.
QUICK = {"concurrency_id": "quick", "concurrency_limit": 2}
SLOW = {"concurrency_id": "slow", "concurrency_limit": 2}
OUTPUTS = [("smooth: the mean of each pixel", "mean"), ("grainy: each pixel is drawn", "sample")]
PROMPTS = ["ROMEO:\n", "To be, or not", "KING HENRY:\nMy lords,"]


def sample_tab(checkpoints: Checkpoints) -> dict:
    """A tab that draws samples. The event that draws them."""

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

    with gr.Tab("Sample"):
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                model, first = model_choice(checkpoints, "sample", "The model invents images that nobody has drawn.")
                number = gr.Slider(1, inference.MAX_IMAGES, 36, step=1, label="Number of images")
                temperature = temperature_slider(1, interactive=first is None or first.has_temperature)
                label = gr.Dropdown(
                    _classes(first),
                    value=inference.ANY_CLASS,
                    label="Class",
                    allow_custom_value=True,
                    visible=bool(first and first.num_classes),
                )
                output = gr.Radio(OUTPUTS, value="mean", label="Pixels")
                seed = seed_number()
                with gr.Row():
                    draw = gr.Button("Draw", min_width=120, variant="primary", interactive=first is not None)
                    other = gr.Button("Next seed", min_width=120, interactive=first is not None)
            with gr.Column(scale=3, min_width=320):
                picture = pixels_of("Samples", elem_id="sample_picture")
        inputs = [model, number, temperature, label, output, seed]
        event = {"fn": sample, "inputs": inputs, "outputs": picture, **SLOW}
        draw.click(**event, api_name="sample")
        other.click(lambda seed: (seed or 0) + 1, seed, seed, api_visibility="private").then(
            **event, api_visibility="private"
        )
        gr.on([draw.click, other.click], **reveal("sample_picture"))
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

    def adapt(model: str) -> str:
        with readable_errors():
            return dots_of(checkpoints.pick(model, "map"))

    with gr.Tab("Latent map") as tab, gr.Row(elem_id="map_row"):
        with gr.Column(min_width=320):
            text = "These models describe each digit by two numbers only: a place on a map. **Click on the map.**"
            model, start = model_choice(checkpoints, "map", text)
        with gr.Column(min_width=320):
            picture = figure_of("Map", elem_id="map")
            dots = gr.Markdown(dots_of(start))
        with gr.Column(min_width=320):
            decoded = pixels_of("What the model draws there", elem_id="decoded")
            step = inference.MAP_STEP
            first = gr.Slider(-4, 4, 0, step=step, label="First latent number: left to right", elem_id="first")
            second = gr.Slider(-4, 4, 0, step=step, label="Second latent number: bottom to top", elem_id="second")
    event = {"fn": latent_map, "inputs": [model, first, second], "outputs": [picture, decoded], **QUICK}
    gr.on(
        [first.change, second.change, model.input],
        **event,
        api_name="latent_map",
        trigger_mode="always_last",
        show_progress="hidden",
    )
    picture.select(clicked, model, [first, second], api_visibility="private", show_progress="hidden")
    picture.select(**reveal("decoded"))
    model.input(adapt, model, dots, api_visibility="private", show_progress="hidden")
    if start:
        tab.select(**event, api_visibility="private")


def reconstruct_tab(checkpoints: Checkpoints) -> None:
    """A tab that draws a picture again."""
    need = "autoencoder"

    def shown(kind: str, model: str, levels_of: Callable[[Checkpoint], Tensor], seed: float) -> tuple:
        with readable_errors():
            checkpoint = checkpoints.pick(model, need)
            *pictures, words = inference.reconstruct(checkpoint, levels_of(checkpoint), seed)
            return *map(own_file, pictures), words, kind

    def reconstruct(model: str, drawing: Image.Image | None, seed: float) -> tuple:
        return shown("drawing", model, lambda found: inference.levels_from_drawing(found, drawing), seed)

    def reconstruct_file(model: str, file: str | None, seed: float) -> tuple:
        def levels(found: Checkpoint) -> Tensor:
            return inference.levels_from_picture(found, inference.open_picture(file))

        return shown("file", model, levels, seed)

    def reconstruct_digit(model: str, index: float, seed: float) -> tuple:
        return shown("digit", model, lambda found: inference.digit(found, index), seed)

    def again(kind: str, model: str, drawing: Image.Image | None, file: str | None, index: float, seed: float) -> tuple:
        """What was shown last, for the chosen model."""
        if kind == "drawing" and drawing is not None:
            return reconstruct(model, drawing, seed)
        return reconstruct_file(model, file, seed) if kind == "file" and file else reconstruct_digit(model, index, seed)

    def adapt(model: str, index: float) -> tuple:
        with readable_errors():
            checkpoint = checkpoints.pick(model, need)
            kept = index if index < len(checkpoint.digits.levels) else inference.chosen_digits(checkpoint)[0]
            return own_file(inference.digit_sheet(checkpoint)), source_of(checkpoint), kept

    with gr.Tab("Reconstruct") as tab:
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                text = (
                    "The model squeezes a picture into a few numbers and draws it again from them. Draw a digit, or "
                    "something that is none."
                )
                model, first = model_choice(checkpoints, need, text)
                drawing = drawing_pad("drawing")
                draw = gr.Button("Reconstruct the drawing", variant="primary", interactive=first is not None)
            with gr.Column(scale=3, min_width=320, elem_id="reconstructed"):
                with gr.Row():
                    with gr.Column(min_width=140):
                        seen = pixels_of("What the model sees", elem_id="seen")
                    with gr.Column(min_width=140):
                        drawn = pixels_of("What it draws", elem_id="reconstruction")
                words = gr.Markdown(elem_id="score")
                figure = figure_of("How usual is it?", elem_id="usual")
        with gr.Row():
            with gr.Column(min_width=320):
                sheet = sheet_of("Or click a digit", first, elem_id="digits")
                source = gr.Markdown(source_of(first))
            with gr.Column(min_width=320):
                gr.Markdown("**Or give a picture file**")
                file = gr.File(show_label=False, file_types=["image"], type="filepath", height=140, elem_id="file")
                seed = seed_number()
        index = gr.Number(inference.chosen_digits(first)[0] if first else 0, precision=0, visible=False)
        kind = gr.State("digit")
    # One sign of progress or of a mistake is enough for all outputs.
    event = {"outputs": [seen, drawn, figure, words, kind], "show_progress_on": drawn, **QUICK}
    draw.click(reconstruct, [model, drawing, seed], api_name="reconstruct", **event)
    file.upload(reconstruct_file, [model, file, seed], api_name="reconstruct_file", **event)
    clicked = sheet.select(clicked_digit(checkpoints, need), model, index, api_visibility="private")
    clicked.then(reconstruct_digit, [model, index, seed], api_name="reconstruct_digit", **event)
    gr.on([draw.click, file.upload, sheet.select], **reveal("reconstructed"))
    event |= {"fn": again, "inputs": [kind, model, drawing, file, index, seed], "api_visibility": "private"}
    adapted = model.input(adapt, [model, index], [sheet, source, index], api_visibility="private")
    adapted.then(**event)
    tab.select(None, js=choose_brush("drawing"))
    if first:
        tab.select(**event)


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
            return sheet, sheet, chosen[0], chosen[-1], source_of(checkpoint)

    with gr.Tab("Interpolate") as tab:
        text = "Between the numbers of one digit and those of another lie the numbers of digits in between."
        model, start = model_choice(checkpoints, need, text)
        chosen = inference.chosen_digits(start) if start else [0]
        with gr.Row():
            with gr.Column(min_width=320):
                from_sheet = sheet_of("From: click a digit", start, elem_id="from_sheet")
            with gr.Column(min_width=320):
                to_sheet = sheet_of("To: click a digit", start, elem_id="to_sheet")
        picture = pixels_of("Left and right the two digits, between them what the model draws", elem_id="interpolation")
        steps = gr.Slider(3, 15, 9, step=1, label="Steps")
        source = gr.Markdown(source_of(start))
        first, second = (gr.Number(number, precision=0, minimum=0, visible=False) for number in (chosen[0], chosen[-1]))
    event = {"fn": interpolate, "inputs": [model, first, second, steps], "outputs": picture, **QUICK}
    triggers = [first.change, second.change, steps.change]
    gr.on(triggers, **event, api_name="interpolate", trigger_mode="always_last")
    for sheet, number in ((from_sheet, first), (to_sheet, second)):
        sheet.select(clicked_digit(checkpoints, need), model, number, api_visibility="private")
    gr.on([from_sheet.select, to_sheet.select], **reveal("interpolation"))
    adapted = model.input(adapt, model, [from_sheet, to_sheet, first, second, source], api_visibility="private")
    adapted.then(**event, api_visibility="private")
    if start:
        tab.select(**event, api_visibility="private")


def complete_tab(checkpoints: Checkpoints) -> None:
    """A tab that finishes a digit."""
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
            return sheet, chosen[0], source_of(checkpoint)

    with gr.Tab("Complete") as tab:
        text = "The model sees the upper part of a digit and draws the rest pixel by pixel, each time differently."
        with gr.Row():
            with gr.Column(min_width=320):
                model, first = model_choice(checkpoints, need, text)
            with gr.Column(min_width=320):
                sheet = sheet_of("Click a digit", first, elem_id="sheet")
                source = gr.Markdown(source_of(first))
                given = gr.Slider(0, 100, 50, step=5, label="Percentage of the rows that the model sees")
                with gr.Row():
                    run = gr.Button("Complete", min_width=120, variant="primary", interactive=first is not None)
                    stop = gr.Button("Stop", min_width=120, interactive=first is not None)
        picture = pixels_of("The digit, what the model sees, and how it goes on", elem_id="completion")
        with gr.Row():
            number = gr.Slider(1, 8, 5, step=1, label="How many times")
            temperature = temperature_slider(1)
            seed = seed_number()
        index = gr.Number(inference.chosen_digits(first)[0] if first else 0, precision=0, minimum=0, visible=False)
        is_shown = gr.State(False)
    inputs = [model, index, given, number, temperature, seed]
    event = {"fn": shown_once(complete), "inputs": [is_shown, *inputs], "outputs": [picture, is_shown], **SLOW}
    example: list[Any] = [tab.select(**event, api_visibility="private")] if first else []
    event |= {"fn": complete, "inputs": inputs, "outputs": picture}
    running = run.click(**event, api_name="complete", cancels=example)
    chosen = sheet.select(clicked_digit(checkpoints, need), model, index, api_visibility="private", cancels=example)
    again = chosen.then(**event, api_visibility="private")
    gr.on([run.click, sheet.select], **reveal("completion"))
    adapted = model.input(adapt, model, [sheet, index, source], api_visibility="private")
    other = adapted.then(**event, api_visibility="private")
    stop.click(None, cancels=[running, again, other, *example])


def text_tab(checkpoints: Checkpoints) -> None:
    """A tab that continues a text."""

    def text(model: str, prompt: str, length: float, temperature: float, seed: float) -> Iterator[str]:
        with readable_errors():
            yield from inference.continue_text(checkpoints.pick(model, "text"), prompt, length, temperature, seed)

    with gr.Tab("Text") as tab:
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                explanation = "The model goes on from a beginning, one byte after the other."
                model, first = model_choice(checkpoints, "text", explanation)
                prompt = gr.Textbox(
                    "ROMEO:\n", label="Beginning", lines=3, max_length=inference.MAX_PROMPT, elem_id="prompt"
                )
                gr.Examples([[prompt] for prompt in PROMPTS], [prompt], label="Try")
                with gr.Row():
                    run = gr.Button("Write", min_width=120, variant="primary", interactive=first is not None)
                    stop = gr.Button("Stop", min_width=120, interactive=first is not None)
            with gr.Column(scale=3, min_width=320):
                written = gr.Textbox(label="The model writes", lines=16, interactive=False, elem_id="written")
        with gr.Row():
            length = gr.Slider(1, inference.MAX_LENGTH, 300, step=1, label="How many bytes to write")
            temperature = temperature_slider(0.8)
            seed = seed_number()
        is_shown = gr.State(False)
    inputs = [model, prompt, length, temperature, seed]
    event = {"fn": shown_once(text), "inputs": [is_shown, *inputs], "outputs": [written, is_shown], **SLOW}
    example: list[Any] = [tab.select(**event, api_visibility="private")] if first else []
    running = run.click(text, inputs, written, api_name="text", cancels=example, **SLOW)
    run.click(**reveal("written"))
    stop.click(None, cancels=[running, *example])


def bits_tab(checkpoints: Checkpoints) -> None:
    """A tab that counts the bytes of a drawing, or of a test image."""
    fitting = rated(checkpoints)

    def counted(levels_of: Any) -> tuple[str, list]:
        with readable_errors():
            if not fitting:
                raise ValueError("This needs a model of images with a likelihood: a VAE or a transformer of pixels.")
            found, maps = [], []
            for checkpoint in fitting:
                levels = levels_of(checkpoint)
                found += costs(checkpoint, levels)
                if (picture := heat_map(checkpoint, levels)) is not None:
                    maps.append((own_file(picture), checkpoint.name))
            return table(found), maps

    def bits(drawing: Image.Image | None) -> tuple[str, list]:
        return counted(lambda found: inference.levels_from_drawing(found, drawing))

    def bits_of_digit(index: float) -> tuple[str, list]:
        return counted(lambda found: inference.digit(found, index))

    def example(shown: str, index: float) -> tuple:
        """A test image, where nothing is shown yet."""
        return (gr.skip(), gr.skip()) if shown or not fitting else bits_of_digit(index)

    with gr.Tab("Bits") as tab, gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.Markdown(
                "What a model expects, it writes in few bits. Draw something that it expects, and something that it "
                "does not, and see what they cost in a file from which every pixel comes back."
            )
            drawing = drawing_pad("bits_drawing")
            count = gr.Button("Count the bytes of the drawing", variant="primary", interactive=bool(fitting))
            index = gr.Number(0, label="Or of the test image of this number", precision=0, minimum=0)
            count_digit = gr.Button("Count the bytes of the test image", interactive=bool(fitting))
        with gr.Column(scale=3, min_width=320):
            gr.Markdown("**Where the bits go: bright pixels surprise the model**")
            maps = gr.Gallery(
                show_label=False, format="png", columns=3, height="auto", elem_classes="pixels", elem_id="heat_maps"
            )
            costs_shown = gr.Markdown(elem_id="bits")
    event = {"outputs": [costs_shown, maps], **QUICK}
    count.click(bits, drawing, api_name="bits", show_progress_on=costs_shown, **event)
    count_digit.click(bits_of_digit, index, api_name="bits_of_digit", show_progress_on=costs_shown, **event)
    gr.on([count.click, count_digit.click], **reveal("heat_maps"))
    tab.select(None, js=choose_brush("bits_drawing"))
    tab.select(example, [costs_shown, index], api_visibility="private", show_progress_on=costs_shown, **event)
