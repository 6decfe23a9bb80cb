"""The pin is one file, and says everything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggq.errors import ToolchainProblem
from ggq.llamacpp import pin as pins
from ggq.system import package_data as resources


@pytest.fixture(autouse=True)
def fresh_cache() -> Iterator[None]:
    pins.pin.cache_clear()
    yield
    pins.pin.cache_clear()


def test_the_pin_of_this_checkout() -> None:
    pin = pins.pin()
    assert pin.package == "llama-cpp-python"
    assert re.fullmatch(r"\d+\.\d+\.\d+", pin.version)
    assert re.fullmatch(r"[0-9a-f]{64}", pin.sha256)
    assert re.fullmatch(r"[0-9a-f]{7,40}", pin.commit)
    assert pin.file.is_file() and pins.cmake_hook().is_file()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# commit: 0c1e57098\nllama-cpp-python==0.3.36\n",  # no digest
        "llama-cpp-python==0.3.36 \\\n    --hash=sha256:" + "0" * 64,  # no commit
        "# commit: main\nllama-cpp-python==0.3.36 --hash=sha256:" + "0" * 64,
        "# commit: 0c1e57098\nllama-cpp-python==0.3.36 --hash=sha256:" + "0" * 63,
    ],
)
def test_a_pin_that_says_too_little_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(text)
    monkeypatch.setattr(resources, "data", lambda *parts: file)
    with pytest.raises(ToolchainProblem, match="cannot be read"):
        pins.pin()


def test_a_missing_pin_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "data", lambda *parts: tmp_path / "absent")
    with pytest.raises(ToolchainProblem, match="is missing"):
        pins.pin()
