"""The page in the browser: which control shows what. Everything shown comes from ``views``.

Labels, names and messages go into text boxes and table cells, which show them literally: nothing interprets HTML or
Markdown in them. What a visitor changes is kept in a ``gr.State``, of which every visitor has their own.
"""

import html
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from repmlp import verify
from repmlp.conversion.report import HEADER
from repmlp.data import ImageData
from repmlp.data.decoding import decode_image
from repmlp.extras import import_optional
from repmlp.layers.partitioned import FC3Block

from . import views
from .guard import KEPT, MAX_UPLOAD, Guard

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
gr = import_optional("gradio", "app")
Middleware = import_optional("starlette.middleware", "app").Middleware

#: Visitors whose changes are kept, at most.
MAX_VISITORS = 20
ALL = "all"
#: Text that gradio's theme makes too pale: WCAG 2.1 wants a contrast of 4.5 (level AA).
CONTRAST = {
    "color_accent": "*primary_600",
    "body_text_color_subdued": "*neutral_500",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_cancel_background_fill": "*secondary_700",
    "button_cancel_background_fill_hover": "*secondary_800",
}
CSS = "footer {display: none} .gradio-container {width: 100%; max-width: 1000px !important; margin: auto !important}"


def build_page(title: str, forms: views.Forms, data: ImageData | None = None, run: Path | None = None) -> Any:
    """The page for the forms of a model.

    Args:
        title: of the page; any text.
        forms: training form and deploy form by their titles, or the only form.
        data: to pick images from.
        run: folder with the metrics.csv of a run, to draw its curves.
    """
    with gr.Blocks(title="repmlp explore", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.HTML(f"<h1>{html.escape(title)}</h1>")
        changes = gr.State({}, time_to_live=3600)
        if next(iter(forms.values())).num_classes:
            with gr.Tab("Predict"):
                add_predict(forms, data, changes)
        if blocks := views.fc3_blocks(forms):
            with gr.Tab("Inside FC3"):
                add_inside_fc3(page, blocks)
        if len(forms) == 2:
            with gr.Tab("Proof"):
                add_proof(forms, data, changes)
        if run:
            with gr.Tab("Training"):
                add_training(page, run)
    return page


def on(triggers: Sequence[Any], function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Call a function at events; of those that come while it runs, only the last counts."""
    return gr.on(triggers, function, inputs, outputs, api_visibility="private", trigger_mode="always_last")


def add_predict(forms: views.Forms, data: ImageData | None, changes: Any) -> None:
    model = next(iter(forms.values()))
    with gr.Row():
        with gr.Column(min_width=280):
            with gr.Tab("Upload"):
                file = gr.File(label="Image file, up to 8 MB", type="binary", height=140)
            if views.is_gray(model):
                with gr.Tab("Draw"):
                    brush = gr.Brush(default_size=24, colors=["#000000"], color_mode="fixed")
                    size = {"canvas_size": (256, 256), "fixed_canvas": True}
                    look = {"image_mode": "L", "transforms": (), "layers": False, "buttons": [], "brush": brush}
                    pad = gr.Sketchpad(label="Choose the brush, then draw large", type="pil", **size, **look)
                    draw = gr.Button("Predict the drawing", variant="primary")
            if data:
                with gr.Tab("Data set"):
                    index = gr.Slider(0, len(data.test) - 1, 0, step=1, label="Test image")
            picture = gr.Image(label="The image", interactive=False, buttons=[], height=224, format="png")
        with gr.Column(min_width=280):
            table = gr.Dataframe(headers=["", *forms], interactive=False, label="Top 5", wrap=True, buttons=[])
            result = gr.Textbox(label="Result", lines=4, interactive=False)

    def show(read: Callable[[], Image.Image], changed: views.Changes) -> tuple[Any, Any, str]:
        """Predict an image that is read here, so that an error while reading it is shown."""
        try:
            image = read()
            rows, sentence = views.predict(views.with_broken_deploy_form(forms, changed), image)
        except ValueError as error:
            return None, [], f"Error: {error}"
        return views.enlarged(image), rows, sentence + (" The deploy form has a broken weight." if changed else "")

    def show_file(content: bytes, changed: views.Changes) -> tuple[Any, Any, str]:
        return show(lambda: decode_image(content, "the file"), changed)

    def show_drawing(drawing: dict[str, Any], changed: views.Changes) -> tuple[Any, Any, str]:
        return show(lambda: views.drawn_image(model, drawing["composite"]), changed)

    def show_test_image(i: int, changed: views.Changes) -> tuple[Any, Any, str]:
        assert data
        *shown, sentence = show(lambda: data.test[i][0], changed)
        return *shown, f"Its label is {data.class_names[data.test.labels[i]]}. {sentence}"

    outputs = [picture, table, result]
    on([file.upload], show_file, [file, changes], outputs)
    if views.is_gray(model):
        on([draw.click], show_drawing, [pad, changes], outputs)
    if data:
        on([index.change], show_test_image, [index, changes], outputs)


def add_inside_fc3(page: Any, blocks: dict[str, FC3Block]) -> None:
    kernels_of = lru_cache(maxsize=2)(lambda name: views.fc3_kernels(blocks[name]))
    first = next(iter(blocks))
    gr.HTML("<p>How strongly one output pixel weighs each input pixel: click a picture, or move the sliders.</p>")
    with gr.Row():
        block = gr.Dropdown([*blocks], value=first, label="Block", min_width=200)
        y, x = (gr.Slider(0, 1, 0, step=1, label=f"Output pixel, {axis}", min_width=200) for axis in ("row", "column"))
    with gr.Row():
        labels = ("Group", "Output channel of the group", "Input channel of the group")
        group, output, input = (gr.Dropdown([ALL], value=ALL, label=label, min_width=200) for label in labels)
    titles = list(dict.fromkeys(title for name in blocks for title in kernels_of(name)))
    with gr.Row():
        settings = {"interactive": False, "buttons": [], "height": 260, "min_width": 200, "format": "png"}
        pictures = [gr.Image(label=title, **settings) for title in titles]
    scale = gr.Textbox(label="Scale", lines=2, interactive=False)
    label = "Share of the energy (squared weights) within a distance, over all output pixels"
    energy = gr.Dataframe(headers=["distance", *titles], label=label, interactive=False, buttons=[])

    def choose(name: str) -> list[Any]:
        """The sliders and lists of a block, at its middle pixel and with all channels."""
        sliders = [gr.Slider(maximum=n - 1, value=n // 2) for n in blocks[name].partition_size]
        channels = views.channels_of(kernels_of(name), blocks[name])
        return [*sliders, *(gr.Dropdown([ALL, *map(str, range(n))], value=ALL) for n in channels)]

    def show(name: str, row: int, column: int, *channels: str) -> list[Any]:
        chosen = [None if channel == ALL else int(channel) for channel in channels]
        kernels = {
            title: views.chosen_channels(kernel, blocks[name], *chosen) for title, kernel in kernels_of(name).items()
        }
        drawn, rows, sentence = views.fc3_pictures(kernels, blocks[name], (row, column))
        return [*(drawn.get(title) for title in titles), sentence, gr.Dataframe(rows, headers=["distance", *kernels])]

    def click(name: str, event: gr.SelectData) -> tuple[int, int]:  # type: ignore[name-defined]  # gradio reads it
        return views.pixel_at(event.index, blocks[name].partition_size)

    inputs, outputs = [block, y, x, group, output, input], [*pictures, scale, energy]
    on([page.load, block.input], choose, [block], inputs[1:]).then(show, inputs, outputs, api_visibility="private")
    on([control.input for control in inputs[1:]], show, inputs, outputs)
    on([p.select for p in pictures], click, [block], [y, x]).then(show, inputs, outputs, api_visibility="private")


def add_proof(forms: views.Forms, data: ImageData | None, changes: Any) -> None:
    training, deploy = forms.values()
    with gr.Row():
        sources = ["random images", *(["test images"] if data else [])]
        source = gr.Radio(sources, value=sources[0], label="Compare on", min_width=200)
        count = gr.Slider(1, 64, 8, step=1, label="Number of images", min_width=200)
        block = gr.Dropdown(views.block_names(forms), label="Block to break", min_width=200)
    with gr.Row():
        check = gr.Button("Verify", variant="primary")
        damage = gr.Button("Break a weight", variant="stop")
        mend = gr.Button("Mend all")
    done = gr.Textbox(label="Deploy form", value="as converted", lines=2, interactive=False)
    verdict = gr.Textbox(label="Verdict", lines=7, interactive=False)
    table = gr.Dataframe(headers=[*HEADER], label="Deviations per block", interactive=False, wrap=True, buttons=[])

    def prove(chosen: str, number: int, changed: views.Changes) -> tuple[str, Any]:
        try:
            images = views.images_to_compare(training, number, data if chosen == "test images" else None)
            report = verify(training, views.with_changes(deploy, changed), images)
        except ValueError as error:
            return f"Error: {error}", []
        return report.verdict(), [list(row) for row in report.rows()]

    def break_one(name: str, changed: views.Changes) -> tuple[views.Changes, str]:
        return views.break_weight(deploy, name, changed)

    inputs, outputs = [source, count, changes], [verdict, table]
    on([check.click], prove, inputs, outputs)
    for button, function, own in ((damage, break_one, [block, changes]), (mend, lambda: ({}, "as converted"), [])):
        on([button.click], function, own, [changes, done]).then(prove, inputs, outputs, api_visibility="private")


def add_training(page: Any, run: Path) -> None:
    state = gr.Textbox(label="Run", interactive=False)
    picture = gr.Image(label="Loss and accuracy", show_label=False, interactive=False, buttons=[], format="png")
    on([page.load, gr.Timer(5).tick], lambda: views.curves(run), [], [picture, state])


def serve(host: str, port: int, ready: Callable[[str], None], title: str, forms: views.Forms, **contents: Any) -> None:
    """Show the page until Ctrl+C.

    Args:
        host, port: address to listen on.
        ready: called with the page's address once it can be opened.
        title, forms, contents: of :func:`build_page`.

    Raises:
        OSError: if the port cannot be opened.
    """
    memory = Path("/dev/shm")  # uploads and pictures stay in memory where the system has such a folder
    with TemporaryDirectory(prefix="repmlp-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(title, forms, **contents)
        font = ["system-ui", "sans-serif"]  # of the visitor's machine; other themes ask Google for theirs
        theme = gr.themes.Default(primary_hue="indigo", secondary_hue="red", font=font, font_mono=font)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                max_file_size=MAX_UPLOAD,
                state_session_capacity=MAX_VISITORS,
                theme=theme.set(**CONTRAST),
                css=CSS,
                app_kwargs={"middleware": [Middleware(Guard)]},
            )
        except OSError as error:
            raise OSError(f"cannot listen on port {port} of {host}, which may be in use: choose another one") from error
        try:
            ready(f"http://{host}:{port}")
            page.block_thread()
        finally:
            page.close()
