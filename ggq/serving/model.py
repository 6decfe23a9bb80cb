"""A model in this process, by llama-cpp-python: a prompt in, an answer out, piece by piece."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ggq.errors import CannotServe, DoesNotFit, GgufProblem
from ggq.gguf.file import GgufFile
from ggq.llamacpp import binding, grammars, in_process
from ggq.llamacpp.toolchain import Toolchain
from ggq.serving.parameters import Parameters
from ggq.serving.settings import SamplingSettings
from ggq.system.files import human_bytes

_MEMORY_WORDS = ("out of memory", "failed to allocate", "unable to allocate", "alloc_buffer")

Ending = Literal["stop", "length", "context", "interrupted"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn, with every number set. ``temp`` 0: always the likeliest token."""

    temp: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None

    @staticmethod
    def of(settings: SamplingSettings, file: GgufFile, *, greedy: bool = False) -> Sampling:
        """What a person set, else what the file says of itself (``general.sampling.*``), else llama.cpp's
        defaults; ``greedy``: with 0 as the default of the temperature."""

        def value(name: str, default: float) -> float:
            own = getattr(settings, name)
            said = file.metadata.get(f"general.sampling.{name}")
            if own is None and isinstance(said, (int, float)) and not isinstance(said, bool):
                own = said
            return default if own is None else own

        return Sampling(
            temp=(settings.temp or 0.0) if greedy else value("temp", 0.8),
            top_p=value("top_p", 0.95),
            top_k=int(value("top_k", 40)),
            min_p=value("min_p", 0.05),
            repeat_penalty=settings.repeat_penalty if settings.repeat_penalty is not None else 1.0,
            seed=settings.seed,
        )


@dataclass(frozen=True)
class Answer:
    """What came of a prompt. ``ending``: the model stopped, or the number of tokens asked for, or the context
    was reached, or somebody interrupted it; ``reused_tokens``: of the prompt, known from the turn before."""

    text: str
    tokens: int
    prompt_tokens: int
    reused_tokens: int
    first_token_s: float | None
    seconds: float
    ending: Ending

    @property
    def tokens_per_s(self) -> float | None:
        """Of generation: without the first token, which waits for the prompt."""
        if self.first_token_s is None or self.tokens < 2 or self.seconds <= self.first_token_s:
            return None
        return (self.tokens - 1) / (self.seconds - self.first_token_s)


class Model:
    """A GGUF in memory. ``last`` is the answer given last, an interrupted one too."""

    def __init__(self, toolchain: Toolchain, parameters: Parameters) -> None:
        """Raises DoesNotFit, GgufProblem when llama.cpp does not load it, ToolchainProblem."""
        self.parameters = parameters
        self.last: Answer | None = None
        self._lib = binding.load(toolchain)
        self._said = in_process.heard(self._lib)
        options = parameters.serving.binding_options()
        if options is None:
            raise CannotServe(
                f"{parameters.file.path.name} cannot be run in this process as it was planned.",
                "llama-cpp-python has no option for a part of the placement.",
                "Serve it: `ggq serve`.",
            )
        try:
            self._llama = in_process.open_model(self._lib, parameters.file.path, options)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise self._not_loaded(error) from error
        self._vocab = self._llama._model.vocab
        self.bos, self.eos = self._named(self._llama.token_bos()), self._named(self._llama.token_eos())

    @property
    def context_tokens(self) -> int:
        return int(self._llama.n_ctx())

    def tokens(self, text: str, *, special: bool, bos: bool = True) -> list[int]:
        """``special``: names of special tokens are these tokens; ``bos``: with the token that begins a text,
        where the model wants one and the text has none."""
        wants_bos = bos and self._lib.llama_vocab_get_add_bos(self._vocab)
        starts = special and bool(self.bos) and text.startswith(self.bos)
        found: list[int] = self._llama.tokenize(
            text.encode("utf-8", "replace"), add_bos=bool(wants_bos and not starts), special=special
        )
        return found

    def grammar(self, *, gbnf: str | None = None, json_schema: str | None = None) -> Any:
        """A grammar for ``stream``. Raises UsageProblem for one that llama.cpp does not take."""
        return grammars.compiled(self._lib, self._vocab, gbnf=gbnf, json_schema=json_schema)

    def stream(
        self,
        tokens: Sequence[int],
        sampling: Sampling,
        *,
        most_tokens: int | None = None,
        grammar: Any = None,
        trim: bool = False,
    ) -> Generator[str]:
        """The answer to a prompt, piece by piece; then ``last`` is set, also where the caller stops early.

        ``trim``: without the white space that it begins with.

        Raises CannotServe when the prompt does not fit the context, and what llama.cpp fails with.
        """
        self.require_room(len(tokens))
        room = self.context_tokens - len(tokens)
        limit = room if most_tokens is None else min(most_tokens, room)
        pieces: list[str] = []
        made: list[int] = []
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        reused = self._known(tokens)
        started, first = time.monotonic(), None
        ending: Ending = "interrupted"
        self._llama.set_seed(
            sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(4)) >> 1
        )
        source = self._generated(tokens, sampling, grammar)
        try:
            for token in source:
                first = first if first is not None else time.monotonic() - started
                if self._lib.llama_vocab_is_eog(self._vocab, token):
                    ending = "stop"
                    break
                raw = in_process.piece(self._lib, self._vocab, token)
                made.append(token)
                piece = decoder.decode(raw)
                if trim and not pieces:
                    piece = piece.lstrip()
                if piece:
                    pieces.append(piece)
                    yield piece
                if len(made) >= limit:
                    ending = "length" if most_tokens is not None and limit == most_tokens else "context"
                    break
            if rest := decoder.decode(b"", final=True):
                pieces.append(rest)
                yield rest
        finally:
            source.close()
            self.last = Answer(
                "".join(pieces), len(made), len(tokens), reused, first, time.monotonic() - started, ending
            )

    def require_room(self, prompt_tokens: int) -> None:
        """Raises CannotServe for a prompt that leaves no token of the context for an answer."""
        if prompt_tokens < self.context_tokens:
            return
        trained = self.parameters.file.context_length or 0
        more = f"-c {min(trained, prompt_tokens * 2)}" if trained > self.context_tokens else ""
        raise CannotServe(
            f"The prompt has {prompt_tokens:,} tokens, the context {self.context_tokens:,}: it does not fit.",
            f"The model was trained for {trained:,}." if trained else "",
            f"Give more context with {more}, or shorten the prompt." if more else "Shorten the prompt.",
        )

    def close(self) -> None:
        """Give the memory back."""
        self._llama.close()

    def _generated(self, tokens: Sequence[int], sampling: Sampling, grammar: Any) -> Any:
        try:
            yield from self._llama.generate(
                list(tokens),
                temp=sampling.temp,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                repeat_penalty=sampling.repeat_penalty,
                grammar=grammar,
            )
        except (RuntimeError, ValueError) as error:
            raise GgufProblem(
                f"llama.cpp failed while it ran {self.parameters.file.path.name}.",
                "; ".join([*self._said][-2:]) or f"{error}",
                "Check the file with `ggq inspect`, and the tools with `ggq doctor`.",
            ) from error

    def _known(self, tokens: Sequence[int]) -> int:
        """How many of them stand in the cache already."""
        known = self._llama._input_ids[: len(tokens)]
        same = 0
        for a, b in zip(known, tokens, strict=False):
            if a != b:
                break
            same += 1
        return same

    def _named(self, token: int) -> str:
        return str(self._llama._model.token_get_text(token)) if token != -1 else ""

    def _not_loaded(self, error: BaseException) -> DoesNotFit | GgufProblem:
        said = [line for line in self._said if line]
        if isinstance(error, MemoryError) or any(word in line for line in said for word in _MEMORY_WORDS):
            needs, room = self.parameters.memory.ram_bytes, self.parameters.room.ram_bytes
            return DoesNotFit(
                f"There is too little memory for {self.parameters.file.path.name}.",
                f"By llama.cpp's account it needs {human_bytes(needs)} of RAM; {human_bytes(room)} was free.",
                "Give a shorter context with -c, take a smaller file, or close other programs.",
            )
        return GgufProblem(
            f"llama.cpp does not load {self.parameters.file.path.name}.",
            "; ".join(said[-2:]) or f"{error}",
            "Check the file: `ggq inspect FILE` shows its settings.",
        )
