"""libggq-quants is believed only where it makes what ggml makes. Small libraries stand in for one that makes
something else, and for one that this machine refuses."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggq import ggml_types, hardware, process
from ggq.errors import ToolFailed
from ggq.llamacpp import quants
from ggq.llamacpp.rows import QUICK, Rows, library_file
from ggq.llamacpp.toolchain import Toolchain

pytestmark = pytest.mark.tool

# What another library would do with the rows: ggml's own bytes are not zero.
NOTHING = "return 0;"
REFUSED = "raise(SIGILL); return 0;"


@pytest.fixture
def own(toolchain: Toolchain) -> Toolchain:
    """A build with such a library."""
    if not library_file(toolchain.lib_dir, QUICK).exists():
        pytest.skip("this build has no libggq-quants: it is for x86-64 with AVX2")
    return toolchain


def with_library(toolchain: Toolchain, folder: Path, body: str) -> Toolchain:
    """The same ggml, beside another libggq-quants."""
    (folder / "quants.c").write_text(f"#include <signal.h>\nunsigned long ggq_quantize(void) {{ {body} }}\n")
    for file in toolchain.lib_dir.glob("libggml*"):
        (folder / file.name).symlink_to(file)
    process.run(["cc", "-shared", "-fPIC", "-o", library_file(folder, QUICK), folder / "quants.c"])
    return Toolchain("built", folder, folder, None, None)


def test_this_builds_library_makes_what_ggml_makes(own: Toolchain) -> None:
    assert quants.proven(own) == quants.TYPES
    if own.build is not None:
        assert own.build.quick_types == quants.TYPES == own.quick_types


@pytest.mark.parametrize("kind", quants.TYPES)
def test_also_of_other_rows(own: Toolchain, kind: str) -> None:
    """Of 0.5 M random weights each, of every shape that the distribution can have."""
    rng = np.random.default_rng(20)
    by_ggml, quick = Rows(own, ()), Rows(own, (kind,))
    width, count = 768, 32
    size = ggml_types.by_name()[kind].row_bytes(width * count)
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


def test_one_that_makes_other_bytes_is_not_believed(own: Toolchain, tmp_path: Path) -> None:
    assert quants.proven(with_library(own, tmp_path, NOTHING)) == ()


def test_one_that_the_machine_refuses_is_a_finding(own: Toolchain, tmp_path: Path) -> None:
    with pytest.raises(ToolFailed) as caught:
        quants.proven(with_library(own, tmp_path, REFUSED))
    assert caught.value.returncode == -signal.SIGILL


def test_a_llama_cpp_without_one_does_without(toolchain: Toolchain, tmp_path: Path) -> None:
    for file in toolchain.lib_dir.glob("libggml*"):
        (tmp_path / file.name).symlink_to(file)
    named = Toolchain("named", tmp_path, tmp_path, None, None)
    assert quants.proven(named) == () == named.quick_types


def test_on_another_cpu_it_is_not_used(own: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    if own.build is None:
        pytest.skip("this llama.cpp was not built by ggq")
    proven_there = replace(own, build=replace(own.build, made_for=hardware.native_target()))
    assert proven_there.quick_types
    monkeypatch.setattr(hardware, "instruction_sets", lambda: ("avx",))
    assert proven_there.quick_types == ()
