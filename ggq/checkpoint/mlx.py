"""Checkpoints that went through MLX: it keeps some architectures' weights in another form than transformers.

MLX adds 1 to norms, turns convolutions, splits or stacks experts, so that its own models can use them as they
are; the shapes do not always show it, and no reading of the result can tell. Its files say ``format: mlx``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggq.checkpoint.safetensors_header import CheckpointTensor

# Architectures whose weights MLX takes as they are. Source: ``Model.sanitize`` in mlx_lm/models/NAME.py of
# github.com/ml-explore/mlx-lm; what it does to weights when a model is loaded stays when it is saved.
_UNCHANGED = {
    "gemma": "it has none, and its norm adds the 1 while it computes",
    "gemma2": "as gemma",
    "llama": "leaves out rotary frequencies and a tied head",
    "mistral": "as llama, whose class it is (MODEL_REMAPPING in utils.py)",
    "qwen2": "leaves out rotary frequencies and a tied head",
    "qwen3": "leaves out a tied head",
}


def refusal(tensors: Sequence[CheckpointTensor], model_type: str | None) -> str:
    """Why weights that MLX wrote cannot be converted, or an empty text."""
    shard = _shard(tensors)
    if not shard or model_type in _UNCHANGED:
        return ""
    return (
        f"{shard} says format: mlx. MLX changes weights of many architectures when it saves them "
        "(it adds 1 to norms, turns convolutions), and a GGUF of them would compute something else."
    )


def remark(tensors: Sequence[CheckpointTensor], model_type: str | None) -> str:
    """What a person should know of weights that MLX wrote and that can be converted, or an empty text."""
    shard = _shard(tensors)
    if not shard or model_type not in _UNCHANGED:
        return ""
    return (
        f"{shard} says format: mlx. mlx-lm leaves the weights of {model_type} as they are; whether another "
        "program of MLX wrote them in another form does not show."
    )


def _shard(tensors: Sequence[CheckpointTensor]) -> str:
    """The first file that MLX wrote, or an empty text."""
    return next((tensor.shard for tensor in tensors if tensor.form == "mlx"), "")
