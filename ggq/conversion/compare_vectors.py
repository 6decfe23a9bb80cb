"""An encoder's vectors in llama.cpp beside transformers' of the checkpoint: for a conversion's child process.

An encoder has no logits. Compared are its hidden state at each token and the one vector of the text, which is
pooled here as the files of sentence-transformers say it, independently of the converter's reading of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ggq.checkpoint import transformers_model
from ggq.conversion import compare_logits, sentence_transformers
from ggq.conversion.compare_logits import Reference
from ggq.errors import ConversionProblem, GgqError
from ggq.gguf.file import GgufFile
from ggq.llamacpp.inference import LoadedGguf

# Beside the usual prompt's length: beyond a window, so that one which is missing or wrong shows.
_POSITIONS, _MOST_POSITIONS = compare_logits.POSITIONS, 320
_TEXT = compare_logits.PROMPT

_NO_POOLING = (
    "it has no files of sentence-transformers, so the GGUF may not say how the vectors of the tokens become "
    "one: give llama.cpp --pooling yourself"
)
_HEAD = (
    "the scores of its classification head were not compared, only the vectors that it gets; for the scores "
    "give llama.cpp --pooling rank"
)


def positions(made: GgufFile) -> int:
    """How many tokens are compared: more than a window's, where the encoder has one."""
    window = made.integer(f"{made.architecture}.attention.sliding_window") or 0
    most = made.context_length or _POSITIONS
    return max(2, min(most, _MOST_POSITIONS, window + window // 2 if window else _POSITIONS))


def reference_of(made: GgufFile) -> Callable[..., Reference]:
    """``reference`` for as many tokens as ``made`` asks for."""
    return functools.partial(reference, count=positions(made))


def reference(
    view: Path,
    architecture: str,
    tokenizer: Any,
    unexpected: Callable[[list[str]], None] | None = None,
    *,
    count: int = _POSITIONS,
) -> Reference:
    """transformers' last hidden states and the ``count`` tokens that they are for; or None and the reason.
    ``unexpected`` is called with the names of tensors that transformers has no use for.

    Raises CheckpointProblem for weights that are missing or do not fit the config.
    """
    import torch

    try:
        model = transformers_model.load_model(view, architecture, unexpected)
        tokens = _tokens(tokenizer, model.config, count)
        with torch.inference_mode():
            states = model.float().base_model(torch.tensor([tokens])).last_hidden_state
        return Reference(states[0].float().numpy(), tokens)
    except GgqError:
        raise
    except Exception as error:
        transformers_model.refuse_shapes(error)
        return Reference(why_not=compare_logits.why_not(error))


def _tokens(tokenizer: Any, config: Any, count: int) -> list[int]:
    """A real text's tokens, repeated up to ``count``; without a tokenizer scattered ids. Never a padding
    token: some encoders count their positions without it."""
    rows, padding = config.get_text_config().vocab_size, getattr(config, "pad_token_id", None)
    ids: list[int] = []
    if tokenizer is not None:
        once = [token for token in tokenizer(_TEXT)["input_ids"] if token != padding]
        while once and len(ids) < count:
            ids += once
    if not ids or max(ids) >= rows:
        ids = [
            token for token in ((index * 7919 + 11) % rows for index in range(2 * count)) if token != padding
        ]
    return ids[:count]


def compare(folder: Path, right_side: Reference, made: GgufFile, loaded: LoadedGguf) -> dict[str, Any]:
    """How alike the vectors are: those of the tokens, and the pooled one where a pooling is known; and what
    the checkpoint says that a GGUF cannot (``lost``)."""
    settings = sentence_transformers.read(folder, made.context_length)
    lost = settings.lost if settings else (_NO_POOLING,)
    if any(tensor.name.startswith("cls.") for tensor in made.tensors):
        lost = (_HEAD,)
    if right_side.expected is None:
        return {"why_not": right_side.why_not, "lost": lost}
    alike = _compare(right_side.expected, right_side.tokens, settings, made, loaded)
    return {**alike, "lost": lost}


def _compare(
    expected: Any,
    tokens: Sequence[int],
    settings: sentence_transformers.Settings | None,
    made: GgufFile,
    loaded: LoadedGguf,
) -> dict[str, Any]:
    found = loaded.vectors(tokens)
    alike: dict[str, Any] = compare_logits.compare(expected, found)
    if expected.shape[1] != found.shape[1]:
        return {
            "why_not": f"the checkpoint's vectors have {expected.shape[1]} numbers, "
            f"the GGUF's {found.shape[1]}"
        }
    alike.pop("top1_agreement", None)
    written = made.integer(f"{made.architecture}.pooling_type")
    wanted = settings.pooling if settings else None
    if wanted is None or "not_finite" in alike:
        return alike
    if written != sentence_transformers.POOLING_TYPES[wanted]:
        return {**alike, "pooling": wanted, "written_pooling": _word(written)}
    pooled = compare_logits.compare(_pooled(expected, wanted), loaded.vectors(tokens, pooled=True))
    return {**alike, "pooling": wanted, "written_pooling": wanted, "pooled_cosine": pooled.get("cosine")}


def _pooled(states: Any, pooling: str) -> Any:
    if pooling == "mean":
        return states.mean(axis=0, keepdims=True)
    return states[:1] if pooling == "cls" else states[-1:]


def _word(number: int | None) -> str:
    words: Mapping[int, str] = {kind: word for word, kind in sentence_transformers.POOLING_TYPES.items()}
    return words.get(number or 0, "none")


def require_same(vectors: Mapping[str, Any], outtype: str, least: float) -> None:
    """Raises ConversionProblem when the vectors that were compared are not the checkpoint's."""
    if vectors.get("not_finite"):
        raise ConversionProblem(
            "The encoder computes values that are not numbers.",
            f"On a short text {vectors['not_finite']} vectors hold NaN or infinity.",
            "Try another --outtype (bf16 or f32 instead of f16).",
        )
    wanted, written = vectors.get("pooling"), vectors.get("written_pooling")
    if wanted != written:
        raise ConversionProblem(
            "The GGUF does not pool its vectors as the checkpoint does.",
            f"sentence-transformers' files say {wanted}; the GGUF says {written}.",
            "Report this, with the model's name; --verify off keeps the file as it is.",
        )
    for what, key in (("tokens'", "cosine"), ("pooled", "pooled_cosine")):
        cosine = vectors.get(key)
        if cosine is not None and cosine < least:
            raise ConversionProblem(
                "The GGUF does not compute what the checkpoint computes.",
                f"Over {vectors['positions']} tokens the cosine between its {what} vectors and "
                f"transformers' is {cosine:.4f}; at least {least} is asked of {outtype}.",
                "llama.cpp does not do this model as its config says. Report it, with the model's name.",
            )
