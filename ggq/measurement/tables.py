"""Tables of what was measured: for a terminal of 80 columns, for a page in Markdown, and as CSV.

A figure is shown as far as its standard error lets it be known: to the error's first digit, or its second
where the error begins with a small one (below 3.55, as the Particle Data Group rounds). Perplexities are
shown to four digits all the same: those of one text err together, and differ by less than their errors.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ggq.llamacpp.perplexity import Estimate
from ggq.measurement.summary import Row
from ggq.system.files import human_bytes

MISSING = "-"
# From here on an absolute error would take more room than the table has.
_MANY = 10_000
_UNITS = ("B", "kB", "MB", "GB", "TB")


def printable(name: str) -> str:
    """A name from a file, without what could command a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


# --- figures ---------------------------------------------------------------------------------------------


def plus_minus(estimate: Estimate | None, decimals: int = 3) -> str:
    """``6.234±.017``, ``57.2±.9``, ``12350±1%``: at most four digits and so many ``decimals``, and never an
    error smaller than it is."""
    if estimate is None:
        return MISSING
    value, error = estimate.value, estimate.standard_error
    finest = max(_exponent(value) - 3, -decimals)
    if not error:
        return _number(value, finest)
    if abs(value) >= _MANY:
        return relative(estimate, digits=4)
    place = max(_last_place(error), finest)
    return f"{_number(value, place)}±{_number(max(error, 10.0**place), place).removeprefix('0')}"


def perplexity(estimate: Estimate | None) -> str:
    """``6.234±.037``, ``43.54±6.5``: four digits of the value, two of the error."""
    if estimate is None:
        return MISSING
    value, error = estimate.value, estimate.standard_error
    if abs(value) >= _MANY:
        return relative(estimate, digits=4)
    text = _number(value, _exponent(value) - 3)
    return f"{text}±{_number(error, _exponent(error) - 1).removeprefix('0')}" if error else text


def relative(estimate: Estimate | None, digits: int = 3) -> str:
    """``0.0104±5%``, ``1.81e-4±4%``: at most so many ``digits``; an error below 1 % is shown as 1 %."""
    if estimate is None:
        return MISSING
    value, error = estimate.value, estimate.standard_error
    finest = _exponent(value) - digits + 1
    if not error or not value:
        return _number(value, finest)
    text = _number(value, max(_last_place(error), finest))
    return f"{text}±{max(1.0, 100 * error / abs(value)):.0f}%"


def percent(share: Estimate | None) -> str:
    """``0.9871`` -> ``98.7``: as many digits as the error allows, to one decimal, without the error."""
    if share is None:
        return MISSING
    place = -1 if not share.standard_error else max(_last_place(100 * share.standard_error), -1)
    return _number(100 * share.value, place)


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0


def _last_place(error: float) -> int:
    """The power of ten to which a figure with this error is known."""
    exponent = _exponent(error)
    return exponent - 1 if error / 10.0**exponent < 3.55 else exponent


def _number(value: float, place: int) -> str:
    """Rounded to a power of ten; very small and large ones as ``1.81e-4``."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{max(0, _exponent(value) - place)}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{round(value, -place):.{max(0, -place)}f}"


# --- the terminal ----------------------------------------------------------------------------------------

Table = tuple[list[str], list[list[str]], list[int]]


def table(rows: Sequence[Row]) -> Table:
    """Columns, rows, and which columns hold numbers, as ``Output.table`` takes them with ``compact``.

    It fits 80 columns with presets' names; columns for which nothing was measured are left out. Rows are
    those of one machine: there is no room to say which.
    """
    columns = [
        ("preset", [printable(row.name) for row in rows]),
        _sizes("size", [row.file_bytes for row in rows]),
        ("bpw", [f"{row.bits_per_weight:.{1 if row.bits_per_weight >= 9.995 else 2}f}" for row in rows]),
        ("PPL", [perplexity(row.perplexity) for row in rows]),
        ("KLD", [relative(row.mean_kld) for row in rows]),
        ("top-1\n%", [percent(row.same_top) for row in rows]),
        ("prompt\nt/s", [plus_minus(row.prompt_tokens_per_s, 2) for row in rows]),
        ("generate\nt/s", [plus_minus(row.generation_tokens_per_s, 2) for row in rows]),
        _sizes("RAM", [row.ram_bytes for row in rows]),
        _sizes("VRAM", [row.vram_bytes for row in rows]),
    ]
    shown = [(name, cells) for name, cells in columns if set(cells) != {MISSING}]
    names = [name for name, _ in shown]
    return names, [list(cells) for cells in zip(*(cells for _, cells in shown), strict=True)], [
        *range(1, len(names))
    ]  # fmt: skip


def _sizes(name: str, counts: Sequence[int | None]) -> tuple[str, list[str]]:
    """A column in the unit of its greatest value, to three digits."""
    known = [count for count in counts if count is not None]
    power = min(_exponent(max(known, default=0) * 1.0005) // 3, len(_UNITS) - 1)
    cells = [MISSING if count is None else _three_digits(count / 1000**power) for count in counts]
    return f"{name}\n{_UNITS[power]}", cells


def _three_digits(value: float) -> str:
    return _number(value, max(_exponent(value * 1.0005) - 2, -3)) if value >= 1e-3 else f"{value:.3f}"


# --- pages and programs ----------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """A table as GitHub shows it, with standard errors; of several machines, with a column for their ids.
    Without a newline at its end."""
    several = len({row.environment_id for row in rows}) > 1
    columns: list[tuple[str, list[str]]] = [
        ("preset", [_escaped(row.name) for row in rows]),
        ("machine", [_escaped(row.environment_id) if several else "" for row in rows]),
        ("size", [human_bytes(row.file_bytes) for row in rows]),
        ("bpw", [f"{row.bits_per_weight:.2f}" for row in rows]),
        ("PPL", [_spelled(row.perplexity, digits=4) for row in rows]),
        ("KLD, nats", [_spelled(row.mean_kld) for row in rows]),
        ("top-1, %", [_spelled(row.same_top, 100) for row in rows]),
        ("prompt, t/s", [_spelled(row.prompt_tokens_per_s) for row in rows]),
        ("generation, t/s", [_spelled(row.generation_tokens_per_s) for row in rows]),
        ("RAM", [_bytes(row.ram_bytes) for row in rows]),
        ("VRAM", [_bytes(row.vram_bytes) for row in rows]),
    ]
    shown = [(name, cells) for name, cells in columns if any(cells)]
    lines = [
        [name for name, _ in shown],
        ["---" if name in ("preset", "machine") else "---:" for name, _ in shown],
        *zip(*(cells for _, cells in shown), strict=True),
    ]
    return "\n".join(f"| {' | '.join(cell or MISSING for cell in line)} |" for line in lines)


def _spelled(estimate: Estimate | None, scale: int = 1, digits: int = 0) -> str:
    """``57.2 ± 0.9``, ``12340 ± 120``, ``0.00018 ± 0.00001``: never an exponent, at least so many ``digits``;
    empty: not measured."""
    if estimate is None:
        return ""
    value, error = scale * estimate.value, scale * (estimate.standard_error or 0)
    place = _exponent(value) - (digits or 4) + 1
    if error:
        place = min(_last_place(error), place) if digits else _last_place(error)
    decimals = max(0, -place)
    text = f"{round(value, -place):.{decimals}f}"
    return f"{text} ± {round(error, -place):.{decimals}f}" if error else text


def _bytes(count: int | None) -> str:
    return "" if count is None else human_bytes(count)


def _escaped(name: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\|`*<[" else letter for letter in printable(name))


@dataclass(frozen=True)
class _Field:
    """A column of the CSV: its name with the unit, and its value in a row; None: an empty cell."""

    name: str
    of: Callable[[Row], object]


def _with_error(name: str, of: Callable[[Row], Estimate | None]) -> list[_Field]:
    return [
        _Field(name, lambda row: None if (found := of(row)) is None else found.value),
        _Field(
            f"{name}_standard_error", lambda row: None if (found := of(row)) is None else found.standard_error
        ),
    ]


_FIELDS = (
    _Field("preset", lambda row: row.name),
    _Field("file_name", lambda row: row.file_name),
    _Field("sha256", lambda row: row.sha256),
    _Field("environment_id", lambda row: row.environment_id),
    _Field("is_base", lambda row: str(row.is_base).lower()),
    _Field("file_bytes", lambda row: row.file_bytes),
    _Field("bits_per_weight", lambda row: row.bits_per_weight),
    *_with_error("perplexity", lambda row: row.perplexity),
    *_with_error("mean_kld_nats", lambda row: row.mean_kld),
    *_with_error("same_top_share", lambda row: row.same_top),
    *_with_error("prompt_tokens_per_s", lambda row: row.prompt_tokens_per_s),
    *_with_error("generation_tokens_per_s", lambda row: row.generation_tokens_per_s),
    _Field("ram_bytes", lambda row: row.ram_bytes),
    _Field("vram_bytes", lambda row: row.vram_bytes),
)


def csv_text(rows: Sequence[Row]) -> str:
    """All columns, always, in full precision; an empty cell was not measured. Without a newline at its
    end."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([field.name for field in _FIELDS])
    writer.writerows([field.of(row) for field in _FIELDS] for row in rows)
    return stream.getvalue().removesuffix("\n")
