"""libggq-quants is believed only where it makes what ggml makes. Small libraries stand in for one that makes
something else, and for one that this machine refuses."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggq.errors import ToolFailed
from ggq.gguf import tensor_types
from ggq.llamacpp.ggml_rows import QUICK, Rows, library_file
from ggq.llamacpp.toolchain import Toolchain
from ggq.setup import fast_quants
from ggq.system import hardware, process

pytestmark = pytest.mark.tool

# What other libraries do with rows; 12 is Q4_K, 144 bytes for 256 weights.
NOTHING = "return 0;"
NOISE = (
    "unsigned long size = type == 12 ? count * width / 256 * 144 : 0; memset(made, 0x5a, size); return size;"
)
REFUSED = "raise(SIGILL); return 0;"
SOURCE = """
#include <signal.h>
#include <string.h>
unsigned long ggq_quantize(int type, float * rows, void * made, long count, long width, float * importance) {
    %s
}
"""


@pytest.fixture
def own(toolchain: Toolchain) -> Toolchain:
    """A build that ought to have such a library."""
    if toolchain.build is None or "avx2" not in hardware.instruction_sets():
        pytest.skip("this CPU has no AVX2, or this llama.cpp is not ggq's own build")
    if any("__FMA__" in line for line in process.run(["cc", "-dM", "-E", "-x", "c", os.devnull]).stdout):
        pytest.skip("this system's compiler fuses products with sums, and then there is no libggq-quants")
    return toolchain


def with_library(toolchain: Toolchain, folder: Path, body: str) -> Toolchain:
    """The same ggml, beside another libggq-quants."""
    (folder / "quants.c").write_text(SOURCE % body)
    for file in toolchain.lib_dir.glob("libggml*"):
        (folder / file.name).symlink_to(file)
    process.run(["cc", "-shared", "-fPIC", "-o", library_file(folder, QUICK), folder / "quants.c"])
    return replace(toolchain, lib_dir=folder)


def test_this_builds_library_makes_what_ggml_makes(own: Toolchain) -> None:
    assert fast_quants.proven(own) == fast_quants.TYPES == own.quick_types


@pytest.mark.parametrize("kind", fast_quants.TYPES)
def test_also_of_other_rows(own: Toolchain, kind: str) -> None:
    """Of 0.5 M random weights each, of every shape that the distribution can have."""
    rng = np.random.default_rng(20)
    by_ggml, quick = Rows(own, ()), Rows(own, (kind,))
    width, count = 768, 32
    size = tensor_types.by_name()[kind].row_bytes(width * count)
    for _ in range(20):
        scale, freedom = 10 ** rng.uniform(-6, 3), rng.uniform(0.8, 30)
        values = (scale * rng.standard_t(freedom, (count, width)) + scale * rng.normal()).astype("f4")
        weights = rng.chisquare(rng.uniform(0.3, 4), width).astype("f4") if rng.random() < 0.5 else None
        made = [
            rows.quantize(
                kind,
                memoryview(bytearray(values.tobytes())),
                width,
                None if weights is None else memoryview(bytearray(weights.tobytes())),
                memoryview(bytearray(size)),
            )
            for rows in (by_ggml, quick)
        ]
        assert made[0] == made[1] and any(made[0])


@pytest.mark.parametrize("body", [NOTHING, NOISE])
def test_one_that_makes_something_else_is_not_believed(own: Toolchain, tmp_path: Path, body: str) -> None:
    assert fast_quants.proven(with_library(own, tmp_path, body)) == ()


def test_one_that_the_machine_refuses_is_a_finding(own: Toolchain, tmp_path: Path) -> None:
    with pytest.raises(ToolFailed) as caught:
        fast_quants.proven(with_library(own, tmp_path, REFUSED))
    assert caught.value.returncode == -signal.SIGILL


def test_modules_of_the_users_folder_are_not_run(
    own: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert fast_quants.proven(own) == fast_quants.TYPES


def test_a_llama_cpp_without_one_does_without(toolchain: Toolchain, tmp_path: Path) -> None:
    assert fast_quants.proven(replace(toolchain, lib_dir=tmp_path)) == ()


def rows_of(toolchain: Toolchain) -> bytes:
    values = memoryview(bytearray(np.linspace(-1, 1, 512, dtype="f4").tobytes()))
    return bytes(Rows(toolchain).quantize("Q4_K", values, 256, None, memoryview(bytearray(288))))


def test_what_is_proven_is_used_and_nothing_else(
    own: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own.build is not None
    other = with_library(own, tmp_path, NOISE)
    assert rows_of(other) == b"\x5a" * 288 != rows_of(own)
    unproven = replace(other, build=replace(own.build, quick_types=("Q6_K",)))
    assert rows_of(unproven) == rows_of(own)
    monkeypatch.setattr(hardware, "instruction_sets", lambda: ("avx",))
    assert other.quick_types == () and rows_of(other) == rows_of(own)


def test_what_it_did_not_do_ggml_does(own: Toolchain, tmp_path: Path) -> None:
    assert rows_of(with_library(own, tmp_path, NOTHING)) == rows_of(own)
