"""Every parameter of a checkpoint is in the GGUF: counted, with the differences that are meant to be.

The rule: elements of the checkpoint's tensors = elements of the GGUF's, with these exceptions. Buffers, and
weights of parts that a text model does not have, count for nothing in the checkpoint; tables that the
converter computes from the config count for nothing in the GGUF. An output head may be on one side only, when
the other one uses the embedding for it; and rows of the embedding that belong to no token may be left out or
added.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ggq.gguf.file import EMBEDDINGS, OUTPUT, GgufFile

# Not parameters: masks, positions and frequencies that transformers can compute again.
_BUFFERS = re.compile(
    r"(\.attn\.(masked_)?bias|\.attention\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)$"
)
# Parts that are not in a text GGUF: encoders of other senses and their bridges (TextModel.filter_tensors in
# conversion/base.py), multi-token prediction, the pooler of an embedding model.
_OTHER_PARTS = re.compile(
    r"(visual\.|vision|audio|^vit\.|^vpm\.|^siglip|projector|image_newline|patch_embed|resampler|talker|"
    r"(^|\.)mtp\.|(^|\.)pooler\.|^cls\.(predictions|seq_relationship)|"
    r"^vocab_(transform|projector|layer_norm))"
)
_GENERATED = re.compile(r"^rope_(freqs|factors_(long|short))\.weight$")
_POSITIONS = re.compile(r"embeddings\.position_embeddings\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
_EMBEDDING = re.compile(r"(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|embeddings)\.weight$")


@dataclass(frozen=True)
class Account:
    """Parameters on both sides. ``notes``: the differences that are meant to be; ``unexplained``: what is
    left of GGUF minus checkpoint after them (0 when every parameter is accounted for)."""

    checkpoint: int
    gguf: int
    notes: tuple[str, ...]
    unexplained: int


def account(checkpoint: Mapping[str, int], gguf: GgufFile) -> Account:
    """Compare. ``checkpoint``: tensor name -> elements."""
    made = {tensor.name: tensor.elements for tensor in gguf.tensors}
    notes: list[str] = []
    given = dict(checkpoint)
    for pattern, what in ((_BUFFERS, "buffers"), (_OTHER_PARTS, "weights of other parts")):
        names = [name for name in given if pattern.search(name)]
        if names:
            notes.append(f"{len(names)} {what} of the checkpoint are not in the GGUF")
        for name in names:
            del given[name]
    generated = [name for name in made if _GENERATED.search(name)]
    if generated:
        notes.append(f"{len(generated)} tables in the GGUF are computed from the config")
    difference = sum(made.values()) - sum(made[name] for name in generated) - sum(given.values())
    if difference:
        difference -= _positions(given, made, notes)
    if difference:
        difference -= _heads(given, made, notes)
    if difference:
        difference -= _rows(given, gguf, difference, notes)
    return Account(sum(checkpoint.values()), sum(made.values()), tuple(notes), difference)


def _positions(given: Mapping[str, int], made: Mapping[str, int], notes: list[str]) -> int:
    """GGUF minus checkpoint that the first positions explain: RoBERTa counts from its padding token on."""
    before = next((count for name, count in given.items() if _POSITIONS.search(name)), 0)
    after = made.get("position_embd.weight", 0)
    if not 0 < after < before:
        return 0
    notes.append("positions of padding were left out of the table of positions")
    return after - before


def _heads(given: Mapping[str, int], made: Mapping[str, int], notes: list[str]) -> int:
    """GGUF minus checkpoint that an output head on one side only explains."""
    head = next((count for name, count in given.items() if _HEAD.search(name)), 0)
    output = made.get(OUTPUT, 0)
    if head and not output:
        notes.append("the output head is the embedding once more, and is in the GGUF once")
        return -head
    if output and not head:
        notes.append("the embedding is in the GGUF a second time, as the output head")
        return output
    return 0


def _rows(given: Mapping[str, int], gguf: GgufFile, difference: int, notes: list[str]) -> int:
    """GGUF minus checkpoint that rows of the embedding (and of the head) without a token explain."""
    table = next((tensor for tensor in gguf.tensors if tensor.name == EMBEDDINGS), None)
    elements = next((count for name, count in given.items() if _EMBEDDING.search(name)), 0)
    if table is None or not elements or elements % table.shape[0]:
        return 0
    rows = table.shape[1] - elements // table.shape[0]
    for tables in (1, 2):
        if rows and rows * table.shape[0] * tables == difference:
            what = (
                f"{rows} rows were added to" if rows > 0 else f"{-rows} rows without a token were left out of"
            )
            notes.append(f"{what} the embedding")
            return difference
    return 0


def bin_elements(folder: Path) -> dict[str, int]:
    """Tensor name -> elements of ``.bin`` weights, read without their data and without running code."""
    import torch

    elements: dict[str, int] = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        part = torch.load(file, map_location="meta", weights_only=True)
        elements |= {name: tensor.numel() for name, tensor in part.items() if hasattr(tensor, "numel")}
    return elements
