"""Whether a checkpoint's embedding and output head are there and have rows for the same tokens, by the
headers of the weights.

llama.cpp, like transformers, goes on without a head: with the embedding, or with random numbers. Rows that
differ end in a file that llama.cpp does not load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ggq.checkpoint.safetensors_header import CheckpointTensor

_EMBEDDING = re.compile(r"(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|embeddings?)\.weight$")
_HEAD = re.compile(
    r"(^|[._])(lm_head|head|output|output_layer|embed_out|unembed\w*|decoder)\.(\w+\.)?weight$"
)
_OWN_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
# Tables of something else than the text's tokens.
_OTHER_TABLES = re.compile(r"position|vis|image|audio|speech|codec|token_type|per_layer")
_DRAFTS = re.compile(r"(^|\.)(d2t|t2d)$")  # a draft model has a smaller head on purpose
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_FLOATS = {"F64", "F32", "F16", "BF16"}


def missing(elements: Mapping[str, int] | None, architecture: str, tied: object) -> str:
    """What is wrong where the config says that a causal model has a head of its own (``tied`` is False), and
    no tensor is one; or an empty text."""
    if not elements or tied is not False or not architecture.endswith(_WITH_HEAD):
        return ""
    tables = [name for name in elements if _EMBEDDING.search(name)]
    table = max((elements[name] for name in tables), default=0)
    heads = [
        name for name in elements if name not in tables and (_HEAD.search(name) or elements[name] == table)
    ]
    if heads or not table:
        return ""
    return "lm_head.weight is missing and the config says that it is not tied to the embedding."


def unequal(tensors: Sequence[CheckpointTensor], architecture: str) -> str:
    """What is wrong where the head has not the embedding's rows; or an empty text."""
    pair = _pair(tensors, architecture)
    if pair is None or pair[0].shape[0] == pair[1].shape[0]:
        return ""
    table, head = pair
    return (
        f"{table.name} has {table.shape[0]:,} rows, {head.name} {head.shape[0]:,}: one of them is not of "
        "this model's vocabulary."
    )


def _pair(
    tensors: Sequence[CheckpointTensor], architecture: str
) -> tuple[CheckpointTensor, CheckpointTensor] | None:
    """Embedding and head of a causal model's text, where it is plain which tensors they are."""
    if not architecture.endswith(_WITH_HEAD) or any(_DRAFTS.search(tensor.name) for tensor in tensors):
        return None
    plain = [tensor for tensor in tensors if len(tensor.shape) == 2 and tensor.dtype in _FLOATS]
    tables = [it for it in plain if _EMBEDDING.search(it.name) and not _OTHER_TABLES.search(it.name)]
    heads = [it for it in plain if _OWN_HEAD.search(it.name)]
    if len(tables) != 1 or len(heads) != 1 or tables[0].shape[1] != heads[0].shape[1]:
        return None
    return tables[0], heads[0]
