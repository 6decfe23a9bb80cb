"""Two records compared with each other: every figure's ratio, and whether the difference is more than noise.

A difference is beyond noise when it is more than t times its standard error, where t is Student's two-sided
95 % quantile at the error's degrees of freedom (12.7 at one, 2.4 at seven, 1.96 at very many): of figures
that differ by chance alone, about one in twenty is called so. Two errors together have the degrees of Welch
(The generalization of "Student's" problem, Biometrika 34, 1947). What the error knows of is the figure's:

- Quality: the choice of the text. Only what was measured on the same excerpts is compared. From eight on,
  their paired differences count, which the text hardly moves; else both figures' own errors, added as
  independent.
- Speed: the spread of repetitions, and of the processes that they were made in, since another sitting differs
  as one process from the next: the standard deviation of the processes' means, where there are several. Two
  or three processes know little of it, so only a difference of several such deviations is beyond noise. What
  changes from day to day (heat, neighbours on the machine, another kernel) no sitting shows of itself.
- Memory is one run's peak: differences up to 1 % or 8 MiB, whichever is more, come and go.
- The size of a file is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ggq.errors import UsageProblem
from ggq.llamacpp.perplexity import Estimate
from ggq.measurement.figures import Figure, held
from ggq.measurement.record import Entry


class Match(StrEnum):
    """By what two entries are found to belong together, the surest first."""

    SHA256 = "sha256"
    FILE_NAME = "file_name"
    NAME = "name"


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
        for figure in Figure
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
    for key in Match:
        for index, entry in list(left):
            value = getattr(entry.model, key)
            mates = [mate for mate in right if getattr(mate.model, key) == value]
            if len(mates) == 1 and sum(getattr(also.model, key) == value for _, also in left) == 1:
                found[index] = (entry, mates[0], key)
                left.remove((index, entry))
                right.remove(mates[0])
    return [found[index] for index in sorted(found)]


def _difference(one: Entry, other: Entry, matched_by: Match, figure: Figure) -> Difference | None:
    both = held(figure, one, other)
    if both.one is None and both.other is None:
        return None
    ratio = beyond = noise = None
    if both.one is not None and both.other is not None and both.comparable:
        ratio = both.other.value / both.one.value if both.one.value else None
        noise = both.noise
        beyond = None if noise is None else abs(both.other.value - both.one.value) > noise
    return Difference(
        one.model.name, matched_by, figure, both.one, both.other, ratio, noise, beyond, both.note
    )


# --- machines --------------------------------------------------------------------------------------------


def machines(one: Sequence[Entry], other: Sequence[Entry], asked: Sequence[str] = ()) -> tuple[str, str]:
    """Of which machine (``environment_id``) each record's entries are to be taken.

    ``asked``: the beginning of an id for both records, or one for each. Without: the machine that is in both
    records, else each one's own; of several, where something was measured last. Raises UsageProblem.
    """
    ids = [list(dict.fromkeys(entry.environment_id for entry in entries)) for entries in (one, other)]
    if asked:
        wanted = asked if len(asked) > 1 else [asked[0]] * 2
        return named_machine(wanted[0], ids[0], ids[1]), named_machine(wanted[1], ids[1], ids[0])
    common = [machine for machine in ids[0] if machine in ids[1]]
    return latest_machine(one, common or ids[0]), latest_machine(other, common or ids[1])


def named_machine(wanted: str, ids: Sequence[str], elsewhere: Sequence[str] = ()) -> str:
    """The machine that is meant; a record of a single one need not have it, if the other record does.

    Raises UsageProblem.
    """
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


def latest_machine(entries: Sequence[Entry], ids: Sequence[str]) -> str:
    """Where something was measured last."""

    def latest(machine: str) -> str:
        return max(entry.measurements.latest for entry in entries if entry.environment_id == machine)

    return max(ids, key=latest)
