"""The preset left to ggq: what was predicted beside what came of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from hubserver import HubServer

import ggq
from ggq.cli.main import cli
from ggq.errors import CheckpointProblem, DoesNotFit, NeedsWeights, OutputProblem, ToolFailed
from ggq.estimation.estimator import Account
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import memory as bench_memory
from ggq.model_ref import parse_reference
from ggq.operations import auto_preset as automatic
from ggq.operations import outcomes
from ggq.operations.execute import execute
from ggq.operations.make_files import MakeFiles
from ggq.operations.prepare import prepare
from ggq.operations.request import Settings, request
from ggq.progress import Event, Notice
from ggq.records.manifest import Manifest
from ggq.session import Session
from ggq.system import hardware

pytestmark = pytest.mark.tool


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, isolated_environment: Path, cache: Path) -> None:
    """One run of one preset: how good the choice is, is tested elsewhere. The hollow model is made once."""
    monkeypatch.setattr(automatic, "BUDGET_S", 1e-9)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def chosen_before(model: Path, folder: Path) -> str | None:
    return Manifest.of("tiny-llama", folder).chosen_presets.get(
        automatic.identity(parse_reference(str(model)))
    )


def choose_before(model: Path, folder: Path, preset: str) -> None:
    """As an earlier run does that chooses a preset."""
    Manifest.of("tiny-llama", folder).choose(automatic.identity(parse_reference(str(model))), preset)


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


def test_memory_is_not_under_what_was_predicted(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    made = ggq.convert_and_quantize(example, outdir=tmp_path, session=Session(toolchain))
    found = {it.what: it for it in made.outcomes}
    assert found["file"].predicted == found["file"].measured == made.files[0].size.file_bytes
    memory = found["RAM"]
    assert memory.predicted is not None
    assert memory.measured <= memory.predicted <= memory.measured + 48 * (1 << 20)


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
    monkeypatch.setattr(bench_memory, "measure", refuse)
    made = ggq.convert_and_quantize(
        example, outdir=tmp_path, session=Session(toolchain, listener=heard.append)
    )
    assert [it.what for it in made.outcomes] == ["file", "prompt", "generation"]
    assert Notice("Not measured: It does not fit.", "warning") in heard
    assert made.files[0].paths[0].is_file()


def test_a_prediction_that_fails_is_told_and_costs_nothing_else(
    example: Path, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ToolFailed(["llama-fit-params"], 1, [])

    heard: list[Event] = []
    session = Session(toolchain, listener=heard.append)
    plan = prepare(request(example, None, tmp_path, Settings(), session), session)
    monkeypatch.setattr(Account, "memory", fail)
    made = execute(plan, session)
    assert [it.what for it in made.outcomes] == ["file", "prompt", "generation"]
    assert any(isinstance(it, Notice) and it.text.startswith("Not measured: llama-fit") for it in heard)


def test_no_hollow_file_is_left(
    example: Path, toolchain: Toolchain, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "_CONTEXT", 256)  # shorter than the estimate's own, so that it is asked
    ggq.convert_and_quantize(example, outdir=tmp_path, session=Session(toolchain))
    assert {it.name for it in cache.rglob("*.gguf")} == {"base.gguf"}


def test_what_fits_nowhere_here_can_be_made_all_the_same(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine without memory cannot be had; so what this one tells of its own is replaced.
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 1_000_000)
    shown = CliRunner().invoke(cli, ["convert-and-quantize", str(example), "--outdir", str(tmp_path / "out")])
    assert shown.exit_code == 3
    assert "--preset NAME" in shown.stderr and "another machine" in shown.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [[], ["--preset", "auto"]], ids=["unnamed", "auto"])
def test_options_that_a_recommendation_does_not_know(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 1_000_000)
    arguments = ["convert-and-quantize", str(example), *given, "--outdir", str(tmp_path)]
    shown = CliRunner().invoke(cli, [*arguments, "--output-tensor-type", "q8_0", "--dry-run", "--json"])
    assert shown.exit_code == 0, shown.stderr
    assert [file["preset"] for file in json.loads(shown.stdout)["files"]] == ["Q4_K_M"]


# --- the same command again --------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_with_its_choice(
    example: Path, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = ["convert-and-quantize", str(example), "--outdir", str(tmp_path)]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MakeFiles, "make_all", stop)
        ggq.convert_and_quantize(example, outdir=tmp_path, session=Session(toolchain))
    first = chosen_before(example, tmp_path)
    assert first is not None and first != "Q3_K_S"
    choose_before(example, tmp_path, "Q3_K_S")  # not the one that would be chosen
    shown = CliRunner().invoke(cli, command)
    assert shown.exit_code == 0, shown.stderr
    assert "Q3_K_S was chosen here before" in shown.stdout and "generation" in shown.stdout
    assert [it.name for it in tmp_path.glob("*.gguf")] == ["tiny-llama-Q3_K_S.gguf"]
    # Where nothing fits any more, it goes on all the same; only --force chooses again.
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 1_000_000)
    shown = CliRunner().invoke(cli, [*command, "--json"])
    assert shown.exit_code == 0, shown.stderr
    assert "Nothing is predicted of Q3_K_S" in shown.stderr
    assert json.loads(shown.stdout)["files"][0]["reused"]
    assert CliRunner().invoke(cli, [*command, "--force"]).exit_code == 3


def test_a_choice_is_of_one_model_and_one_folder(example: Path, tmp_path: Path, toolchain: Toolchain) -> None:
    other = tmp_path / "other" / "tiny-llama"
    shutil.copytree(example, other)
    session = Session(toolchain)
    (tmp_path / "out").mkdir()
    choose_before(other, tmp_path / "out", "Q2_K")
    made = ggq.convert_and_quantize(example, outdir=tmp_path / "out", session=session)
    assert made.files[0].preset == chosen_before(example, tmp_path / "out") != "Q2_K"
    assert chosen_before(other, tmp_path / "out") == "Q2_K"
    assert chosen_before(example, tmp_path / "elsewhere") is None


def test_a_gguf_has_a_choice_too(base_gguf: Path, tmp_path: Path, toolchain: Toolchain) -> None:
    base = Path(shutil.copy(base_gguf, tmp_path))
    choose_before(base, tmp_path, "Q3_K_S")
    made = ggq.convert_and_quantize(base, session=Session(toolchain))
    assert made.files[0].paths == (tmp_path / "tiny-llama-Q3_K_S.gguf",)
    assert chosen_before(base, tmp_path) == "Q3_K_S"


def test_a_file_of_the_users_is_refused_before_the_work(
    example: Path, tmp_path: Path, toolchain: Toolchain
) -> None:
    choose_before(example, tmp_path, "Q3_K_S")
    (tmp_path / "tiny-llama-Q3_K_S.gguf").write_text("mine")
    before = {it.name for it in tmp_path.iterdir()}
    with pytest.raises(OutputProblem, match="exists already"):
        ggq.convert_and_quantize(example, outdir=tmp_path, session=Session(toolchain))
    assert {it.name for it in tmp_path.iterdir()} == before


# --- what can only be planned after its download ---------------------------------------------------------


@pytest.fixture
def only_bin(hub: HubServer, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository whose weights, in .bin files, have no header that could be read alone."""
    import torch
    from safetensors.torch import load_file

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {path.name: path.read_bytes() for path in example.iterdir() if path.suffix != ".safetensors"}
    torch.save(load_file(example / "model.safetensors"), tmp_path / "pytorch_model.bin")
    files["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
    hub.add_repo("org/bin", files)
    return "org/bin"


@pytest.mark.hub
def test_it_is_downloaded_first(only_bin: str, toolchain: Toolchain, tmp_path: Path) -> None:
    heard: list[Event] = []
    made = ggq.convert_and_quantize(
        only_bin, outdir=tmp_path / "out", session=Session(toolchain, listener=heard.append)
    )
    assert Notice("This model can only be planned after its download.") in heard
    assert made.outcomes[0].predicted == made.files[0].size.file_bytes


@pytest.mark.hub
def test_a_dry_run_downloads_nothing(hub: HubServer, only_bin: str) -> None:
    shown = CliRunner().invoke(cli, ["convert-and-quantize", only_bin, "--dry-run"])
    assert shown.exit_code == 1
    assert "can only be chosen after the download" in shown.stderr and "--preset" in shown.stderr
    assert hub.bytes_sent("pytorch_model.bin") == 0


@pytest.mark.hub
def test_a_dry_run_of_a_preset_says_that_only_the_weights_can_tell_more(
    hub: HubServer, only_bin: str
) -> None:
    arguments = ["convert-and-quantize", only_bin, "--preset", "q8_0", "--dry-run"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0 and "≈ " in shown.stdout and "only the weights can tell" in shown.stderr
    (file,) = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)["files"]
    assert not file["exact"] and file["size"]["file_bytes"] > 0
    assert hub.bytes_sent("pytorch_model.bin") == 0


@pytest.mark.hub
@pytest.mark.parametrize(
    "change, words",
    [
        ({"quantization_config": {"quant_method": "unheard-of", "bits": 4}}, "unheard-of"),
        ({"architectures": ["UnheardOfForCausalLM"]}, "UnheardOfForCausalLM"),
    ],
    ids=["quantization", "architecture"],
)
def test_what_its_headers_refuse_is_not_downloaded(
    hub: HubServer, example: Path, toolchain: Toolchain, change: dict[str, object], words: str
) -> None:
    files = {path.name: path.read_bytes() for path in example.iterdir()}
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | change).encode()
    hub.add_repo("org/refused", files)
    with pytest.raises(CheckpointProblem, match=words) as raised:
        ggq.convert_and_quantize("org/refused", session=Session(toolchain))
    assert not isinstance(raised.value, NeedsWeights)
    assert hub.bytes_sent("model.safetensors") <= 32 << 10
