"""The page of the demo, with a tab for each thing to do with a model, and how it is served."""

import gradio as gr  # pyright: ignore[reportMissingImports]

from hf_latentgen.app.checkpoints import Checkpoints
from hf_latentgen.app.tabs import (
    bits_tab,
    complete_tab,
    interpolate_tab,
    map_tab,
    reconstruct_tab,
    sample_tab,
    text_tab,
)

# Pixels are shown as squares, never smoothed. The map stands beside all else where there is room for it. Figures on a
# dark page are dark, and keep their colours.
CSS = """
.pixels img { image-rendering: pixelated; }
.gradio-container, .gradio-container main { width: 100% !important; }
.gradio-container { max-width: 1180px !important; margin: auto !important; }
.drawing { max-width: 400px; }
@media (min-width: 768px) {
    #map_row { display: grid; grid: "choice map" auto "drawn map" 1fr / 2fr 3fr; }
    #map_row > :nth-child(2) { grid-area: map; }
}
.dark .figure img { filter: invert(1) hue-rotate(180deg); }
"""


def build(checkpoints: Checkpoints) -> gr.Blocks:
    """The page with all its tabs, not yet served."""
    # Pictures are written to files; they are removed after an hour.
    with gr.Blocks(title="hf-latentgen", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as page:
        gr.Markdown(
            "# Looking into generative models\n"
            "Small models that learned to make digits or texts. Pick a tab, pick a model, and try."
        )
        # On a phone all of them are seen, in several lines.
        with gr.Tabs(overflow_behavior="wrap"):
            first_sample = sample_tab(checkpoints)
            map_tab(checkpoints)
            reconstruct_tab(checkpoints)
            interpolate_tab(checkpoints)
            complete_tab(checkpoints)
            text_tab(checkpoints)
            bits_tab(checkpoints)
        if checkpoints.fitting("sample"):
            page.load(**first_sample, api_visibility="private")
    return page.queue(max_size=100)


def launch(page: gr.Blocks, port: int | None = None) -> None:
    """Serve the page until it is stopped, on this machine only unless GRADIO_SERVER_NAME says otherwise."""
    # Fonts of the reader's machine: those of a theme would come from another server.
    theme = gr.themes.Default(
        primary_hue="indigo",
        font=["Segoe UI", "Helvetica Neue", "Arial", "sans-serif"],
        font_mono=["Consolas", "monospace"],
    )
    page.launch(
        server_port=port,
        share=False,
        ssr_mode=False,
        show_error=True,
        max_file_size="10mb",
        footer_links=["api"],
        theme=theme,
        css=CSS,
    )
