"""How work reports on itself: events to a listener. The CLI turns them into bars and lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Step:
    """How far a named piece of work has come. ``unit`` is ``B`` for bytes, else a plural noun."""

    name: str
    done: float
    total: float | None
    unit: str = "B"


@dataclass(frozen=True)
class Notice:
    """One line that a person should see, in the middle of the work."""

    text: str
    level: Literal["info", "warning"] = "info"


Event = Step | Notice
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """The listener that listens to nothing: the default of every function of the API."""
