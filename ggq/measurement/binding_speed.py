"""The speed that a Python user of llama-cpp-python gets, and why it differs from llama-bench's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ggq.errors import ToolchainProblem, ToolFailed
from ggq.llamacpp import binding_bench
from ggq.llamacpp.bench import BenchOptions
from ggq.llamacpp.binding_bench import Task, Timing
from ggq.llamacpp.threads import ThreadChoice
from ggq.measurement.speed_tests import Point, batches_wanted
from ggq.measurement.throughput import Precision, Rate, human_rate, pooled_deviation, rate
from ggq.progress import Step
from ggq.records.journal import Journal
from ggq.session import Session

NOTABLE_GAP = 0.10
_NOTABLE_PART = 0.05


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


@dataclass(frozen=True)
class BindingFigure:
    """What a Python user gets with these ``options`` of ``Llama``. ``ratio``: to llama-bench's median;
    ``matched``: with llama-bench's settings instead of the binding's defaults, where that was tried;
    ``explanation``: of a gap over 10 %, else empty."""

    speed: BindingRate
    ratio: float
    options: dict[str, Any]
    matched: BindingRate | None
    explanation: str


class BindingRounds:
    """llama-cpp-python on one placement of a model: batches beside llama-bench's, then the comparison.

    ``options``, ``threads``: llama-bench's, possible here; ``remark`` gets sentences that belong to the
    figures: a failure is one.
    """

    def __init__(
        self,
        session: Session,
        model: Path,
        points: Sequence[Point],
        options: BenchOptions,
        threads: ThreadChoice,
        precision: Precision,
        *,
        journal: Journal,
        remark: Callable[[str], None],
    ) -> None:
        self._session = session
        self._model = model
        self._options = options
        self._precision = precision
        self._journal = journal
        self._remark = remark
        self._default = binding_bench.default_options(options, threads.generation, threads.prompt)
        longest = max(length for point in points for length in (point.tokens, point.depth_tokens))
        self._matching = binding_bench.matching_options(options, self._default, longest)
        self._taken: dict[Point, list[tuple[Timing, ...]]] = {point: [] for point in points}
        self._rounds = 0
        self._works = True

    @property
    def done_count(self) -> int:
        """Points that need no more."""
        return len(self._taken) - len(self._wanted()) if self._works else 0

    def take(self) -> bool:
        """A batch of each point that is not settled. Returns whether there was any to take."""
        wanted = self._wanted()
        if not (self._works and wanted):
            return False
        try:
            found = self._run(wanted, self._default, self._rounds)
        except (ToolFailed, ToolchainProblem) as error:
            # It is done without then: llama-bench's figures are worth having.
            self._works = False
            last = error.why.splitlines()[-1:] or [error.what]
            self._remark(f"llama-cpp-python does not run the model: {last[0].strip().rstrip('.')}.")
            return True
        for point, timings in found.items():
            self._taken[point].append(timings)
        self._rounds += 1
        return True

    def figures(self, expected: Mapping[Point, Rate], *, explore: bool) -> dict[Point, BindingFigure]:
        """What was found of each point of which llama-bench's rate is known. ``explore``: look into gaps by
        llama-bench's settings."""
        found = {
            point: binding_rate(point.tokens, batches)
            for point, batches in self._taken.items()
            if batches and point in expected
        }
        doubtful = [point for point, own in found.items() if differs_inside(expected[point], own)]
        matched = self._explore(doubtful) if explore and doubtful and self._matching != self._default else {}
        noise = pooled_deviation(list(expected.values()))
        return {
            point: BindingFigure(
                speed=own,
                ratio=own.rate.median_tokens_per_s / expected[point].median_tokens_per_s,
                options=self._default,
                matched=matched.get(point),
                explanation=explain(
                    expected[point], own, self._default, matched.get(point), self._matching, noise
                ),
            )
            for point, own in found.items()
        }

    def _wanted(self) -> dict[Point, int]:
        return batches_wanted(
            self._precision,
            {
                point: [[timing.total_ns for timing in batch] for batch in batches]
                for point, batches in self._taken.items()
            },
        )

    def _explore(self, points: Sequence[Point]) -> dict[Point, BindingRate]:
        """The figures once more, with llama-bench's settings; a remark instead when that fails."""
        name = f"the binding's gap, {self._model.name}"
        batches = []
        try:
            for index in range(2):
                self._session.listener(Step(name, index, 2, "runs"))
                asked = dict.fromkeys(points, self._precision.batch)
                batches.append(self._run(asked, self._matching, index))
        except (ToolFailed, ToolchainProblem) as error:
            self._remark(f"The gap could not be looked into: {error.what}")
            return {}
        self._session.listener(Step(name, 2, 2, "runs"))
        return {point: binding_rate(point.tokens, [batch[point] for batch in batches]) for point in points}

    def _run(
        self, repetitions: Mapping[Point, int], llama_options: dict[str, Any], batch: int
    ) -> dict[Point, tuple[Timing, ...]]:
        tasks = [
            Task(point.test, point.tokens, point.depth_tokens, count) for point, count in repetitions.items()
        ]
        found = self._journal.once(
            {
                "tasks": [asdict(task) for task in tasks],
                "cache": [self._options.type_k, self._options.type_v],
                "binding": llama_options,
                "batch": batch,
            },
            tuple[tuple[Timing, ...], ...],
            lambda: binding_bench.run(
                self._session.toolchain, self._model, tasks, self._options, llama_options
            ),
        )
        return dict(zip(repetitions, found, strict=True))


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
