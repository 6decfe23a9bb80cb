"""A model in this very process, by the binding: loaded away from a stranger's folder and templates."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def open_model(library: Any, model: Path, options: Mapping[str, Any]) -> Any:
    """``llama_cpp.Llama`` of a file. Raises ValueError, RuntimeError or MemoryError as it does."""
    path = str(model.absolute())
    with _elsewhere(), _no_templates(library):
        return library.Llama(path, verbose=False, **options)


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
