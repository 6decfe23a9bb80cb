"""The GGUF's logits in llama.cpp beside transformers' of the checkpoint: for a conversion's child process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.checkpoint import transformers_model
from ggq.conversion import longrope, scaled_context, sliding_window
from ggq.errors import GgqError

POSITIONS = 32
# A prompt costs what the model weighs, and a wrong base, scale or norm shows at every position but the first.
FEW_POSITIONS, _LARGE_PARAMETERS = 12, 200_000_000
PROMPT = (
    "The quick brown fox jumps over the lazy dog, and 42 others watch: "
    "def add(a, b): return a + b. 안녕하세요, 세계. It was the best of times."
)


@dataclass(frozen=True)
class Reference:
    """transformers' logits of ``tokens``; None with ``why_not``. ``original_context``: of a model that has
    two sets of rotary factors; ``beyond``: what is computed there, of a model whose context is scaled;
    ``window``: with a short window, of a model that has one."""

    expected: Any = None
    tokens: Sequence[int] = ()
    original_context: int | None = None
    beyond: scaled_context.Far | None = None
    window: sliding_window.Window | None = None
    why_not: str = ""


def reference(
    view: Path,
    architecture: str,
    tokenizer: Any,
    unexpected: Callable[[list[str]], None] | None = None,
) -> Reference:
    """What transformers computes of a prompt. ``unexpected`` is called with the names of tensors that
    transformers has no use for.

    Raises CheckpointProblem for weights that are missing or do not fit the config.
    """
    try:
        model = transformers_model.load_model(view, architecture, unexpected)
        if getattr(model.config, "is_encoder_decoder", False):
            return Reference(why_not="an encoder-decoder has no logits of a prompt alone")
        text_config = model.config.get_text_config()
        large = sum(weight.numel() for weight in model.parameters()) > _LARGE_PARAMETERS
        tokens = _prompt(tokenizer, text_config.vocab_size)[: FEW_POSITIONS if large else POSITIONS]
        expected = transformers_model.logits(model, tokens)
        original = longrope.original_context(model)
        window, beyond = _window(model, tokens, expected), _beyond(model, tokens)
        return Reference(expected, tokens, original, beyond, window)
    except GgqError:
        raise  # a finding
    except Exception as error:
        transformers_model.refuse_shapes(error)
        return Reference(why_not=why_not(error))


def _beyond(model: Any, tokens: Sequence[int]) -> scaled_context.Far | None:
    how = scaled_context.scaled(model.config.get_text_config())
    if how is None:
        return None
    try:
        return scaled_context.reference(model, tokens, how)
    except Exception as error:
        return scaled_context.Far(
            how, 0, how.position(len(tokens)), why_not=f"transformers fails: {first_line(error)}"
        )


def _window(model: Any, tokens: Sequence[int], expected: Any) -> sliding_window.Window | None:
    try:
        return sliding_window.reference(model, tokens, expected)
    except Exception as error:
        own = sliding_window.size(model.config.get_text_config()) or 0
        return sliding_window.Window(own, own, why_not=f"transformers fails: {first_line(error)}")


def _prompt(tokenizer: Any, vocabulary: int) -> list[int]:
    """A real text's first tokens; without a tokenizer, or a token too high for the model, scattered ids."""
    ids = list(tokenizer(PROMPT)["input_ids"])[:POSITIONS] if tokenizer is not None else []
    if ids and max(ids) < vocabulary:
        return ids
    return [(index * 7919 + 11) % vocabulary for index in range(POSITIONS)]


def compare(expected: Any, found: Any) -> dict[str, Any]:
    """How alike two arrays of logits are: each position's cosine, and whether the best token agrees."""
    import numpy as np

    width = min(expected.shape[1], found.shape[1])
    expected, found = expected[:, :width].astype(np.float64), found[:, :width].astype(np.float64)
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        whose = "the checkpoint's" if not np.isfinite(expected).all() else "the GGUF's"
        return {"not_finite": whose}
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    cosines = (expected * found).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return {
        "positions": len(cosines),
        "cosine": float(cosines.mean()),
        "lowest_cosine": float(cosines.min()),
        "top1_agreement": float((expected.argmax(axis=1) == found.argmax(axis=1)).mean()),
    }


def why_not(error: Exception) -> str:
    """Why transformers computes nothing, as it raised it. Its words may differ from run to run (they name
    folders and sizes) and come after a colon; ggq's own do not."""
    if type(error) is LookupError:  # of ``transformers_model``
        return first_line(error)
    return f"transformers does not run the checkpoint: {first_line(error)}"


def first_line(error: Exception) -> str:
    text = transformers_model.without_advice(str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
