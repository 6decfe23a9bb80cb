"""The recipe of a preset: the type of every tensor, as llama-quantize itself decides it."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ggq.errors import GgufProblem, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import tensor_types as ggml_types
from ggq.gguf.file import GgufFile
from ggq.gguf.size import predicted_bytes
from ggq.llamacpp import tools
from ggq.llamacpp.tool_output import Fallback, PlannedTensor, QuantizePlan
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.presets.catalogue import Preset
from ggq.quantization import imatrix_coverage, imatrix_file
from ggq.quantization.imatrix_coverage import Uncovered
from ggq.quantization.imatrix_file import Importance


@dataclass(frozen=True)
class SizeEstimate:
    """The size of what a preset makes of a model, of all files together.

    ``bits_per_weight`` counts tensor data only, as llama-quantize does;
    ``fallback_count`` of ``quantized_count`` tensors get another type than the preset wants;
    ``needs_imatrix``: it cannot be made without an imatrix, and has none; ``fallen_share``: of the
    weights of all layers, those in tensors that fell back.
    """

    file_bytes: int
    bits_per_weight: float
    fallback_count: int = 0
    quantized_count: int = 0
    needs_imatrix: bool = False
    fallen_share: float = 0.0

    @property
    def mostly_fell_back(self) -> bool:
        """Whether most of the file is of other types than the preset's own."""
        return self.fallen_share > 0.5 or 2 * self.fallback_count > self.quantized_count


@dataclass(frozen=True)
class Recipe:
    """What ``preset`` makes of a base. ``size`` is exact; ``options`` are the user's and the preset's, and
    those that give ``uncovered`` tensors, of which the imatrix knows nothing, another type;
    ``entries``: the metadata that a matrix adds."""

    preset: Preset
    options: QuantizeOptions
    tensors: tuple[PlannedTensor, ...]
    fallbacks: tuple[Fallback, ...]
    size: SizeEstimate
    uncovered: tuple[Uncovered, ...] = ()
    entries: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def main_type(self) -> str:
        """The type that most weights of the layers get."""
        counts = Counter[str]()
        for tensor in _quantized_layers(self.tensors):
            counts[tensor.target_type] += math.prod(tensor.shape)
        return counts.most_common(1)[0][0] if counts else ""

    @property
    def content(self) -> str:
        """A digest of all tensors' types: of two recipes that make the same weights it is the same."""
        types = sorted((tensor.name, tensor.target_type) for tensor in self.tensors)
        return hashlib.sha256(json.dumps(types).encode()).hexdigest()[:16]


def _quantized_layers(tensors: Iterable[PlannedTensor]) -> list[PlannedTensor]:
    """What is quantized, without the tables of tokens, which have types of their own."""
    tables = (*imatrix_file.TOKEN_TABLES, gguf_file.OUTPUT)
    return [it for it in tensors if it.target_type != it.source_type and it.name not in tables]


def _fallen_share(plan: QuantizePlan) -> float:
    fallen = {fallback.name for fallback in plan.fallbacks}
    layers = _quantized_layers(plan.tensors)
    total = sum(math.prod(tensor.shape) for tensor in layers)
    return sum(math.prod(it.shape) for it in layers if it.name in fallen) / total if total else 0.0


def ask(
    toolchain: Toolchain,
    base: GgufFile,
    preset: Preset,
    options: QuantizeOptions,
    matrix: Importance | None = None,
) -> Recipe:
    """Ask llama-quantize, without writing anything. ``matrix``: that of the options; None: it is read.

    Raises GgufProblem when the base is quantized already, ToolFailed when llama-quantize refuses it.
    """
    refuse_quantized(base)
    _check_types(options)
    own = tuple(f"{name}={kind}" for name, kind in preset.tensor_types.items())
    options = replace(options, tensor_types=(*own, *options.tensor_types))
    if matrix is None and options.imatrix:
        matrix = imatrix_file.read(options.imatrix)
    added = matrix.entries() if matrix else {}
    plan = tools.quantize_plan(toolchain, base.path, preset.ftype, options)
    uncovered: tuple[Uncovered, ...] = ()
    if matrix:
        # A type of its own for one tensor can change llama-quantize's choice for a later one: hence again.
        while more := imatrix_coverage.uncovered(plan.tensors, matrix, preset.ftype):
            if {it.name for it in more} & {it.name for it in uncovered}:
                break
            uncovered += more
            # First of all overrides: llama-quantize takes the first that fits.
            instead = tuple(it.override for it in more)
            options = replace(options, tensor_types=(*instead, *options.tensor_types))
            plan = tools.quantize_plan(toolchain, base.path, preset.ftype, options)
    types = {tensor.name: tensor.target_type for tensor in plan.tensors}
    known = ggml_types.by_name()
    data_bytes = sum(known[types[tensor.name]].row_bytes(tensor.elements) for tensor in base.tensors)
    return Recipe(
        preset=preset,
        options=options,
        tensors=plan.tensors,
        fallbacks=plan.fallbacks,
        size=SizeEstimate(
            file_bytes=predicted_bytes(base, types, added, options.keep_split),
            bits_per_weight=8 * data_bytes / base.parameter_count,
            fallback_count=len(plan.fallbacks),
            quantized_count=sum(it.target_type != it.source_type for it in plan.tensors),
            needs_imatrix=plan.needs_imatrix,
            fallen_share=_fallen_share(plan),
        ),
        uncovered=uncovered,
        entries=added,
    )


def check(options: QuantizeOptions) -> None:
    """What can be said of the options before there is a base. Raises UsageProblem."""
    _check_types(options)
    if options.imatrix is not None:
        imatrix_file.read(options.imatrix)


def _check_types(options: QuantizeOptions) -> None:
    """Raises UsageProblem for an override that llama-quantize would answer with its whole usage text."""
    named = [options.output_tensor_type, options.token_embedding_type]
    for override in options.tensor_types:
        name, _, kind = override.partition("=")
        if not name or not kind:
            raise UsageProblem(
                f"--tensor-type {override} is not of the form NAME=TYPE.", "", "Write it as attn_v=q8_0."
            )
        named.append(kind)
    known = ggml_types.by_name()
    for kind in filter(None, named):
        if kind.upper() not in known:
            near = difflib.get_close_matches(kind.upper(), known, n=1)
            raise UsageProblem(
                f"{kind} is not a tensor type.",
                f"Did you mean {near[0].lower()}?" if near else "",
                f"Known are {', '.join(sorted(name.lower() for name in known))}.",
            )


def refuse_without_imatrix(recipe: Recipe) -> None:
    """Raises UsageProblem for a recipe that llama-quantize would refuse to make, by its own dry run."""
    if recipe.size.needs_imatrix:
        raise without_imatrix(recipe.preset)


def without_imatrix(preset: Preset) -> UsageProblem:
    """The words for a preset that cannot be made as it was asked for."""
    return UsageProblem(
        f"{preset.name} needs an imatrix.",
        "At so few bits the result would be garbage without one, and llama-quantize refuses.",
        "Let ggq make one with --imatrix auto, give one with --imatrix FILE, or choose a larger preset"
        " (`ggq presets`).",
    )


def refuse_quantized(base: GgufFile) -> None:
    """Raises GgufProblem for what is no model, and for a base that has lost precision already: quantizing it
    again adds to the loss."""
    base.require_model()
    types = {tensor.type for tensor in base.tensors}
    lossy = sorted(types - {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"})
    if lossy:
        raise GgufProblem(
            f"{base.path} is quantized already.",
            f"It holds tensors of type {', '.join(lossy)}; quantizing twice adds one loss to the other.",
            "Start from the 16-bit GGUF: `ggq convert` makes it from the checkpoint.",
        )


def differences(recipe: Recipe, made: GgufFile) -> list[str]:
    """Where a file's tensor types are not the recipe's, in words; empty when all agree."""
    wanted = {tensor.name: tensor.target_type for tensor in recipe.tensors}
    found = {tensor.name: tensor.type for tensor in made.tensors}
    return [
        f"{name}: {found.get(name, 'missing')} instead of {wanted.get(name, 'nothing')}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
