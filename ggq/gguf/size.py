"""How large a GGUF will be that llama.cpp writes: to the byte, from a header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ggq.errors import GgufProblem
from ggq.gguf import tensor_types
from ggq.gguf.file import GgufFile
from ggq.gguf.header import DEFAULT_ALIGNMENT, Scalar, TensorInfo, padded

_SPLIT_BYTES = {"split.no": 2, "split.count": 2, "split.tensors.count": 4}


def predicted_bytes(
    base: GgufFile,
    types: Mapping[str, str],
    added: Mapping[str, Scalar] | None = None,
    keep_split: bool = False,
) -> int:
    """The exact size in bytes of what llama-quantize makes of ``base``, of all shards together.

    ``types``: the new type of tensors by name, in any case; the others keep theirs. ``added``: metadata set
    as ``--override-kv`` does (integers as u32, floats as f32). ``keep_split``: shards as the base has.
    Source: llama_model_quantize_impl in src/llama-quant.cpp and gguf_write_out in ggml/src/gguf.cpp: all
    entries but the split's, the tensors' infos, and every tensor's data, the last one's too, padded to 32
    bytes whatever the base's alignment.

    Raises GgufProblem when a type is unknown or does not divide the row it should hold.
    """
    entries = {key: size for key, size in base.entry_bytes.items() if key not in _SPLIT_BYTES}
    integers = {"general.quantization_version": 0, "general.file_type": 0}
    for key, value in (integers | dict(added or {})).items():
        entries[key] = _key_bytes(key) + _value_bytes(value)
    if not keep_split or len(base.paths) == 1:
        return _file_bytes(sum(entries.values()), base.tensors, types)
    split = sum(_key_bytes(key) + size for key, size in _SPLIT_BYTES.items())
    return sum(
        _file_bytes(
            split + (sum(entries.values()) if path == base.path else 0),
            [tensor for tensor in base.tensors if tensor.path == path],
            types,
        )
        for path in base.paths
    )


def _file_bytes(entries_bytes: int, tensors: Sequence[TensorInfo], types: Mapping[str, str]) -> int:
    infos = data = 0
    for tensor in tensors:
        word = types.get(tensor.name, tensor.type)
        kind = tensor_types.by_name().get(word.upper())
        if kind is None or tensor.shape[0] % kind.block_weights:
            raise GgufProblem(
                f"{tensor.name!r} cannot become {word!r}.",
                f"Its rows are {tensor.shape[0]} wide; blocks of {kind.block_weights} do not divide them."
                if kind
                else "ggml has no such type.",
                "Choose another type for it.",
            )
        infos += 8 + len(tensor.name.encode()) + 4 + 8 * written_dimensions(tensor.shape) + 4 + 8
        data += padded(kind.row_bytes(tensor.elements), DEFAULT_ALIGNMENT)
    return padded(4 + 4 + 8 + 8 + entries_bytes + infos, DEFAULT_ALIGNMENT) + data


def _key_bytes(key: str) -> int:
    """Of an entry all but its value: length, text, type."""
    return 8 + len(key.encode()) + 4


def _value_bytes(value: Scalar) -> int:
    if isinstance(value, str):
        return 8 + len(value.encode("utf-8", "surrogateescape").split(b"\0", 1)[0])
    return 1 if isinstance(value, bool) else 4


def written_dimensions(shape: Sequence[int]) -> int:
    """ggml_n_dims: trailing ones are not written."""
    return max((index for index, size in enumerate(shape, 1) if size > 1), default=1)
