"""``ggq bench compare``: two records side by side, and which differences are more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ggq.cli.bench.options import give
from ggq.cli.options import output_options
from ggq.cli.output import Output
from ggq.errors import UsageProblem
from ggq.llamacpp.perplexity import Estimate
from ggq.measurement import tables
from ggq.measurement.compare import Difference, Match, machines, unmatched
from ggq.measurement.compare import compare as compare_entries
from ggq.measurement.figures import Figure
from ggq.measurement.record import Entry, load
from ggq.system.files import human_bytes

_NAMES = {
    Figure.FILE_BYTES: "file size",
    Figure.PERPLEXITY: "PPL",
    Figure.MEAN_KLD: "KLD",
    Figure.SAME_TOP: "top-1 %",
    Figure.PROMPT_TOKENS_PER_S: "prompt t/s",
    Figure.GENERATION_TOKENS_PER_S: "generate t/s",
    Figure.RAM_BYTES: "RAM",
    Figure.VRAM_BYTES: "VRAM",
}
_BEYOND_NOISE = {True: "yes", False: "no", None: tables.MISSING}


@click.command("compare", short_help="Two records side by side.")
@click.argument("one", metavar="A", type=click.Path(path_type=Path))
@click.argument("other", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--machine", "wanted", multiple=True, metavar="ID",
    help="Which machine's entries, of a record that holds several; twice: A's, then B's.",
)  # fmt: skip
@output_options
def compare(one: Path, other: Path, wanted: tuple[str, ...], out: Output) -> None:
    """Compare the records A and B (files, or folders with a ggq-bench.json): B's figures as ratios to A's.

    Files are matched by digest, else by name. A difference is beyond noise at 95 %: of those without a cause
    one in twenty is, too.

    \b
    ggq bench compare before/ggq-bench.json after/ggq-bench.json
    ggq bench compare laptop/ desktop/
    ggq bench compare quants/ quants/ --machine 90ee --machine 41c7
    """
    if len(wanted) > 2:
        raise UsageProblem("There are two records, and more machines.", "", "Give --machine once or twice.")
    records = (load(one), load(other))
    chosen = machines(*records, wanted)
    a, b = (
        [entry for entry in entries if entry.environment_id == machine]
        for entries, machine in zip(records, chosen, strict=True)
    )
    differences = compare_entries(a, b)
    only = unmatched(a, b)
    if not differences:
        raise UsageProblem(
            "The two records have no file in common.",
            f"A holds {_listed(a)}; B holds {_listed(b)}.",
            "Compare records of the same files, or of files with the same names.",
        )
    sides = [_described(path, entries[0]) for path, entries in ((one, a), (other, b))]
    for side, entries, machine in zip("AB", records, chosen, strict=True):
        count = len({entry.environment_id for entry in entries})
        if count > 1 and not wanted:
            out.info(f"{side} holds {count} machines; this is {machine}. Choose by --machine ID.")
    _show(out, differences, sides, only)
    give(
        out,
        {
            "a": {"record": one, "environment_id": chosen[0], "environment": a[0].environment},
            "b": {"record": other, "environment_id": chosen[1], "environment": b[0].environment},
            "differences": differences,
            "only_in_a": [entry.model for entry in only[0]],
            "only_in_b": [entry.model for entry in only[1]],
        },
    )


def _show(
    out: Output,
    differences: Sequence[Difference],
    sides: Sequence[str],
    only: Sequence[Sequence[Entry]],
) -> None:
    out.fields(list(zip("AB", sides, strict=True)))
    out.text()
    # The size of a file that is the same says nothing.
    shown = [it for it in differences if it.figure is not Figure.FILE_BYTES or it.beyond_noise]
    rows = [
        [
            tables.printable(it.name) if index == 0 or it.name != shown[index - 1].name else "",
            _NAMES[it.figure],
            _value(it.figure, it.one),
            _value(it.figure, it.other),
            _ratio(it.ratio),
            _BEYOND_NOISE[it.beyond_noise],
        ]
        for index, it in enumerate(shown)
    ]
    out.table(["preset", "figure", "A", "B", "B / A", "beyond noise"], rows, right=(2, 3, 4))
    out.text()
    for note in dict.fromkeys(it.note for it in shown if it.note):
        noted = [it for it in shown if it.note == note]
        figures = ", ".join(dict.fromkeys(_NAMES[it.figure] for it in noted))
        noted_names = [it.name for it in noted]
        whose = "all" if set(noted_names) == {it.name for it in shown} else _names(noted_names)
        out.paragraph(f"{figures} of {whose}: {tables.printable(note)}.")
    by_name = [it.name for it in differences if it.matched_by is not Match.SHA256]
    if by_name:
        out.paragraph(f"Matched by name, for these files differ: {_names(by_name)}.")
    for side, entries in zip("AB", only, strict=True):
        if entries:
            out.paragraph(f"Only in {side}: {_listed(entries)}.")


def _described(path: Path, entry: Entry) -> str:
    return tables.printable(f"{path}: {entry.environment}, {entry.environment_id}")


def _listed(entries: Sequence[Entry]) -> str:
    return _names([entry.model.name for entry in entries])


def _names(names: Sequence[str]) -> str:
    return ", ".join(tables.printable(name) for name in dict.fromkeys(names))


def _value(figure: Figure, value: Estimate | None) -> str:
    if value is None:
        return tables.MISSING
    if figure is Figure.PERPLEXITY:
        return tables.perplexity(value)
    if figure is Figure.MEAN_KLD:
        return tables.relative(value)
    if figure is Figure.SAME_TOP:
        return tables.percent(value)
    if figure.endswith("_bytes"):
        return human_bytes(value.value)
    return tables.plus_minus(value, 2)


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return tables.MISSING
    return f"×{ratio:.3f}" if ratio < 9.9995 else f"×{ratio:.1f}"
