"""A GGUF at work in this process, through the binding: its tokens, logits and vectors, on the CPU alone.

For ggq's child process: llama.cpp ends the process where it finds a file impossible.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ggq.errors import GgufProblem
from ggq.llamacpp import binding, rotations
from ggq.llamacpp.toolchain import Toolchain

# What llama.cpp calls must not be collected while it is loaded.
_CALLBACKS: list[Any] = []


class LoadedGguf:
    """A loaded model. Its weights are mapped, so that they cost file pages, and its arithmetic is llama.cpp's
    own for their types."""

    def __init__(
        self,
        toolchain: Toolchain,
        model: Path,
        threads: int,
        *,
        weights: bool = True,
        overrides: Mapping[str, int] | None = None,
    ) -> None:
        """``weights``: load them; without them only tokens can be asked for, and no memory is taken.
        ``overrides``: whole numbers of the metadata in the place of the file's own.

        Raises ToolchainProblem, and GgufProblem with llama.cpp's reason when it refuses the file.
        """
        self._lib = binding.load(toolchain)
        self._threads = threads
        words = _words(self._lib)
        words.clear()
        self._lib.llama_backend_init()
        settings = self._lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        if not weights:
            settings.no_alloc = True
            settings.load_mode = self._lib.LLAMA_LOAD_MODE_NONE
        if overrides:
            settings.kv_overrides = _overrides(self._lib, overrides)
        self._model = self._lib.llama_model_load_from_file(str(model).encode(), settings)
        if not self._model:
            raise GgufProblem(
                f"llama.cpp does not load {model.name}.",
                _reason(words),
                "Report this, with the model's name.",
            )
        self._vocab = self._lib.llama_model_get_vocab(self._model)

    def __enter__(self) -> LoadedGguf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lib.llama_model_free(self._model)

    @property
    def has_tokenizer(self) -> bool:
        return bool(self._lib.llama_vocab_type(self._vocab) != self._lib.LLAMA_VOCAB_TYPE_NONE)

    @property
    def token_count(self) -> int:
        return int(self._lib.llama_vocab_n_tokens(self._vocab))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = False) -> list[int]:
        """The ids of ``text``; the names of special tokens stand for them only if ``parse_special``."""
        raw = text.encode()
        room = 2 * len(raw) + 16
        ids = (self._lib.llama_token * room)()
        count = self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, add_special, parse_special)
        return list(ids[:count])

    def ends_generation(self, token: int) -> bool:
        """Whether llama.cpp stops at a token; False for one that the vocabulary lacks."""
        if not 0 <= token < self.token_count:
            return False
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def ordinary_ends(self) -> list[int]:
        """Tokens of ordinary text at which llama.cpp stops."""
        lib, vocab = self._lib, self._vocab
        ends = (token for token in range(self.token_count) if lib.llama_vocab_is_eog(vocab, token))
        return [
            token for token in ends if lib.llama_vocab_get_attr(vocab, token) & lib.LLAMA_TOKEN_ATTR_NORMAL
        ]

    def chat_template(self, name: str | None = None) -> str | None:
        """The model's chat template, or its template of that name; None where it has none."""
        found = self._lib.llama_model_chat_template(self._model, name.encode() if name else None)
        return found.decode("utf-8", "replace") if found else None

    def name(self, token: int) -> str:
        """A token's text in the vocabulary."""
        if not 0 <= token < self.token_count:
            return ""
        return str(self._lib.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace"))

    def logits(self, tokens: Sequence[int], *, exact_cache: bool = True) -> Any:
        """Logits at every position of ``tokens``: a float32 array, positions × vocabulary.

        ``exact_cache``: the attention's cache in float32; else in float16, for half its memory.

        Raises GgufProblem when llama.cpp cannot evaluate the model.
        """
        with self._evaluated(tokens, exact_cache=exact_cache) as context:
            return self._rows(context, len(tokens))

    def _rows(self, context: Any, count: int) -> Any:
        import numpy as np

        rows = [self._lib.llama_get_logits_ith(context, index) for index in range(count)]
        return np.stack([np.ctypeslib.as_array(row, (self.token_count,)) for row in rows])

    def far_logits(
        self, tokens: Sequence[int], near: int, far: int, *, exact_cache: bool = True
    ) -> tuple[Any, list[rotations.Rotation]]:
        """Logits of tokens of which the first ``near`` stand at positions 0, 1, 2 ..., the others at ``far``,
        ``far`` + 1 ...; and the rotations of the first ``near`` + 1.

        llama.cpp takes no gap in a text. So the first token at ``far`` is a text by itself, sees itself only,
        and is put behind the others afterwards. None for the logits of a model that is (also) recurrent: it
        has one state, to which nothing can be put.

        Raises GgufProblem when llama.cpp cannot evaluate the model, LookupError when ggml cannot be asked.
        """
        import numpy as np

        lib, watch = self._lib, rotations.Watch(self._lib)
        settings = self._settings(len(tokens), exact_cache=exact_cache)
        settings.n_seq_max, settings.kv_unified = 2, True
        settings.cb_eval = watch.callback
        recurrent = lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)
        with self._context(settings) as context:
            parts = []
            for first, places in ((0, [(index, 0) for index in range(near)]), (near, [(far, 1)])):
                self._evaluate(context, tokens[first : first + len(places)], places)
                parts.append((self._rows(context, len(places)), watch.take()))
            (near_rows, near_turns), (far_row, far_turns) = parts
            found = rotations.joined(near_turns, far_turns)
            if recurrent:
                return None, found
            lib.llama_memory_seq_cp(lib.llama_get_memory(context), 1, 0, -1, -1)
            rest = tokens[near + 1 :]
            self._evaluate(context, rest, [(far + 1 + index, 0) for index in range(len(rest))])
            return np.concatenate([near_rows, far_row, self._rows(context, len(rest))]), found

    def vectors(self, tokens: Sequence[int], *, pooled: bool = False) -> Any:
        """An encoder's vectors: a float32 array, positions × width; ``pooled``: one vector, pooled as the
        file says.

        Raises GgufProblem when llama.cpp cannot evaluate the model.
        """
        import numpy as np

        lib = self._lib
        width = int(lib.llama_model_n_embd_out(self._model))
        pooling = lib.LLAMA_POOLING_TYPE_UNSPECIFIED if pooled else lib.LLAMA_POOLING_TYPE_NONE
        with self._evaluated(tokens, pooling=pooling) as context:
            if pooled:
                rows = [lib.llama_get_embeddings_seq(context, 0)]
            else:
                rows = [lib.llama_get_embeddings_ith(context, index) for index in range(len(tokens))]
            if not all(rows):
                raise _cannot_evaluate("it gives no embeddings")
            return np.stack([np.ctypeslib.as_array(row, (width,)) for row in rows])

    @contextlib.contextmanager
    def _evaluated(
        self, tokens: Sequence[int], *, exact_cache: bool = True, pooling: int | None = None
    ) -> Iterator[Any]:
        """A context in which ``tokens`` were evaluated; ``pooling``: as an encoder, for its vectors."""
        settings = self._settings(len(tokens), exact_cache=exact_cache)
        if pooling is not None:
            settings.embeddings = True
            settings.pooling_type = pooling
        with self._context(settings) as context:
            places = [(index, 0) for index in range(len(tokens))]
            self._evaluate(context, tokens, places, encode=pooling is not None)
            yield context

    def _settings(self, count: int, *, exact_cache: bool) -> Any:
        lib = self._lib
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = max(64, count)
        settings.n_threads = settings.n_threads_batch = self._threads
        settings.type_k = settings.type_v = lib.GGML_TYPE_F32 if exact_cache else lib.GGML_TYPE_F16
        settings.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.offload_kqv = settings.op_offload = False
        return settings

    @contextlib.contextmanager
    def _context(self, settings: Any) -> Iterator[Any]:
        context = self._lib.llama_init_from_model(self._model, settings)
        if not context:
            raise _cannot_evaluate("no context could be made")
        try:
            yield context
        finally:
            self._lib.llama_free(context)

    def _evaluate(
        self,
        context: Any,
        tokens: Sequence[int],
        places: Sequence[tuple[int, int]],
        *,
        encode: bool = False,
    ) -> None:
        """Evaluate tokens in one batch, each at its place: a position in a sequence."""
        lib, count = self._lib, len(tokens)
        batch = lib.llama_batch_init(count, 0, 1)
        evaluate = lib.llama_encode if encode else lib.llama_decode
        try:
            batch.n_tokens = count
            for index, (token, (position, sequence)) in enumerate(zip(tokens, places, strict=True)):
                batch.token[index] = token
                batch.pos[index] = position
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = True
            if (status := evaluate(context, batch)) != 0:
                raise _cannot_evaluate(f"{evaluate.__name__} returned {status}")
        finally:
            lib.llama_batch_free(batch)


def _overrides(lib: Any, values: Mapping[str, int]) -> Any:
    """An array that ends with an empty key."""
    made = (lib.llama_model_kv_override * (len(values) + 1))()
    for entry, (key, value) in zip(made, values.items(), strict=False):
        entry.tag, entry.key = lib.LLAMA_KV_OVERRIDE_TYPE_INT, key.encode()
        entry.value.val_i64 = value
    return made


@functools.cache
def _words(lib: Any) -> deque[str]:
    """llama.cpp's log from now on: what it prints would go to stderr otherwise."""
    words: deque[str] = deque(maxlen=1000)

    @lib.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(_level: int, text: bytes, _data: Any) -> None:
        words.append(text.decode("utf-8", "replace").strip())

    lib.llama_log_set(keep, ctypes.c_void_p(0))
    _CALLBACKS.append(keep)
    return words


def _reason(words: Iterable[str]) -> str:
    """The cause among llama.cpp's words: it logs the exception that ended the load."""
    found = [line.split("error loading model: ", 1) for line in words]
    reasons = [parts[1].rstrip(".") for parts in found if len(parts) > 1]
    return f"{reasons[0]}." if reasons else "It gave no reason."


def _cannot_evaluate(why: str) -> GgufProblem:
    return GgufProblem("llama.cpp cannot run this model.", f"{why}.", "Report this, with the model's name.")
