"""Memory: what a load and a full context really took, beside the buffers that llama.cpp says it made.

Under ``mmap`` the weights are pages of their file, which the system can take back, and those that llama.cpp
puts in another order for the CPU (CPU_REPACK) are memory of the process besides; without it all is memory of
the process. The buffers do not hold everything: program, vocabulary and graph come on top
(``predicted.process_bytes``). Nor is every buffer touched: room for the logits of a whole batch is reserved,
of which such a run needs one row (``batch_logits_bytes``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ggq.errors import CannotServe, DoesNotFit, ToolFailed, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.llamacpp import memory as llama_memory
from ggq.llamacpp.memory import Breakdown, FilledContext, Load
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.words import CacheType, FlashAttention
from ggq.measurement.settings import MemorySettings
from ggq.measurement.words import MeasuredLoadMode
from ggq.progress import Listener, Notice, Step
from ggq.records.environment import now
from ggq.records.journal import Journal
from ggq.session import Session
from ggq.settings import choice
from ggq.system import hardware
from ggq.system.files import human_bytes

DEFAULT_CONTEXT = 4096
_STEP = "memory"


@dataclass(frozen=True)
class MemoryCell:
    """One context, cache and way of loading.

    ``predicted``: llama.cpp's breakdown before the run, of which ``predicted_bytes`` should be the process's
    own memory; ``measured``: None where it was not run. ``explained_bytes``: the buffers in the process's own
    memory, as llama.cpp made them; ``residual_bytes``: the measured anonymous memory less those.
    ``batch_logits_bytes``: how much of the buffers for computing on the CPU is room for a whole batch's
    logits, and stays untouched.
    """

    context_tokens: int
    type_k: str
    type_v: str
    load_mode: str
    predicted: Breakdown
    predicted_bytes: int
    batch_logits_bytes: int
    measured: FilledContext | None = None
    explained_bytes: int | None = None
    residual_bytes: int | None = None


@dataclass(frozen=True)
class MemoryResult:
    """All cells of one model, in the order of contexts, types and load modes. ``measured_at``: UTC; ``model``
    is a file's name."""

    measured_at: str
    model: str
    file_bytes: int
    threads: int
    offload: Offload
    cells: tuple[MemoryCell, ...]


def _ignore(part: MemoryResult) -> None:
    """Whoever waits for the result needs no parts of it."""


def measure(
    model: Path,
    settings: MemorySettings | None = None,
    *,
    session: Session,
    journal: Journal | None = None,
    on_part: Callable[[MemoryResult], None] = _ignore,
) -> MemoryResult:
    """Measure what the GGUF file ``model`` takes.

    ``journal``: keeps each run of this model on this machine, and has those of a measurement that was broken
    off; ``on_part`` gets the result so far after each cell, and so the whole one last.

    Raises UsageProblem for settings that no run can have, GgufProblem when the file is none or llama.cpp
    refuses it, DoesNotFit when a cell needs more memory than is free, or took it and was killed for it,
    ToolchainProblem, and ToolFailed for a run that ended badly.
    """
    settings = settings or MemorySettings()
    toolchain, listener = session.toolchain, session.listener
    offload = settings.placement.offload(toolchain)
    journal = journal or Journal()
    threads = settings.threads or hardware.usable_cores()
    gguf = gguf_file.read_model(model)
    loads = [
        Load(context, type_k, type_v, settings.flash_attention, offload)
        for context in _contexts(gguf, settings)
        for type_k, type_v in settings.cache_types
    ]
    plans = [(load, llama_memory.breakdown(toolchain, gguf.path, load)) for load in loads]
    to_run = [load for load in loads if not settings.quick or load.context_tokens == loads[0].context_tokens]
    if not settings.force:
        to_run = _fitting(gguf, plans, to_run, listener)
    done, total = 0, len(to_run) * len(settings.load_modes)
    result = MemoryResult(now(), gguf.path.name, gguf.file_bytes, threads, offload, ())
    for load, predicted in plans:
        for load_mode in settings.load_modes:
            filled = None
            if load in to_run:
                listener(Step(_STEP, done, total, "runs"))
                filled = journal.once(
                    {"load": asdict(load), "load_mode": load_mode, "threads": threads},
                    FilledContext,
                    functools.partial(_run, toolchain, gguf, load, load_mode, predicted, threads),
                )
                done += 1
            cell = _cell(gguf, load, load_mode, predicted, filled)
            result = replace(result, cells=(*result.cells, cell))
            on_part(result)
    listener(Step(_STEP, done, total, "runs"))
    return result


def _contexts(gguf: GgufFile, settings: MemorySettings) -> tuple[int, ...]:
    """The contexts in order, after a look at all settings. Raises UsageProblem."""
    for pair in settings.cache_types:
        for word in pair:
            choice(word, "type of the cache", CacheType)
    for mode in settings.load_modes:
        choice(mode, "load mode whose memory is measured", MeasuredLoadMode)
    choice(settings.flash_attention, "setting of flash attention", FlashAttention)
    own = gguf.context_length
    contexts = settings.contexts or (min(own or DEFAULT_CONTEXT, DEFAULT_CONTEXT),)
    if own is not None and max(contexts) > own:
        raise CannotServe(
            f"{gguf.path.name} has no context of {max(contexts):,} tokens.",
            f"It was trained for {own:,}.",
            f"Give contexts up to {own}.",
        )
    if min(contexts) < llama_memory.SHORTEST_CONTEXT:
        raise UsageProblem(
            f"A context of {min(contexts)} tokens is too short to be measured.",
            f"{llama_memory.GENERATED_TOKENS} tokens are generated after the prompt.",
            f"Give contexts from {llama_memory.SHORTEST_CONTEXT}.",
        )
    return tuple(sorted(set(contexts)))


def _fitting(
    gguf: GgufFile,
    plans: Sequence[tuple[Load, Breakdown]],
    wanted: Sequence[Load],
    listener: Listener,
) -> list[Load]:
    """Those of the wanted loads that fit; the others are said. Raises DoesNotFit when none does."""
    fitting: list[Load] = []
    last: DoesNotFit | None = None
    for load, predicted in plans:
        if load in wanted:
            try:
                _require_memory(gguf, load, predicted)
                fitting.append(load)
            except DoesNotFit as problem:
                last = problem
                listener(Notice(f"Not run: {problem.what} {problem.why}", "warning"))
    if last is not None and not fitting:
        raise last
    return fitting


def _require_memory(gguf: GgufFile, load: Load, predicted: Breakdown) -> None:
    """Refuse a run that would not fit RAM or a device. Raises DoesNotFit with the numbers."""
    available = hardware.available_ram_bytes()
    if predicted.host_bytes > available:
        raise _does_not_fit(gguf, load, predicted, f"{human_bytes(available)} of RAM are free.", available)
    for row in predicted.devices:
        # A device that does not know its memory says 0.
        free = row.device_free_bytes or 0
        if free and row.sum_bytes > free:
            raise DoesNotFit(
                f"{gguf.path.name} with a context of {load.context_tokens:,} tokens does not fit {row.name}.",
                f"Of {human_bytes(row.sum_bytes)} for it, {human_bytes(free)} are free.",
                "Put fewer layers there (-ngl), give a shorter context, or --force it.",
            )


def _does_not_fit(gguf: GgufFile, load: Load, predicted: Breakdown, why: str, available: int) -> DoesNotFit:
    """``available``: bytes of RAM that it can have."""
    weights, cache, computing = (
        sum(getattr(row, part) for row in predicted.host)
        for part in ("model_bytes", "context_bytes", "compute_bytes")
    )
    per_token = max(1, cache // load.context_tokens)
    fitting = (available - (predicted.host_bytes - cache)) // per_token // 256 * 256
    if fitting <= 0:
        advice = "Its weights alone do not fit: take a smaller preset, or put layers on a GPU (-ngl)."
    elif fitting < load.context_tokens:
        advice = f"A context of about {fitting:,} tokens would fit; q8_0 nearly halves the cache."
    else:
        advice = "It should have fitted: end other programs, or give a shorter context."
    return DoesNotFit(
        f"{gguf.path.name} with a context of {load.context_tokens:,} tokens does not fit this machine's RAM.",
        f"By llama.cpp's own breakdown it takes {human_bytes(predicted.host_bytes)}: weights"
        f" {human_bytes(weights)}, cache {human_bytes(cache)}, computing {human_bytes(computing)}. {why}",
        advice,
    )


def _run(
    toolchain: Toolchain, gguf: GgufFile, load: Load, load_mode: str, predicted: Breakdown, threads: int
) -> FilledContext:
    available = hardware.available_ram_bytes()
    try:
        return llama_memory.fill_context(toolchain, gguf.path, load, load_mode, predicted, threads)
    except ToolFailed as failure:
        if not failure.out_of_memory:
            raise
        why = f"{human_bytes(available)} were free; the kernel's out-of-memory killer ended the run."
        raise _does_not_fit(gguf, load, predicted, why, available) from failure


def _cell(
    gguf: GgufFile, load: Load, load_mode: str, predicted: Breakdown, filled: FilledContext | None
) -> MemoryCell:
    explained = None if filled is None else filled.buffers_bytes("own")
    anonymous = None if filled is None else filled.peaks.anonymous_bytes
    return MemoryCell(
        context_tokens=load.context_tokens,
        type_k=load.type_k,
        type_v=load.type_v,
        load_mode=load_mode,
        predicted=predicted,
        predicted_bytes=predicted.anonymous_bytes(load_mode),
        batch_logits_bytes=_batch_logits_bytes(gguf, load),
        measured=filled,
        explained_bytes=explained,
        residual_bytes=None if anonymous is None or explained is None else anonymous - explained,
    )


def _batch_logits_bytes(gguf: GgufFile, load: Load) -> int:
    """Float32 logits of all tokens that are computed at once, less one row. 0 with layers on a GPU: the
    output layer goes there first."""
    if load.offload.n_gpu_layers:
        return 0
    return 4 * gguf.embedded_tokens * (min(load.n_ubatch, load.context_tokens) - 1)
