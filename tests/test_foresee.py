"""`ggq plan`: sizes to the byte and memory, before there is a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hubserver import HubServer

import ggq
from ggq import foresee
from ggq.cli.main import cli
from ggq.errors import CannotServe, CheckpointProblem
from ggq.foresee import PlanSettings
from ggq.llamacpp import memory as llama_memory
from ggq.llamacpp.memory import Load
from ggq.llamacpp.toolchain import Toolchain
from ggq.pipeline import Settings

pytestmark = pytest.mark.tool


def test_the_plan_is_what_is_made(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    names = ["Q2_K", "Q4_K_M", "Q8_0"]
    settings = PlanSettings(contexts=(128, 512), cache_types=(("f16", "f16"), ("q8_0", "q8_0")))
    planned = foresee.plan(example, names, settings, toolchain=toolchain)
    made = ggq.convert_and_quantize(
        str(example), names, tmp_path / "out", Settings(threads=2, verify="off")
    ).files
    assert [it.file_bytes for it in planned.presets] == [file.file_bytes for file in made]
    assert [it.preset for it in planned.presets] == names
    for preset, file in zip(planned.presets, made, strict=True):
        assert preset.prior is not None
        assert [it.context_tokens for it in preset.memory] == [128, 128, 512, 512]
        for cell in preset.memory:
            load = Load(cell.context_tokens, cell.type_k, cell.type_v)
            real = llama_memory.breakdown(toolchain, file.paths[0], load)
            assert cell.buffers_bytes == real.host_bytes - (real.process_bytes or 0)
            assert cell.missing_bytes == 0 < cell.process_bytes


def test_a_machine_that_is_too_small_is_said(
    example: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggq.hardware.available_ram_bytes", lambda: 1_000_000)
    found = foresee.plan(example, ["Q8_0"], toolchain=toolchain)
    [cell] = found.presets[0].memory
    assert cell.missing_bytes == cell.ram_bytes - 1_000_000 > 0


@pytest.mark.hub
def test_nothing_of_the_weights_is_downloaded(
    hub: HubServer, example: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    hub.add_repo("org/tiny", {path.name: path.read_bytes() for path in example.iterdir()})
    shown = CliRunner().invoke(cli, ["plan", "org/tiny", "--preset", "q4_k_m", "--json"])
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    weights = (example / "model.safetensors").stat().st_size
    assert 0 < hub.bytes_sent("model.safetensors") < weights / 50
    # The file that is made afterwards has that size, with the repository in its metadata.
    made = ggq.convert_and_quantize("org/tiny", ["q4_k_m"], tmp_path / "out", Settings(verify="off"))
    assert made.files[0].file_bytes == found["presets"][0]["file_bytes"]


def test_what_cannot_be_planned_is_refused(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match="no context of"):
        foresee.plan(example, ["Q8_0"], PlanSettings(contexts=(100_000,)), toolchain=toolchain)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointProblem):
        foresee.plan(tmp_path / "empty", ["Q8_0"], toolchain=toolchain)
