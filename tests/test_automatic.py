"""The preset left to ggq: what was foretold beside what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hubserver import HubServer

from ggq import automatic, pipeline
from ggq.bench import memory as bench_memory
from ggq.cli.main import cli
from ggq.errors import DoesNotFit
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import Event, Notice

pytestmark = pytest.mark.tool


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of one preset: how good the choice is, is tested elsewhere."""
    monkeypatch.setattr(automatic, "BUDGET_S", 1e-9)


def test_without_a_preset_the_recommended_one_is_made_and_measured(example: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["convert-and-quantize", str(example), "--outdir", str(tmp_path)])
    assert shown.exit_code == 0, shown.stderr
    assert "is recommended for this machine" in shown.stdout
    [made] = tmp_path.glob("tiny-llama-*.gguf")
    size = f"{made.stat().st_size:,} B"
    [line] = [line for line in shown.stdout.splitlines() if line.startswith("file")]
    assert line.split().count(size.split()[0]) == 2 and "+0.0%" in line
    assert {"RAM", "prompt", "generation"} <= {
        line.split(" ")[0] for line in shown.stdout.splitlines() if line
    }


def test_memory_is_not_under_what_was_foretold(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    chosen = automatic.foretell(str(example), toolchain=toolchain)
    made = automatic.make(str(example), chosen, tmp_path, toolchain=toolchain)
    outcomes = {it.what: it for it in made.outcomes}
    assert outcomes["file"].foretold == outcomes["file"].measured == made.result.files[0].file_bytes
    memory = outcomes["RAM"]
    assert memory.foretold is not None
    assert memory.measured <= memory.foretold <= memory.measured + 48 * (1 << 20)


def test_auto_in_a_dry_run_makes_nothing(example: Path, tmp_path: Path) -> None:
    arguments = ["convert-and-quantize", str(example), "--preset", "AUTO", "--outdir", str(tmp_path / "out")]
    shown = CliRunner().invoke(cli, [*arguments, "--dry-run", "--json"])
    assert shown.exit_code == 0, shown.stderr
    assert len(json.loads(shown.stdout)["files"]) == 1
    assert not (tmp_path / "out").exists()


def test_a_measurement_that_fails_is_told_and_costs_nothing_else(
    example: Path, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DoesNotFit("It does not fit.")

    heard: list[Event] = []
    chosen = automatic.foretell(str(example), toolchain=toolchain)
    monkeypatch.setattr(bench_memory, "measure", refuse)
    made = automatic.make(str(example), chosen, tmp_path, toolchain=toolchain, listener=heard.append)
    assert [it.what for it in made.outcomes] == ["file", "prompt", "generation"]
    assert Notice("Not measured: It does not fit.", "warning") in heard
    assert made.result.files[0].paths[0].is_file()


@pytest.mark.hub
def test_what_can_only_be_planned_after_its_download_is_downloaded_first(
    hub: HubServer, example: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    """Weights in .bin files have no header that could be read alone."""
    import torch
    from safetensors.torch import load_file

    files = {path.name: path.read_bytes() for path in example.iterdir() if path.suffix != ".safetensors"}
    torch.save(load_file(example / "model.safetensors"), tmp_path / "pytorch_model.bin")
    files["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
    hub.add_repo("org/bin", files)
    heard: list[Event] = []
    chosen = automatic.foretell("org/bin", toolchain=toolchain, listener=heard.append)
    assert Notice("This model can only be planned after its download.") in heard
    made = pipeline.convert_and_quantize("org/bin", [chosen.chosen.preset], tmp_path / "out")
    assert made.files[0].file_bytes == chosen.chosen.file_bytes
