"""A chat template in llama.cpp's own engine, as llama-server renders it.

Its library is vendor/llama.cpp/cmake/chat_template.cpp. For child processes: a template is a program of a
stranger's.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.llamacpp.ggml_rows import library_file

_LIBRARY = "ggq-template"


@dataclass(frozen=True)
class Rendering:
    """A prompt, or llama.cpp's words: ``parses`` is False where they are about the template itself."""

    text: str
    words: str = ""
    parses: bool = True


class Engine:
    """Raises OSError when this llama.cpp was built without ggq's library."""

    def __init__(self, lib_dir: Path) -> None:
        file = library_file(lib_dir, _LIBRARY)
        if not file.exists():
            raise FileNotFoundError(file)
        self._library = ctypes.CDLL(str(file))
        self._library.ggq_render_chat.restype = ctypes.c_void_p
        self._library.ggq_free.argtypes = [ctypes.c_void_p]

    def render(
        self, template: str, messages: Sequence[Any], tools: Sequence[Any] | None, bos: str, eos: str
    ) -> Rendering:
        """A conversation up to where the model answers; all of it is as OpenAI's interface has it."""
        failed = ctypes.c_int(0)
        asked = json.dumps(list(messages)), json.dumps(list(tools) if tools else None)
        texts = (template, bos, eos, *asked)
        raw = [text.encode("utf-8", "replace") for text in texts]
        place = self._library.ggq_render_chat(*raw, 1, ctypes.byref(failed))
        if not place:
            return Rendering("", "memory ran out")
        try:
            text = ctypes.string_at(place).decode("utf-8", "replace")
        finally:
            self._library.ggq_free(place)
        return Rendering(text) if not failed.value else Rendering("", text, failed.value != 1)
