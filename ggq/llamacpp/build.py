"""Build the tools from the pinned source and prove that they run on this machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ggq import files, process
from ggq.errors import ToolchainProblem, ToolFailed
from ggq.llamacpp import binding, selftest, source, toolchain
from ggq.llamacpp.pin import cmake_hook, pin
from ggq.llamacpp.toolchain import BuildInfo, Toolchain
from ggq.progress import Listener, Notice, Step, silent

Backend = Literal["auto", "cpu", "cuda", "metal", "vulkan"]

TOOLS = (
    "llama-quantize",
    "llama-perplexity",
    "llama-bench",
    "llama-imatrix",
    "llama-gguf-split",
    "llama-fit-params",
    "llama-completion",
    "llama-tokenize",
    "llama-server",
    "ggml-rpc-server",
)
_BUILD_BYTES = 500_000_000  # objects and libraries of a CPU build, with room
_MINIMUM_CMAKE = (3, 19)  # cmake_language(DEFER) and (EVAL)


@dataclass(frozen=True)
class Variant:
    """A way to compile the CPU backend. ``why`` is what the user is told when a build falls back to it."""

    name: str
    flags: tuple[str, ...]
    why: str = ""


_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
NATIVE = Variant("native", ())
WITHOUT_AMX = Variant(
    "native-without-amx",
    (f"-DCMAKE_C_FLAGS={_NO_AMX}", f"-DCMAKE_CXX_FLAGS={_NO_AMX}"),
    "this machine advertises AMX but refuses it; built without AMX",
)
PORTABLE = Variant(
    "portable", ("-DGGML_NATIVE=OFF",), "this machine refuses its own native instructions; built portably"
)
BASELINE = Variant(
    "baseline",
    (
        "-DGGML_NATIVE=OFF",
        *(f"-DGGML_{name}=OFF" for name in ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")),
    ),
    "this machine refuses AVX; built for the plainest x86-64",
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

    Raises ToolchainProblem (no compiler, CMake too old, a build that fails), DiskFull.
    """
    options = options or BuildOptions()
    home = files.make_folder(toolchain.home())
    backends = _backends(options.backend)
    with files.lock(home):
        ready = toolchain.built()
        stamp = _stamp(backends, options.portable)
        if ready is None or ready.build is None or ready.build.stamp != stamp:
            (home / "build.json").unlink(missing_ok=True)
            ready = _make(home, backends, options, stamp, listener, self_test)
        binding.install(home, pin(), listener)
    return ready


def _make(
    home: Path,
    backends: tuple[str, ...],
    options: BuildOptions,
    stamp: str,
    listener: Listener,
    self_test: SelfTest,
) -> Toolchain:
    _check_compiler()
    source.fetch(home, pin(), listener)
    files.require_space(home, _BUILD_BYTES, "building llama.cpp")
    started = time.monotonic()
    ladder = _ladder(options.portable)
    avoided = ""
    for variant, successor in zip(ladder, (*ladder[1:], None), strict=True):
        flags = _flags(backends, variant)
        compiler = _compile(home, flags, options.jobs, listener)
        candidate = Toolchain(
            "built", home / "build" / "bin", home / "build" / "bin", home / "src", pin().commit
        )
        try:
            results = self_test(candidate, listener)
        except ToolFailed as failure:
            if failure.returncode >= 0 or successor is None:
                raise ToolchainProblem(
                    "The build does not pass its self-test.", str(failure), "Run `ggq setup --portable -v`."
                ) from failure
            avoided = successor.why
            listener(Notice(f"llama.cpp: {failure.what} {successor.why}.", "warning"))
            continue
        info = BuildInfo(
            schema_version=1,
            stamp=stamp,
            commit=pin().commit,
            package_version=pin().version,
            backends=backends,
            cmake_flags=tuple(flag for flag in flags if not flag.startswith("-DCMAKE_PROJECT")),
            variant=variant.name,
            avoided=avoided,
            compiler=compiler,
            cmake=_cmake_version(),
            built_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            seconds=round(time.monotonic() - started, 1),
            self_test=results,
        )
        files.write_json(home / "build.json", info.to_json())
        return Toolchain(
            candidate.origin, candidate.bin_dir, candidate.lib_dir, candidate.source_dir, info.commit, info
        )
    raise AssertionError("the ladder has at least one rung")


# ---- what to build ---------------------------------------------------------------------------------------


def _backends(wanted: Backend) -> tuple[str, ...]:
    """The ggml backends to compile: always CPU and RPC, and at most one kind of GPU."""
    gpu = wanted
    if wanted == "auto":
        if sys.platform == "darwin" and platform.machine() == "arm64":
            gpu = "metal"
        else:
            gpu = "cuda" if shutil.which("nvcc") and _has_nvidia_driver() else "cpu"
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


def _has_nvidia_driver() -> bool:
    import ctypes.util

    return shutil.which("nvidia-smi") is not None or ctypes.util.find_library("cuda") is not None


def _ladder(portable: bool) -> tuple[Variant, ...]:
    """The ways to compile, the fastest first; the next is taken when a self-test dies by a signal."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    last = (PORTABLE, BASELINE) if x86 else (PORTABLE,)
    if portable:
        return last
    return (NATIVE, WITHOUT_AMX, *last) if x86 and _advertises_amx() else (NATIVE, *last)


def _advertises_amx() -> bool:
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def _flags(backends: tuple[str, ...], variant: Variant) -> tuple[str, ...]:
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
    if "vulkan" in backends:
        flags.append("-DGGML_VULKAN=ON")
    if "cuda" in backends:
        flags += ["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", *_cublas_flags()]
    return tuple(flags)


def _cublas_flags() -> tuple[str, ...]:
    """Where PyPI's nvidia-cublas has the library, when the CUDA toolkit came without it."""
    try:
        distribution = importlib.metadata.distribution("nvidia-cublas")
    except importlib.metadata.PackageNotFoundError:
        return ()
    found: dict[str, Path] = {}
    for part in distribution.files or ():
        if match := re.match(r"(libcublas|libcublasLt)\.so|(cublas_v2\.h)$", part.name):
            found[match[1] or match[2]] = Path(str(distribution.locate_file(part)))
    if len(found) < 3:
        return ()
    include = found["cublas_v2.h"].parent
    return (
        f"-DCUDA_cublas_LIBRARY={found['libcublas']}",
        f"-DCUDA_cublasLt_LIBRARY={found['libcublasLt']}",
        f"-DCMAKE_CUDA_FLAGS=-I{include}",
        f"-DCMAKE_CXX_FLAGS=-I{include}",
    )


def _stamp(backends: tuple[str, ...], portable: bool) -> str:
    """A digest of everything that a finished build depends on."""
    digest = hashlib.sha256()
    for variant in _ladder(portable):
        digest.update("\0".join((pin().sha256, *TOOLS, *_flags(backends, variant))).encode())
    for file in sorted(cmake_hook().parent.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


# ---- compiling -------------------------------------------------------------------------------------------


def _check_compiler() -> None:
    if not any(shutil.which(os.environ.get(var) or name) for var, name in (("CXX", "c++"), ("CXX", "g++"))):
        raise ToolchainProblem(
            "There is no C++ compiler.",
            "llama.cpp is built from source, and neither c++ nor g++ is on PATH.",
            "Install one (Debian/Ubuntu: `apt install g++`; Fedora: `dnf install gcc-c++`; macOS:"
            " `xcode-select --install`), then run `ggq setup` again.",
        )


def _program(name: str) -> str:
    """cmake or ninja: of this Python environment first, since ggq depends on them there."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    if found is None:
        raise ToolchainProblem(f"{name} is missing.", "", f"Run `{sys.executable} -m pip install {name}`.")
    return found


def _cmake_version() -> str:
    done = process.run([_program("cmake"), "--version"])
    match = re.search(r"(\d+\.\d+\.\d+)", done.stdout[0] if done.stdout else "")
    return match[1] if match else "0.0.0"


def _compile(home: Path, flags: tuple[str, ...], jobs: int | None, listener: Listener) -> str:
    """Configure and build; returns the compiler's name and version."""
    version = _cmake_version()
    if tuple(int(part) for part in version.split(".")[:2]) < _MINIMUM_CMAKE:
        raise ToolchainProblem(
            "CMake is too old.",
            f"Found {version}; {'.'.join(map(str, _MINIMUM_CMAKE))} or later is needed.",
            f"Run `{sys.executable} -m pip install --upgrade cmake`.",
        )
    build = home / "build"
    listener(Step("configure llama.cpp", 0, None, "lines"))
    try:
        process.run(
            [_program("cmake"), "-S", home / "src", "-B", build, "-G", "Ninja",
             f"-DCMAKE_MAKE_PROGRAM={_program('ninja')}", *flags]
        )  # fmt: skip
        command: list[str | Path] = [_program("cmake"), "--build", build]
        if jobs:
            command += ["--parallel", str(jobs)]
        process.run([*command, "--target", *TOOLS], on_stdout=_ninja_progress(listener))
    except ToolFailed as failure:
        _clean_moved_cache(build, failure)
        raise ToolchainProblem(
            "llama.cpp could not be built.",
            "\n".join(_compiler_errors(failure)),
            "Mend what the last lines name, then run `ggq setup` again: it resumes.",
        ) from failure
    return _compiler_of(build)


def _clean_moved_cache(build: Path, failure: ToolFailed) -> None:
    """A build folder that was configured elsewhere or with another generator can only be started anew."""
    if any("CMakeCache.txt" in line for line in failure.tail):
        shutil.rmtree(build, ignore_errors=True)


def _compiler_errors(failure: ToolFailed) -> list[str]:
    errors = [line.strip() for line in failure.tail if re.search(r"error|No space left", line, re.I)]
    return (errors or list(failure.tail))[-4:]


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
