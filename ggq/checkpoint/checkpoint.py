"""A checkpoint folder: what it says of itself, read in milliseconds and checked as untrusted input.

Weights are never loaded: of a safetensors file only the header is read, of a ``.bin`` (a pickle) nothing.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from ggq.checkpoint import bounds as checkpoint_bounds
from ggq.checkpoint import files as checkpoint_files
from ggq.checkpoint import heads, mlx, model_card, safetensors_header, storage, torch_archive
from ggq.checkpoint.files import damaged
from ggq.checkpoint.safetensors_header import TENSOR_LIMIT, CheckpointTensor
from ggq.checkpoint.storage import Storage
from ggq.errors import CheckpointProblem
from ggq.system.unchanged import Unchanged
from ggq.system.untrusted import shown

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_VOCABULARIES = {
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json",
}  # fmt: skip
_ORIGINAL = "Convert the model that it was made from: its model card names it as base_model."
_FAMILIES = 8  # of shards: there is one; names may be of a stranger's making
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model in Hugging Face's form. ``tensors`` is empty for ``bin`` weights, which are not
    looked into."""

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

    @functools.cached_property
    def storage(self) -> Storage:
        """How the weights are stored, by their tensors; for ``bin`` weights nothing is known of it."""
        return storage.read(self.tensors, self.config) if self.tensors else Storage(elements=None)

    @property
    def parameter_count(self) -> int | None:
        """The model's parameters, not the whole numbers that pack them; None for ``bin`` weights, and where
        the packing does not tell."""
        elements = self.storage.elements
        return sum(elements.values()) if elements else None

    @property
    def likely_parameter_count(self) -> int:
        """``parameter_count``, or an estimate from the bytes of the weights and the bits that the config
        names."""
        if self.parameter_count is not None:
            return self.parameter_count
        return self.weight_bytes * 8 // storage.said_bits(self.config)

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
        """The method that the weights are packed by (``gptq``), None for plain floats. By the tensors; for
        ``bin`` weights by the config."""
        return self.storage.method if self.tensors else storage.named(self.config)

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


def unchanged(given: Checkpoint) -> Unchanged:
    """What a conversion reads of a checkpoint, as it is now."""
    names = dict.fromkeys(("config.json", "generation_config.json", *given.tokenizer_files))
    settings = [path for path in (given.path / name for name in names) if path.is_file()]
    return Unchanged((*given.weight_files, *settings))


def require_convertible(checkpoint: Checkpoint) -> None:
    """Raises CheckpointProblem for what the pinned converter is known to refuse."""
    require_readable(checkpoint.path, checkpoint.storage)
    method = checkpoint.quantization
    if not checkpoint.tensors and method is not None and method not in storage.READABLE_QUANTIZATIONS:
        raise CheckpointProblem(
            f"{checkpoint.path} is quantized with {shown(method)}, which the converter does not read.",
            f"It reads plain floats and {', '.join(storage.READABLE_QUANTIZATIONS)}.",
            _ORIGINAL,
        )
    if why := mlx.refusal(checkpoint.tensors, checkpoint.model_type):
        raise CheckpointProblem(f"{checkpoint.path} is in MLX's form.", why, _ORIGINAL)
    if why := _missing_head(checkpoint):
        raise CheckpointProblem(
            f"Weights of {checkpoint.path} are missing.",
            why,
            "Get the weights again from the model's source (`ggq download` checks them), or set "
            "tie_word_embeddings as the source has it.",
        )
    if why := _unequal_head(checkpoint):
        raise CheckpointProblem(
            f"The weights of {checkpoint.path} do not fit together.",
            why,
            "Get the weights again from the model's source (`ggq download` checks them).",
        )
    if not _VOCABULARIES.intersection(checkpoint.tokenizer_files) and not any(
        file.endswith(".tiktoken") for file in checkpoint.tokenizer_files
    ):
        raise CheckpointProblem(
            f"{checkpoint.path} has no tokenizer.",
            "None of tokenizer.json, tokenizer.model, vocab.json, vocab.txt is there.",
            "Copy the tokenizer's files from the model's source into the folder.",
        )


def remark(checkpoint: Checkpoint) -> str:
    """What a person should know of the weights, be it why they cannot be converted; or an empty text."""
    mlx_form = mlx.refusal(checkpoint.tensors, checkpoint.model_type)
    refusal = checkpoint.storage.refusal or mlx_form or _missing_head(checkpoint) or _unequal_head(checkpoint)
    return refusal or " ".join(remarks(checkpoint))


def remarks(checkpoint: Checkpoint) -> list[str]:
    """What a person should know of weights that can be converted."""
    mlx_form = mlx.remark(checkpoint.tensors, checkpoint.model_type)
    return [text for text in (checkpoint.storage.remark, mlx_form, _surplus_head(checkpoint)) if text]


def require_readable(where: Path, stored: Storage) -> None:
    """Raises CheckpointProblem for weights that are packed in a way that cannot be converted."""
    if stored.refusal:
        raise CheckpointProblem(
            f"The weights of {where} are quantized: {stored.description}.", stored.refusal, _ORIGINAL
        )


def _missing_head(checkpoint: Checkpoint) -> str:
    return heads.missing(
        checkpoint.storage.elements, checkpoint.architectures[0], checkpoint._setting("tie_word_embeddings")
    )


def _unequal_head(checkpoint: Checkpoint) -> str:
    return heads.unequal(checkpoint.tensors, checkpoint.architectures[0])


def _surplus_head(checkpoint: Checkpoint) -> str:
    """What to know where the config says that the head is the embedding, and the weights hold one."""
    if checkpoint._setting("tie_word_embeddings") is not True:
        return ""
    head = next((tensor for tensor in checkpoint.tensors if tensor.name.endswith("lm_head.weight")), None)
    if head is None:
        return ""
    return (
        f"config.json says that the output head is tied to the embedding, and the weights hold {head.name}. "
        "Where the two differ, transformers takes that tensor."
    )


def _read(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        raise CheckpointProblem(
            f"{folder} is not a folder." if folder.exists() else f"There is no folder {folder}.",
            "A checkpoint is a folder: config, tokenizer and weights together.",
            "Check the path.",
        )
    # Pipes and devices are among them, and are told when they are opened.
    names = sorted(entry.name for entry in folder.iterdir() if entry.exists() and not entry.is_dir())
    if "config.json" not in names:
        _explain_absence(folder, names, "config.json")
    config = checkpoint_files.settings(folder / "config.json")
    checkpoint_files.check(folder, names)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not all(map(_text, architectures)):
        raise CheckpointProblem(
            f"{folder / 'config.json'} does not say of which architecture the model is.",
            f'"architectures" is {shown(json.dumps(architectures))}.',
            'Set it as the model\'s source has it, for example to ["LlamaForCausalLM"].',
        )
    weight_format, weights, weight_map = _weights(folder, names)
    if weight_format == "bin":
        for file in weights:
            torch_archive.check(file)
    tensors = _tensors(weights, weight_map) if weight_format == "safetensors" else ()
    checkpoint_bounds.check(folder / "config.json", config, tensors)
    tokenizer_files = tuple(name for name in names if name in _TOKENIZER_FILES or name.endswith(".tiktoken"))
    tokenizer = (
        checkpoint_files.settings(folder / "tokenizer_config.json")
        if "tokenizer_config.json" in names
        else {}
    )
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
        license=model_card.license_of(folder / model_card.NAME) if model_card.NAME in names else None,
    )


def _explain_absence(folder: Path, names: Sequence[str], wanted: str) -> NoReturn:
    """Say what the folder is instead of a checkpoint."""
    if "adapter_config.json" in names:
        base = _text(checkpoint_files.settings(folder / "adapter_config.json").get("base_model_name_or_path"))
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
    weight_map = checkpoint_files.index(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        damaged(index, "It has no weight_map.")
    for tensor, file in weight_map.items():
        # Any other character than these could lead out of the folder.
        if not isinstance(file, str) or not re.fullmatch(r"\w[\w.+-]*", file) or not file.endswith(suffix):
            damaged(index, f"It places {shown(tensor)} in {shown(file)}, no {suffix} file beside it.")
    return weight_map


def _require_all(folder: Path, names: Sequence[str], wanted: set[str]) -> None:
    """Every file of the index, and every sibling that a shard's own name announces."""
    expected = set(wanted)
    families = {
        (match["stem"], match["count"], match["suffix"])
        for match in filter(None, map(_SHARD.fullmatch, wanted))
    }
    for stem, count, suffix in sorted(families)[:_FAMILIES]:
        expected |= {f"{stem}-{index:05d}-of-{count}{suffix}" for index in range(1, int(count) + 1)}
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
        for tensor in safetensors_header.read(file):
            if tensor.name in found:
                damaged(file, f"{shown(tensor.name)} is in {found[tensor.name].shard} too.")
            if len(found) >= TENSOR_LIMIT:
                damaged(file, f"With it the model has more than {TENSOR_LIMIT:,} tensors.")
            found[tensor.name] = tensor
    for name, shard in weight_map.items():
        if name not in found or found[name].shard != shard:
            damaged(files[0].parent / shard, f"The index places {shown(name)} in it, and it is not there.")
    for name, tensor in found.items():
        if weight_map and name not in weight_map:
            damaged(files[0].parent / tensor.shard, f"It holds {shown(name)}, which the index does not name.")
    if not found:
        damaged(files[0], "It holds no tensors.")
    return tuple(found.values())


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
