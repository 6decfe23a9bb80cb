"""Build the tools from the pinned source and prove that they run on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ggq.errors import GgqError, ToolchainProblem, ToolFailed, signal_name
from ggq.llamacpp import binding, private, toolchain
from ggq.llamacpp.pin import pin
from ggq.llamacpp.toolchain import BuildInfo, Toolchain
from ggq.progress import Listener, Notice, silent
from ggq.setup import compiling, fast_quants, sdist, selftest, variants
from ggq.setup.variants import Backend
from ggq.system import codec, files

_BUILD_BYTES = 500_000_000  # objects and libraries of a CPU build, with room
# How a process ends that meets an instruction which its machine refuses. SIGKILL (memory, a time-out) and
# SIGABRT (an assertion) are no reason to compile again.
_REFUSALS = ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE")


SelfTest = Callable[[Toolchain, Listener], dict[str, str]]


@dataclass(frozen=True)
class BuildOptions:
    """``backend``: what to compute on; ``portable``: no instructions that only this CPU has; ``jobs``:
    compilers at once (None: as many as usable cores)."""

    backend: Backend = Backend.AUTO
    portable: bool = False
    jobs: int | None = None


def setup(
    options: BuildOptions | None = None,
    listener: Listener = silent,
    self_test: SelfTest = selftest.run,
) -> Toolchain:
    """Make ggq's own toolchain: idempotent, resumable, never half-finished under a finished name.

    What somebody else made or can change is removed and made again. Raises ToolchainProblem (no compiler,
    CMake too old, no network, a build that fails, a folder that others can change), DiskFull, OutputProblem.
    """
    options = options or BuildOptions()
    with private.for_oneself():
        return _setup(options, listener, self_test)


def _setup(options: BuildOptions, listener: Listener, self_test: SelfTest) -> Toolchain:
    home = files.make_folder(toolchain.home())
    backends = variants.backends(options.backend)
    with files.lock(home):
        private.discard_exposed(home, listener)
        ready = toolchain.built()
        stamp = variants.stamp(backends, options.portable)
        if ready is None or ready.build is None or ready.build.stamp != stamp:
            (home / "build.json").unlink(missing_ok=True)
            ready = _make(home, backends, options, stamp, listener, self_test)
        binding.install(home, pin(), ready.lib_dir, listener)
    return ready


def adopt(folder: Path, listener: Listener = silent, self_test: SelfTest = selftest.run) -> Toolchain:
    """Prove that a llama.cpp which is there already works, and get what ggq needs beside it.

    The converter comes from the pinned source where ``folder`` has none, and so does the binding. Raises
    ToolchainProblem when there are no tools in ``folder`` or they fail their self-test.
    """
    found = toolchain.find(folder)
    try:
        self_test(found, listener)
    except ToolFailed as failure:
        raise ToolchainProblem(
            f"The llama.cpp in {folder} does not pass ggq's self-test.",
            f"{failure.what} {failure.why}",
            "Rebuild it for this machine, or let `ggq setup` build one (unset GGQ_LLAMA_CPP first).",
        ) from failure
    home = files.make_folder(toolchain.home())
    with files.lock(home):
        if found.source_dir is None or binding.installed_version() is None:
            sdist.fetch(home, pin(), listener)
        if binding.installed_version() is None:
            binding.install(home, pin(), found.lib_dir, listener)
    return toolchain.find(folder)


def _make(
    home: Path,
    backends: tuple[str, ...],
    options: BuildOptions,
    stamp: str,
    listener: Listener,
    self_test: SelfTest,
) -> Toolchain:
    """Compile the first variant of the ladder whose self-test survives, and record it."""
    compiling.check_programs()
    sdist.fetch(home, pin(), listener)
    files.require_space(home, _BUILD_BYTES, "building llama.cpp", "move ggq's data folder")
    started = time.monotonic()
    bin_dir = home / "build" / "bin"
    candidate = Toolchain("built", bin_dir, bin_dir, home / "src", pin().commit)
    avoided: list[str] = []
    ladder = list(variants.ladder(options.portable))
    while True:
        variant = ladder.pop(0)
        flags = variants.flags(backends, variant)
        compiler = compiling.compile_all(home, flags, options.jobs, listener)
        try:
            results = self_test(candidate, listener)
            break
        except ToolFailed as failure:
            if not ladder or signal_name(-failure.returncode) not in _REFUSALS:
                raise ToolchainProblem(
                    "The llama.cpp that was built does not pass its self-test.",
                    f"{failure.what} {failure.why}",
                    "Run `ggq doctor` and report what it says.",
                ) from failure
            avoided.append(f"{failure.what} {ladder[0].why}")
            listener(Notice(avoided[-1], "warning"))
    info = BuildInfo(
        schema_version=1,
        stamp=stamp,
        commit=pin().commit,
        package_version=pin().version,
        backends=backends,
        cmake_flags=tuple(flag for flag in flags if not flag.startswith("-DCMAKE_PROJECT")),
        variant=variant.name,
        avoided=" ".join(avoided),
        compiler=compiler,
        cmake=compiling.cmake_version(),
        built_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seconds=round(time.monotonic() - started, 1),
        self_test=results,
        quick_types=_quick_types(candidate, listener),
    )
    files.write_json(home / "build.json", codec.encode(info))
    return replace(candidate, build=info)


def _quick_types(candidate: Toolchain, listener: Listener) -> tuple[str, ...]:
    """What libggq-quants may make. That it does not run is no reason to build anything else."""
    try:
        return fast_quants.proven(candidate)
    except GgqError as problem:
        listener(Notice(f"ggq's quicker quantizers are not used: {problem}", "warning"))
        return ()
