"""The file that ``llama-perplexity --kl-divergence-base`` writes: tokens, and a model's view of each.

Its layout (tools/perplexity/perplexity.cpp): ``_logits_``, then int32 context, vocabulary and chunk count,
the tokens of all chunks as int32, then for every scored position of every chunk the vocabulary's log
probabilities as uint16 with their offset and scale.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggq.errors import ToolchainProblem

_MAGIC = b"_logits_"
_NUMBERS = struct.Struct("<3i")
_TOKEN_BYTES = 4


def scored_tokens(context: int) -> int:
    """Tokens of a chunk that are scored: its second half, but for the last, which has no successor."""
    return context - 1 - context // 2


@dataclass(frozen=True)
class LogitsFile:
    """Such a file: tokens in a chunk (``context``), size of the vocabulary, number of chunks."""

    path: Path
    context: int
    vocabulary_size: int
    chunk_count: int

    @property
    def scored_tokens(self) -> int:
        return self.chunk_count * scored_tokens(self.context)

    @property
    def file_bytes(self) -> int:
        """Of the whole file, from its header."""
        return self._logits_offset + self.chunk_count * self.chunk_bytes

    @property
    def chunk_bytes(self) -> int:
        """Of one chunk's log probabilities."""
        row = 2 * ((self.vocabulary_size + 1) // 2) + 4
        return 2 * row * scored_tokens(self.context)

    @property
    def _tokens_offset(self) -> int:
        return len(_MAGIC) + _NUMBERS.size

    @property
    def _logits_offset(self) -> int:
        return self._tokens_offset + self.chunk_count * self.context * _TOKEN_BYTES

    def chunks(self) -> list[tuple[int, ...]]:
        """The tokens of every chunk, as the text has them: the tool puts BOS in the place of a chunk's first
        one where the vocabulary wants it."""
        tokens = array("i")
        with self.path.open("rb") as stream:
            stream.seek(self._tokens_offset)
            tokens.frombytes(stream.read(self.chunk_count * self.context * _TOKEN_BYTES))
        return [tuple(tokens[at : at + self.context]) for at in range(0, len(tokens), self.context)]

    def part(self, first: int, count: int, target: Path) -> LogitsFile:
        """Write ``count`` chunks from ``first`` on as a file of their own. Raises OSError."""
        part = replace(self, path=target, chunk_count=count)
        with self.path.open("rb") as source, target.open("wb") as sink:
            sink.write(_MAGIC + _NUMBERS.pack(self.context, self.vocabulary_size, count))
            source.seek(self._tokens_offset + first * self.context * _TOKEN_BYTES)
            sink.write(source.read(count * self.context * _TOKEN_BYTES))
            source.seek(self._logits_offset + first * self.chunk_bytes)
            for _ in range(count):
                sink.write(source.read(self.chunk_bytes))
        return part


def header(context: int, vocabulary_size: int, chunks: Sequence[Sequence[int]]) -> bytes:
    """The file's beginning, up to the log probabilities of the first chunk."""
    tokens = array("i", (token for chunk in chunks for token in chunk))
    return _MAGIC + _NUMBERS.pack(context, vocabulary_size, len(chunks)) + tokens.tobytes()


def read(path: Path) -> LogitsFile:
    """Read the header and hold the file's size against it. Raises ToolchainProblem."""
    with path.open("rb") as stream:
        head = stream.read(len(_MAGIC) + _NUMBERS.size)
    if len(head) == len(_MAGIC) + _NUMBERS.size and head.startswith(_MAGIC):
        numbers = _NUMBERS.unpack(head[len(_MAGIC) :])
        found = LogitsFile(path, *numbers)
        if min(numbers) > 0 and path.stat().st_size == found.file_bytes:
            return found
    raise ToolchainProblem(
        "llama-perplexity wrote a file of logits that ggq does not know.",
        f"Its {path.stat().st_size} bytes do not agree with its header.",
        "Run `ggq doctor`; if these tools are not of the pinned commit, run `ggq setup`.",
    )


def logits_bytes(vocabulary_size: int, context: int, chunk_count: int) -> int:
    """Bytes of the file for so many chunks of so many tokens."""
    return LogitsFile(Path(), context, vocabulary_size, chunk_count).file_bytes
