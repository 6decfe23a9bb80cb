"""The parts of a text that models are measured on, round by round, and the base's logits on each.

A round costs every model one evaluation, and the disk the base's logits of one excerpt.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ggq.errors import CannotServe, UsageProblem
from ggq.llamacpp import perplexity
from ggq.llamacpp.logits_file import LogitsFile, logits_bytes, scored_tokens
from ggq.llamacpp.perplexity import LEAST_SCORED_TOKENS, Evaluation
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import files

# llama-perplexity refuses a text of fewer chunks.
_LEAST_CHUNKS = 2
# Fixed work is cut into so many rounds, for the spread between them.
_PARTS = 8


@dataclass(frozen=True)
class Excerpt:
    """``chunks`` chunks of the text: from its chunk ``first_chunk`` on, or from ``first_byte`` on."""

    chunks: int
    first_chunk: int | None = None
    first_byte: int | None = None


@dataclass(frozen=True)
class Base:
    """The model that others are compared with, the text, and how both are evaluated.

    ``token_count``: of the whole text; ``folder``: where logits may lie for a while; ``parse_special``: the
    names of special tokens in the text stand for them.
    """

    toolchain: Toolchain
    path: Path
    vocabulary_size: int
    text: Path
    token_count: int
    how: Evaluation
    folder: Path
    parse_special: bool = False

    @property
    def chunk_count(self) -> int:
        """Chunks of the whole text."""
        return self.token_count // self.how.context

    def save_logits(self, text: Path, chunks: int) -> LogitsFile:
        """The base's logits on a text's first chunks. Raises as ``perplexity.save_logits``."""
        target = self.folder / "logits"
        return perplexity.save_logits(
            self.toolchain, self.path, text, target, self.how, chunks=chunks, parse_special=self.parse_special
        )

    def logits_bytes(self, chunks: int) -> int:
        return logits_bytes(self.vocabulary_size, self.how.context, chunks)


class Excerpts(Protocol):
    """The excerpts in the order of their rounds; ``peak_bytes``: what their logits take on disk at most."""

    @property
    def excerpts(self) -> Sequence[Excerpt]: ...

    @property
    def peak_bytes(self) -> int: ...

    def logits(self, excerpt: Excerpt) -> contextlib.AbstractContextManager[LogitsFile]:
        """The base's logits on an excerpt, as long as the block lasts."""
        ...


class WholeText:
    """The first chunks of the text exactly as llama-perplexity cuts it, computed in one pass and kept until
    the last round: figures that can be compared with everybody's."""

    def __init__(self, base: Base, chunks: int) -> None:
        self._base = base
        self._chunks = chunks
        self._whole: LogitsFile | None = None
        least = _chunks_for_a_summary(base.how.context)
        parts = max(1, min(_PARTS, chunks // least))
        edges = [chunks * part // parts for part in range(parts + 1)]
        self.excerpts: Sequence[Excerpt] = tuple(
            Excerpt(end - start, first_chunk=start) for start, end in itertools.pairwise(edges)
        )
        largest = max(excerpt.chunks for excerpt in self.excerpts)
        self.peak_bytes = base.logits_bytes(chunks) + (base.logits_bytes(largest) if parts > 1 else 0)

    @contextlib.contextmanager
    def logits(self, excerpt: Excerpt) -> Iterator[LogitsFile]:
        whole = self._whole
        if whole is None:
            whole = self._whole = self._base.save_logits(self._base.text, self._chunks)
        if len(self.excerpts) == 1:
            yield whole
            return
        assert excerpt.first_chunk is not None
        target = self._base.folder / "part"
        with files.explain_os_error(target):
            part = whole.part(excerpt.first_chunk, excerpt.chunks, target)
        yield part
        target.unlink()


class Pieces:
    """Pieces of the text that begin with a word, in order or at random, each evaluated by itself: any length
    of text in bounded disk, and rounds that know nothing of each other."""

    def __init__(self, base: Base, chunks_each: int, pieces: int, seed: int | None) -> None:
        """``pieces``: how many of all that there are; ``seed``: of their order, None keeps the text's."""
        self._base = base
        self._text = base.text.read_bytes()
        # Lines differ in tokens per byte, short pieces more than long ones.
        tokens = max(chunks_each, _LEAST_CHUNKS) * base.how.context * (1 + chunks_each**-0.5)
        self._length = min(len(self._text), int(tokens * len(self._text) / base.token_count))
        count = max(1, base.chunk_count // chunks_each)
        room = len(self._text) - self._length
        starts = [self._word_start(room * piece // max(1, count - 1)) for piece in range(count)]
        if seed is not None:
            random.Random(seed).shuffle(starts)
        self.excerpts: Sequence[Excerpt] = tuple(
            Excerpt(chunks_each, first_byte=start) for start in starts[:pieces]
        )
        self.peak_bytes = base.logits_bytes(chunks_each)

    @contextlib.contextmanager
    def logits(self, excerpt: Excerpt) -> Iterator[LogitsFile]:
        assert excerpt.first_byte is not None
        found = self._evaluate(excerpt, excerpt.first_byte, self._length)
        if found is None or found.chunk_count < excerpt.chunks:
            # Denser than most of the text: some more of it, from a little before where it would end first.
            start = max(0, min(excerpt.first_byte, len(self._text) - 4 * self._length))
            found = self._evaluate(excerpt, self._word_start(start), 4 * self._length)
        if found is None:
            raise CannotServe(
                "A piece of the text is too short to measure quality.",
                f"At byte {excerpt.first_byte}, {4 * self._length} bytes make fewer tokens than elsewhere.",
                "Give a text of one kind, or --chunks for fixed work.",
            )
        yield found
        found.path.unlink()

    def _evaluate(self, excerpt: Excerpt, start: int, length: int) -> LogitsFile | None:
        """The base's logits on a piece; None when it has too few tokens for the tool."""
        base, piece = self._base, self._base.folder / "piece.txt"
        with files.explain_os_error(piece):
            piece.write_bytes(self._text[start : start + length])
        try:
            return base.save_logits(piece, excerpt.chunks)
        except UsageProblem:
            return None

    def _word_start(self, at: int) -> int:
        """Where the next word begins; in a text without blanks the next character."""
        if at == 0:
            return 0
        if blank := re.compile(rb"\s").search(self._text, at, at + 100):
            return blank.end()
        while at < len(self._text) and self._text[at] & 0xC0 == 0x80:
            at += 1
        return at


def fixed(base: Base, chunks: int | None, max_bytes: int) -> Excerpts:
    """The first ``chunks`` of the text, or all of it, within ``max_bytes`` of disk.

    Raises UsageProblem when the text or the disk is too small.
    """
    _require_text(base)
    chunks = min(chunks or base.chunk_count, base.chunk_count)
    if scored_tokens(base.how.context) * chunks < LEAST_SCORED_TOKENS:
        least = _chunks_for_a_summary(base.how.context)
        raise UsageProblem(
            f"{chunks} chunks are too few to measure a divergence.",
            f"llama-perplexity wants {LEAST_SCORED_TOKENS} scored tokens at least.",
            f"Ask for {least} chunks or more, or a longer context.",
        )
    whole = WholeText(base, chunks)
    if whole.peak_bytes <= max_bytes:
        return whole
    each = _chunks_within(base, max_bytes)
    return Pieces(base, each, -(-chunks // each), seed=None)


def at_random(base: Base, max_chunks: int, max_bytes: int, seed: int) -> Excerpts:
    """Small pieces from all over the text, up to ``max_chunks`` in all. Raises as ``fixed``."""
    _require_text(base)
    least = _chunks_for_a_summary(base.how.context)
    _chunks_within(base, max_bytes)
    return Pieces(base, least, max(1, max_chunks // least), seed)


def _chunks_for_a_summary(context: int) -> int:
    return max(_LEAST_CHUNKS, -(-LEAST_SCORED_TOKENS // scored_tokens(context)))


def _require_text(base: Base) -> None:
    needed = _chunks_for_a_summary(base.how.context) * base.how.context
    if base.token_count < needed:
        raise CannotServe(
            "The text is too short to measure quality.",
            f"It has {base.token_count} tokens; {needed} are needed with a context of {base.how.context}.",
            "Give a longer text, or a smaller context.",
        )


def _chunks_within(base: Base, max_bytes: int) -> int:
    """Chunks whose logits fit. Raises UsageProblem when not even a round's do."""
    least = _chunks_for_a_summary(base.how.context)
    each = least
    while base.logits_bytes(2 * each) <= max_bytes and 2 * each <= base.chunk_count:
        each *= 2
    if base.logits_bytes(each) > max_bytes:
        raise UsageProblem(
            "The 16-bit GGUF's logits need more disk than --max-base-bytes allows.",
            f"{least} chunks of {base.how.context} tokens, the least that can be measured, take "
            f"{files.human_bytes(base.logits_bytes(least))}; {files.human_bytes(max_bytes)} are allowed.",
            "Allow more, or take a smaller context.",
        )
    return each
