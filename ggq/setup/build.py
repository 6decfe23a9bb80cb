"""Build the tools from the pinned source and prove that they run on this machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ggq.errors import DiskFull, GgqError, ToolchainProblem, ToolFailed, signal_name
from ggq.llamacpp import binding, private, toolchain
from ggq.llamacpp.pin import cmake_hook, pin
from ggq.llamacpp.toolchain import TOOLS, BuildInfo, Toolchain
from ggq.progress import Listener, Notice, Step, silent
from ggq.setup import fast_quants, sdist, selftest
from ggq.system import codec, files, hardware, process

Backend = Literal["auto", "cpu", "cuda", "metal", "vulkan"]

_BUILD_BYTES = 500_000_000  # objects and libraries of a CPU build, with room
_MINIMUM_CMAKE = (3, 19)  # cmake_language(DEFER) and (EVAL)
_LOG = "ggq-build.log"
# How a process ends that meets an instruction which its machine refuses. SIGKILL (memory, a time-out) and
# SIGABRT (an assertion) are no reason to compile again.
_REFUSALS = ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE")


@dataclass(frozen=True)
class Variant:
    """A way to compile the CPU backend: CMake's ``flags`` and the ``compiler_flags`` of C and C++.
    ``why`` is what the user is told when a build falls back to it."""

    name: str
    flags: tuple[str, ...]
    compiler_flags: tuple[str, ...] = ()
    why: str = ""


NATIVE = Variant("native", ("-DGGML_NATIVE=ON",))
WITHOUT_AMX = Variant(
    "native-without-amx",
    ("-DGGML_NATIVE=ON",),
    ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16"),
    "This machine advertises AMX but refuses it; building without AMX.",
)
PORTABLE = Variant(
    "portable",
    ("-DGGML_NATIVE=OFF",),
    why="This machine refuses its own native instructions; building without them.",
)
BASELINE = Variant(
    "baseline",
    (
        "-DGGML_NATIVE=OFF",
        *(f"-DGGML_{name}=OFF" for name in ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")),
    ),
    why="This machine refuses AVX; building for the plainest x86-64.",
)

SelfTest = Callable[[Toolchain, Listener], dict[str, str]]


@dataclass(frozen=True)
class BuildOptions:
    """``backend``: what to compute on; ``portable``: no instructions that only this CPU has; ``jobs``:
    compilers at once (None: as many as usable cores)."""

    backend: Backend = "auto"
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
    backends = _backends(options.backend)
    with files.lock(home):
        private.discard_exposed(home, listener)
        ready = toolchain.built()
        stamp = _stamp(backends, options.portable)
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
    _check_programs()
    sdist.fetch(home, pin(), listener)
    files.require_space(home, _BUILD_BYTES, "building llama.cpp", "move ggq's data folder")
    started = time.monotonic()
    bin_dir = home / "build" / "bin"
    candidate = Toolchain("built", bin_dir, bin_dir, home / "src", pin().commit)
    avoided: list[str] = []
    ladder = list(_ladder(options.portable))
    while True:
        variant = ladder.pop(0)
        flags = _flags(backends, variant)
        compiler = _compile(home, flags, options.jobs, listener)
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
        cmake=_cmake_version(),
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


# ---- what to build ---------------------------------------------------------------------------------------


def _backends(wanted: Backend) -> tuple[str, ...]:
    """The ggml backends to compile: always CPU and RPC, and at most one kind of GPU."""
    gpu = wanted
    if wanted == "auto":
        if sys.platform == "darwin" and platform.machine() == "arm64":
            gpu = "metal"
        else:
            gpu = "cuda" if shutil.which("nvcc") and has_nvidia_driver() else "cpu"
    if gpu == "cuda" and not shutil.which("nvcc"):
        raise ToolchainProblem(
            "The CUDA backend cannot be built.",
            "There is no CUDA compiler (nvcc) on PATH.",
            "Install NVIDIA's CUDA toolkit and put its bin/ on PATH, or run `ggq setup --backend cpu`.",
        )
    if gpu == "vulkan" and not shutil.which("glslc"):
        raise ToolchainProblem(
            "The Vulkan backend cannot be built.",
            "There is no shader compiler (glslc) on PATH.",
            "Install the Vulkan SDK, or run `ggq setup --backend cpu`.",
        )
    if gpu == "metal" and sys.platform != "darwin":
        raise ToolchainProblem(
            "The Metal backend cannot be built.",
            "Metal exists on macOS only.",
            "Run `ggq setup --backend auto`.",
        )
    return ("cpu", "rpc") if gpu == "cpu" else ("cpu", "rpc", gpu)


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA GPU can be computed on here, as far as can be seen without loading the driver."""
    import ctypes.util

    return shutil.which("nvidia-smi") is not None or ctypes.util.find_library("cuda") is not None


def _ladder(portable: bool) -> tuple[Variant, ...]:
    """The ways to compile, the fastest first; the next is taken when a self-test dies by a signal."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    last = (PORTABLE, BASELINE) if x86 else (PORTABLE,)
    if portable:
        return last
    if "amx_tile" in hardware.instruction_sets():
        return (NATIVE, WITHOUT_AMX, *last)
    return (NATIVE, *last)


def _flags(backends: tuple[str, ...], variant: Variant) -> tuple[str, ...]:
    include, cublas = _cublas() if "cuda" in backends else ((), ())
    flags = [
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={cmake_hook()}",
        # Without these two the tools would report the commit of whatever repository encloses them.
        f"-DLLAMA_BUILD_COMMIT={pin().commit}",
        "-DLLAMA_BUILD_NUMBER=0",
        "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_BUILD_EXAMPLES=OFF",
        "-DLLAMA_BUILD_APP=OFF",
        "-DLLAMA_USE_PREBUILT_UI=OFF",
        "-DLLAMA_OPENSSL=OFF",
        "-DGGML_RPC=ON",
        f"-DGGML_METAL={'ON' if 'metal' in backends else 'OFF'}",
        *variant.flags,
    ]
    if variant.compiler_flags:
        flags.append(f"-DCMAKE_C_FLAGS={' '.join(variant.compiler_flags)}")
    if variant.compiler_flags or include:
        flags.append(f"-DCMAKE_CXX_FLAGS={' '.join((*variant.compiler_flags, *include))}")
    if "vulkan" in backends:
        flags.append("-DGGML_VULKAN=ON")
    if "cuda" in backends:
        flags += ["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", *cublas]
        if include:
            flags.append(f"-DCMAKE_CUDA_FLAGS={' '.join(include)}")
    return tuple(flags)


def _cublas() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Compiler flags and CMake flags for PyPI's nvidia-cublas, where CUDA's toolkit came without it."""
    try:
        distribution = importlib.metadata.distribution("nvidia-cublas")
    except importlib.metadata.PackageNotFoundError:
        return (), ()
    found: dict[str, Path] = {}
    for part in distribution.files or ():
        if match := re.match(r"(libcublas|libcublasLt)\.so|(cublas_v2\.h)$", part.name):
            found[match[1] or match[2]] = Path(str(distribution.locate_file(part)))
    if len(found) < 3:
        return (), ()
    return (f"-I{found['cublas_v2.h'].parent}",), (
        f"-DCUDA_cublas_LIBRARY={found['libcublas']}",
        f"-DCUDA_cublasLt_LIBRARY={found['libcublasLt']}",
    )


def _stamp(backends: tuple[str, ...], portable: bool) -> str:
    """A digest of everything that a finished build depends on."""
    digest = hashlib.sha256("\0".join((pin().sha256, *TOOLS)).encode())
    for variant in _ladder(portable):
        digest.update("\0".join(_flags(backends, variant)).encode())
    if not portable:
        digest.update(_cpu().encode())
    for file in sorted(cmake_hook().parent.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _cpu() -> str:
    """What a native build is made for."""
    return " ".join((platform.machine(), *hardware.instruction_sets()))


# ---- compiling -------------------------------------------------------------------------------------------


def _check_programs() -> None:
    """Raises ToolchainProblem when there is no C++ compiler, or CMake is too old."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    if not any(shutil.which(name) for name in (*named, "c++", "g++", "clang++")):
        raise ToolchainProblem(
            "There is no C++ compiler.",
            "llama.cpp is built from source, and none of c++, g++ and clang++ is on PATH.",
            "Install one (Debian/Ubuntu: `apt install g++`; Fedora: `dnf install gcc-c++`; macOS:"
            " `xcode-select --install`), then run `ggq setup` again.",
        )
    version = _cmake_version()
    if tuple(int(part) for part in version.split(".")[:2]) < _MINIMUM_CMAKE:
        raise ToolchainProblem(
            "CMake is too old.",
            f"Found {version}; {'.'.join(map(str, _MINIMUM_CMAKE))} or later is needed.",
            f"Run `{sys.executable} -m pip install --upgrade cmake`.",
        )


def _program(name: str) -> str:
    """cmake or ninja: those of this Python environment first, since ggq depends on them there."""
    scripts = (
        str(Path(sys.executable).parent),
        sysconfig.get_path("scripts"),
        sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")),
    )
    found = shutil.which(name, path=os.pathsep.join(scripts)) or shutil.which(name)
    if found is None:
        raise ToolchainProblem(
            f"{name} is missing.",
            "It comes with ggq as a Python package, but is neither in this environment nor on PATH.",
            f"Run `{sys.executable} -m pip install {name}`.",
        )
    return found


def _cmake_version() -> str:
    done = process.run([_program("cmake"), "--version"])
    match = re.search(r"(\d+\.\d+\.\d+)", done.stdout[0] if done.stdout else "")
    return match[1] if match else "0.0.0"


def _compile(home: Path, flags: tuple[str, ...], jobs: int | None, listener: Listener) -> str:
    """Configure and build, taking up what an earlier run left; returns the compiler's name and version.

    Ninja compiles again what another command would make. It cannot see that the CPU has changed under
    ``-march=native``, so objects made for another CPU are thrown away here.
    """
    build = home / "build"
    made_for = build / ".ggq-cpu"
    with files.explain_os_error(build):
        if not made_for.is_file() or made_for.read_text(encoding="utf-8") != _cpu():
            shutil.rmtree(build, ignore_errors=True)
        build.mkdir(exist_ok=True)
        made_for.write_text(_cpu(), encoding="utf-8")
        # CMake's cache would keep the flags of an earlier backend or variant, a compiler that was replaced,
        # and a path that was left. (CMake's own --fresh drops objects, too.)
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        for compiler_notes in build.glob("CMakeFiles/[0-9]*"):
            shutil.rmtree(compiler_notes)
    listener(Step("configure llama.cpp", 0, None, "lines"))
    configure: list[str | Path] = [
        _program("cmake"), "-S", home / "src", "-B", build, "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={_program('ninja')}", *flags,
    ]  # fmt: skip
    _run_logged(build, configure, None)
    parallel = str(jobs or hardware.usable_cores())
    _run_logged(build, [_program("ninja"), "-C", build, "-j", parallel, *TOOLS], _ninja_progress(listener))
    return _compiler_of(build)


def _run_logged(build: Path, command: Sequence[str | Path], watch: process.LineHandler | None) -> None:
    """Run a step of the build. A failure leaves all that it said in a file, and its first error in words."""
    done = process.run(command, on_stdout=watch, check=False)
    if done.returncode == 0:
        return
    lines = (*done.stdout, *done.stderr)
    log = build / _LOG
    with files.explain_os_error(log):
        log.write_text("\n".join((" ".join(done.command), *lines, "")), encoding="utf-8")
    raise _explain(lines, log)


def _explain(lines: Sequence[str], log: Path) -> GgqError:
    text = "\n".join(lines)
    if "No space left on device" in text:
        return DiskFull(
            "The disk became full while llama.cpp was built.",
            f"{files.human_bytes(files.free_bytes(log))} are free in {log.parent}.",
            "Free some space, then run `ggq setup` again: it resumes.",
        )
    if "Killed signal terminated program" in text:
        return ToolchainProblem(
            "The compiler was killed while it built llama.cpp.",
            "The system does that when memory runs out.",
            "Run `ggq setup --jobs 1`: it resumes, one compiler at a time.",
        )
    return ToolchainProblem(
        "llama.cpp could not be built.",
        "\n".join(_first_error(lines)),
        f"All of it is in {log}. Mend what it names, then run `ggq setup` again: it resumes.",
    )


def _first_error(lines: Sequence[str]) -> Sequence[str]:
    for index, line in enumerate(lines):
        if re.search(r"\berror:|CMake Error", line):
            return [found.strip() for found in lines[index : index + 5] if found.strip()]
    return [line.strip() for line in lines if line.strip()][-4:]


def _ninja_progress(listener: Listener) -> process.LineHandler:
    def handle(line: str) -> None:
        if match := re.match(r"\[(\d+)/(\d+)\]", line):
            listener(Step("build llama.cpp", int(match[1]), int(match[2]), "objects"))

    return handle


def _compiler_of(build: Path) -> str:
    for file in build.glob("CMakeFiles/*/CMakeCXXCompiler.cmake"):
        text = file.read_text(encoding="utf-8", errors="replace")
        found = dict(re.findall(r'set\((CMAKE_CXX_COMPILER_ID|CMAKE_CXX_COMPILER_VERSION) "([^"]*)"\)', text))
        if found:
            return " ".join(found[key] for key in sorted(found))
    return "unknown"
