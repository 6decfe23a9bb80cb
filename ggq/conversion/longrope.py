"""Models with one set of rotary factors within their original context and another one beyond (LongRoPE).

transformers chooses by the length of the sequence, llama.cpp by the size of its context, of which the least
is 256. So that both use the same factors, the length at which each switches is put out of reach, once beyond
and once before every prompt; the GGUF's own value of it is compared with the config by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ggq.errors import ConversionProblem
from ggq.gguf import file as gguf_file

_NEVER, _ALWAYS = 1 << 30, 1


def original_context(model: Any) -> int | None:
    """Tokens up to which a model has factors of their own, or None for a model with one set."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None)
    if not isinstance(rope, dict) or rope.get("rope_type") != "longrope":
        return None
    found = rope.get("original_max_position_embeddings")
    return found if isinstance(found, int) else None


def overrides(gguf: Path, original: int | None, *, beyond: bool) -> dict[str, int]:
    """What llama.cpp is given in the place of the GGUF's own value, for the factors of one side.

    Raises ConversionProblem when that value is not the config's.
    """
    if original is None:
        return {}
    made = gguf_file.read(gguf)
    key = f"{made.architecture}.rope.scaling.original_context_length"
    found = made.integer(key) or made.integer(f"{made.architecture}.context_length")
    if found != original:
        raise ConversionProblem(
            "The GGUF changes its rotary factors at another length than the checkpoint.",
            f"The checkpoint does at {original} tokens, the GGUF at {found}.",
            "Report it, with the model's name; --verify off keeps the file as it is.",
        )
    return {key: _ALWAYS if beyond else _NEVER}
