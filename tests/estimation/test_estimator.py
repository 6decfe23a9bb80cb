"""Memory predicted of a large vocabulary: what is reserved and not touched, and what only loading takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ggq.estimation.estimator import Account
from ggq.estimation.hollow_model import hollow_model
from ggq.llamacpp.memory import Load
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import memory as bench_memory
from ggq.measurement.settings import MemorySettings, Placement
from ggq.operations.convert_and_quantize import convert_and_quantize
from ggq.operations.execute import PipelineResult
from ggq.operations.request import Settings
from ggq.presets import catalogue
from ggq.session import Session

pytestmark = pytest.mark.tool

MIB = 1 << 20
(PRESET,) = catalogue.load().resolve(["Q8_0"])


@pytest.fixture(scope="module")
def wide(example: Path, tmp_path_factory: pytest.TempPathFactory) -> PipelineResult:
    """Two layers, and embeddings of 128,256 tokens that are the output matrix as well."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("wide") / "wide"
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=128256, tie_word_embeddings=True, max_position_embeddings=512,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(example / name, folder / name)
    settings = Settings(verify="off", keep_base=True)
    return convert_and_quantize(str(folder), [PRESET.name], folder.parent / "made", settings)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_large_vocabulary(wide: PipelineResult, layers: int, rpc_server: str, toolchain: Toolchain) -> None:
    assert wide.base is not None
    offload = Offload(n_gpu_layers=layers, rpc=(rpc_server,)) if layers else Offload()
    account = Account(hollow_model(wide.base, Session(toolchain)))
    predicted = account.memory(PRESET, Load(512, offload=offload))
    settings = MemorySettings(contexts=(512,), load_modes=("none",), placement=Placement(exactly=offload))
    (cell,) = bench_memory.measure(wide.files[0].paths[0], settings, session=Session(toolchain)).cells
    assert cell.measured is not None
    resident = cell.measured.peaks.resident_bytes
    # The logits of 512 tokens would be 250 MiB.
    assert resident <= predicted.ram_bytes <= resident + 48 * MIB
    if layers == 3:
        assert predicted.staging_bytes > predicted.cache_bytes + predicted.compute_bytes
    if not layers:
        assert predicted.compute_bytes < 4 * 128256 * 511
