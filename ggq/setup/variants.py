"""What to build: the backends, and the ways to compile for this CPU."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ggq.errors import ToolchainProblem
from ggq.llamacpp.pin import cmake_hook, pin
from ggq.llamacpp.toolchain import TOOLS
from ggq.system import hardware


class Backend(StrEnum):
    """What to compute on; ``AUTO``: a GPU that can be built for here, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    METAL = "metal"
    VULKAN = "vulkan"


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


def backends(wanted: Backend) -> tuple[str, ...]:
    """The ggml backends to compile: always CPU and RPC, and at most one kind of GPU."""
    gpu = wanted
    if wanted is Backend.AUTO:
        if sys.platform == "darwin" and platform.machine() == "arm64":
            gpu = Backend.METAL
        else:
            gpu = Backend.CUDA if shutil.which("nvcc") and has_nvidia_driver() else Backend.CPU
    if gpu is Backend.CUDA and not shutil.which("nvcc"):
        raise ToolchainProblem(
            "The CUDA backend cannot be built.",
            "There is no CUDA compiler (nvcc) on PATH.",
            "Install NVIDIA's CUDA toolkit and put its bin/ on PATH, or run `ggq setup --backend cpu`.",
        )
    if gpu is Backend.VULKAN and not shutil.which("glslc"):
        raise ToolchainProblem(
            "The Vulkan backend cannot be built.",
            "There is no shader compiler (glslc) on PATH.",
            "Install the Vulkan SDK, or run `ggq setup --backend cpu`.",
        )
    if gpu is Backend.METAL and sys.platform != "darwin":
        raise ToolchainProblem(
            "The Metal backend cannot be built.",
            "Metal exists on macOS only.",
            "Run `ggq setup --backend auto`.",
        )
    return ("cpu", "rpc") if gpu is Backend.CPU else ("cpu", "rpc", gpu.value)


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA GPU can be computed on here, as far as can be seen without loading the driver."""
    import ctypes.util

    return shutil.which("nvidia-smi") is not None or ctypes.util.find_library("cuda") is not None


def ladder(portable: bool) -> tuple[Variant, ...]:
    """The ways to compile, the fastest first; the next is taken when a self-test dies by a signal."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    last = (PORTABLE, BASELINE) if x86 else (PORTABLE,)
    if portable:
        return last
    if "amx_tile" in hardware.instruction_sets():
        return (NATIVE, WITHOUT_AMX, *last)
    return (NATIVE, *last)


def flags(backends: tuple[str, ...], variant: Variant) -> tuple[str, ...]:
    include, cublas = _cublas() if "cuda" in backends else ((), ())
    found = [
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
        found.append(f"-DCMAKE_C_FLAGS={' '.join(variant.compiler_flags)}")
    if variant.compiler_flags or include:
        found.append(f"-DCMAKE_CXX_FLAGS={' '.join((*variant.compiler_flags, *include))}")
    if "vulkan" in backends:
        found.append("-DGGML_VULKAN=ON")
    if "cuda" in backends:
        found += ["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", *cublas]
        if include:
            found.append(f"-DCMAKE_CUDA_FLAGS={' '.join(include)}")
    return tuple(found)


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


def stamp(backends: tuple[str, ...], portable: bool) -> str:
    """A digest of everything that a finished build depends on."""
    digest = hashlib.sha256("\0".join((pin().sha256, *TOOLS)).encode())
    for variant in ladder(portable):
        digest.update("\0".join(flags(backends, variant)).encode())
    if not portable:
        digest.update(cpu().encode())
    for file in sorted(cmake_hook().parent.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def cpu() -> str:
    """What a native build is made for."""
    return " ".join((platform.machine(), *hardware.instruction_sets()))
