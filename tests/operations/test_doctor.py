"""`ggq doctor` and `ggq setup --llama-cpp`: what they say, and how they exit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from ggq import hub
from ggq.cli.main import cli
from ggq.errors import ToolFailed
from ggq.llamacpp import binding, toolchain
from ggq.llamacpp import devices as ggml
from ggq.llamacpp.toolchain import Toolchain
from ggq.operations import doctor
from ggq.setup import selftest, variants
from ggq.system import hardware
from ggq.system.cgroup import Limits

TOKEN = "hf_" + "s" * 34


def examine(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(cli, ["doctor", "--json", *arguments])
    return result.exit_code, json.loads(result.stdout)


def lines(report: dict[str, Any], topic: str) -> list[dict[str, str]]:
    return [check for check in report["checks"] if check["topic"] == topic]


@pytest.mark.tool
def test_a_machine_that_is_ready(toolchain: Toolchain) -> None:
    code, report = examine()
    assert code == 0 and report["can_run"] and report["schema_version"] == 1
    assert {check["status"] for check in report["checks"]} <= {"ok", "warning"}
    assert report["machine"]["usable_cores"] >= 1
    assert report["toolchain"]["commit"] == toolchain.commit
    assert report["versions"]["torch"] and report["versions"]["python"]
    assert "types evaluated" in lines(report, "self-test")[0]["finding"]
    assert "llama-cpp-python" in lines(report, "binding")[0]["finding"]


@pytest.mark.tool
def test_it_says_who_quantizes(toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    if toolchain.quick_types:
        assert "for 10 types" in lines(examine()[1], "quantizers")[0]["finding"]
    monkeypatch.setattr(hardware, "instruction_sets", lambda: ("avx",))
    assert lines(examine()[1], "quantizers")[0]["finding"] == "ggml's own"


@pytest.mark.tool
@pytest.mark.parametrize("columns", [60, 80])
def test_a_terminal_is_not_overrun(toolchain: Toolchain, columns: int) -> None:
    parent, child = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "ggq", "doctor", "-q"],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm"},
    )
    os.close(child)
    shown = b""
    while block := _read(parent):
        shown += block
    assert running.wait() == 0, shown
    text = click.unstyle(shown.decode().replace("\r", ""))
    assert "Ready." in text and "self-test" in text
    assert max(map(len, text.splitlines())) <= columns


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so when the other side has closed
        return b""


# ---- without a toolchain: the self-test does not run, so these are quick ---------------------------------


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which `ggq setup` has not run."""
    monkeypatch.setattr(toolchain, "home", lambda: tmp_path / "data")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    real = doctor._version
    # `make test-lowest` has no PyTorch.
    monkeypatch.setattr(
        doctor, "_version", lambda name: real(name) or ("2.13.0" if name == "torch" else None)
    )
    return tmp_path


def test_without_a_toolchain_the_main_job_cannot_run(bare: Path) -> None:
    code, report = examine()
    assert code == 1 and not report["can_run"] and report["toolchain"] is None
    (problem,) = [check for check in report["checks"] if check["status"] == "problem"]
    assert problem["topic"] == "llama.cpp" and "ggq setup" in problem["next_step"]

    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1 and "1 problem: the main job cannot run yet." in result.stdout


def test_nonsense_in_the_environment_is_a_problem(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGQ_LLAMA_CPP", str(bare / "nonsense"))
    code, report = examine()
    assert code == 1
    assert "holds no llama.cpp tools" in lines(report, "llama.cpp")[0]["finding"]


@pytest.mark.parametrize("where", ["HF_TOKEN", "a file"])
def test_a_token_is_said_to_be_there_and_never_shown(
    where: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    else:
        monkeypatch.setattr(hub, "token_present", lambda: True)
    for arguments in (["doctor"], ["doctor", "--json"], ["doctor", "-v"]):
        shown = CliRunner().invoke(cli, arguments)
        assert TOKEN not in shown.output and "present" in shown.output


def test_no_token_is_no_problem(bare: Path) -> None:
    _, report = examine()
    (check,) = lines(report, "Hub token")
    assert check["status"] == "ok" and check["finding"].startswith("none")


def test_offline_is_a_warning(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, report = examine()
    assert lines(report, "Hub")[0]["status"] == "warning"


def test_limits_and_shortage_of_memory_are_said(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggq.system.cgroup.limits", lambda: Limits(1.0, 1_500_000_000, 700_000_000))
    _, report = examine()
    (memory,) = lines(report, "memory")
    assert memory["status"] == "warning"
    assert memory["finding"].startswith("700 MB free of 1.50 GB (a control group's limit")
    assert lines(report, "cores")[0]["finding"].startswith("1 usable of ")


def test_shortage_of_disk_is_said(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggq.system.files.free_bytes", lambda folder: 1_000_000)
    _, report = examine()
    assert {lines(report, role)[0]["status"] for role in ("current folder", "Hub cache")} == {"warning"}


def test_a_package_that_is_missing_or_too_old_is_said(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"torch": None, "transformers": "4.0"}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: found[name] if name in found else real(name))
    _, report = examine()
    said = {check["finding"]: check for check in lines(report, "versions")}
    (torch,) = [check for finding, check in said.items() if finding.startswith("ggq needs torch ")]
    assert torch["status"] == "problem" and "pip install 'torch>=" in torch["next_step"]
    (older,) = [check for finding, check in said.items() if "transformers" in finding and "4.0 is" in finding]
    assert older["status"] == "warning"


# ---- with doubles for what breaks --------------------------------------------------------------------------


@pytest.fixture
def named(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tools that only tell their version, with a self-test, GPUs and binding that are set by each test."""
    folder = bare / "tools"
    folder.mkdir()
    for name in ("llama-quantize", "llama-completion"):
        (folder / name).write_text("#!/bin/sh\necho 'version: 1 (0123abc)' >&2\n")
        (folder / name).chmod(0o755)
    (folder / "convert_hf_to_gguf.py").write_text("")
    monkeypatch.setenv("GGQ_LLAMA_CPP", str(folder))
    monkeypatch.setattr(selftest, "run", lambda *arguments: {"Q4_K_M": "ok"})
    monkeypatch.setattr(ggml, "gpus", lambda found: ())
    monkeypatch.setattr(binding, "installed_version", lambda: "0.3.36")
    monkeypatch.setattr(binding, "probe", lambda found: "0.3.36")
    return folder


def fails(returncode: int, tail: str) -> Any:
    def double(*arguments: object) -> Any:
        raise ToolFailed(["llama-bench"], returncode, [tail])

    return double


def test_another_commit_is_a_warning(named: Path) -> None:
    code, report = examine()
    assert code == 0
    found, caveat = lines(report, "llama.cpp")
    assert "named by GGQ_LLAMA_CPP" in found["finding"]
    assert caveat["status"] == "warning" and "0123abc" in caveat["finding"]


def test_a_build_that_crashes_here_is_a_problem(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "run", fails(-4, "ggml_init"))
    code, report = examine()
    assert code == 1
    (check,) = lines(report, "self-test")
    assert "killed by SIGILL" in check["finding"] and "ggq setup" in check["next_step"]


def test_a_binding_that_does_not_load_is_a_problem(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "probe", fails(1, "undefined symbol: llama_x"))
    code, report = examine()
    assert code == 1 and "undefined symbol: llama_x" in lines(report, "binding")[0]["finding"]


def test_a_binding_that_is_missing_is_a_problem(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "installed_version", lambda: None)
    code, report = examine()
    assert code == 1 and "not installed" in lines(report, "binding")[0]["finding"]


def test_a_gpu_is_shown_with_its_free_memory(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = hardware.Device("CUDA0", "A card", hardware.DeviceKind.GPU, 150_000_000_000, 149_000_000_000)
    monkeypatch.setattr(ggml, "gpus", lambda found: (gpu,))
    _, report = examine()
    assert lines(report, "GPU")[0]["finding"] == "CUDA0: A card, 149 GB free of 150 GB"
    assert report["machine"]["gpus"][0]["memory_free_bytes"] == 149_000_000_000


def test_a_driver_that_crashes_is_a_warning(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml, "gpus", fails(-11, "cuInit"))
    _, report = examine()
    (check,) = lines(report, "GPU")
    assert check["status"] == "warning" and "SIGSEGV" in check["finding"]


def test_a_gpu_that_this_build_cannot_use_is_a_warning(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggq.setup.variants.has_nvidia_driver", lambda: True)
    _, report = examine()
    (check,) = lines(report, "GPU")
    assert check["status"] == "warning" and "--backend cuda" in check["next_step"]


# ---- ggq setup ---------------------------------------------------------------------------------------------


@pytest.mark.tool
def test_setup_checks_an_existing_build_and_says_what_to_export(toolchain: Toolchain) -> None:
    result = CliRunner().invoke(cli, ["setup", "--llama-cpp", str(toolchain.bin_dir)])
    assert result.exit_code == 0, result.output
    assert f"export GGQ_LLAMA_CPP={toolchain.bin_dir}" in result.stdout


def test_setup_refuses_a_folder_without_tools(bare: Path) -> None:
    result = CliRunner().invoke(cli, ["setup", "--llama-cpp", str(bare)])
    assert result.exit_code == 1
    assert "holds no llama.cpp tools" in result.stderr and "Traceback" not in result.output


def test_setup_refuses_an_unknown_backend() -> None:
    assert CliRunner().invoke(cli, ["setup", "--backend", "abacus"]).exit_code == 2


class Installed:
    """importlib.metadata of an environment with PyTorch's build for NVIDIA."""

    REQUIRES = (
        "filelock",
        'nvidia-cudnn-cu12==9; platform_system == "Linux"',
        'triton==3; platform_system == "Linux"',
        "nvidia-nccl-cu12==2; extra == 'x'",
    )

    def __init__(self, monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...]) -> None:
        real = importlib.metadata.version, importlib.metadata.requires

        def version(name: str) -> str:
            if name.startswith(("nvidia", "triton")) and name not in present:
                raise importlib.metadata.PackageNotFoundError(name)
            return "1" if name in present else real[0](name)

        file = importlib.metadata.PackagePath("lib/libcudnn.so")
        file.size = 1_500_000_000
        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(
            importlib.metadata, "requires", lambda name: self.REQUIRES if name == "torch" else real[1](name)
        )
        monkeypatch.setattr(importlib.metadata, "files", lambda name: [file])


@pytest.mark.parametrize(
    ("present", "driver", "words"),
    [
        (("nvidia-cudnn-cu12", "triton"), False, "2 packages for NVIDIA GPUs (3.00 GB)"),
        (("nvidia-cudnn-cu12", "triton"), True, ""),
        ((), False, ""),
    ],
)
def test_a_pytorch_for_gpus_that_are_not_there(
    bare: Path, monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...], driver: bool, words: str
) -> None:
    Installed(monkeypatch, present)
    monkeypatch.setattr(variants, "has_nvidia_driver", lambda: driver)
    found = lines(examine()[1], "PyTorch")
    assert len(found) == bool(words)
    for check in found:
        assert check["status"] == "warning" and words in check["finding"]
        assert (
            "pytorch.org" in check["next_step"] and "uninstall nvidia-cudnn-cu12 triton" in check["next_step"]
        )
