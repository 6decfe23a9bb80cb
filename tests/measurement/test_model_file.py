"""What a measured file is called."""

from __future__ import annotations

from pathlib import Path

from ggq.measurement.model_file import Subject, distinct


def named(path: str, kind: str | None, digest: str) -> Subject:
    return Subject(
        kind or Path(path).stem, Path(path).name, digest, 1, 4.5, 1, "llama", 512, kind, path=Path(path)
    )


def test_a_file_that_is_named_twice_is_one() -> None:
    one = named("models/a-Q4_K_M.gguf", "Q4_K_M", "00")
    again = named(str(Path("models/a-Q4_K_M.gguf").absolute()), "Q4_K_M", "00")
    assert len(distinct([one, again])) == 1


def test_files_of_one_preset_are_told_apart_by_their_names() -> None:
    found = distinct([named("a-Q4_0.gguf", "Q4_0", "00"), named("b-Q4_0.gguf", "Q4_0", "11")])
    assert [it.name for it in found] == ["a-Q4_0", "b-Q4_0"]


def test_files_of_one_name_are_told_apart_by_their_digests() -> None:
    found = distinct([named("x/a-Q4_0.gguf", "Q4_0", "0" * 64), named("y/a-Q4_0.gguf", "Q4_0", "1" * 64)])
    assert [it.name for it in found] == ["a-Q4_0 00000000", "a-Q4_0 11111111"]
