"""Can the main job run here? Every finding is a line of data: ok, a warning, or a problem with its cure."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ggq import hub
from ggq._version import __version__
from ggq.errors import GgqError, ToolchainProblem, ToolFailed
from ggq.hub.client import is_offline
from ggq.llamacpp import binding, devices, toolchain
from ggq.llamacpp.pin import pin
from ggq.llamacpp.toolchain import SETUP_HINT, Toolchain
from ggq.progress import Listener, silent
from ggq.setup import selftest, variants
from ggq.system import hardware
from ggq.system.files import human_bytes
from ggq.system.hardware import Device, Machine

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

SCHEMA_VERSION = 1
_START_PAGE = "https://pytorch.org/get-started/locally/"
_LITTLE_RAM_BYTES = 2_000_000_000  # torch, transformers and a small model
_LITTLE_DISK_BYTES = 5_000_000_000  # a 1 B checkpoint, its base and some quantized files


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis. ``next_step`` is empty where nothing is to be done."""

    topic: str
    status: Literal["ok", "warning", "problem"]
    finding: str
    next_step: str = ""


@dataclass(frozen=True)
class Report:
    """``versions``: of Python and of the packages that ggq stands on, None where one is missing."""

    schema_version: int
    can_run: bool
    checks: tuple[Check, ...]
    machine: Machine
    toolchain: Toolchain | None
    versions: dict[str, str | None]


@dataclass(frozen=True)
class _Patient:
    """What the checks look at."""

    machine: Machine
    toolchain: Toolchain | None
    toolchain_problem: ToolchainProblem | None
    gpu_failure: ToolFailed | None
    versions: dict[str, str | None]
    listener: Listener


def examine(listener: Listener = silent) -> Report:
    """Look at everything that the main job stands on. Takes some seconds: the self-test really runs."""
    found: Toolchain | None = None
    problem: ToolchainProblem | None = None
    try:
        found = toolchain.find()
    except ToolchainProblem as error:
        problem = error
    gpus: tuple[Device, ...] = ()
    gpu_failure: ToolFailed | None = None
    if found is not None:
        try:
            gpus = devices.gpus(found)
        except ToolFailed as failure:
            gpu_failure = failure
    folders = {"current folder": Path.cwd(), "Hub cache": hub.cache_dir(), "ggq's data": toolchain.home()}
    machine = hardware.describe(folders=folders, gpus=gpus)
    patient = _Patient(machine, found, problem, gpu_failure, _versions(), listener)
    checks = tuple(check for examination in _EXAMINATIONS for check in examination(patient))
    return Report(
        schema_version=SCHEMA_VERSION,
        can_run=all(check.status != "problem" for check in checks),
        checks=checks,
        machine=machine,
        toolchain=found,
        versions=patient.versions,
    )


# ---- the machine -----------------------------------------------------------------------------------------


def _system(patient: _Patient) -> Iterator[Check]:
    machine = patient.machine
    yield Check("system", "ok", f"{machine.system}, {machine.architecture}")
    sets = f" ({' '.join(machine.instruction_sets)})" if machine.instruction_sets else ""
    yield Check("CPU", "ok", f"{machine.cpu}{sets}")
    yield Check("cores", "ok", f"{machine.usable_cores} usable of {machine.logical_cores}")


def _memory(patient: _Patient) -> Iterator[Check]:
    machine = patient.machine
    finding = f"{human_bytes(machine.ram_available_bytes)} free of {human_bytes(machine.ram_total_bytes)}"
    if machine.ram_total_bytes < machine.host_ram_bytes:
        finding += f" (a control group's limit; the machine has {human_bytes(machine.host_ram_bytes)})"
    if machine.ram_available_bytes < _LITTLE_RAM_BYTES:
        yield Check("memory", "warning", finding, "Close other programs, or raise the limit.")
    else:
        yield Check("memory", "ok", finding)


def _gpus(patient: _Patient) -> Iterator[Check]:
    if patient.toolchain is None:
        return
    if patient.gpu_failure is not None:
        yield Check(
            "GPU",
            "warning",
            f"Asking for the GPUs failed: {patient.gpu_failure.what} {_last(patient.gpu_failure)}",
            "Look at the GPU's driver (`nvidia-smi`); without it, `ggq setup --backend cpu`.",
        )
    for gpu in patient.machine.gpus:
        memory = f"{human_bytes(gpu.memory_free_bytes)} free of {human_bytes(gpu.memory_total_bytes)}"
        yield Check("GPU", "ok", f"{gpu.name}: {gpu.description}, {memory}")
    if not patient.machine.gpus and patient.gpu_failure is None:
        if variants.has_nvidia_driver():
            yield Check(
                "GPU",
                "warning",
                "There is an NVIDIA driver, but this llama.cpp sees no GPU.",
                "Run `ggq setup --backend cuda` (it needs CUDA's compiler, nvcc).",
            )
        else:
            yield Check("GPU", "ok", "none that llama.cpp sees; everything runs on the CPU")


def _disks(patient: _Patient) -> Iterator[Check]:
    for disk in patient.machine.disks:
        finding = f"{human_bytes(disk.free_bytes)} free in {disk.folder}"
        if not _is_writable(disk.folder):
            yield Check(disk.role, "warning", f"{disk.folder} is read-only.", "Fix its permissions.")
        elif disk.free_bytes < _LITTLE_DISK_BYTES:
            yield Check(disk.role, "warning", finding, "Free some space there.")
        else:
            yield Check(disk.role, "ok", finding)


# ---- llama.cpp -------------------------------------------------------------------------------------------


def _toolchain(patient: _Patient) -> Iterator[Check]:
    found = patient.toolchain
    if found is None:
        assert patient.toolchain_problem is not None
        yield _problem("llama.cpp", patient.toolchain_problem)
        return
    origin = {"built": "ggq's own", "named": "named by GGQ_LLAMA_CPP", "path": "found on PATH"}[found.origin]
    yield Check("llama.cpp", "ok", f"{found.commit or 'unknown commit'}, {origin}, in {found.bin_dir}")
    for caveat in found.caveats:
        yield Check("llama.cpp", "warning", caveat, SETUP_HINT)
    if exposed := found.exposed:
        yield Check(
            "llama.cpp", "warning", toolchain.exposure(exposed), "Use it only if you trust whoever that is."
        )
    if found.build is not None:
        made = found.build
        finding = f"{', '.join(made.backends)}; {made.variant}; {made.compiler}; {made.built_at[:10]}"
        yield Check("build", "ok", f"{finding}. {made.avoided}" if made.avoided else finding)
    if found.source_dir is None:
        yield Check("converter", "problem", "This llama.cpp comes without its converter.", SETUP_HINT)


def _quantizers(patient: _Patient) -> Iterator[Check]:
    if patient.toolchain is None:
        return
    quick = len(patient.toolchain.quick_types)
    finding = f"ggq's quicker ones for {quick} types, with ggml's bytes" if quick else "ggml's own"
    yield Check("quantizers", "ok", finding)


def _self_test(patient: _Patient) -> Iterator[Check]:
    if patient.toolchain is None:
        return
    started = time.monotonic()
    try:
        results = selftest.run(patient.toolchain, patient.listener)
    except ToolFailed as failure:
        yield Check(
            "self-test",
            "problem",
            f"{failure.what} {_last(failure)}",
            "Run `ggq setup`: it builds for this machine (unset GGQ_LLAMA_CPP first, if it is set).",
        )
    except GgqError as error:
        yield _problem("self-test", error)
    else:
        seconds = time.monotonic() - started
        yield Check("self-test", "ok", f"{len(results)} quantization types evaluated in {seconds:.1f} s")


def _binding(patient: _Patient) -> Iterator[Check]:
    if patient.toolchain is None:
        return
    if binding.installed_version() is None:
        yield Check("binding", "problem", "llama-cpp-python is not installed.", SETUP_HINT)
        return
    try:
        version = binding.probe(patient.toolchain)
    except ToolFailed as failure:
        yield Check("binding", "problem", f"llama-cpp-python does not load: {_last(failure)}", SETUP_HINT)
        return
    finding = f"llama-cpp-python {version} on the libraries in {patient.toolchain.lib_dir}"
    if version == pin().version:
        yield Check("binding", "ok", finding)
    else:
        yield Check("binding", "warning", f"{finding}; ggq is tested with {pin().version}", SETUP_HINT)


# ---- the Hub and Python ----------------------------------------------------------------------------------


def _hub(patient: _Patient) -> Iterator[Check]:
    if hub.token_present():
        yield Check("Hub token", "ok", "present")
    else:
        yield Check("Hub token", "ok", "none; only gated and private models need one (`hf auth login`)")
    if is_offline(asked=False):
        yield Check("Hub", "warning", "HF_HUB_OFFLINE is set: only cached models.", "Unset it to download.")


def _packages(patient: _Patient) -> Iterator[Check]:
    present = [f"{name} {version}" for name, version in patient.versions.items() if version]
    yield Check("versions", "ok", ", ".join(present))
    for name, specifier in _requirements():
        version = patient.versions.get(name) or _version(name)
        if version is None or not specifier.contains(version, prereleases=True):
            yield Check(
                "versions",
                "problem" if version is None else "warning",
                f"ggq needs {name} {specifier}; "
                + ("it is not installed." if version is None else f"{version} is installed."),
                f"Run `{sys.executable} -m pip install '{name}{specifier}'`.",
            )


def _torch_build(patient: _Patient) -> Iterator[Check]:
    """A plain `pip install` on Linux brings PyTorch's build for NVIDIA, whatever the machine has."""
    packages = _cuda_packages()
    if not packages or patient.machine.gpus or variants.has_nvidia_driver():
        return
    # RECORD says how large each file is.
    taken = sum(file.size or 0 for name in packages for file in importlib.metadata.files(name) or ())
    yield Check(
        "PyTorch",
        "warning",
        f"PyTorch came with {len(packages)} packages for NVIDIA GPUs ({human_bytes(taken)}). "
        "This machine has no NVIDIA GPU.",
        f"Install its CPU build, with the command that {_START_PAGE} shows, "
        f"then run `{sys.executable} -m pip uninstall {' '.join(packages)}`.",
    )


def _cuda_packages() -> list[str]:
    """The packages for NVIDIA GPUs that the installed PyTorch asks for and that are there; sorted."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("torch") or ()
    except importlib.metadata.PackageNotFoundError:
        return []
    names = {Requirement(line).name for line in lines}
    return sorted(
        name for name in names if name.startswith(("nvidia-", "cuda-", "triton")) and _version(name)
    )


_SHOWN_PACKAGES = ("torch", "transformers", "huggingface-hub", "gguf", "numpy", "llama-cpp-python")


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"ggq": __version__, "python": platform.python_version()}
    return found | {name: _version(name) for name in _SHOWN_PACKAGES}


def _requirements() -> Iterator[tuple[str, SpecifierSet]]:
    """ggq's own dependencies, of its installed metadata, that apply to this Python."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires("ggq") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name, requirement.specifier


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- words -----------------------------------------------------------------------------------------------


def _problem(topic: str, error: GgqError) -> Check:
    return Check(topic, "problem", f"{error.what} {error.why}".strip(), error.next_step)


def _last(failure: ToolFailed) -> str:
    return failure.tail[-1].strip() if failure.tail else ""


def _is_writable(folder: Path) -> bool:
    probe = folder
    while not probe.exists():
        probe = probe.parent
    return os.access(probe, os.W_OK)


_EXAMINATIONS: tuple[Callable[[_Patient], Iterator[Check]], ...] = (
    _system, _memory, _gpus, _toolchain, _quantizers, _self_test, _binding, _hub, _packages, _torch_build,
    _disks,
)  # fmt: skip
