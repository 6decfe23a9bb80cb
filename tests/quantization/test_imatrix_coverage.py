"""An imatrix that does not know all tensors: told in advance, and made all the same."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from job_plans import plan_quantize
from outputs import digests
from shared import own

import ggq
from ggq.errors import UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import hollow as gguf_hollow
from ggq.gguf.header import TensorInfo
from ggq.gguf.hollow import HollowTensor
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.operations.request import Settings
from ggq.progress import Event, Notice
from ggq.quantization import imatrix_coverage
from ggq.quantization.imatrix import imatrix
from ggq.quantization.imatrix_settings import ImatrixSettings
from ggq.session import Session

pytestmark = pytest.mark.tool
LOST = "blk.1."


def data(tensor: TensorInfo, *, zero: bool) -> Sequence[bytes]:
    with tensor.path.open("rb") as stream:
        stream.seek(tensor.offset_bytes)
        found = stream.read(tensor.data_bytes)
    return [bytes(len(found)) if zero else found]


def rewrite(source: Path, target: Path, kind: str) -> Path:
    """The matrix without the entries of a layer, with zero counts there, or with narrower ones."""
    given = gguf_file.read(source)
    kept = [it for it in given.tensors if kind != "missing" or LOST not in it.name]
    made = []
    for it in kept:
        zero = kind == "zero" and LOST in it.name and it.name.endswith(".counts")
        made.append(HollowTensor(it.name, it.shape, it.type, data(it, zero=zero)))
    gguf_hollow.write(target, given, made, {})
    return target


@pytest.fixture(scope="module")
def made(
    toolchain: Toolchain, base_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A 16-bit GGUF and its matrix."""
    folder = tmp_path_factory.mktemp("covered")
    base = own(base_gguf, folder, "tiny-BF16.gguf")
    text = folder / "text.txt"
    text.write_text("Once upon a time there was a little dog. " * 200)
    return base, imatrix(
        base, ImatrixSettings(chunks=4, context=64), text=text, session=Session(toolchain=toolchain)
    ).path


@pytest.mark.parametrize("kind", ["missing", "zero"])
def test_what_a_matrix_does_not_know_gets_a_type_that_needs_none(
    made: tuple[Path, Path], tmp_path: Path, toolchain: Toolchain, kind: str
) -> None:
    base = Path(shutil.copyfile(made[0], tmp_path / "tiny-BF16.gguf"))
    options = QuantizeOptions(imatrix=rewrite(made[1], tmp_path / "part.gguf", kind))
    names = ["IQ3_XXS", "Q4_K_M"]
    heard: list[Event] = []
    plan = plan_quantize(
        base, names, settings=Settings(options=options), session=Session(toolchain=toolchain)
    )
    results = {}
    for engine in ("one-pass", "llama-quantize"):
        folder = tmp_path / engine
        settings = Settings(options=options, engine=engine)
        done = ggq.quantize(
            base, names, folder, settings, session=Session(toolchain=toolchain, listener=heard.append)
        )
        assert [file.size.file_bytes for file in done.files] == [file.size.file_bytes for file in plan.files]
        results[engine] = digests(folder)
    assert results["one-pass"] == results["llama-quantize"]
    lost, usual = plan.files
    assert lost.uncovered
    assert all(LOST in it.name for it in lost.uncovered)
    told = [it.text for it in heard if isinstance(it, Notice) and it.level == "warning"]
    assert any(lost.uncovered[0].name in text for text in told)
    types = {it.name: it.type for it in gguf_file.read(tmp_path / "one-pass" / lost.name).tensors}
    assert all(types[it.name] == it.type for it in lost.uncovered)
    assert not usual.uncovered  # llama-quantize makes K-quants of it all the same


def test_the_matrix_of_another_model_is_refused(
    made: tuple[Path, Path], tmp_path: Path, toolchain: Toolchain
) -> None:
    given = gguf_file.read(made[1])
    other = [
        HollowTensor(f"other.{it.name}", it.shape, it.type, data(it, zero=False)) for it in given.tensors
    ]
    gguf_hollow.write(tmp_path / "other.gguf", given, other, {})
    options = QuantizeOptions(imatrix=tmp_path / "other.gguf")
    with pytest.raises(UsageProblem, match="another model"):
        plan_quantize(
            made[0], ["Q4_K_M"], settings=Settings(options=options), session=Session(toolchain=toolchain)
        )


def test_what_demands_importance() -> None:
    assert imatrix_coverage.demands("blk.0.attn_q.weight", "IQ2_XS", "IQ2_XS")
    assert imatrix_coverage.demands("blk.0.attn_q.weight", "Q2_K", "Q2_K_S")
    assert not imatrix_coverage.demands("blk.0.attn_q.weight", "Q2_K", "Q2_K")
    assert not imatrix_coverage.demands("output.weight", "IQ2_XS", "IQ2_XS")
