"""Two records compared with each other: every figure's ratio, and whether the difference is more than noise.

A difference is beyond noise when it is more than t times its standard error, where t is Student's two-sided
95 % quantile at the error's degrees of freedom (12.7 at one, 2.4 at seven, 1.96 at very many): of figures
that differ by chance alone, about one in twenty is called so. Two errors together have the degrees of Welch
(The generalization of "Student's" problem, Biometrika 34, 1947). What the error knows of is the figure's:

- Quality: the choice of the text. Where both were measured on the same excerpts, from eight on, their paired
  differences count, which the text hardly moves; else both figures' own errors, added as independent ones.
- Speed: the spread of repetitions, and of the processes that they were made in, since another sitting differs
  as one process from the next: the standard deviation of the processes' means, where there are several. Two
  or three processes know little of it, so only a difference of several such deviations is beyond noise. What
  changes from day to day (heat, neighbours on the machine, another kernel) no sitting shows of itself.
- Memory is one run's peak: differences up to 1 % or 8 MiB, whichever is more, come and go.
- The size of a file is exact.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from ggq.errors import UsageProblem
from ggq.llamacpp.perplexity import Estimate
from ggq.measurement.record import FILE_NAME, Entry, Record
from ggq.measurement.speed_tests import Point

Figure = Literal[
    "file_bytes", "perplexity", "mean_kld", "same_top", "prompt_tokens_per_s", "generation_tokens_per_s",
    "ram_bytes", "vram_bytes",
]  # fmt: skip
FIGURES: tuple[Figure, ...] = get_args(Figure)
Match = Literal["sha256", "file_name", "name"]

# Student's two-sided 95 % quantiles at 1 to 10 degrees of freedom, and the normal's.
_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL_QUANTILE = 1.960
_ENOUGH_ROUNDS = 8  # for a spread of their differences; as in ggq.measurement.quality
_MEMORY_SHARE, _MEMORY_BYTES = 0.01, 8 << 20

V = TypeVar("V")


@dataclass(frozen=True)
class Difference:
    """One figure of a model in two records; units as in the figure's name (KLD: nats, top-1: a share).

    ``name``: the model's in the first record; ``matched_by``: by what its entries were found to belong
    together, of which only ``sha256`` proves that the files are the same. ``one``, ``other``: None where it
    was not measured. ``ratio``: other to one; None where there is none, or where they cannot be compared.
    ``noise``: what the difference must exceed to be ``beyond_noise``; None: nothing is known of it.
    ``note``: why they cannot be compared, or what else differs.
    """

    name: str
    matched_by: Match
    figure: Figure
    one: Estimate | None
    other: Estimate | None
    ratio: float | None = None
    noise: float | None = None
    beyond_noise: bool | None = None
    note: str = ""


def compare(one: Sequence[Entry], other: Sequence[Entry]) -> tuple[Difference, ...]:
    """Every figure that either record has of the files in both. Entries are of one machine each."""
    return tuple(
        difference
        for left, right, matched_by in _pairs(one, other)
        for figure in FIGURES
        if (difference := _difference(left, right, matched_by, figure)) is not None
    )


def unmatched(one: Sequence[Entry], other: Sequence[Entry]) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """The entries of files that are in the first record only, and in the second only."""
    pairs = _pairs(one, other)
    paired = {entry.key for left, right, _ in pairs for entry in (left, right)}
    return (
        tuple(entry for entry in one if entry.key not in paired),
        tuple(entry for entry in other if entry.key not in paired),
    )


def _pairs(one: Sequence[Entry], other: Sequence[Entry]) -> list[tuple[Entry, Entry, Match]]:
    """By digest; what is left by file name, then by preset, where only one file of either has that."""
    found: dict[int, tuple[Entry, Entry, Match]] = {}
    left, right = list(enumerate(one)), list(other)
    for key in get_args(Match):
        for index, entry in list(left):
            value = entry.model[key]
            mates = [mate for mate in right if mate.model[key] == value]
            if len(mates) == 1 and sum(also.model[key] == value for _, also in left) == 1:
                found[index] = (entry, mates[0], key)
                left.remove((index, entry))
                right.remove(mates[0])
    return [found[index] for index in sorted(found)]


# --- figures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Held:
    """Two values of a figure. ``note``, ``noise``: as in Difference; ``comparable``: whether a ratio says
    anything."""

    one: Estimate | None
    other: Estimate | None
    noise: float | None = None
    note: str = ""
    comparable: bool = True


def _difference(one: Entry, other: Entry, matched_by: Match, figure: Figure) -> Difference | None:
    held = _READERS[figure](one, other)
    if held.one is None and held.other is None:
        return None
    ratio = beyond = noise = None
    if held.one is not None and held.other is not None and held.comparable:
        ratio = held.other.value / held.one.value if held.one.value else None
        noise = held.noise
        beyond = None if noise is None else abs(held.other.value - held.one.value) > noise
    return Difference(
        one.model["name"], matched_by, figure, held.one, held.other, ratio, noise, beyond, held.note
    )


def _size(one: Entry, other: Entry) -> _Held:
    sizes = [Estimate(entry.model["file_bytes"], 0.0) for entry in (one, other)]
    return _Held(sizes[0], sizes[1], noise=0.0)


# --- noise -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Error:
    """A standard error, and the degrees of freedom that it was estimated with."""

    value: float
    freedom: float = math.inf


def _noise(error: _Error | None) -> float | None:
    return None if error is None else _quantile(error.freedom) * error.value


def _independent(one: _Error | None, other: _Error | None) -> _Error | None:
    """The error of a difference of independent figures."""
    if one is None or other is None:
        return None
    error = math.hypot(one.value, other.value)
    if not error:
        return _Error(0.0)
    per_freedom = sum((each.value / error) ** 4 / each.freedom for each in (one, other))
    return _Error(error, 1 / per_freedom if per_freedom else math.inf)


def _quantile(freedom: float) -> float:
    """Student's t, exceeded either way in one case of twenty. Between the published values its logarithm is
    taken for linear in 1/freedom: too high by 3 % at most below two degrees of freedom, by 0.5 % above."""
    nodes = [(0.0, _NORMAL_QUANTILE)]
    nodes += [(1 / count, t) for count, t in reversed(list(enumerate(_QUANTILES, start=1)))]
    for (left, low), (right, high) in itertools.pairwise(nodes):
        if 1 / freedom <= right:
            return float(low * (high / low) ** ((1 / freedom - left) / (right - left)))
    return _QUANTILES[0]


# --- quality ---------------------------------------------------------------------------------------------


def _quality(figure: Literal["perplexity", "mean_kld", "same_top"]) -> Callable[[Entry, Entry], _Held]:
    def held(one: Entry, other: Entry) -> _Held:
        a, b = (entry.measurements.get("quality", {}) for entry in (one, other))
        left, right = _estimate(a.get(figure)), _estimate(b.get(figure))
        if left is None or right is None:
            return _Held(left, right)
        if why_not := _other_ground(a, b, with_base=figure != "perplexity"):
            return _Held(left, right, note=why_not, comparable=False)
        paired = _paired_error(a.get("rounds", ()), b.get("rounds", ()), figure)
        if paired is not None:
            return _Held(left, right, _noise(paired))
        note = f"{a['chunks']} and {b['chunks']} chunks of the text" if a["chunks"] != b["chunks"] else ""
        error = _independent(_text_error(left, a), _text_error(right, b))
        return _Held(left, right, _noise(error), note)

    return held


def _other_ground(one: Mapping[str, Any], other: Mapping[str, Any], *, with_base: bool) -> str:
    """Why two measurements of quality say nothing about each other; empty: they do."""
    if one["text"]["sha256"] != other["text"]["sha256"]:
        a, b = (f"{text['name']} ({text['sha256'][:8]})" for text in (one["text"], other["text"]))
        return f"measured on different texts, {a} and {b}"
    if bool(one.get("parse_special")) != bool(other.get("parse_special")):
        return "measured with and without --parse-special"
    if one["context"] != other["context"]:
        return f"measured with contexts of {one['context']} and {other['context']} tokens"
    if one["text_tokens"] != other["text_tokens"]:
        return f"the text is {one['text_tokens']} tokens to one and {other['text_tokens']} to the other"
    if with_base and one["base"]["sha256"] != other["base"]["sha256"]:
        return f"compared with different bases, {one['base']['name']} and {other['base']['name']}"
    return ""


def _paired_error(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], figure: str
) -> _Error | None:
    """Of the difference, from the differences on each excerpt; None: not the same ones, or too few."""
    excerpts = [[part["excerpt"] for part in rounds] for rounds in (one, other)]
    if len(one) < _ENOUGH_ROUNDS or excerpts[0] != excerpts[1]:
        return None
    values = [[part[figure]["value"] for part in rounds] for rounds in (one, other)]
    if figure != "perplexity":
        return _spread_error([b - a for a, b in zip(*values, strict=True)])
    # Means are of logarithms there; d(exp x) = exp(x) dx.
    logs = [[math.log(value) for value in each] for each in values]
    level = math.exp(statistics.fmean(logs[0] + logs[1]))
    return _spread_error([level * (b - a) for a, b in zip(*logs, strict=True)])


def _spread_error(values: Sequence[float]) -> _Error:
    return _Error(statistics.stdev(values) / math.sqrt(len(values)), len(values) - 1)


def _text_error(figure: Estimate, measurement: Mapping[str, Any]) -> _Error | None:
    """A figure's own error: of enough rounds their spread, of fewer the tool's, over thousands of tokens."""
    if figure.standard_error is None:
        return None
    # A base's entry does not hold its rounds: they were enough to take their spread, or are taken for that.
    count = len(measurement.get("rounds", range(_ENOUGH_ROUNDS)))
    return _Error(figure.standard_error, count - 1 if count >= _ENOUGH_ROUNDS else math.inf)


def _estimate(raw: Mapping[str, Any] | None) -> Estimate | None:
    return Estimate(raw["value"], raw["standard_error"]) if raw else None


# --- speed and memory ------------------------------------------------------------------------------------


def _speed(test: Literal["prompt", "generation"]) -> Callable[[Entry, Entry], _Held]:
    def held(one: Entry, other: Entry) -> _Held:
        a, b = _speeds(one, test), _speeds(other, test)
        mine, theirs, note = _alike(a, b)
        left, right = _median(mine), _median(theirs)
        if mine is None or theirs is None or note:
            return _Held(left, right, note=note, comparable=False)
        error = _independent(_sitting_error(mine["speed"]), _sitting_error(theirs["speed"]))
        return _Held(left, right, _noise(error), _unlike(one, other, mine, theirs))

    return held


def _memory(where: Literal["ram", "vram"]) -> Callable[[Entry, Entry], _Held]:
    def held(one: Entry, other: Entry) -> _Held:
        mine, theirs, note = _alike(_peaks(one, where), _peaks(other, where))
        if mine is None or theirs is None or note:
            left, right = (None if count is None else Estimate(count) for count in (mine, theirs))
            return _Held(left, right, note=note, comparable=False)
        return _Held(Estimate(mine), Estimate(theirs), max(_MEMORY_BYTES, _MEMORY_SHARE * max(mine, theirs)))

    return held


def _alike(one: Mapping[str, V], other: Mapping[str, V]) -> tuple[V | None, V | None, str]:
    """What was measured in the same way, by the words for that way; else the first of each, and a note."""
    common = next((way for way in one if way in other), None)
    if common is not None:
        return one[common], other[common], ""
    a, b = (next(iter(ways), None) for ways in (one, other))
    note = f"measured with {a} and {b}" if a and b else ""
    return one.get(a or ""), other.get(b or ""), note


def _speeds(entry: Entry, test: str) -> dict[str, Mapping[str, Any]]:
    """The figures of a test, the shallowest first, each with the most layers on GPUs."""
    figures = [it for it in entry.measurements.get("speed", {}).get("figures", ()) if it["test"] == test]
    figures.sort(key=lambda figure: (figure["depth_tokens"], -figure["n_gpu_layers"]))
    found: dict[str, Mapping[str, Any]] = {}
    for figure in figures:
        found.setdefault(str(Point(figure["test"], figure["tokens"], figure["depth_tokens"])), figure)
    return found


def _median(figure: Mapping[str, Any] | None) -> Estimate | None:
    if figure is None:
        return None
    share, median = figure["speed"]["relative_standard_error"], figure["speed"]["median_tokens_per_s"]
    return Estimate(median, None if share is None else share * median)


def _sitting_error(rate: Mapping[str, Any]) -> _Error | None:
    """By how much another sitting may differ: the error of the mean over repetitions, or the deviation of the
    processes' means from each other where that is more. None for a single repetition."""
    values = rate["samples_tokens_per_s"]
    if len(values) < 2:
        return None
    samples = iter(values)
    means = [statistics.fmean(next(samples) for _ in range(count)) for count in rate["batches"]]
    repeated = _spread_error(values)
    between = _Error(statistics.stdev(means), len(means) - 1) if len(means) > 1 else repeated
    return max(repeated, between, key=lambda error: error.value)


def _unlike(one: Entry, other: Entry, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """In what else two figures differ."""
    a, b = one.measurements["speed"], other.measurements["speed"]
    words = (
        ("layers on GPUs", mine["n_gpu_layers"], theirs["n_gpu_layers"]),
        ("threads", mine["threads"], theirs["threads"]),
        ("type of the cache", f"{a['type_k']}/{a['type_v']}", f"{b['type_k']}/{b['type_v']}"),
        ("flash attention", a["flash_attention"], b["flash_attention"]),
        ("load mode", a["load_mode"], b["load_mode"]),
    )
    return "; ".join(f"{what}: {this} and {that}" for what, this, that in words if this != that)


def _peaks(entry: Entry, where: str) -> dict[str, int]:
    """Peaks in bytes by what was run."""
    found: dict[str, int] = {}
    memory = entry.measurements.get("memory", {"cells": ()})
    for cell in memory["cells"]:
        run = cell["measured"]
        way = f"context {cell['context_tokens']}, cache {cell['type_k']}/{cell['type_v']}"
        way += f", load mode {cell['load_mode']}, {memory['offload']['n_gpu_layers']} layers on GPUs"
        if run and where == "ram":
            found[way] = run["peaks"]["resident_bytes"]
        elif run and run["gpus"]:
            found[way] = sum(gpu["used_bytes"] for gpu in run["gpus"])
    return found


_READERS: Mapping[Figure, Callable[[Entry, Entry], _Held]] = {
    "file_bytes": _size,
    "perplexity": _quality("perplexity"),
    "mean_kld": _quality("mean_kld"),
    "same_top": _quality("same_top"),
    "prompt_tokens_per_s": _speed("prompt"),
    "generation_tokens_per_s": _speed("generation"),
    "ram_bytes": _memory("ram"),
    "vram_bytes": _memory("vram"),
}


# --- records on the disk ---------------------------------------------------------------------------------


def load(path: Path) -> tuple[Entry, ...]:
    """The entries of a record, or of the one in a folder. Raises UsageProblem where there is none,
    OutputProblem where it is not a record."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UsageProblem(
            f"There is no record {file}.",
            "It is written when something is measured.",
            "Name a record, or measure first with `ggq bench`.",
        )
    entries = Record(file).entries
    if not entries:
        raise UsageProblem(f"{file} holds no measurement.", "", "Measure first with `ggq bench`.")
    return entries


def machines(one: Sequence[Entry], other: Sequence[Entry], asked: Sequence[str] = ()) -> tuple[str, str]:
    """Of which machine (``environment_id``) each record's entries are to be taken.

    ``asked``: the beginning of an id for both records, or one for each. Without: the machine that is in both
    records, else each one's own; of several, where something was measured last. Raises UsageProblem.
    """
    ids = [list(dict.fromkeys(entry.environment_id for entry in entries)) for entries in (one, other)]
    if asked:
        wanted = asked if len(asked) > 1 else [asked[0]] * 2
        return _named(wanted[0], ids[0], ids[1]), _named(wanted[1], ids[1], ids[0])
    common = [machine for machine in ids[0] if machine in ids[1]]
    return _latest(one, common or ids[0]), _latest(other, common or ids[1])


def _named(wanted: str, ids: Sequence[str], elsewhere: Sequence[str]) -> str:
    """The machine that is meant; a record of a single one need not have it, if the other record does."""
    found = [machine for machine in ids if machine.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if not found and len(ids) == 1 and any(machine.startswith(wanted) for machine in elsewhere):
        return ids[0]
    raise UsageProblem(
        f"No single machine of a record is {wanted!r}.",
        f"It holds {', '.join(ids)}.",
        "Give the beginning of one of these ids.",
    )


def _latest(entries: Sequence[Entry], ids: Sequence[str]) -> str:
    times = {
        machine: max(
            (
                measurement["measured_at"]
                for entry in entries
                if entry.environment_id == machine
                for measurement in entry.measurements.values()
            ),
            default="",
        )
        for machine in ids
    }
    return max(ids, key=lambda machine: times[machine])
