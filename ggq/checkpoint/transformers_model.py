"""What transformers makes of a checkpoint: its logits, computed in float32 from weights of 16 bits.

``load_model`` and ``logits`` run in child processes only (a conversion's, a measurement's). The large
weights stay where safetensors maps them, in their own type, and are widened to float32 while they are
multiplied. So the reference adds no rounding of its own to what is compared, and costs little memory besides
the file's pages.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ggq.errors import CheckpointProblem

if TYPE_CHECKING:
    from ggq.checkpoint.checkpoint import Checkpoint

# Of the child process: nothing may be fetched, and its words must come at once and be no progress bars.
ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "USE_HUB_KERNELS": "NO",  # a config may name a repository of compiled code
}
# Functions of transformers.dynamic_module_utils that lead to running, or to looking into, Python files.
_CODE_LOADERS = (
    "init_hf_modules", "create_dynamic_module", "get_relative_imports", "get_relative_import_files",
    "get_imports", "check_imports", "get_class_in_module", "get_cached_module_file",
    "get_class_from_dynamic_module",
)  # fmt: skip

# Rows of a matrix that are widened at once: they stay in the CPU's cache.
_ROWS = 256
# Weights of other modules than products and look-ups (norms, convolutions, small experts) are widened for
# good, up to this many elements: 64 MB. Fused experts are larger.
_SMALL = 1 << 24
# torch, transformers and llama.cpp with their libraries, measured: 0.45 GB; and buffers of a short prompt.
_OWN_BYTES = 1_000_000_000
_LAYER = re.compile(r"\.(\d+)\.")


def import_lightly() -> None:
    """Have transformers, when this process imports it, leave out torch's tools for clusters and its compiler.

    Its configs alone pull them in otherwise (DTensor, dynamo, sympy): a second and 70 MB in transformers 5.
    A torch that was built without the former says so in the same way.
    """
    import torch
    import torch.distributed

    def disable(function: Any = None, *_: Any, **__: Any) -> Any:
        return function if function is not None else (lambda it: it)

    torch.distributed.is_available = lambda: False
    torch.compiler.disable = disable  # nothing is compiled here


def forbid_code() -> None:
    """From now on transformers runs no code of a checkpoint in this process, whoever trusts it.

    All of its ways to such code go through one module, and there through a few functions that it calls by
    their names; other modules may have taken some of them already. Raises what importing it raises.
    """
    import importlib

    loader = importlib.import_module("transformers.dynamic_module_utils")
    before = {name: getattr(loader, name) for name in _CODE_LOADERS if hasattr(loader, name)}
    for name in before:
        setattr(loader, name, _refuse_code)
    loaded = [module for name, module in sys.modules.items() if name.split(".")[0] == "transformers"]
    for module in loaded:
        for name, function in before.items():
            if vars(module).get(name) is function:
                setattr(module, name, _refuse_code)


def _refuse_code(*_: Any, **__: Any) -> NoReturn:
    raise CheckpointProblem(
        "The checkpoint wants to run Python code of its own.",
        "ggq runs no code of a checkpoint; transformers or the converter cannot read it without.",
        "Look for a model of the same kind that transformers knows by itself.",
    )


def needed_bytes(given: Checkpoint) -> int:
    """Memory that a run of the checkpoint takes: its weights as the file's pages, the libraries, and the
    largest layer, or tensor outside of layers, in float32 (the experts of a layer are one module in
    transformers, and a module is widened at once)."""
    layers = Counter[str]()
    for tensor in given.tensors:
        found = _LAYER.search(tensor.name)
        layers[found[1] if found else tensor.name] += 4 * tensor.elements
    return given.weight_bytes + max(layers.values(), default=given.weight_bytes) + _OWN_BYTES


_SAME_MODEL = (
    "Check that config.json and the weights are of the same model, in the form that transformers saves."
)
# Weights that a causal model may lack without a word: transformers builds them, and nothing asks for them.
_DISPENSABLE = re.compile(r"(^|\.)pooler\.")
# transformers' and torch's words for weights that do not fit the config.
_SHAPES = re.compile(
    r"size mismatch|shapes? .*(mismatch|cannot be multiplied|incompatible|invalid)|must match the size|"
    r"shape mismatch|mismatched sizes|expected .* channels|size of tensor|Sizes of tensors|"
    r"automatic conversion of the weights",
    re.IGNORECASE,
)


def load_model(folder: Path, architecture: str, unexpected: Callable[[list[str]], None] | None = None) -> Any:
    """The model of ``folder`` as transformers builds it, its weights in their own type, computing in float32.

    ``unexpected`` is called with the names of tensors that transformers has no use for. Raises LookupError
    when transformers has no such class, CheckpointProblem for weights that are missing or do not fit, and
    whatever else transformers raises.
    """
    import transformers

    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise LookupError(f"transformers {transformers.__version__} has no {architecture}")
    _without_adapters()
    model, report = model_class.from_pretrained(
        folder,
        dtype="auto",
        trust_remote_code=False,
        attn_implementation="eager",
        local_files_only=True,
        ignore_mismatched_sizes=True,  # they are in the report, by name
        output_loading_info=True,
    )
    _require_whole(report)
    if unexpected is not None and report["unexpected_keys"]:
        unexpected(sorted(report["unexpected_keys"]))
    _widen(model)
    return model.eval()


def without_advice(text: str) -> str:
    """torch's words on a pickle that it refused, without its advice to load it all the same."""
    if "weights_only" not in text:
        return text
    reason = re.search(r"WeightsUnpickler error: (.*?)(?:\n|, but|$)", text)
    return f"WeightsUnpickler: {reason[1]}" if reason else "Unsupported operand: more than weights is in it"


def refuse_shapes(error: Exception) -> None:
    """Raises CheckpointProblem when transformers failed because the weights do not fit the config: that is
    evidence against the checkpoint, not a comparison that could not be made."""
    if found := _SHAPES.search(str(error)):
        line = next(line for line in str(error).splitlines() if found[0].splitlines()[0] in line)
        raise CheckpointProblem(
            "The weights do not fit the config.",
            f"transformers says: {line.strip()[:200].rstrip('.')}.",
            _SAME_MODEL,
        ) from error


def _without_adapters() -> None:
    """Have transformers load no adapter in the folder, whether peft is installed or not."""
    from transformers import modeling_utils

    def none(name: Any, _download: Any = None, **settings: Any) -> tuple[None, Any, dict[str, Any]]:
        return None, name, settings

    modeling_utils.maybe_load_adapters = none


def _require_whole(report: Mapping[str, Any]) -> None:
    """Raises CheckpointProblem for weights for which transformers would make up random numbers."""
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, found, expected = mismatched[0]
        more = f"; {len(mismatched) - 1} more do not fit" if mismatched[1:] else ""
        raise CheckpointProblem(
            "The weights do not fit the config.",
            f"{name[:120]} has the shape {tuple(found)}, and {tuple(expected)} by the config{more}.",
            _SAME_MODEL,
        )
    missing = sorted(name for name in report["missing_keys"] if not _DISPENSABLE.search(name))
    if missing:
        more = f" and {len(missing) - 3} more" if missing[3:] else ""
        raise CheckpointProblem(
            f"{len(missing)} tensor{'s are' if missing[1:] else ' is'} missing in the weights.",
            f"{', '.join(name[:120] for name in missing[:3])}{more}: the config asks for them.",
            "Get the weights again from the model's source, or the config that belongs to them.",
        )
    if report["error_msgs"]:
        raise CheckpointProblem(
            "The weights cannot be loaded.",
            f"transformers says: {str(report['error_msgs'][0])[:200]}.",
            "Get the weights again from the model's source, or the config that belongs to them.",
        )


def logits(model: Any, tokens: Sequence[int], *, last: int = 0, threads: int = 1) -> Any:
    """Logits at the ``last`` positions of ``tokens`` (0: at every one): a float32 array, positions ×
    vocabulary. The others are not even computed where the model can leave them out.

    ``threads``: products of a short prompt lose more to waiting for each other than a second thread gains.
    Raises LookupError when the model makes no such logits.
    """
    import torch

    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = last
    inputs = torch.tensor([list(tokens)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            try:
                found = model(inputs, **options)
            except RuntimeError:
                # A model that multiplies by the weight of a Linear itself (Mamba) meets two types.
                found = model.float()(inputs, **options)
    finally:
        torch.set_num_threads(before)
    made = getattr(found, "logits", None)
    if made is None or made.ndim != 3:
        raise LookupError(f"{type(model).__name__} gives no logits of a next token")
    return made[0, -last:].float().numpy()


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
