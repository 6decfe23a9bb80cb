"""The speed that a Python user of llama-cpp-python gets, and why it differs from llama-bench's."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq import process
from ggq.bench.rates import Rate, human_rate, rate
from ggq.bench.workload import Point
from ggq.llamacpp import binding, parse
from ggq.llamacpp.bench import BenchOptions
from ggq.llamacpp.toolchain import SETUP_HINT, Toolchain

NOTABLE_GAP = 0.10
_NOTABLE_PART = 0.05
_CHILD = "ggq.bench.binding_child"
_DEFAULT_BATCH = 512  # of Llama(n_batch=…)


@dataclass(frozen=True)
class Timing:
    """One repetition: in all, and of that inside llama_decode and inside the sampler."""

    total_ns: int
    decode_ns: int
    sample_ns: int


@dataclass(frozen=True)
class BindingRate:
    """A Python user's rate, of the whole call; ``decode_tokens_per_s``: what it would be if llama_decode were
    all (median); the shares of the time spent in llama_decode and in the sampler, between 0 and 1 (medians);
    the times behind them, in the order of ``rate``'s."""

    rate: Rate
    decode_tokens_per_s: float
    decode_share: float
    sampling_share: float
    decode_samples_ns: tuple[int, ...]
    sampling_samples_ns: tuple[int, ...]


def binding_rate(tokens: int, batches: Sequence[Sequence[Timing]]) -> BindingRate:
    """What batches of repetitions, each of the same number of tokens, come to."""
    timings = [timing for batch in batches for timing in batch]
    return BindingRate(
        rate=rate(tokens, [[timing.total_ns for timing in batch] for batch in batches]),
        decode_tokens_per_s=statistics.median(1e9 * tokens / timing.decode_ns for timing in timings),
        decode_share=statistics.median(timing.decode_ns / timing.total_ns for timing in timings),
        sampling_share=statistics.median(timing.sample_ns / timing.total_ns for timing in timings),
        decode_samples_ns=tuple(timing.decode_ns for timing in timings),
        sampling_samples_ns=tuple(timing.sample_ns for timing in timings),
    )


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


def default_options(options: BenchOptions, threads: int, prompt_threads: int) -> dict[str, Any]:
    """Keyword arguments of ``Llama`` for the same placement, cache and threads, and its own defaults else."""
    # llama.cpp refuses a quantized V cache without flash attention.
    needs_flash = options.type_v not in ("f32", "f16", "bf16")
    chosen: dict[str, Any] = {
        "n_threads": threads,
        "n_threads_batch": prompt_threads,
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


def matching_options(
    options: BenchOptions, default: dict[str, Any], points: Sequence[Point]
) -> dict[str, Any]:
    """The same with llama-bench's own settings where the binding's defaults differ from them, and where that
    matters to ``points``: a batch holds no more than the longest prompt or depth."""
    longest = max(length for point in points for length in (point.tokens, point.depth_tokens))
    n_batch = max(_DEFAULT_BATCH, min(options.n_batch, longest))
    return {**default, "flash_attn": options.flash_attention != "off", "n_batch": n_batch}


def measure(
    toolchain: Toolchain,
    model: Path,
    repetitions: Mapping[Point, int],
    options: BenchOptions,
    llama_options: dict[str, Any],
) -> dict[Point, tuple[Timing, ...]]:
    """Repeat each point so many times, in one child process that loads the model once.

    ``llama_options``: keyword arguments of ``Llama``; of ``options`` the types of the cache count.

    Raises ToolFailed when the child ends badly, ToolchainProblem when its output is not known.
    """
    job = {
        "lib_dir": str(toolchain.lib_dir.absolute()),
        "model": str(model.absolute()),
        "options": llama_options,
        "type_k": options.type_k,
        "type_v": options.type_v,
        "points": [
            (point.test, point.tokens, point.depth_tokens, count) for point, count in repetitions.items()
        ],
    }
    # In the libraries' folder: a module in the user's current one must not be taken for ours.
    done = process.run([sys.executable, "-m", _CHILD], stdin=json.dumps(job), cwd=toolchain.lib_dir)
    return read_events(done.stdout, repetitions)


def read_events(lines: Sequence[str], repetitions: Mapping[Point, int]) -> dict[Point, tuple[Timing, ...]]:
    """The timings in the child's events. Raises ToolchainProblem when one is not known or is missing."""
    points = list(repetitions)
    found: dict[Point, tuple[Timing, ...]] = dict.fromkeys(points, ())
    finished = False
    for line in lines:
        try:
            event = json.loads(line)
            if event["event"] == "sample":
                timing = Timing(event["total_ns"], event["decode_ns"], event["sample_ns"])
                if not 0 < timing.decode_ns + timing.sample_ns <= timing.total_ns:
                    raise ValueError("the parts exceed the whole")
                found[points[event["point"]]] += (timing,)
            finished = finished or event["event"] == "done"
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise parse.unknown("The binding's child process", f"{line[:120]!r} ({error})") from error
    if not finished or any(len(found[point]) != count for point, count in repetitions.items()):
        raise parse.unknown("The binding's child process", "repetitions are missing")
    return found


def is_gap(found: float, expected: float, threshold: float = NOTABLE_GAP) -> bool:
    """Whether two rates differ by more than a share of the expected one."""
    return abs(found / expected - 1) > threshold


def differs_inside(expected: Rate, found: BindingRate) -> bool:
    """Whether there is a gap, and llama_decode itself runs at another speed than in llama-bench."""
    median = expected.median_tokens_per_s
    return is_gap(found.rate.median_tokens_per_s, median) and is_gap(
        found.decode_tokens_per_s, median, _NOTABLE_PART
    )


def explain(
    expected: Rate,
    found: BindingRate,
    default: dict[str, Any],
    matched: BindingRate | None,
    matching: dict[str, Any],
    noise: float | None,
) -> str:
    """Where a gap of more than 10 % to llama-bench's rate comes from; an empty text when there is none.

    ``matched``: measured with ``matching`` options, where that was worth a try; ``noise``: the relative
    deviation between repetitions on this machine.
    """
    median = expected.median_tokens_per_s
    ratio = found.rate.median_tokens_per_s / median
    if not is_gap(ratio, 1):
        return ""
    words = [f"Python gets {ratio:.2f} of llama-bench's rate."]
    outside = 1 - found.decode_share
    if ratio < 1 and outside >= _NOTABLE_PART:
        words.append(
            f"{outside:.0%} of its time is outside llama_decode: {found.sampling_share:.0%} in the sampler,"
            f" which llama-bench does without, and {outside - found.sampling_share:.0%} in Python."
        )
    last = found
    if is_gap(found.decode_tokens_per_s, median, _NOTABLE_PART):
        words.append(f"llama_decode alone runs at {found.decode_tokens_per_s / median:.2f} of that rate.")
        if matched is not None:
            if abs(matched.decode_tokens_per_s - median) < abs(found.decode_tokens_per_s - median):
                last = matched
                words.append(
                    f"With {_changed(default, matching)} as llama-bench has it, instead of"
                    f" {_changed(matching, default)}, it runs at {matched.decode_tokens_per_s / median:.2f},"
                    f" and Python gets {human_rate(matched.rate.median_tokens_per_s)} t/s."
                )
            else:
                words.append(f"{_changed(default, matching)} as llama-bench has it brings it no closer.")
        left = last.decode_tokens_per_s / median
        spread = "" if noise is None else f" (repetitions differ by {noise:.0%})"
        if not is_gap(left, 1, max(2 * (noise or 0), _NOTABLE_PART)):
            words.append(f"The rest is within the noise{spread}.")
        else:
            words.append(f"The rest is beyond the noise{spread}.")
            if left < 1:
                words.append(
                    "One more difference: llama-bench keeps a pool of threads, the binding has one made for"
                    " each call."
                )
    return " ".join(words)


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in after.items() if before.get(name) != value)
