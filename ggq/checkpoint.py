"""A checkpoint folder: what it says of itself, read in milliseconds and checked as untrusted input.

Weights are never loaded: of a safetensors file only the header is read, of a ``.bin`` (a pickle) nothing.
The format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from ggq.errors import CheckpointProblem

# Bounds on what is read into memory, well above any model there is.
_HEADER_LIMIT_BYTES = 32 << 20
_JSON_LIMIT_BYTES = 64 << 20
_DIMENSION_LIMIT = 8

_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_VOCABULARIES = {
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json",
}  # fmt: skip
# What the pinned converter dequantizes (ModelBase.dequant_model in conversion/base.py; mxfp4 in gpt_oss.py).
READABLE_QUANTIZATIONS = ("bitnet", "compressed-tensors", "fp8", "gptq", "modelopt", "mxfp4")
_GROUPS = (
    ("norms", re.compile(r"norm|\bln_|\.ln\d", re.IGNORECASE)),
    ("experts", re.compile(r"expert|block_sparse_moe|\bmlp\.gate\.")),
    ("attention", re.compile(r"attn|attention|\bmixer\.")),
    ("ffn", re.compile(r"mlp|feed_forward|\bffn\b|\bfc[12]\b")),
    ("embeddings", re.compile(r"embed|\bwte\b|\bwpe\b")),
    ("output", re.compile(r"lm_head|\boutput\b")),
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)")


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor as its safetensors header announces it. ``shape`` in torch's order, ``dtype`` as ``BF16``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    data_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def group(self) -> str:
        """attention, ffn, experts, embeddings, output, norms, or other: by the names that are usual."""
        return next((group for group, pattern in _GROUPS if pattern.search(self.name)), "other")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model in Hugging Face's form. ``tensors`` is empty for ``bin`` weights, which are not
    looked into; ``quantization`` is the method of its config (``gptq``), None for plain floats."""

    path: Path
    config: Mapping[str, Any]
    architectures: tuple[str, ...]
    weight_format: Literal["safetensors", "bin"]
    weight_files: tuple[Path, ...]
    tensors: tuple[CheckpointTensor, ...]
    tokenizer_files: tuple[str, ...]
    tokenizer_class: str | None
    has_chat_template: bool
    license: str | None

    @property
    def model_type(self) -> str | None:
        return _text(self.config.get("model_type"))

    @property
    def parameter_count(self) -> int | None:
        """Elements of all tensors; None for ``bin`` weights."""
        return sum(tensor.elements for tensor in self.tensors) if self.tensors else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tensors, without headers; for ``bin`` weights of the files."""
        if self.tensors:
            return sum(tensor.data_bytes for tensor in self.tensors)
        return sum(file.stat().st_size for file in self.weight_files)

    @property
    def dtype(self) -> str | None:
        """The type that most bytes of the weights have; for ``bin`` weights what the config says."""
        counts = Counter[str]()
        for tensor in self.tensors:
            counts[tensor.dtype] += tensor.data_bytes
        if counts:
            return counts.most_common(1)[0][0]
        said = self._setting("dtype") or self._setting("torch_dtype")
        return {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(str(said).removeprefix("torch."))

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was trained for, if its config says so."""
        value = self._setting("max_position_embeddings") or self._setting("n_positions")
        return value if isinstance(value, int) else None

    @property
    def vocabulary_size(self) -> int | None:
        value = self._setting("vocab_size")
        return value if isinstance(value, int) else None

    @property
    def quantization(self) -> str | None:
        settings = self._setting("quantization_config")
        return _text(settings.get("quant_method")) if isinstance(settings, dict) else None

    def _setting(self, key: str) -> Any:
        """A value of the config, or of the text model's part of it."""
        part = self.config.get("text_config")
        return self.config.get(key, part.get(key) if isinstance(part, dict) else None)


def read(folder: Path) -> Checkpoint:
    """Read and check a checkpoint folder: config, headers of the weights, tokenizer files.

    Raises CheckpointProblem for whatever is missing, damaged, or not a checkpoint at all.
    """
    try:
        return _read(folder)
    except OSError as error:
        raise CheckpointProblem(
            f"{error.filename or folder} cannot be read.",
            f"{error.strerror}.",
            "Check the path and its permissions.",
        ) from error


def require_convertible(checkpoint: Checkpoint) -> None:
    """Raises CheckpointProblem for what the pinned converter is known to refuse."""
    method = checkpoint.quantization
    if method is not None and method not in READABLE_QUANTIZATIONS:
        raise CheckpointProblem(
            f"{checkpoint.path} is quantized with {method[:40]!r}, which the converter does not read.",
            f"It reads plain floats and {', '.join(READABLE_QUANTIZATIONS)}.",
            "Convert the model that it was made from: its model card names it as base_model.",
        )
    if not _VOCABULARIES.intersection(checkpoint.tokenizer_files) and not any(
        file.endswith(".tiktoken") for file in checkpoint.tokenizer_files
    ):
        raise CheckpointProblem(
            f"{checkpoint.path} has no tokenizer.",
            "None of tokenizer.json, tokenizer.model, vocab.json, vocab.txt is there.",
            "Copy the tokenizer's files from the model's source into the folder.",
        )


def _read(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        raise CheckpointProblem(
            f"{folder} is not a folder." if folder.exists() else f"There is no folder {folder}.",
            "A checkpoint is a folder: config, tokenizer and weights together.",
            "Check the path.",
        )
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    if "config.json" not in names:
        _explain_absence(folder, names, "config.json")
    config = _json(folder / "config.json")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not all(map(_text, architectures)):
        raise CheckpointProblem(
            f"{folder / 'config.json'} does not say of which architecture the model is.",
            f'"architectures" is {json.dumps(architectures)[:80]}.',
            'Set it as the model\'s source has it, for example to ["LlamaForCausalLM"].',
        )
    weight_format, weights, weight_map = _weights(folder, names)
    tensors = _tensors(weights, weight_map) if weight_format == "safetensors" else ()
    tokenizer_files = tuple(name for name in names if name in _TOKENIZER_FILES or name.endswith(".tiktoken"))
    for name in tokenizer_files:
        _check_tokenizer_file(folder / name)
    tokenizer = _json(folder / "tokenizer_config.json") if "tokenizer_config.json" in names else {}
    return Checkpoint(
        path=folder,
        config=config,
        architectures=tuple(architectures),
        weight_format=weight_format,
        weight_files=tuple(weights),
        tensors=tensors,
        tokenizer_files=tokenizer_files,
        tokenizer_class=_text(tokenizer.get("tokenizer_class")),
        has_chat_template=bool(tokenizer.get("chat_template"))
        or any(name.startswith("chat_template.") for name in tokenizer_files),
        license=_license(folder / "README.md") if "README.md" in names else None,
    )


def _explain_absence(folder: Path, names: Sequence[str], wanted: str) -> NoReturn:
    """Say what the folder is instead of a checkpoint."""
    if "adapter_config.json" in names:
        base = _text(_json(folder / "adapter_config.json").get("base_model_name_or_path"))
        raise CheckpointProblem(
            f"{folder} holds a LoRA adapter, not a model.",
            f"It belongs to {base!r}." if base else "It does not name its base model.",
            "Merge it into its base model first (merge_and_unload of peft), or give the base model.",
        )
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if ggufs:
        raise CheckpointProblem(
            f"{folder} holds GGUF files, not a checkpoint.",
            f"{ggufs[0]}{f' and {len(ggufs) - 1} more' if ggufs[1:] else ''}: they are converted already.",
            f"Give the file itself: {folder / ggufs[0]}",
        )
    raise CheckpointProblem(
        f"{folder} is not a checkpoint: {wanted} is missing.",
        f"It holds {', '.join(names[:4])}{f' and {len(names) - 4} more files' if names[4:] else ''}."
        if names
        else "It holds no files.",
        "Give the folder that has config.json, the tokenizer and the weights in it.",
    )


# --- weights ---------------------------------------------------------------------------------------------


def _weights(
    folder: Path, names: Sequence[str]
) -> tuple[Literal["safetensors", "bin"], list[Path], Mapping[str, str]]:
    """Format, files, and the index's map (empty without one), chosen as the converter chooses them."""
    kinds: tuple[tuple[Literal["safetensors", "bin"], str, str], ...] = (
        ("safetensors", "model", ".safetensors"),
        ("bin", "pytorch_model", ".bin"),
    )
    for weight_format, prefix, suffix in kinds:
        index = folder / f"{prefix}{suffix}.index.json"
        weight_map = _weight_map(index, suffix) if index.name in names else {}
        found = set(weight_map.values()) or {
            name for name in names if name.startswith(prefix) and name.endswith(suffix)
        }
        if found:
            _require_all(folder, names, found)
            return weight_format, [folder / name for name in sorted(found)], weight_map
    others = [name for name in names if name.endswith((".safetensors", ".bin", ".pth", ".pt"))]
    if others and "adapter_config.json" not in names:
        raise CheckpointProblem(
            f"{folder} has no weights under the names that the converter reads.",
            f"It holds {others[0]}; weights are named model*.safetensors or pytorch_model*.bin.",
            "Save the model again with transformers (save_pretrained).",
        )
    _explain_absence(folder, names, "model.safetensors")


def _weight_map(index: Path, suffix: str) -> Mapping[str, str]:
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _damaged(index, "It has no weight_map.")
    for tensor, file in weight_map.items():
        # Any other character than these could lead out of the folder.
        if not isinstance(file, str) or not re.fullmatch(r"\w[\w.+-]*", file) or not file.endswith(suffix):
            _damaged(index, f"It places {tensor[:80]!r} in {str(file)[:80]!r}, no {suffix} file beside it.")
    return weight_map


def _require_all(folder: Path, names: Sequence[str], wanted: set[str]) -> None:
    """Every file of the index, and every sibling that a shard's own name announces."""
    expected = set(wanted)
    for match in filter(None, map(_SHARD.fullmatch, wanted)):
        expected |= {
            f"{match['stem']}-{index:05d}-of-{match['count']}{match['suffix']}"
            for index in range(1, int(match["count"]) + 1)
        }
    missing = sorted(expected.difference(names))
    if missing:
        raise CheckpointProblem(
            f"{len(missing)} of {len(expected)} weight files are missing in {folder}.",
            f"{missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}.",
            "Download the model again (`ggq download`), or copy the missing files into the folder.",
        )


def _tensors(files: Sequence[Path], weight_map: Mapping[str, str]) -> tuple[CheckpointTensor, ...]:
    found: dict[str, CheckpointTensor] = {}
    for file in files:
        for tensor in _header(file):
            if tensor.name in found:
                _damaged(file, f"{tensor.name[:80]!r} is in {found[tensor.name].shard} too.")
            found[tensor.name] = tensor
    for name, shard in weight_map.items():
        if name not in found or found[name].shard != shard:
            _damaged(files[0].parent / shard, f"The index places {name[:80]!r} in it, and it is not there.")
    for name, tensor in found.items():
        if weight_map and name not in weight_map:
            _damaged(
                files[0].parent / tensor.shard, f"It holds {name[:80]!r}, which the index does not name."
            )
    if not found:
        _damaged(files[0], "It holds no tensors.")
    return tuple(found.values())


def _header(file: Path) -> Iterator[CheckpointTensor]:
    """The tensors of a safetensors file. No length is believed before it is held against the file."""
    file_bytes = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(start := stream.read(8), "little")
        _refuse_pointer(file, start)
        if len(start) < 8 or length > file_bytes - 8:
            _cut_short(file, 8 + length if len(start) == 8 else 8, file_bytes)
        if length > _HEADER_LIMIT_BYTES:
            _damaged(file, f"It announces a header of {length:,} bytes; {_HEADER_LIMIT_BYTES:,} are read.")
        header = _parsed(file, stream.read(length))
    header.pop("__metadata__", None)
    data_bytes = file_bytes - 8 - length
    spans = []
    for name, info in header.items():
        tensor, begin = _tensor(file, name, info)
        spans.append((begin, begin + tensor.data_bytes, name))
        yield tensor
    expected = 0
    for begin, end, name in sorted(spans):
        if begin != expected:
            _damaged(file, f"{name[:80]!r} begins at byte {begin:,} of the data, not at {expected:,}.")
        expected = end
    if expected > data_bytes:
        _cut_short(file, 8 + length + expected, file_bytes)
    if expected < data_bytes:
        _damaged(file, f"It has {data_bytes - expected:,} bytes after its last tensor.")


def _tensor(file: Path, name: str, info: Any) -> tuple[CheckpointTensor, int]:
    """A tensor, and where its data begin."""
    entry = info if isinstance(info, dict) else {}
    dtype = entry.get("dtype")
    shape = _naturals(entry.get("shape"))
    offsets = _naturals(entry.get("data_offsets"))
    shown = repr(name[:80])
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        _damaged(file, f"The entry of {shown} is not a dtype, a shape and two offsets.")
    if dtype not in _BITS:
        _damaged(file, f"{shown} is of the unknown type {dtype[:20]!r}.")
    begin, end = offsets
    if len(shape) > _DIMENSION_LIMIT or math.prod(shape) * _BITS[dtype] != 8 * (end - begin):
        _damaged(file, f"{shown}, {dtype} of shape {str(shape)[:60]}, does not fill {end - begin:,} bytes.")
    return CheckpointTensor(name, dtype, tuple(shape), file.name, end - begin), begin


def _naturals(value: Any) -> list[int] | None:
    """A list of natural numbers below 2**63, or None for anything else."""
    if isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        return value
    return None


# --- small files -----------------------------------------------------------------------------------------


def _json(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    if size > _JSON_LIMIT_BYTES:
        _damaged(file, f"It is {size:,} bytes long; up to {_JSON_LIMIT_BYTES:,} are read.")
    return _parsed(file, file.read_bytes())


def _parsed(file: Path, text: bytes) -> dict[str, Any]:
    """A JSON object."""
    _refuse_pointer(file, text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        _damaged(file, f"It is not JSON: {str(error)[:120]}." if text.strip() else "It is empty.")
    if not isinstance(value, dict):
        _damaged(file, "It is JSON, but not an object.")
    return value


def _check_tokenizer_file(file: Path) -> None:
    """Refuse a file that is empty, or JSON that was cut short: only its ends are read."""
    with file.open("rb") as stream:
        start = stream.read(64)
        stream.seek(max(0, stream.seek(0, 2) - 64))
        end = stream.read()
    _refuse_pointer(file, start)
    if not start.strip():
        _damaged(file, "It is empty.")
    if file.suffix == ".json" and not (start.lstrip()[:1] in b"{[" and end.rstrip()[-1:] in b"}]"):
        _damaged(file, "It is not a whole JSON text.")


def _refuse_pointer(file: Path, start: bytes) -> None:
    if start.startswith(b"version "):
        raise CheckpointProblem(
            f"{file} is a pointer of Git LFS, not the file itself.",
            "The repository was cloned without Git LFS.",
            "Run `git lfs pull` in it, or get the model with `ggq download`.",
        )


def _license(readme: Path) -> str | None:
    """The license of a model card's front matter."""
    with readme.open("rb") as stream:
        text = stream.read(65_536).decode("utf-8", "replace")
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _cut_short(file: Path, expected_bytes: int, found_bytes: int) -> NoReturn:
    raise CheckpointProblem(
        f"{file} is cut short.",
        f"It should have {expected_bytes:,} bytes and has {found_bytes:,}.",
        "Download it again: `ggq download` resumes and checks it.",
    )


def _damaged(file: Path, why: str) -> NoReturn:
    raise CheckpointProblem(
        f"{file} is damaged.", why, "Get that file again from the model's source (`ggq download` checks it)."
    )
