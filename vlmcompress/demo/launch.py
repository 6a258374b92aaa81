"""Serve the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmcompress.defaults import DEMO_HOST, DEMO_PORT
from vlmcompress.demo.media import MAX_UPLOAD
from vlmcompress.errors import VLMCompressError

if TYPE_CHECKING:
    from vlmcompress.demo.answers import DemoModel


def check_gradio() -> None:
    """Raise a VLMCompressError where the extra `demo` is not installed."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise VLMCompressError(
            f"the page needs {error.name or 'gradio'}: pip install 'vlmcompress[demo]'"
        ) from error


def launch(
    model: DemoModel, host: str = DEMO_HOST, port: int = DEMO_PORT, *, wait: bool = True
) -> Any:
    """Serve the page until Ctrl-C.

    No file of the server can be read but pictures that the page made and files that its visitors
    uploaded, and nothing is fetched for them.

    Args:
        model: that answers.
        host: the default lets only this machine in.
        port: of the server; 0 takes a free one.
        wait: False returns the running page, whose `close()` ends it.

    Raises:
        VLMCompressError: gradio is not installed, or the address cannot be had.
    """
    check_gradio()
    import gradio as gr

    from vlmcompress.demo.page import Page

    blocks = Page(model).build()
    fonts = ["system-ui", "sans-serif"]  # gradio's own would be fetched
    mono = ["ui-monospace", "monospace"]
    try:
        blocks.queue(max_size=32).launch(
            server_name=host,
            server_port=port or None,
            share=False,
            quiet=True,
            show_error=False,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            allowed_paths=[],
            blocked_paths=[str(Path.cwd()), str(Path.home())],
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            theme=gr.themes.Default(font=fonts, font_mono=mono),
        )
    except OSError as error:
        raise VLMCompressError(f"cannot serve at {host}:{port}: {error}") from error
    if wait:
        blocks.block_thread()
    return blocks
