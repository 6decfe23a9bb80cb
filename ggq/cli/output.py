"""The one output object: data on stdout, everything else on stderr, bars only for people."""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import click

from ggq.errors import GgqError
from ggq.progress import Event, Listener, Notice

_LEAST_COLUMN = 8  # of a text that folds


class Output:
    """How a command speaks. ``json``: one JSON value on stdout and no bars; ``quiet``: results only;
    ``verbose``: what is decided, too."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json = json
        self.is_quiet = quiet
        self.is_verbose = verbose
        self._bars: _Bars | None = None

    def result(self, value: Any) -> None:
        """The command's result for a program: printed as JSON with ``--json``, otherwise not at all."""
        if self.as_json:
            # A letter that the stream lacks becomes JSON's own escape (click makes UTF-8 of ASCII).
            as_it_is = codecs.lookup(sys.stdout.encoding or "utf-8").name in ("utf-8", "ascii")
            _say(_escaped(json.dumps(plain(value), indent=2, ensure_ascii=not as_it_is)))

    def text(self, line: str = "") -> None:
        """A line of the result, for a person."""
        if not self.as_json:
            _say(clean(line))

    def stream(self, piece: str) -> None:
        """A piece of a text that is still being made, for a person: at once, and without an end of line."""
        if not self.as_json:
            _say(clean(piece), line_end=False)
            sys.stdout.flush()

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        right: Sequence[int] = (),
        *,
        compact: bool = False,
    ) -> None:
        """A table for a person. ``right``: the indices of columns with numbers. Texts fold to the terminal;
        numbers never do: where they need more room, the lines are longer.

        ``compact``: one space between columns, and only the first one may fold.
        """
        if self.as_json:
            return
        from rich import box
        from rich.console import Console
        from rich.measure import Measurement
        from rich.table import Table

        rows = [[clean(cell) for cell in row] for row in rows]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        table.padding = 0 if compact else (0, 1)
        for index, column in enumerate(columns):
            justify: Literal["left", "right"] = "right" if index in right else "left"
            whole = index in right or (compact and index > 0)
            longest = max((len(row[index]) for row in rows), default=0)
            table.add_column(
                column,
                justify=justify,
                overflow="fold",
                no_wrap=whole,
                min_width=longest if whole else min(longest, _LEAST_COLUMN) if compact else None,
            )
        for row in rows:
            table.add_row(*row)
        # Into a pipe a table keeps its natural width; on a terminal it is folded to fit.
        console = Console(
            file=sys.stdout,
            width=None if sys.stdout.isatty() else 200,
            highlight=False,
            markup=False,
            emoji=False,
        )
        if right or compact:
            least = Measurement.get(console, console.options.update(width=1000), table).minimum
            console.width = max(console.width, least)
        console.print(table, soft_wrap=False)

    def fields(self, pairs: Sequence[tuple[str, str]]) -> None:
        """``name  value`` lines, aligned; on a terminal long values go on below themselves."""
        width = max((len(name) for name, _ in pairs), default=0) + 2
        for name, value in pairs:
            self.text(f"{name:<{width}}" + _wrapped(value, width))

    def paragraph(self, text: str, indent: int = 0) -> None:
        """A sentence or more of the result, folded to the terminal."""
        self.text(" " * indent + _wrapped(text, indent))

    def info(self, line: str) -> None:
        """A remark for a person, on stderr."""
        if not (self.is_quiet or self.as_json):
            _say(clean(line), err=True)

    def warning(self, line: str) -> None:
        """A warning, on stderr, in every mode."""
        _say(_styled("warning: ", fg="yellow") + clean(line), err=True)

    def echo(self, line: str) -> None:
        """A line of a tool's, on stderr, in every mode (``-v``)."""
        _say(clean(line), err=True)

    def hint(self, line: str) -> None:
        """The next command to type."""
        self.info(line)

    def error(self, error: GgqError) -> None:
        """Three lines on stderr; with ``--json`` also an object on stdout."""
        _say(_styled("error: ", fg="red", bold=True) + clean(error.what), err=True)
        if error.why:
            _say(clean(error.why), err=True)
        if error.next_step:
            _say(_styled("next: ", bold=True) + clean(error.next_step), err=True)
        self.result(as_json(error))

    @contextmanager
    def progress(self) -> Iterator[Listener]:
        """A listener that draws a bar per step on stderr (none with ``--json``, ``-q`` or into a pipe)."""
        self._bars = bars = _Bars(self)
        try:
            yield bars
        finally:
            self._bars = None
            bars.close()

    def listen(self, event: Event) -> None:
        """The listener of a session: bars within ``progress``, remarks at any time."""
        if self._bars is not None:
            self._bars(event)
        elif isinstance(event, Notice):
            self.notice(event)

    def notice(self, notice: Notice) -> None:
        """A remark or a warning of the work's."""
        (self.warning if notice.level == "warning" else self.info)(notice.text)


# What steers a terminal: control characters but for the end of a line and the tabulator (escape sequences
# begin with one), and the marks that turn the direction of a text. JSON has its own escapes for the first
# 32; the others only ever stand in its strings.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """A text as a terminal may see it, whoever wrote it: what would steer the terminal is spelled out."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def _escaped(text: str) -> str:
    """A JSON text, the same for who reads it, with escapes for what would steer a terminal."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _say(text: str, *, err: bool = False, line_end: bool = True) -> None:
    """The one place where ggq writes to a terminal; bars and tables clean what they draw."""
    click.echo(text, err=err, nl=line_end)


def as_json(error: GgqError) -> dict[str, dict[str, str]]:
    """An error as a program reads it."""
    return {
        "error": {
            "kind": type(error).__name__,
            "what": error.what,
            "why": error.why,
            "next_step": error.next_step,
        }
    }


def _styled(text: str, **style: Any) -> str:
    """As click's, but plain with NO_COLOR (https://no-color.org), which click does not look at."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


def _wrapped(text: str, indent: int) -> str:
    """A text folded to the terminal, its later lines indented; as it is into a pipe."""
    room = shutil.get_terminal_size().columns - indent
    if not sys.stdout.isatty() or len(text) <= room:
        return text
    lines = textwrap.wrap(text, max(room, 20), break_on_hyphens=False)
    return ("\n" + " " * indent).join(lines)


class _Bars:
    """One tqdm bar at a time: the step that spoke last. A finished bar stays as a line."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._visible = not (output.as_json or output.is_quiet) and sys.stderr.isatty()
        self._bars: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self._notice(event)
        elif self._visible:
            self._draw(event.name, event.done, event.total, event.unit)

    def _notice(self, notice: Notice) -> None:
        if not self._bars:
            self._output.notice(notice)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            self._output.notice(notice)

    def _draw(self, name: str, done: float, total: float | None, unit: str) -> None:
        from tqdm import tqdm

        bar = self._bars.get(name)
        if bar is None:
            scaled = unit == "B"
            bar = self._bars[name] = tqdm(
                desc=clean(name),
                total=total,
                unit=unit if scaled else f" {unit}",
                unit_scale=scaled,
                dynamic_ncols=True,
                file=sys.stderr,
                leave=True,
                mininterval=0.1,
            )
        if total is not None and bar.total != total:
            bar.total = total
        bar.update(done - bar.n)
        if total is not None and done >= total:
            bar.close()
            del self._bars[name]

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()


def plain(value: Any) -> Any:
    """A value as JSON can hold it: dataclasses become objects, paths and enums strings, infinities null, and
    what is no character (in the name of a file, a header) a question mark."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [it.name for it in dataclasses.fields(value) if not it.metadata.get("internal")]
        return {name: plain(getattr(value, name)) for name in shown}
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Path):
        return plain(str(value))
    if isinstance(value, Enum):
        return plain(value.value)
    return value


def human_seconds(seconds: float) -> str:
    """``3725`` -> ``1 h 02 min``; ``75`` -> ``1 min 15 s``; ``7.3`` -> ``7.3 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return time.strftime("%-M min %S s", time.gmtime(seconds))
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
