"""The page itself, in gradio."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image

from vlmcompress.demo.answers import DemoModel, changed, escaped, panels
from vlmcompress.demo.media import SUFFIXES, preview, read, samples
from vlmcompress.demo.settings import ADDRESS, MOST_METHODS, PageSettings
from vlmcompress.errors import VLMCompressError
from vlmcompress.media.video import Video

_ALL = -1
"""Of the slider of layers: how far each patch gets."""
_KEEP = 3600
"""Seconds after which pictures that the page made are deleted."""
_HEAD = """# vlmcompress
Ask `{model}` about a picture{clips}, on all visual tokens and on fewer. Dimmed patches never enter
the decoder; the brighter a patch, the more decoder layers it reaches."""


class Page:
    """Components of the page and what they do."""

    def __init__(self, model: DemoModel) -> None:
        self._model = model
        self._samples = samples(model.video, model.name)
        questions = {name: sample.question for name, sample in self._samples.items()}
        self._settings: Callable[[Any], PageSettings] = functools.partial(
            PageSettings.from_address, samples=questions, methods=model.methods
        )

    def _read(self, upload: str | None, sample: str | None) -> Image.Image | Video:
        return read(upload, sample, self._model.video, self._model.name)

    def build(self) -> gr.Blocks:
        """The page, not served yet."""
        with gr.Blocks(
            title="vlmcompress", analytics_enabled=False, delete_cache=(_KEEP, _KEEP)
        ) as blocks:
            clips = " or a clip" if self._model.video else ""
            gr.Markdown(_HEAD.format(model=self._model.name, clips=clips))
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    self._inputs()
                with gr.Column(scale=3, min_width=280):
                    self._outputs()
            self._events(blocks)
        return blocks

    def _inputs(self) -> None:
        first = self._settings({})
        self._upload = gr.File(
            label="Your picture or clip" if self._model.video else "Your picture",
            file_types=list(SUFFIXES),
            height=150,
            elem_id="upload",
        )
        self._sample = gr.Dropdown(
            list(self._samples), value=first.sample, label="or a sample", elem_id="sample"
        )
        self._question = gr.Textbox(
            first.question, label="Question", max_length=500, elem_id="question"
        )
        self._methods = gr.Dropdown(
            list(self._model.methods),
            value=list(first.methods),
            multiselect=True,
            max_choices=MOST_METHODS,
            label=f"Methods, up to {MOST_METHODS}",
            elem_id="methods",
        )
        self._budget = gr.Slider(
            1,
            100,
            value=first.budget,
            step=1,
            label="Budget, % of the visual tokens",
            elem_id="budget",
        )
        self._ask = gr.Button("Ask", variant="primary", elem_id="ask")
        self._all = gr.Button("All methods on it", elem_id="all")
        self._preview = gr.Image(
            type="pil",
            interactive=False,
            label="What is asked about",
            elem_id="preview",
            buttons=[],
            height=240,
            alt_text="The picture or the frames of the clip",
        )

    def _outputs(self) -> None:
        self._status = gr.Markdown(elem_id="status")
        self._layer = gr.Slider(
            _ALL,
            self._model.layers - 1,
            value=_ALL,
            step=1,
            elem_id="layer",
            label="Decoder layer whose tokens are shown; -1 shows how many layers each reaches",
        )
        self._found = gr.State(None, time_to_live=_KEEP)
        self._columns: list[tuple[gr.Column, gr.Markdown, gr.Image, gr.Markdown]] = []
        with gr.Row(elem_id="panels"):
            for number in range(MOST_METHODS + 1):
                with gr.Column(min_width=230, visible=False, elem_id=f"panel-{number}") as column:
                    name = gr.Markdown()
                    picture = gr.Image(
                        type="pil",
                        interactive=False,
                        format="png",
                        buttons=["fullscreen"],
                        show_label=False,
                    )
                    text = gr.Markdown()
                self._columns.append((column, name, picture, text))
        self._gallery = gr.Gallery(
            label="All methods at this budget",
            columns=4,
            visible=False,
            format="png",
            height="auto",
            object_fit="contain",
            elem_id="gallery",
            buttons=["fullscreen"],
        )

    def _events(self, blocks: gr.Blocks) -> None:
        settings = [self._sample, self._question, self._methods, self._budget]
        asked = [self._upload, *settings]
        shown = [part for column in self._columns for part in column]
        # One model serves all visitors: one question at a time, the others wait in a queue.
        one: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "api_visibility": "private",
        }
        quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        blocks.load(self._open, None, settings, **quick).then(
            self._look, [self._upload, self._sample], [self._preview, self._status], **quick
        )
        self._sample.input(
            self._take_sample, self._sample, [self._upload, self._question], **quick
        ).then(self._look, [self._upload, self._sample], [self._preview, self._status], **quick)
        self._upload.change(
            self._look, [self._upload, self._sample], [self._preview, self._status], **quick
        )
        for event in (self._ask.click, self._question.submit):
            event(None, settings, settings, js=ADDRESS, **quick).then(
                self._answer,
                [*asked, self._layer],
                [self._status, self._found, self._gallery, *shown],
                show_progress_on=self._status,
                **one,
            )
        self._all.click(
            self._everything,
            [self._upload, self._sample, self._question, self._budget],
            [self._status, self._found, self._gallery, *shown],
            show_progress_on=self._status,
            **one,
        )
        self._layer.change(  # also by keyboard
            self._redraw,
            [self._found, self._layer],
            [self._status, *shown],
            trigger_mode="always_last",
            **quick,
        )

    def _open(self, request: gr.Request) -> list[Any]:
        """What the address says."""
        found = self._settings(dict(request.query_params))
        return [found.sample, found.question, list(found.methods), found.budget]

    def _take_sample(self, sample: str | None) -> list[Any]:
        """The sample takes the place of an upload."""
        known = self._samples.get(sample or "")
        return [None, gr.skip() if known is None else known.question]

    def _look(self, upload: str | None, sample: str | None) -> list[Any]:
        try:
            return [preview(self._read(upload, sample)), ""]
        except VLMCompressError as error:
            return [None, _told(error)]

    def _answer(
        self,
        upload: str | None,
        sample: str | None,
        question: str,
        methods: list[str],
        budget: int,
        layer: int,
    ) -> list[Any]:
        hidden = gr.update(visible=False)
        try:
            media = self._read(upload, sample)
            found = self._model.compare(media, question, methods, f"{int(budget)}%")
            return [changed(found), found, hidden, *self._shown(found, layer)]
        except VLMCompressError as error:
            return [_told(error), None, hidden, *self._shown(None, layer)]

    def _everything(
        self,
        upload: str | None,
        sample: str | None,
        question: str,
        budget: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (gradio finds it by its default)
    ) -> list[Any]:
        try:
            media = self._read(upload, sample)
            found = list(
                self._model.gallery(
                    media,
                    question,
                    f"{int(budget)}%",
                    lambda share, name: progress(share, desc=name),
                )
            )
        except VLMCompressError as error:
            return [_told(error), None, gr.update(visible=False), *self._shown(None, _ALL)]
        told = f"{len(found)} methods meet {int(budget)}% on this model."
        return [told, None, gr.update(value=found, visible=True), *self._shown(None, _ALL)]

    def _redraw(self, found: Any, layer: int) -> list[Any]:
        if found is None:
            return [gr.skip()] * (1 + 4 * len(self._columns))
        try:
            return [gr.skip(), *self._shown(found, layer)]
        except VLMCompressError as error:
            return [_told(error), *[gr.skip()] * (4 * len(self._columns))]

    def _shown(self, found: Any, layer: int) -> list[Any]:
        """What every column shows; one without an answer is hidden."""
        ready = [] if found is None else panels(found, None if layer == _ALL else int(layer))
        parts: list[Any] = []
        for number in range(len(self._columns)):
            if number < len(ready):
                one = ready[number]
                alt = f"What {one.name} keeps"
                parts += [gr.update(visible=True), f"#### {escaped(one.name)}"]
                parts += [gr.update(value=one.picture, alt_text=alt), one.text]
            else:
                parts += [gr.update(visible=False), "", None, ""]
        return parts


def _told(error: VLMCompressError) -> str:
    return f"**Error:** {escaped(str(error))}"
