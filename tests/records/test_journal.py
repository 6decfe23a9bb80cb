"""The journal gives back what was put into it, whatever happened to its file in between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ggq.records.journal import Journal


@dataclass(frozen=True)
class Part:
    name: str
    size: float | None


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    one: Part | None
    sizes: tuple[tuple[int, ...], ...]


WHOLE = Whole((Part("a", 0.1), Part("b", None)), Part("c", 3.0), ((1, 2), ()))


def test_what_was_measured_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.put({"what": "whole"}, WHOLE)
    journal.put({"what": "two"}, (WHOLE, WHOLE))
    for reader in (journal, Journal(path)):
        assert reader.get({"what": "whole"}, Whole) == WHOLE
        assert reader.get({"what": "two"}, tuple[Whole, ...]) == (WHOLE, WHOLE)
        assert reader.get({"what": "else"}, Whole) is None
    journal.close()
    assert not path.exists()


def test_once_is_measured_once(tmp_path: Path) -> None:
    def again() -> Part:
        pytest.fail("measured again")

    part = Part("a", 1.0)
    assert Journal(tmp_path / "journal").once({"part": 1}, Part, lambda: part) == part
    assert Journal(tmp_path / "journal").once({"part": 1}, Part, again) == part


def test_a_journal_about_something_shares_the_file(tmp_path: Path) -> None:
    whole = Journal(tmp_path / "journal")
    one, other = whole.about({"model": "one"}), whole.about({"model": "other"})
    one.put({"n": 1}, 1)
    other.put({"n": 1}, 2)
    assert (one.get({"n": 1}, int), other.get({"n": 1}, int), whole.get({"n": 1}, int)) == (1, 2, None)
    assert Journal(tmp_path / "journal").get({"n": 1, "model": "other"}, int) == 2


def test_lines_that_were_cut_short_or_are_of_another_form_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.put({"n": 1}, Part("a", 1.0))
    with path.open("a") as stream:
        stream.write('{"key": "cut sh')
    # The same process, as after a disk that was full for a while.
    journal.put({"n": 2}, Part("b", 2.0))
    journal.put({"n": 3}, {"name": "c", "width": 3})
    journal.put({"n": 4}, True)
    read = Journal(path)
    assert [read.get({"n": n}, Part) for n in (1, 2, 3, 4)] == [Part("a", 1.0), Part("b", 2.0), None, None]
