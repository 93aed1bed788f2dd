"""Parts of which the tabs of the page are made: choices, pictures and what their events share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import gradio as gr  # pyright: ignore[reportMissingImports]
from PIL import Image

from hf_latentgen.app import inference
from hf_latentgen.app.checkpoints import NEEDS, Checkpoint, Checkpoints

# Pixels of a page below which results stand under what makes them, as on a phone.
NARROW = 768
MAX_SEED = 2**31 - 1
SMALL_TEMPERATURE = 0.1


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


def model_choice(checkpoints: Checkpoints, need: str, explanation: str) -> tuple[gr.Dropdown, Checkpoint | None]:
    """The choice among the models that fit, below what the tab is about, and the one that is chosen at first."""
    gr.Markdown(explanation)
    fitting = checkpoints.fitting(need)
    if not fitting:
        gr.Markdown(
            f"**No model for this tab is loaded.** It needs {NEEDS[need][0]}: "
            "`hf-latentgen app CHECKPOINT` loads one from a folder or from the Hub."
        )
    first = fitting[0] if fitting else None
    # Another name is answered by a message that says what would fit.
    choices = [(checkpoint.title, checkpoint.name) for checkpoint in fitting]
    model = gr.Dropdown(choices, value=first and first.name, label="Model", allow_custom_value=True)
    about = gr.Markdown(first.about if first else "")
    with gr.Accordion("Its model card", open=False, visible=bool(first and first.card)) as room:
        card = gr.Markdown(first.card if first else "")

    def describe(name: str) -> tuple[str, str, gr.Accordion]:
        chosen = checkpoints.get(name)
        text = chosen.card if chosen else ""
        return chosen.about if chosen else "", text, gr.Accordion(visible=bool(text))

    model.change(describe, model, [about, card, room], api_visibility="private", show_progress="hidden")
    return model, first


def temperature_slider(value: float, interactive: bool = True) -> gr.Slider:
    """The temperature of what is drawn."""
    label = "Temperature: low is typical, high is adventurous"
    return gr.Slider(SMALL_TEMPERATURE, 2, value, step=0.1, label=label, interactive=interactive)


def seed_number() -> gr.Number:
    """The seed of what is drawn."""
    return gr.Number(0, label="Seed: the same seed gives the same result", precision=0, minimum=0, maximum=MAX_SEED)


def picture_of(title: str, **options: Any) -> gr.Image:
    """A picture below its title: a label of gradio's own would lie upon it."""
    gr.Markdown(f"**{title}**")
    return gr.Image(
        label=title, show_label=False, alt_text=title, format="png", interactive=False, buttons=[], **options
    )


def pixels_of(title: str, **options: Any) -> gr.Image:
    """A picture of images, whose pixels are shown as squares."""
    return picture_of(title, elem_classes="pixels", **options)


def figure_of(title: str, **options: Any) -> gr.Image:
    """A picture with axes, which is dark where the page is."""
    return picture_of(title, elem_classes="figure", **options)


def drawing_pad(elem_id: str) -> gr.Sketchpad:
    """A white square to draw on, which gives what was drawn as a picture, or None."""
    drawing = gr.Sketchpad(
        label="Draw here",
        type="pil",
        canvas_size=(280, 280),
        fixed_canvas=True,
        height=360,
        layers=False,
        transforms=(),
        brush=gr.Brush(default_size=20, colors=["#000000"], color_mode="fixed"),
        elem_id=elem_id,
        elem_classes="drawing",
    )

    def drawn_on(sheet: Any) -> Image.Image | None:
        # A browser has sent the content before, a program names a file.
        composite: Any = drawing.blob_storage.pop(sheet.id, sheet).composite if sheet else None
        with readable_errors():
            content = composite.path if isinstance(composite, gr.FileData) else composite
            return inference.open_picture(content) if content else None

    # gradio would read all layers, whatever their size, and answer a mistake with paths of the server.
    drawing.preprocess = drawn_on  # pyright: ignore[reportAttributeAccessIssue]
    return drawing


def choose_brush(elem_id: str) -> str:
    """A script that takes the brush of a pad once: the canvas waits for a tool, and everybody wants this one."""
    return f"""() => {{
    window.brushes = window.brushes || new Set();
    if (window.brushes.has('{elem_id}')) return;
    window.brushes.add('{elem_id}');
    const waiting = setInterval(() => {{
        const brush = document.querySelector('#{elem_id} button[aria-label="Brush"]');
        if (brush) {{ clearInterval(waiting); brush.click(); }}
    }}, 200);
}}"""


def sheet_of(title: str, checkpoint: Checkpoint | None, **options: Any) -> gr.Image:
    """The test images to choose from by a click."""
    return pixels_of(title, value=inference.digit_sheet(checkpoint) if checkpoint else None, **options)


def source_of(checkpoint: Checkpoint | None) -> str:
    """Where the digits of a sheet are from, in words."""
    return f"The digits to choose from: {checkpoint.digits.source}." if checkpoint else ""


def dots_of(checkpoint: Checkpoint | None) -> str:
    """What the dots of the map are, in words."""
    if checkpoint is None:
        return ""
    digits = checkpoint.digits
    colour = "in one colour, as their classes are not known" if digits.labels is None else "coloured by class"
    return f"Each dot is one of {digits.source}, {colour}. Behind them is what the model draws at each place."


def reveal(elem_id: str) -> dict[str, Any]:
    """An event of the page alone, that scrolls a result into view where the page is narrow."""
    script = f"document.getElementById('{elem_id}').scrollIntoView({{behavior: 'smooth', block: 'nearest'}})"
    return {"fn": None, "js": f"() => {{ if (window.innerWidth < {NARROW}) {script}; }}"}


def clicked_digit(checkpoints: Checkpoints, need: str) -> Callable:
    """A handler that turns a click on a sheet into the number of the image."""

    def choose(name: str, event: gr.SelectData) -> int:
        with readable_errors():
            return inference.sheet_digit(checkpoints.pick(name, need), *event.index)

    return choose


def shown_once(function: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """A handler that shows a result unless there has been one: its first argument, and its last output, say so."""

    def show(is_shown: bool, *arguments: Any) -> Iterator[tuple]:
        for result in iter([gr.skip()]) if is_shown else function(*arguments):
            yield result, True

    return show
