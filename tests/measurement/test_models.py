"""Models of other shapes than the example's: quality, speed and memory are measured of them all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import CASES, make

import ggq
from ggq.gguf import file as gguf_file
from ggq.llamacpp.offload import ALL_LAYERS
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import summary
from ggq.measurement.settings import BenchSettings, MemorySettings, QualitySettings, SpeedSettings, TextChoice
from ggq.measurement.throughput import Precision
from ggq.operations import bench as measure
from ggq.operations.request import Settings
from ggq.session import Session

pytestmark = pytest.mark.tool


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    """Two layers of four experts each, random weights, a small tokenizer."""
    (case,) = [case for case in CASES if case.name == "Mixtral"]
    make(case, tmp_path / "mixtral")
    return tmp_path / "mixtral"


@pytest.mark.parametrize(
    ("name", "vocabulary", "context", "n_cpu_moe"), [("stories", 512, 512, 0), ("mixtral", 500, 256, 1)]
)
def test_a_model_is_measured_in_everything(
    name: str,
    vocabulary: int,
    context: int,
    n_cpu_moe: int,
    example: Path,
    toolchain: Toolchain,
    rpc_server: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """The layers on a device that is treated like a GPU, a layer's experts on the CPU where there are any."""
    made = ggq.convert_and_quantize(
        str(request.getfixturevalue(name)), ["Q4_K_M"], tmp_path / "out",
        Settings(keep_base=True, threads=2, verify="off"), session=Session(toolchain=toolchain),
    )  # fmt: skip
    assert made.base is not None
    model = gguf_file.read(made.base)
    assert (model.vocabulary_size, model.context_length) == (vocabulary, context)
    settings = BenchSettings(
        text=TextChoice(text=example / "heldout.txt"),
        quality=QualitySettings(context=context, max_chunks=4, threads=2),
        speed=SpeedSettings(
            prompt_tokens=(16,), generated_tokens=(8,), threads=2, binding=False,
            precision=Precision(batch=2, most=2),
            n_gpu_layers=(ALL_LAYERS,), n_cpu_moe=n_cpu_moe, rpc=(rpc_server,),
        ),
        memory=MemorySettings(contexts=(context,), load_modes=("mmap",), threads=2),
    )  # fmt: skip
    done = measure.bench([tmp_path / "out"], settings, session=Session(toolchain))
    assert not done.failures
    rows = summary.rows(done.entries)
    assert [row.is_base for row in rows] == [True, False] and rows[1].name == "Q4_K_M"
    for row in rows:
        assert row.perplexity and row.prompt_tokens_per_s and row.generation_tokens_per_s and row.ram_bytes
    kld = rows[1].mean_kld
    assert kld is not None and kld.value > 0 and kld.standard_error
    figures = [figure for _, result in done.speed for figure in result.figures]
    assert len(figures) == 4
    for figure in figures:
        assert figure.devices == (f"RPC0 ({rpc_server})",)
        assert ("-ncmoe" in figure.arguments) == bool(n_cpu_moe)
