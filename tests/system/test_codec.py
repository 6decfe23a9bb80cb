"""What is saved comes back as it was, and what is not of its class is told with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest

from ggq.errors import GgqError, OutputProblem, UsageProblem
from ggq.system import codec
from ggq.system.codec import Inlined, LeftOutIfDefault


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Part:
    name: str
    count: int
    share: float | None = None


@dataclass(frozen=True)
class Whole:
    path: Path
    colour: Colour
    parts: tuple[Part, ...]
    pair: tuple[int, int]
    named: Mapping[str, Part]
    options: Mapping[str, Any] = field(default_factory=dict)
    value: str | int | float | bool | None = None


WHOLE = Whole(Path("a/b"), Colour.RED, (Part("x", 1, 2.5), Part("y", 2)), (3, 4), {"z": Part("z", 5)})
PLAIN: dict[str, Any] = {
    "path": "a/b",
    "colour": "red",
    "parts": [{"name": "x", "count": 1, "share": 2.5}, {"name": "y", "count": 2, "share": None}],
    "pair": [3, 4],
    "named": {"z": {"name": "z", "count": 5, "share": None}},
    "options": {},
    "value": None,
}


def test_it_comes_back_as_it_was() -> None:
    assert json.loads(json.dumps(codec.encode(WHOLE))) == PLAIN
    assert codec.decode(Whole, PLAIN) == WHOLE


@pytest.mark.parametrize("value", ["text", "", 0, -1, 1 << 70, 0.5, 1e300, True, False, None])
def test_a_value_of_several_kinds_keeps_its_kind(value: str | int | float | bool | None) -> None:
    found = codec.decode(Whole, json.loads(json.dumps({**PLAIN, "value": value}))).value
    assert found == value and type(found) is type(value)


def test_what_is_new_is_passed_over_and_what_is_missing_has_its_default() -> None:
    less = {key: value for key, value in PLAIN.items() if key not in ("options", "value")}
    assert codec.decode(Whole, {**less, "of a later version": 1}) == WHOLE
    assert codec.decode(Part, {"name": "x", "count": 1}) == Part("x", 1)


def test_a_whole_number_is_a_number() -> None:
    found = codec.decode(Part, {"name": "x", "count": 1, "share": 2}).share
    assert found == 2 and isinstance(found, float)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"path": 1}, "a path expected, not '1' at path"),
        ({"colour": "blue"}, "blue"),
        ({"parts": "xy"}, "a list expected, not 'xy' at parts"),
        ({"parts": [{"name": "x", "count": True}]}, "a whole number expected, not 'True' at parts[0].count"),
        ({"parts": [{"name": "x", "count": "1"}]}, "a whole number expected, not '1' at parts[0].count"),
        ({"parts": [PLAIN["parts"][0], {"name": "y"}]}, "nothing at parts[1].count"),
        ({"parts": [{"name": 1, "count": 1}]}, "a text expected, not '1' at parts[0].name"),
        ({"pair": [1]}, "pair"),
        ({"named": []}, "an object expected, not '[]' at named"),
        ({"named": {"z": 1}}, "an object expected, not '1' at named['z']"),
        ({"value": [1]}, "value"),
    ],
)
def test_what_is_of_another_kind_is_told_with_its_place(change: dict[str, Any], said: str) -> None:
    with pytest.raises(codec.WrongContent) as caught:
        codec.decode(Whole, PLAIN | change)
    assert said in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "text", 1])
def test_no_object_at_all(value: Any) -> None:
    with pytest.raises(codec.WrongContent, match=r"^an object expected"):
        codec.decode(Whole, value)


def test_a_file_is_read_or_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "whole.json"
    file.write_text(json.dumps(PLAIN))
    assert codec.read(Whole, file, next_step="Remove it.") == WHOLE
    with pytest.raises(FileNotFoundError):
        codec.read(Whole, tmp_path / "none.json", next_step="Remove it.")
    file.write_text("{")
    with pytest.raises(OutputProblem, match="cannot be read") as unread:
        codec.read(Whole, file, next_step="Remove it.")
    assert unread.value.next_step == "Remove it."
    file.write_text(json.dumps(PLAIN | {"pair": 1}))
    with pytest.raises(UsageProblem, match="is not what this ggq writes there") as wrong:
        codec.read(Whole, file, next_step="Remove it.", problem=UsageProblem)
    assert "at pair" in wrong.value.why


@dataclass(frozen=True)
class Common:
    text: str
    context: int


@dataclass(frozen=True)
class Marked:
    at: str
    common: Annotated[Common, Inlined()]
    part: Annotated[Part | None, Inlined(with_key="count")] = None
    rest: Annotated[tuple[int, ...], LeftOutIfDefault()] = ()
    error: GgqError | None = None


def test_an_inlined_field_stands_among_its_owners() -> None:
    whole = Marked("now", Common("a", 3), Part("x", 1), (4,), UsageProblem("what", "why", "next"))
    error = {"what": "what", "why": "why", "next_step": "next"}
    plain = {"at": "now", "text": "a", "context": 3, "name": "x", "count": 1, "share": None, "rest": [4],
             "error": error}  # fmt: skip
    assert json.loads(json.dumps(codec.encode(whole))) == plain
    found = codec.decode(Marked, plain)
    assert (found.common, found.part, found.rest) == (whole.common, whole.part, whole.rest)
    assert found.error is not None and str(found.error) == "what why next"


def test_what_is_left_out_is_at_its_default() -> None:
    plain = {"at": "now", "text": "a", "context": 3, "error": None}
    assert codec.encode(Marked("now", Common("a", 3))) == plain
    assert codec.decode(Marked, plain) == Marked("now", Common("a", 3))


@pytest.mark.parametrize(
    ("changes", "words"), [({"context": "3"}, "context"), ({"text": None}, "text"), ({"count": 1}, "name")]
)
def test_a_fault_in_an_inlined_field_has_its_place(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(codec.WrongContent, match=words):
        codec.decode(Marked, {"at": "now", "text": "a", "context": 3, **changes})
    with pytest.raises(codec.WrongContent, match="an object expected"):
        codec.decode(Marked, [])


@dataclass(frozen=True)
class Bound:
    end: float


def test_a_form_of_its_own_reads_what_earlier_versions_wrote() -> None:
    codec.form(
        Bound,
        written=lambda raw: {"end": None if raw["end"] == math.inf else raw["end"]},
        read=lambda raw: {"end": math.inf if raw["end"] is None else raw["end"]} if raw else {"end": 0.0},
    )
    assert codec.encode(Bound(math.inf)) == {"end": None}
    assert [codec.decode(Bound, it) for it in ({"end": None}, {"end": 1.5}, None)] == [
        Bound(math.inf), Bound(1.5), Bound(0.0),
    ]  # fmt: skip
