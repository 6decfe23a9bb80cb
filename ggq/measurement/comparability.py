"""Which models can be compared with each other: those that were made from one base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ggq.errors import CannotServe, GgufProblem, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.gguf.header import Array
from ggq.measurement.model_file import Subject


def require(base: Subject, models: Sequence[Subject], context: int) -> None:
    """Refuse what cannot be compared, before a text is fetched or an hour is spent on it.

    Raises UsageProblem, GgufProblem.
    """
    if not models:
        raise UsageProblem(
            "There is nothing to compare with the 16-bit GGUF.",
            f"Only {base.path.name} was given.",
            "Name the 16-bit GGUF and one quantized model or more.",
        )
    ours = gguf_file.read(base.path)
    ours.require_next_tokens("a perplexity", "`ggq bench speed` measures how fast it reads.")
    for subject, gguf in ((base, ours), *((model, gguf_file.read(model.path)) for model in models)):
        if not gguf.tokenizer:
            raise GgufProblem(
                f"{subject.path.name} has no tokenizer.",
                "Without one a text has no tokens.",
                "Convert its checkpoint again, with the tokenizer's files beside it.",
            )
        if (gguf.architecture, gguf.parameter_count) != (ours.architecture, ours.parameter_count):
            raise GgufProblem(
                f"{subject.path.name} was not made from {base.path.name}.",
                f"It is a {gguf.architecture} of {gguf.parameter_count:,} parameters, the 16-bit GGUF a "
                f"{ours.architecture} of {ours.parameter_count:,}.",
                "Compare a model with the 16-bit GGUF that it was made from.",
            )
        if _vocabulary(gguf) != _vocabulary(ours):
            raise GgufProblem(
                f"The vocabulary of {subject.path.name} is not that of {base.path.name}.",
                f"They have {gguf.vocabulary_size} and {ours.vocabulary_size} tokens.",
                "Compare a model with the 16-bit GGUF that it was made from.",
            )
        if subject.context_length and context > subject.context_length:
            raise CannotServe(
                f"A context of {context} tokens is more than {subject.path.name} was made for.",
                f"It was trained with {subject.context_length}.",
                f"Ask for --ctx-size {subject.context_length} or less.",
            )


def _vocabulary(gguf: GgufFile) -> Any:
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    return list(tokens) if isinstance(tokens, Array) else None
