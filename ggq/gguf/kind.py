"""What a GGUF file is when it is not a whole model under its own name."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.errors import GgufProblem
from ggq.gguf.names import SHARD, shard_name

_SHARD_INDEX, _SHARD_COUNT = "split.no", "split.count"  # llama.cpp's keys; the index begins at 0


@dataclass(frozen=True)
class OtherKind:
    """``what`` a file is, as words after "It is", and what to give ``instead``: a sentence."""

    what: str
    instead: str


def other_kind(metadata: Mapping[str, Any], architecture: str | None, tensor_count: int) -> OtherKind | None:
    """What a file is that is no model, or None. By ``general.type``, which older files lack, and by what
    only such a file has."""
    kind = metadata.get("general.type")
    base = metadata.get("general.base_model.0.name")
    its_base = (
        f"the GGUF of its base model ({base})" if isinstance(base, str) else "the GGUF of its base model"
    )
    if kind == "imatrix" or "imatrix.chunk_count" in metadata:
        return OtherKind(
            "an imatrix",
            "Give the GGUF of a model; `ggq quantize` takes the matrix with --imatrix.",
        )
    if kind == "adapter" or "adapter.type" in metadata:
        return OtherKind(
            f"an adapter ({metadata.get('adapter.type', 'lora')})",
            f"Give {its_base}; llama.cpp loads an adapter beside it.",
        )
    if kind == "mmproj" or architecture == "clip":
        return OtherKind(
            "a multimodal projector (mmproj), the part that sees or hears",
            "Give the GGUF of the language model that it belongs to.",
        )
    if architecture == "controlvector":
        return OtherKind("a control vector", "Give the GGUF of the model that it was made for.")
    if kind not in (None, "model"):
        return OtherKind(f"of the kind {str(kind)[:40]!r}", "Give the GGUF of a model.")
    if not tensor_count and architecture is None:
        return OtherKind("a GGUF of settings, without tensors", "Give the GGUF of a model.")
    if not tensor_count and "tokenizer.ggml.model" in metadata:
        return OtherKind("a vocabulary alone, without weights", "Give the GGUF of a whole model.")
    return None


def require_named_shard(path: Path, metadata: Mapping[str, Any], index: int, count: int) -> None:
    """Raises GgufProblem for a shard whose header contradicts its name: number ``index``, from 0, of
    ``count``. llama.cpp finds the others by their names."""
    own_index, own_count = metadata.get(_SHARD_INDEX, 0), metadata.get(_SHARD_COUNT, 1)
    if type(own_index) is not int or type(own_count) is not int or own_count <= 1:
        own_index, own_count = 0, 1
    # A model that fits one shard may bear a shard's name, and a count of 0 or 1, or none.
    if (own_index, own_count) == (index, count) or (own_count == 1 and count == 1):
        return
    named = SHARD.fullmatch(path.name)
    says = f"Its name says {index + 1} of {count}." if named else "Its name does not say so."
    if own_count == 1:
        raise GgufProblem(
            f"{path} has the name of a shard, and is none.",
            f"{says} Its header knows of no other shards.",
            "Rename it as its source names it.",
        )
    stem = named["stem"] if named else path.stem
    raise GgufProblem(
        f"{path} is shard {own_index + 1} of {own_count}, under another name.",
        f"{says} llama.cpp finds the shards of a model by their names.",
        f"Rename it to {shard_name(stem, own_index + 1, own_count)}, and the others likewise.",
    )


def joined(path: Path, size: int, file_bytes: int) -> GgufProblem:
    """The problem of a file in which another GGUF begins at byte ``size``, where the first one ends."""
    name = shlex.quote(path.name)
    return GgufProblem(
        f"{path} is several GGUF files, one behind the other.",
        f"The first one ends at byte {size:,} of {file_bytes:,}, and another one begins there: shards that"
        " were joined with cat.",
        f"Get the shards themselves, and join them with llama-gguf-split --merge SHARD-00001-of-… {name}",
    )
