"""A model with a sliding window, compared where the window has an effect.

A window is mostly longer than the prompt. A short one is then put in its place on both sides: that both apply
it, in the same layers and with the same bound, shows in the logits. That the GGUF has the checkpoint's own
number is compared by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggq.checkpoint import transformers_model
from ggq.errors import ConversionProblem
from ggq.gguf.file import GgufFile

_LEAST_TRIED = 2


@dataclass(frozen=True)
class Window:
    """transformers' logits with a window that is shorter than the prompt: its own ``size``, or the one that
    was ``tried`` in its place; None with ``why_not``."""

    size: int
    tried: int
    logits: Any = None
    why_not: str = ""


def size(config: Any) -> int | None:
    """The tokens that some layers of a text model look back at most; None where all see everything."""
    found, context = getattr(config, "sliding_window", None), getattr(config, "max_position_embeddings", None)
    kinds = getattr(config, "layer_types", None)
    if not isinstance(found, int) or found <= 0 or getattr(config, "use_sliding_window", None) is False:
        return None
    if isinstance(context, int) and found >= context:
        return None
    return found if not kinds or "sliding_attention" in kinds else None


def key(made: GgufFile) -> str:
    return f"{made.architecture}.attention.sliding_window"


def reference(model: Any, tokens: Sequence[int], plain: Any) -> Window | None:
    """What transformers computes with a window within the prompt; None for a model without one. ``plain``:
    its logits with its own window. Raises what transformers raises."""
    import numpy as np

    config = model.config.get_text_config()
    own = size(config)
    if own is None:
        return None
    if own < len(tokens):
        return Window(own, own, plain)
    tried = max(_LEAST_TRIED, len(tokens) // 4)
    config.sliding_window = tried
    try:
        found = transformers_model.logits(model, tokens)
    finally:
        config.sliding_window = own
    if np.array_equal(found, plain):
        return Window(own, tried, why_not="transformers does not take another window in its place")
    return Window(own, tried, found)


def compare(window: Window, plain: Any, found: Any) -> dict[str, Any]:
    """How alike the two sides are behind the window. ``found``: llama.cpp's logits with the window that was
    tried; ``plain``: with its own."""
    import numpy as np

    from ggq.conversion import compare_logits

    told: dict[str, Any] = {"window": window.size, "tried": window.tried}
    if window.logits is None:
        return {**told, "why_not": window.why_not}
    if window.tried != window.size and np.array_equal(found, plain):
        return {**told, "lost": True}
    behind = window.tried
    return {**told, **compare_logits.compare(window.logits[behind:], found[behind:])}


def require_same(found: Mapping[str, Any]) -> None:
    """Raises ConversionProblem when the GGUF says another window than the checkpoint."""
    written = found.get("written")
    if written and written != found["window"]:
        raise ConversionProblem(
            "The GGUF's sliding window is not the checkpoint's.",
            f"The checkpoint looks back {found['window']} tokens at most, the GGUF {written}.",
            "Report it, with the model's name; --verify off keeps the file as it is.",
        )


def remarks(found: Mapping[str, Any], least: float) -> list[str]:
    """What a person should know of a window that is not kept to alike, or was not compared."""
    if not found:
        return []
    if found.get("why_not"):
        return [f"the window of {found['window']} tokens was not reached: {found['why_not']}"]
    cosine = found.get("cosine")
    if "not_finite" in found or (cosine is not None and cosine < least):
        apart = "not numbers" if cosine is None else f"cosine {cosine:.4f}"
        return [
            f"with a window of {found['tried']} tokens in the place of {found['window']} the logits are not "
            f"transformers' ({apart}): texts longer than the window may not be computed as by the checkpoint"
        ]
    return []
