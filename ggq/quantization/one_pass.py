"""All presets in one pass: each tensor is read once and quantized once to each type that any file wants.

The files are llama-quantize's own, byte for byte: its header, and its library's functions on the same rows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggq._version import __version__
from ggq.errors import GgufProblem, ToolchainProblem, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.gguf.file import GgufFile
from ggq.llamacpp.ggml_rows import Rows, can_be_widened
from ggq.llamacpp.pin import pin
from ggq.llamacpp.tool_output import PlannedTensor
from ggq.llamacpp.toolchain import Toolchain, same_commit
from ggq.progress import Listener, Step, silent
from ggq.quantization import imatrix_coverage, imatrix_file, output_files
from ggq.quantization.engine import Batch, EngineName, Quantized, Workplace, prove
from ggq.quantization.imatrix_file import Importance
from ggq.quantization.one_pass_journal import Journal
from ggq.quantization.one_pass_worker import Place, Work, Worker
from ggq.quantization.recipe import Recipe, refuse_without_imatrix
from ggq.quantization.tensor_source import Source
from ggq.system import files, hardware

JOURNAL = "journal"
MADE_WITH = "swept_with"  # in manifests: the presets of the pass
MAX_MEMORY_BYTES = 256 << 20


@dataclass(frozen=True)
class OnePassResult:
    """What one pass made, in the order of its recipes.

    A pair of a tensor and a type is made once, however many files want it: ``computed_pairs`` by this call,
    ``kept_pairs`` by an earlier one that was broken off.
    """

    files: tuple[Quantized, ...]
    computed_pairs: int
    kept_pairs: int
    seconds: float


def obstacle(toolchain: Toolchain, base: GgufFile, recipe: Recipe) -> str | None:
    """Why one pass does not make this file, and llama-quantize must: a sentence. None: it makes it, and the
    same bytes. Raises OSError."""
    if toolchain.commit is None or not same_commit(toolchain.commit, pin().commit):
        return f"The headers of llama.cpp {toolchain.commit or 'of unknown commit'} are not known to ggq."
    if recipe.preset.ftype not in gguf_file.file_types() and base.integer("general.file_type") is None:
        return "The 16-bit GGUF does not say its file type."
    try:
        rows = Rows(toolchain)
    except ToolchainProblem as problem:
        return str(problem)
    matrix = imatrix_file.read(recipe.options.imatrix) if recipe.options.imatrix else None
    if matrix is not None and not matrix.is_finite():
        return "The imatrix holds values that are not numbers."
    reasons = (_obstacle(rows, tensor, matrix, recipe.preset.ftype) for tensor in recipe.tensors)
    return next(filter(None, reasons), None)


def _obstacle(rows: Rows, tensor: PlannedTensor, matrix: Importance | None, ftype: str) -> str | None:
    """Where llama-quantize would refuse a tensor, or do what ggq does not expect."""
    name, kind = tensor.name, tensor.target_type
    if tensor.source_type == kind:
        return None
    if not can_be_widened(tensor.source_type):
        return f"{name} is of type {tensor.source_type}."
    if len(tensor.shape) > 3:
        return f"{name} has {len(tensor.shape)} dimensions."
    known = matrix is not None and name in matrix.sums
    fits = matrix is not None and matrix.fits(name, tensor.shape)
    if known and not fits and name not in imatrix_file.TOKEN_TABLES:
        return f"The imatrix was made of a model whose {name} has another shape."
    if not fits and (
        rows.needs_importance(kind) or (matrix is not None and imatrix_coverage.demands(name, kind, ftype))
    ):
        return f"There is no importance for {name}, which is to become {kind}."
    return None


class OnePass:
    """All presets together, in a folder that stays when the run is broken off."""

    name = EngineName.ONE_PASS
    needs_file = False

    def obstacle(self, toolchain: Toolchain, base: GgufFile, recipe: Recipe) -> str | None:
        return obstacle(toolchain, base, recipe)

    def make(self, recipes: Sequence[Recipe], source: Source, place: Workplace) -> Iterator[Batch]:
        with files.explain_os_error(place.kept):
            place.kept.mkdir(exist_ok=True)
        names = [recipe.preset.name for recipe in recipes]
        made = quantize_in_one_pass(
            place.session.toolchain,
            source,
            recipes,
            [place.kept / gguf_names.output_name(place.model, name) for name in names],
            threads=place.threads,
            max_memory_bytes=place.max_memory_bytes,
            listener=place.session.listener,
        )
        findings = {
            "engine": self.name.value,
            MADE_WITH: names,
            "computed_pairs": made.computed_pairs,
            "kept_pairs": made.kept_pairs,
        }
        yield Batch(tuple(recipes), made.files, findings)


def quantize_in_one_pass(
    toolchain: Toolchain,
    source: Source,
    recipes: Sequence[Recipe],
    targets: Sequence[Path],
    *,
    threads: int | None = None,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    listener: Listener = silent,
) -> OnePassResult:
    """Write the files of all ``recipes`` (of one base and one imatrix) to ``targets``, and prove
    that they are what the recipes say.

    ``targets`` lie in one folder, which the caller keeps until a call has ended well: beside them a journal
    says which tensors are finished, and the same call goes on from there. With ``keep_split`` the shards'
    names are made from them. ``max_memory_bytes``: see ``Worker``.

    Raises UsageProblem (an imatrix is missing, or there is an ``obstacle``), DiskFull,
    OutputProblem, GgufProblem (data that are no numbers; a result that differs from its recipe),
    ToolchainProblem, and what the source raises.
    """
    started = time.monotonic()
    for recipe in recipes:
        refuse_without_imatrix(recipe)
        reason = obstacle(toolchain, source.base, recipe)
        if reason is not None:
            raise UsageProblem(
                f"One pass cannot make {recipe.preset.name}.", reason, "Let llama-quantize make it."
            )
    imatrices = {recipe.options.imatrix for recipe in recipes}
    if len(imatrices) != 1:
        raise UsageProblem("The presets of one pass have one imatrix.", "", "Make them one after the other.")
    (imatrix,) = imatrices
    folder = targets[0].parent
    paths = [output_files.paths(source.base, *pair) for pair in zip(recipes, targets, strict=True)]
    names = [path.name for part in paths for path in part]
    threads = threads or hardware.usable_cores()
    with files.explain_os_error(folder):
        journal = Journal(folder / JOURNAL, _key(toolchain, source, recipes), names)
        _require_space(recipes, paths)
        if not _are_begun(recipes, paths):
            journal.restart()
            for recipe, target in zip(recipes, targets, strict=True):
                output_files.create(source.base, recipe, target)
        works = _union(source.base, paths)
        left = [work for work in works if work.tensor.name not in journal.finished]
        progress = _Progress(recipes, works, left, listener)
        worker = Worker(
            Rows(toolchain),
            source,
            imatrix_file.read(imatrix) if imatrix else None,
            threads=threads,
            max_memory_bytes=max_memory_bytes,
        )
        worker.run(left, lambda work: journal.add(work.tensor.name), progress.add)
    for recipe, part in zip(recipes, paths, strict=True):
        prove(part, recipe)
    seconds = time.monotonic() - started
    pairs, computed = (sum(len(work.targets) for work in some) for some in (works, left))
    return OnePassResult(
        files=tuple(
            Quantized(part, recipe.size.file_bytes, seconds, peak_memory_bytes=None)
            for recipe, part in zip(recipes, paths, strict=True)
        ),
        computed_pairs=computed,
        kept_pairs=pairs - computed,
        seconds=seconds,
    )


def _key(toolchain: Toolchain, source: Source, recipes: Sequence[Recipe]) -> str:
    """What tells this work from others."""
    imatrix = recipes[0].options.imatrix
    parts = [
        [__version__, toolchain.commit, source.identity, imatrix and files.sha256_file(imatrix)],
        *(
            [
                recipe.preset.ftype,
                recipe.options.arguments(),
                [tensor.target_type for tensor in recipe.tensors],
            ]
            for recipe in recipes
        ),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _require_space(recipes: Sequence[Recipe], paths: Sequence[Sequence[Path]]) -> None:
    """Raises DiskFull. What earlier calls wrote already is counted."""
    there = sum(files.allocated_bytes(path) or 0 for part in paths for path in part if path.exists())
    needed = sum(recipe.size.file_bytes for recipe in recipes) - there
    names = ", ".join(recipe.preset.name for recipe in recipes)
    files.require_space(paths[0][0].parent, max(0, needed), f"the files of {names}")


def _are_begun(recipes: Sequence[Recipe], paths: Sequence[Sequence[Path]]) -> bool:
    """Whether an earlier call made the files, and they are still whole but for data."""
    try:
        for recipe, part in zip(recipes, paths, strict=True):
            prove(part, recipe)
    except (GgufProblem, FileNotFoundError):
        return False
    return True


def _union(base: GgufFile, paths: Sequence[Sequence[Path]]) -> list[Work]:
    """What is to be made of each tensor of the base, in its order, for all files together."""
    places: dict[str, dict[str, list[Place]]] = {tensor.name: {} for tensor in base.tensors}
    for path in (path for part in paths for path in part):
        for tensor in gguf_file.read(path).tensors:
            places[tensor.name].setdefault(tensor.type, []).append(Place(path, tensor.offset_bytes))
    return [Work(tensor, places[tensor.name]) for tensor in base.tensors]


class _Progress:
    """Bytes written of all files' data, told to a listener."""

    def __init__(
        self, recipes: Sequence[Recipe], works: Sequence[Work], left: Sequence[Work], listener: Listener
    ) -> None:
        names = [recipe.preset.name for recipe in recipes]
        self._name = f"quantize {names[0] if len(names) == 1 else f'{len(names)} presets'}"
        self._total = sum(work.output_bytes for work in works)
        self._done = self._total - sum(work.output_bytes for work in left)
        self._listener = listener

    def add(self, count: int) -> None:
        self._done += count
        self._listener(Step(self._name, self._done, self._total))
