"""A model in this very process, by the binding: loaded away from a stranger's folder and templates."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LEVELS = (3, 4)  # ggml_log_level: a warning, an error
_KEPT_LINES = 40


def open_model(library: Any, model: Path, options: Mapping[str, Any]) -> Any:
    """``llama_cpp.Llama`` of a file. Raises ValueError, RuntimeError or MemoryError as it does."""
    path = str(model.absolute())
    with _elsewhere(), _no_templates(library):
        return library.Llama(path, verbose=False, **options)


@functools.cache
def _listener(library: Any) -> tuple[deque[str], Any]:
    """Lines, and what writes them down: the library calls it as long as this process lives."""
    said: deque[str] = deque(maxlen=_KEPT_LINES)

    @library.llama_log_callback  # type: ignore[untyped-decorator]
    def write(level: int, text: bytes, _data: Any) -> None:
        with contextlib.suppress(Exception):
            if level in _LEVELS and (line := text.decode("utf-8", "replace").strip()):
                said.append(line)

    return said, write


def heard(library: Any) -> deque[str]:
    """What llama.cpp says from now on, for an error; none of it reaches the terminal."""
    said, write = _listener(library)
    said.clear()
    library.llama_log_set(write, None)
    return said


def piece(library: Any, vocabulary: Any, token: int) -> bytes:
    """The text of a token, which may be a part of a letter. The binding's own ``detokenize`` garbles tokens
    of more than 32 bytes, as long rows of spaces are."""
    size = 64
    while True:
        buffer = ctypes.create_string_buffer(size)
        count = int(library.llama_token_to_piece(vocabulary, token, buffer, size, 0, False))
        if count >= 0:
            return buffer.raw[:count]
        size = -count


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """ggml looks for libraries of certain names in the current folder, which may be a model's."""
    try:
        before = Path.cwd()
    except OSError:  # it is gone
        before = None
    os.chdir(Path(sys.executable).anchor)
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(OSError):
                os.chdir(before)


@contextlib.contextmanager
def _no_templates(library: Any) -> Iterator[None]:
    """The binding parses every chat template of a file, and does not load it where one is broken. ggq renders
    the one it needs itself (``chat_sandbox``)."""
    formats = library.llama_chat_format
    before = formats.Jinja2ChatFormatter

    class Nothing:
        def __init__(self, **_: Any) -> None: ...

        def to_chat_handler(self) -> None: ...

    formats.Jinja2ChatFormatter = Nothing
    try:
        yield
    finally:
        formats.Jinja2ChatFormatter = before
