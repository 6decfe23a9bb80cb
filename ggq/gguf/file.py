"""GGUF files: what they say of themselves, alone or as the shards of one model."""

from __future__ import annotations

import functools
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ggq.errors import GgufProblem
from ggq.gguf import constants as gguf_constants
from ggq.gguf import header as gguf_header
from ggq.gguf import kind as gguf_kind
from ggq.gguf.header import Array, Scalar, TensorInfo
from ggq.gguf.names import SHARD, shard_name
from ggq.system import untrusted

# Names of tensors, as gguf-py's constants.py has them. Without an output matrix the embeddings are it.
EMBEDDINGS, OUTPUT = "token_embd.weight", "output.weight"

# Architectures that see a text from both sides and fill in tokens all the same.
_DIFFUSION = frozenset({"dream", "llada", "llada-moe", "rnd1"})


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
        return max(0, self.path.stat().st_size - gguf_header.padded(self.data_end, self.alignment))

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


# --- reading ---------------------------------------------------------------------------------------------


def read(path: Path) -> GgufFile:
    """Read and check a GGUF file's header; its data are only checked to be there.

    Raises GgufProblem: no such file, not a GGUF, a version that is not supported, a header or data cut short,
    lengths that lie, names twice, tensors out of place.
    """
    try:
        with untrusted.open_regular(path) as stream:
            found = GgufFile((path,), **vars(gguf_header.parse(path, stream)))
            for end in (found.file_bytes - found.trailing_bytes, found.data_end):
                stream.seek(end)
                if stream.read(4) == gguf_header.MAGIC:
                    raise gguf_kind.joined(path, end, found.file_bytes)
            return found
    except IsADirectoryError as error:
        raise GgufProblem(
            f"{path} is a folder, not a GGUF file.",
            "",
            f"If it is a checkpoint: `ggq convert {shlex.quote(str(path))}`.",
        ) from error
    except OSError as error:
        raise GgufProblem(
            f"{path} cannot be read.", f"{error.strerror}.", "Check the path and its permissions."
        ) from error


def read_model(path: Path) -> GgufFile:
    """Like ``read_all``, and raises GgufProblem for what is no model."""
    found = read_all(path)
    found.require_model()
    return found


def read_all(path: Path) -> GgufFile:
    """Like ``read``; of a split model all shards, as one: the first one's metadata, all tensors.

    Raises GgufProblem, also for a shard that is missing, or is another one than its name says.
    """
    first, *rest = parts = [read(shard) for shard in shards(path)]
    for index, part in enumerate(parts):
        gguf_kind.require_named_shard(part.path, part.metadata, index, len(parts))
    if not rest:
        return first
    tensors = (*first.tensors, *(tensor for part in rest for tensor in part.tensors))
    twice = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
    announced = first.integer("split.tensors.count")
    if twice or announced not in (None, len(tensors)):
        raise GgufProblem(
            f"The shards of {path.name} do not belong together.",
            f"{twice[0]!r} is in two of them."
            if twice
            else f"The first one announces {announced} tensors; all together hold {len(tensors)}.",
            "Get all shards again from one source.",
        )
    return replace(
        first,
        paths=tuple(part.path for part in (first, *rest)),
        tensors=tensors,
        file_bytes=sum(part.file_bytes for part in (first, *rest)),
    )


def shards(path: Path) -> list[Path]:
    """All files of the model that ``path`` is, or is a shard of, in order.

    Raises GgufProblem when one is missing.
    """
    match = SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= int(match["index"]) <= count:
        raise GgufProblem(
            f"{path.name} is not the name of a shard.",
            f"It says that it is number {int(match['index'])} of {count}.",
            "Rename it as its source names it.",
        )
    files = [path.with_name(shard_name(match["stem"], index + 1, count)) for index in range(count)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise GgufProblem(
            f"{len(missing)} of the {count} shards of {match['stem']} are missing.",
            f"{missing[0].name} is not in {path.absolute().parent}.",
            "Put all shards into one folder.",
        )
    return files
