"""The files of a recipe before their data: llama-quantize's own header, then nothing."""

from __future__ import annotations

from pathlib import Path

from ggq.gguf import constants as gguf_constants
from ggq.gguf import file as gguf_file
from ggq.gguf import hollow as gguf_hollow
from ggq.gguf.file import GgufFile
from ggq.gguf.header import Array
from ggq.gguf.hollow import HollowTensor, Shard
from ggq.gguf.names import shard_name
from ggq.quantization.recipe import Recipe


def changed_entries(base: GgufFile, recipe: Recipe) -> dict[str, int | str | Array]:
    """What llama-quantize sets in the metadata, in its order (llama_model_quantize_impl)."""
    changed: dict[str, int | str | Array] = {
        "general.quantization_version": gguf_constants.constants().GGML_QUANT_VERSION,
        # COPY has no number of its own: the base's stays.
        "general.file_type": gguf_file.file_types().get(
            recipe.preset.ftype, base.integer("general.file_type") or 0
        ),
    }
    return changed | dict(recipe.entries)


def paths(base: GgufFile, recipe: Recipe, output: Path) -> tuple[Path, ...]:
    """``output``, or its shards with ``keep_split``: as many as the base has."""
    if not recipe.options.keep_split:
        return (output,)
    count = len(base.paths)
    return tuple(output.with_name(shard_name(output.stem, index + 1, count)) for index in range(count))


def create(base: GgufFile, recipe: Recipe, output: Path) -> None:
    """Write the recipe's file, or its shards, whole but for the tensors' data. Raises OSError."""
    changed = changed_entries(base, recipe)
    sources = {tensor.name: tensor.path for tensor in base.tensors}
    targets = paths(base, recipe, output)
    for index, target in enumerate(targets):
        tensors = [
            HollowTensor(tensor.name, tensor.shape, tensor.target_type)
            for tensor in recipe.tensors
            if len(targets) == 1 or sources[tensor.name] == base.paths[index]
        ]
        shard = Shard(index, len(targets), len(recipe.tensors)) if len(targets) > 1 else None
        gguf_hollow.write(target, base, tensors, changed, shard)
