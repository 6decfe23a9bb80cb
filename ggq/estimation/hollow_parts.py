"""The tensors and the metadata of a hollow quantized file: all of a model, or less of it."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable
from dataclasses import replace

from ggq.errors import UsageProblem
from ggq.gguf.file import EMBEDDINGS, GgufFile
from ggq.gguf.header import Array
from ggq.gguf.hollow import HollowTensor
from ggq.llamacpp.ggml_rows import quantize_rows
from ggq.llamacpp.toolchain import Toolchain
from ggq.quantization.output_files import changed_entries
from ggq.quantization.recipe import Recipe

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_ROUTER = ".ffn_gate_inp.weight"
# Computed from the config, not learnt; and small.
_TABLE = re.compile(r"rope_(freqs|factors_(long|short))\.weight$")
# A prime, so that no pattern of token ids falls together with the rows.
_DISTINCT_ROWS = 251
_FEW_TOKENS = 32


class Parts:
    """Tensors and changed metadata of a hollow quantized file: first those of the whole."""

    def __init__(self, base: GgufFile, recipe: Recipe, toolchain: Toolchain) -> None:
        self._base = base
        self._toolchain = toolchain
        self._source = {tensor.name: tensor for tensor in base.tensors}
        self.tensors = [
            HollowTensor(tensor.name, tensor.shape, tensor.target_type) for tensor in recipe.tensors
        ]
        self.tensors = [replace(tensor, data=self._table(tensor)) for tensor in self.tensors]
        self.changed = changed_entries(base, recipe)

    def _table(self, tensor: HollowTensor) -> Iterable[bytes]:
        """The content of a tensor that the base has for real."""
        source = self._source[tensor.name]
        if not _TABLE.match(tensor.name) or source.type != tensor.type:
            return ()
        with source.path.open("rb") as stream:
            stream.seek(source.offset_bytes)
            return (stream.read(source.data_bytes),)

    def cut(self, layers: int) -> None:
        """Leave the first ``layers`` blocks. Raises UsageProblem."""
        base, architecture = self._base, self._base.architecture
        blocks = base.block_count or 0
        # Blocks for multi-token prediction stand after the others, and are counted with them.
        extra = base.integer(f"{architecture}.nextn_predict_layers") or 0
        depth = blocks - extra
        if not 1 <= layers <= depth:
            raise UsageProblem(
                f"{layers} layers were asked for; {base.path.name} has {depth}.",
                "",
                f"Choose from 1 to {depth}.",
            )
        given = {tensor.name: tensor for tensor in self.tensors}
        kept = []
        for tensor in self.tensors:
            block = _BLOCK.fullmatch(tensor.name)
            if block is None:
                kept.append(tensor)
            elif int(block[1]) < layers:
                # The presets give the first and the last blocks better types: a few must stand for all.
                model = (2 * int(block[1]) + 1) * depth // (2 * layers)
                typed = given.get(f"blk.{model}.{block[2]}", tensor)
                kept.append(replace(tensor, type=typed.type) if typed.shape == tensor.shape else tensor)
        self.tensors = kept
        self.changed[f"{architecture}.block_count"] = layers
        if extra:
            self.changed[f"{architecture}.nextn_predict_layers"] = 0
        for key, value in base.metadata.items():
            if not key.startswith(f"{architecture}.") or ".rope." in key:
                continue
            if isinstance(value, Array) and len(value) == blocks and not value.is_of_texts:
                self.changed[key] = value.first(layers)

    def narrow(self) -> None:
        """Leave a few tokens, nameless, in every tensor that has a row or a value for each."""
        tokens, few = self._base.embedded_tokens, _FEW_TOKENS
        self.tensors = [
            replace(tensor, shape=(*tensor.shape[:-1], few)) if tensor.shape[-1] == tokens else tensor
            for tensor in self.tensors
        ]
        self.changed["tokenizer.ggml.model"] = "no_vocab"
        self.changed[f"{self._base.architecture}.vocab_size"] = few

    def enliven(self) -> None:
        """Random embeddings and routers, and norms of one: each router then sees another vector at every
        token, and chooses experts by it. What the experts add is nothing, since they are empty."""
        self.tensors = [replace(tensor, data=self._values(tensor)) for tensor in self.tensors]

    def _values(self, tensor: HollowTensor) -> Iterable[bytes]:
        import numpy as np

        width, rows = tensor.shape[0], tensor.elements // tensor.shape[0]
        if tensor.name == EMBEDDINGS:
            few = self._random(tensor, min(rows, _DISTINCT_ROWS))
            whole, rest = divmod(rows, _DISTINCT_ROWS)
            last = few[: len(few) * rest // _DISTINCT_ROWS] if whole else b""
            return itertools.chain(itertools.repeat(few, max(1, whole)), (last,))
        if tensor.name.endswith(_ROUTER):
            return (self._random(tensor, rows),)
        if "norm" in tensor.name and tensor.name.endswith(".weight") and rows == 1:
            return (quantize_rows(self._toolchain, tensor.type, np.ones((1, width), np.float32)),)
        return tensor.data

    def _random(self, tensor: HollowTensor, rows: int) -> bytes:
        import numpy as np

        seed = int.from_bytes(hashlib.sha256(tensor.name.encode()).digest()[:8], "little")
        values = np.random.default_rng(seed).standard_normal((rows, tensor.shape[0]), dtype=np.float32)
        return quantize_rows(self._toolchain, tensor.type, values)
