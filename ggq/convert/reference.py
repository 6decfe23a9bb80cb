"""What transformers makes of a checkpoint: its logits, computed in float32 from weights of 16 bits.

Runs in the child process only (ggq.convert.child). The large weights stay where safetensors maps them, in
their own type, and are widened to float32 while they are multiplied. So the reference adds no rounding of its
own to what is compared, and costs little memory besides the file's pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Rows of a matrix that are widened at once: they stay in the CPU's cache.
_ROWS = 256
# Weights of other modules than products and look-ups (norms, convolutions, small experts) are widened for
# good, up to this many elements: 64 MB. Fused experts are larger.
_SMALL = 1 << 24


def load_model(folder: Path, architecture: str) -> Any:
    """The model of ``folder`` as transformers builds it, its weights in their own type.

    Raises LookupError when transformers has no such class, and whatever transformers raises.
    """
    import transformers

    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise LookupError(f"transformers {transformers.__version__} has no {architecture}")
    model = model_class.from_pretrained(
        folder, dtype="auto", trust_remote_code=False, attn_implementation="eager", local_files_only=True
    )
    return model.eval()


def logits(model: Any, tokens: Sequence[int]) -> Any:
    """Logits at every position of ``tokens``: a float32 array, positions × vocabulary.

    The model computes in float32 from then on. Raises LookupError when it makes no such logits.
    """
    import torch

    threads = torch.get_num_threads()
    # Products this small lose more to waiting for each other than a second thread gains.
    torch.set_num_threads(1)
    _widen(model)
    inputs = torch.tensor([list(tokens)])
    try:
        with torch.inference_mode():
            try:
                found = model(inputs, use_cache=False)
            except RuntimeError:
                # A model that multiplies by the weight of a Linear itself (Mamba) meets two types.
                found = model.float()(inputs, use_cache=False)
    finally:
        torch.set_num_threads(threads)
    made = getattr(found, "logits", None)
    if made is None or made.ndim != 3:
        raise LookupError(f"{type(model).__name__} gives no logits of a next token")
    return made[0].float().numpy()


def _widen(model: Any) -> None:
    """Have every module of a model compute in float32."""
    import torch

    for module in model.modules():
        own = [
            weight
            for weight in module._parameters.values()
            if weight is not None and weight.dtype in (torch.float16, torch.bfloat16)
        ]
        if not own:
            continue
        if type(module) is torch.nn.Linear:
            module.forward = _linear(module)
        elif isinstance(module, torch.nn.Embedding):
            # Only a few rows are looked up: they are widened afterwards.
            module.register_forward_hook(lambda _module, _inputs, rows: rows.float())
        elif sum(weight.numel() for weight in own) <= _SMALL:
            for weight in own:
                weight.data = weight.data.float()
        else:
            widening = _Widening(own)
            module.register_forward_pre_hook(widening.begin)
            module.register_forward_hook(widening.end)


class _Widening:
    """Puts float32 copies in the place of a module's own weights while its forward runs."""

    def __init__(self, weights: Sequence[Any]) -> None:
        self._weights = weights
        self._narrow: list[Any] = []

    def begin(self, _module: Any, _inputs: Any) -> None:
        self._narrow = [weight.data for weight in self._weights]
        for weight in self._weights:
            weight.data = weight.data.float()

    def end(self, _module: Any, _inputs: Any, _output: Any) -> None:
        for weight, narrow in zip(self._weights, self._narrow, strict=True):
            weight.data = narrow
        self._narrow = []


def _linear(module: Any) -> Callable[[Any], Any]:
    """The product of a Linear, some rows at a time through one buffer: no float32 copy of it is ever made."""
    import torch

    def forward(inputs: Any) -> Any:
        weight = module.weight
        inputs = inputs.float()
        product = inputs.new_empty((*inputs.shape[:-1], weight.shape[0]))
        buffer = inputs.new_empty((min(_ROWS, weight.shape[0]), weight.shape[1]))
        for first in range(0, weight.shape[0], _ROWS):
            rows = weight[first : first + _ROWS]
            part = buffer[: rows.shape[0]].copy_(rows)
            product[..., first : first + _ROWS] = torch.nn.functional.linear(inputs, part)
        return product if module.bias is None else product + module.bias.float()

    return forward
