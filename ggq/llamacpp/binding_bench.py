"""llama-cpp-python under the stopwatch: what ``Llama`` is given, and a child process that runs it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ggq.llamacpp import binding, endings, tool_output
from ggq.llamacpp.bench import BenchOptions
from ggq.llamacpp.toolchain import SETUP_HINT, Toolchain
from ggq.system import python_child

_CHILD = "ggq.llamacpp.binding_child"
_DEFAULT_BATCH = 512  # of Llama(n_batch=…)


@dataclass(frozen=True)
class Task:
    """A prompt of so many tokens, or so many to generate, after ``depth_tokens`` in the context."""

    test: Literal["prompt", "generation"]
    tokens: int
    depth_tokens: int
    repetitions: int


@dataclass(frozen=True)
class Job:
    """What the child process is to time. ``options``: of ``Llama``; ``type_k``, ``type_v``: of the cache, by
    ggml's names."""

    lib_dir: str
    model: str
    options: dict[str, Any]
    type_k: str
    type_v: str
    tasks: Sequence[Task]


@dataclass(frozen=True)
class Timing:
    """One repetition: in all, and of that inside llama_decode and inside the sampler."""

    total_ns: int
    decode_ns: int
    sample_ns: int


def impossible(options: BenchOptions) -> str:
    """Why llama-cpp-python cannot run the model so, or an empty text."""
    if binding.installed_version() is None:
        return f"llama-cpp-python is not installed. {SETUP_HINT}"
    offload = options.offload
    for asked, what in (
        (offload.n_gpu_layers and offload.rpc, "an RPC server"),
        (offload.n_gpu_layers and offload.n_cpu_moe, "--n-cpu-moe"),
        (options.load_mode == "dio", "direct I/O"),
    ):
        if asked:
            return f"llama-cpp-python's Llama has no option for {what}."
    return ""


def default_options(options: BenchOptions, threads: int | None, prompt_threads: int | None) -> dict[str, Any]:
    """Keyword arguments of ``Llama`` for the same placement, cache and threads, and its own defaults else
    (also for threads: None)."""
    # llama.cpp refuses a quantized V cache without flash attention.
    needs_flash = options.type_v not in ("f32", "f16", "bf16")
    chosen: dict[str, Any] = {
        **({"n_threads": threads} if threads else {}),
        **({"n_threads_batch": prompt_threads} if prompt_threads else {}),
        "n_gpu_layers": options.offload.n_gpu_layers,
        "use_mmap": options.load_mode not in ("none", "mlock"),
        "use_mlock": "mlock" in options.load_mode,
        "flash_attn": options.flash_attention == "on" or needs_flash,
        "n_batch": _DEFAULT_BATCH,
    }
    if options.offload.n_gpu_layers == 0:
        chosen["op_offload"] = False  # a GPU build would compute large batches there all the same
    elif options.offload.tensor_split:
        chosen["tensor_split"] = list(options.offload.tensor_split)
    return chosen


def matching_options(options: BenchOptions, default: dict[str, Any], longest_tokens: int) -> dict[str, Any]:
    """The same with llama-bench's own settings where the binding's defaults differ from them, and where that
    matters: a batch holds no more than the longest prompt or depth."""
    n_batch = max(_DEFAULT_BATCH, min(options.n_batch, longest_tokens))
    return {**default, "flash_attn": options.flash_attention != "off", "n_batch": n_batch}


def run(
    toolchain: Toolchain,
    model: Path,
    tasks: Sequence[Task],
    options: BenchOptions,
    llama_options: dict[str, Any],
) -> tuple[tuple[Timing, ...], ...]:
    """The repetitions of each task, in one child process that loads the model once.

    ``llama_options``: keyword arguments of ``Llama``; of ``options`` the types of the cache count.

    Raises ToolFailed when the child ends badly, ToolchainProblem when its output is not known.
    """
    job = Job(
        lib_dir=str(toolchain.lib_dir.absolute()),
        model=str(model.absolute()),
        options=llama_options,
        type_k=options.type_k,
        type_v=options.type_v,
        tasks=tasks,
    )
    done = endings.checked(python_child.run(_CHILD, stdin=json.dumps(asdict(job)), check=False))
    return read_events(done.stdout, tasks)


def read_events(lines: Sequence[str], tasks: Sequence[Task]) -> tuple[tuple[Timing, ...], ...]:
    """The timings in the child's events. Raises ToolchainProblem when one is not known or is missing."""
    found: list[list[Timing]] = [[] for _ in tasks]
    finished = False
    for line in lines:
        try:
            event = json.loads(line)
            if event["event"] == "sample":
                timing = Timing(event["total_ns"], event["decode_ns"], event["sample_ns"])
                if not 0 < timing.decode_ns + timing.sample_ns <= timing.total_ns:
                    raise ValueError("the parts exceed the whole")
                found[event["task"]].append(timing)
            finished = finished or event["event"] == "done"
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise tool_output.unknown("The binding's child process", f"{line[:120]!r} ({error})") from error
    if not finished or [len(timings) for timings in found] != [task.repetitions for task in tasks]:
        raise tool_output.unknown("The binding's child process", "repetitions are missing")
    return tuple(map(tuple, found))
