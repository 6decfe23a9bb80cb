"""What the header of a GGUF file says: metadata, tensors, and what follows from them."""

from __future__ import annotations

import functools
import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from ggq.errors import GgufProblem
from ggq.gguf import constants as gguf_constants
from ggq.gguf import kind as gguf_kind

DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT in ggml/include/gguf.h
# The numbers that stand for types of values, and the forms of those of one size.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

# Names of tensors, as gguf-py's constants.py has them. Without an output matrix the embeddings are it.
EMBEDDINGS, OUTPUT = "token_embd.weight", "output.weight"

# Architectures that see a text from both sides and fill in tokens all the same.
_DIFFUSION = frozenset({"dream", "llada", "llada-moe", "rnd1"})

Scalar = int | float | bool | str


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header announces it.

    ``shape`` in ggml's order (the row's width first); ``type`` in capitals (``Q4_K``); ``offset_bytes``
    from the start of its file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset_bytes: int
    data_bytes: int
    path: Path

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def group(self) -> str:
        """attention, ffn, experts, embeddings, output, norms, or other: by llama.cpp's tensor names."""
        return tensor_group(self.name)


class Array(Sequence[Any]):
    """An array of a GGUF header, kept as the file's bytes and decoded when it is first looked into."""

    def __init__(self, kind: int, count: int, raw: bytes) -> None:
        self._kind = kind
        self._count = count
        self._raw = raw

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._values[index]

    def __repr__(self) -> str:
        return f"<Array of {self._count}>"

    @property
    def is_of_texts(self) -> bool:
        return self._kind == STRING

    def first(self, count: int) -> Array:
        """An array of its first ``count`` values, which are no texts."""
        return Array(self._kind, count, self._raw[: count * struct.calcsize("<" + SCALARS[self._kind])])

    @property
    def encoded(self) -> bytes:
        """As a header has it, after the number that says that an array follows."""
        return struct.pack("<IQ", self._kind, self._count) + self._raw

    @functools.cached_property
    def _values(self) -> list[Any]:
        if self._kind == STRING:
            return list(self._strings())
        return [value for (value,) in struct.iter_unpack("<" + SCALARS[self._kind], self._raw)]

    def _strings(self) -> Iterator[str]:
        position = 0
        for _ in range(self._count):
            (length,) = struct.unpack_from("<Q", self._raw, position)
            position += 8 + length
            yield self._raw[position - length : position].decode("utf-8", "replace")


_GROUPS = (
    ("norms", re.compile(r"norm")),
    ("embeddings", re.compile(r"^(?:\w*token_embd|token_types|position_embd)")),
    ("output", re.compile(r"^output\b|^cls\b")),
    ("experts", re.compile(r"_exps?\b|_shexp\b|_chexps\b|ffn_gate_inp|exp_probs")),
    ("attention", re.compile(r"\.attn_|\.ssm_|\.time_mix_|\.cross_attn_")),
    ("ffn", re.compile(r"\.ffn_|\.channel_mix_")),
)


def tensor_group(name: str) -> str:
    """The group of a tensor by its name: ``blk.0.attn_q.weight`` -> ``attention``."""
    return next((group for group, pattern in _GROUPS if pattern.search(name)), "other")


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file's header, or that of a split model's shards together.

    ``paths``: the file, or all shards in order. ``metadata`` values are numbers, bools, texts and ``Array``s;
    ``entry_bytes`` says for each key what its entry takes in a header that llama.cpp writes, ``entry_spans``
    where it stands in this one. ``file_bytes`` is of all files together; the other sizes are the first one's.
    """

    paths: tuple[Path, ...]
    version: int
    metadata: Mapping[str, Scalar | Array]
    entry_bytes: Mapping[str, int]
    entry_spans: Mapping[str, tuple[int, int]]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    header_bytes: int
    data_offset: int
    file_bytes: int

    @property
    def path(self) -> Path:
        """The file, or the first shard."""
        return self.paths[0]

    def text(self, key: str) -> str | None:
        """A metadata text, or None when absent or of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """A metadata integer, or None when absent or of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def architecture(self) -> str | None:
        return self.text("general.architecture")

    @property
    def name(self) -> str | None:
        return self.text("general.name")

    @property
    def data_end(self) -> int:
        """Where the last tensor of the first file ends, and its header where it has none."""
        ends = (it.offset_bytes + it.data_bytes for it in self.tensors if it.path == self.path)
        return max(ends, default=self.header_bytes)

    @property
    def trailing_bytes(self) -> int:
        """Bytes of the first file behind its last tensor and that one's padding: nothing reads them."""
        return max(0, self.path.stat().st_size - padded(self.data_end, self.alignment))

    @property
    def parameter_count(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.data_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors over their elements, as llama-quantize prints it; 0 without tensors."""
        return 8 * self.tensor_bytes / self.parameter_count if self.parameter_count else 0.0

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was trained for."""
        return self.integer(f"{self.architecture}.context_length")

    @property
    def block_count(self) -> int | None:
        return self.integer(f"{self.architecture}.block_count")

    @property
    def expert_count(self) -> int:
        return self.integer(f"{self.architecture}.expert_count") or 0

    @property
    def embedded_tokens(self) -> int:
        """Rows of the embeddings, and of the logits; 0 without embeddings."""
        return next((it.elements // it.shape[0] for it in self.tensors if it.name == EMBEDDINGS), 0)

    @property
    def types(self) -> Mapping[str, int]:
        """Tensors per type, the type with most bytes first."""
        data = Counter[str]()
        for tensor in self.tensors:
            data[tensor.type] += tensor.data_bytes
        counts = Counter(tensor.type for tensor in self.tensors)
        return {kind: counts[kind] for kind, _ in data.most_common()}

    @property
    def generates_text(self) -> bool:
        """False for a model whose attention sees a text from both sides."""
        causal = self.metadata.get(f"{self.architecture}.attention.causal")
        return causal is not False and self.architecture != "t5encoder"

    @property
    def is_encoder(self) -> bool:
        """Whether it makes vectors of texts, and no next token (BERT and its kin)."""
        return not self.generates_text and self.architecture not in _DIFFUSION

    @property
    def other_kind(self) -> gguf_kind.OtherKind | None:
        """What it is, where it is no model."""
        return gguf_kind.other_kind(self.metadata, self.architecture, len(self.tensors))

    def require_model(self) -> None:
        """Raises GgufProblem for a file of another kind, with what it is and what to give instead."""
        found = self.other_kind
        if found is not None:
            raise GgufProblem(f"{self.path} is not a model.", f"It is {found.what}.", found.instead)

    def require_text_generation(self) -> None:
        """Raises GgufProblem for what is no model, or none that continues texts."""
        self.require_model()
        if not self.generates_text:
            raise GgufProblem(
                f"{self.path} does not continue texts.",
                f"It is an encoder ({self.architecture}): it makes vectors of whole texts."
                if self.is_encoder
                else f"It is a diffusion model ({self.architecture}): it fills in tokens of a whole text.",
                "Give the GGUF of a model that generates text.",
            )

    def overwrite_text(self, key: str, text: str) -> None:
        """Write another text of the same length to the place of the one that ``key`` has in the first file.
        This object still has the one before."""
        new, old = text.encode(), str(self.metadata[key]).encode()
        if len(new) != len(old):
            raise ValueError(f"{key} has {len(old)} bytes, not {len(new)}")
        with self.path.open("r+b") as stream:
            stream.seek(self.entry_spans[key][1] - len(old))
            stream.write(new)

    def require_next_tokens(self, purpose: str, instead: str) -> None:
        """Raises GgufProblem for an encoder, of which ``purpose`` asks what only next tokens can tell."""
        if self.is_encoder:
            raise GgufProblem(
                f"{self.path.name} cannot have {purpose}.",
                f"It is an encoder ({self.architecture}): it makes vectors of texts, and no next token.",
                instead,
            )

    @property
    def file_type(self) -> str | None:
        """The preset's word that ``general.file_type`` stands for (``Q4_K_M``), or None."""
        number = self.integer("general.file_type")
        return next((word for word, known in file_types().items() if known == number), None)

    @property
    def tokenizer(self) -> str | None:
        """The tokenizer's model, with its pre-tokenizer: ``llama``, ``gpt2/qwen2``."""
        words = (self.text("tokenizer.ggml.model"), self.text("tokenizer.ggml.pre"))
        return "/".join(word for word in words if word) or None

    @property
    def vocabulary_size(self) -> int | None:
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return len(tokens) if isinstance(tokens, Array) else self.integer(f"{self.architecture}.vocab_size")

    @property
    def has_chat_template(self) -> bool:
        return bool(self.text("tokenizer.chat_template"))

    @property
    def license(self) -> str | None:
        return self.text("general.license")

    @property
    def base_model(self) -> str | None:
        """What it was made from: the base model's address, or its name."""
        return self.text("general.base_model.0.repo_url") or self.text("general.base_model.0.name")


@functools.cache
def file_types() -> Mapping[str, int]:
    """llama-quantize's words (``Q4_K_M``) and the numbers that ``general.file_type`` has for them."""
    kinds = gguf_constants.constants().LlamaFileType
    known = {kind.name.split("_", 1)[1]: int(kind) for kind in kinds if kind != kinds.GUESSED}
    return {"Q2_0": 41} | known  # 41 is in the pinned llama.h, not in gguf 0.19


def padded(size: int, alignment: int) -> int:
    """``size`` rounded up to a multiple of ``alignment``."""
    return -(-size // alignment) * alignment
