"""`vlmcompress serve --check`: what a running server makes of a picture, pruned and whole."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlmcompress.errors import VLMCompressError
from vlmcompress.models.names import ASSETS
from vlmcompress.serving.architectures import KEY

_PICTURE, _QUESTION = ASSETS / "samples" / "market.png", "how many circles are there ?"
_TOKENS, _SECONDS = 16, 120


@dataclass(frozen=True)
class Answer:
    """Of a server to one request."""

    text: str
    prompt_tokens: int
    milliseconds: float


def asked(url: str) -> str:
    """A table of the answers with the server's settings and without pruning.

    Raises:
        VLMCompressError: there is no such server, or it refuses.
    """
    base = url.rstrip("/").removesuffix("/v1")
    with _of_such_a_server(base):
        model = _json(f"{base}/v1/models")["data"][0]["id"]
    _chat(base, model, None)  # the first request of a server takes longer than all others
    rows = {"as served": _chat(base, model, None)}
    try:
        rows["all tokens"] = _chat(base, model, {"method": "full"})
        note = ""
    except VLMCompressError as error:
        note = f"\nwithout pruning: {error} (is vLLM run with --trust-request-mm-kwargs?)"
    lines = [f"{_PICTURE.name}: {_QUESTION}"]
    lines += [
        f"{name:<11} {one.prompt_tokens:>6} prompt tokens {one.milliseconds:>8.0f} ms  {one.text!r}"
        for name, one in rows.items()
    ]
    return "\n".join(lines) + note


def _chat(base: str, model: str, settings: dict[str, Any] | None) -> Answer:
    data = base64.b64encode(_PICTURE.read_bytes()).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "user", "content": [picture, {"type": "text", "text": _QUESTION}]},
        ],
        "max_tokens": _TOKENS,
        "temperature": 0,
        # As transformers' processors do; vLLM's chat leaves them out.
        "add_special_tokens": True,
        # What is in vLLM's caches takes no time.
        "cache_salt": str(time.time_ns()),
    }
    if settings is not None:
        body["mm_processor_kwargs"] = {KEY: settings}
    start = time.perf_counter()
    found = _json(f"{base}/v1/chat/completions", body)
    spent = 1000 * (time.perf_counter() - start)
    with _of_such_a_server(base):
        text = (found["choices"][0]["message"]["content"] or "").strip()
        return Answer(text, int(found["usage"]["prompt_tokens"]), spent)


@contextlib.contextmanager
def _of_such_a_server(base: str) -> Iterator[None]:
    """Raise a VLMCompressError where what is read is JSON of something else."""
    try:
        yield
    except VLMCompressError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise VLMCompressError(
            f"{base} answers, but not as a server of the OpenAI API does: is it vLLM?"
        ) from error


def _json(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    if not url.startswith(("http://", "https://")):
        raise VLMCompressError(f"{url!r} is no address of a server: give http://HOST:PORT")
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise VLMCompressError(_reason(error)) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise VLMCompressError(f"no answer from {url}: {error}") from error


def _reason(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]["message"]
    return f"HTTP {error.code}: {text[:300]}"
