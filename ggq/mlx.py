"""Checkpoints that went through MLX: it keeps some architectures' weights in another form than transformers.

MLX adds 1 to norms, turns convolutions, splits or stacks experts, so that its own models can use them as they
are; the shapes do not always show it, and no reading of the result can tell. Its files say ``format: mlx``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggq.safetensors_header import CheckpointTensor

# Architectures whose weights MLX takes as they are (it leaves out a tied head and rotary frequencies only).
_UNCHANGED = frozenset({"gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3"})


def refusal(tensors: Sequence[CheckpointTensor], model_type: str | None) -> str:
    """Why weights that MLX wrote cannot be converted, or an empty text."""
    first = next((tensor for tensor in tensors if tensor.form == "mlx"), None)
    if first is None or model_type in _UNCHANGED:
        return ""
    return (
        f"{first.shard} says format: mlx. MLX changes weights of many architectures when it saves them "
        "(it adds 1 to norms, turns convolutions), and a GGUF of them would compute something else."
    )
