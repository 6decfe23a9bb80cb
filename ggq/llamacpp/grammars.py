"""Grammars for answers: a GBNF text, or a JSON schema that becomes one; llama.cpp parses it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from ggq.errors import UsageProblem

_COLUMNS = 300


def compiled(
    library: Any, vocabulary: Any, *, gbnf: str | None = None, json_schema: str | None = None
) -> Any:
    """A ``LlamaGrammar`` of one of the two. ``library``: the binding; ``vocabulary``: of the loaded model.

    Raises UsageProblem with the parser's words.
    """
    if gbnf is None:
        gbnf = _of_schema(json_schema or "")
    with _kept_stderr() as words:
        sampler = library.llama_sampler_init_grammar(vocabulary, gbnf.encode(), b"root")
        words.seek(0)
        said = words.read().decode("utf-8", "replace").strip()
    if not sampler:
        why = next((line for line in said.splitlines() if line.strip()), "It is empty, or has no rule root.")
        raise UsageProblem("llama.cpp does not take this grammar.", why[:_COLUMNS], "Correct it.")
    library.llama_sampler_free(sampler)
    return library.LlamaGrammar.from_string(gbnf, False)


def _of_schema(text: str) -> str:
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        json.loads(text)
        return str(json_schema_to_gbnf(text))
    except Exception as error:  # its parser raises what comes: KeyError, AttributeError, AssertionError, …
        raise UsageProblem(
            "This JSON schema makes no grammar.", f"{type(error).__name__}: {error}"[:_COLUMNS], "Correct it."
        ) from error


@contextlib.contextmanager
def _kept_stderr() -> Iterator[IO[bytes]]:
    """What llama.cpp's parser writes to standard error, past every log callback."""
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        try:
            os.dup2(kept.fileno(), 2)
            yield kept
        finally:
            os.dup2(before, 2)
            os.close(before)
