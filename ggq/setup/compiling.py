"""Compile llama.cpp with the CMake and Ninja that came with ggq, and say what went wrong."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from ggq.errors import DiskFull, GgqError, ToolchainProblem
from ggq.llamacpp.toolchain import TOOLS
from ggq.progress import Listener, Step
from ggq.setup import variants
from ggq.system import files, hardware, process

_MINIMUM_CMAKE = (3, 19)  # cmake_language(DEFER) and (EVAL)
_LOG = "ggq-build.log"


def check_programs() -> None:
    """Raises ToolchainProblem when there is no C++ compiler, or CMake is too old."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    if not any(shutil.which(name) for name in (*named, "c++", "g++", "clang++")):
        raise ToolchainProblem(
            "There is no C++ compiler.",
            "llama.cpp is built from source, and none of c++, g++ and clang++ is on PATH.",
            "Install one (Debian/Ubuntu: `apt install g++`; Fedora: `dnf install gcc-c++`; macOS:"
            " `xcode-select --install`), then run `ggq setup` again.",
        )
    version = cmake_version()
    if tuple(int(part) for part in version.split(".")[:2]) < _MINIMUM_CMAKE:
        raise ToolchainProblem(
            "CMake is too old.",
            f"Found {version}; {'.'.join(map(str, _MINIMUM_CMAKE))} or later is needed.",
            f"Run `{sys.executable} -m pip install --upgrade cmake`.",
        )


def program(name: str) -> str:
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


def cmake_version() -> str:
    done = process.run([program("cmake"), "--version"])
    match = re.search(r"(\d+\.\d+\.\d+)", done.stdout[0] if done.stdout else "")
    return match[1] if match else "0.0.0"


def compile_all(home: Path, flags: tuple[str, ...], jobs: int | None, listener: Listener) -> str:
    """Configure and build, taking up what an earlier run left; returns the compiler's name and version.

    Ninja compiles again what another command would make. It cannot see that the CPU has changed under
    ``-march=native``, so objects made for another CPU are thrown away here.
    """
    build = home / "build"
    made_for = build / ".ggq-cpu"
    with files.explain_os_error(build):
        if not made_for.is_file() or made_for.read_text(encoding="utf-8") != variants.cpu():
            shutil.rmtree(build, ignore_errors=True)
        build.mkdir(exist_ok=True)
        made_for.write_text(variants.cpu(), encoding="utf-8")
        # CMake's cache would keep the flags of an earlier backend or variant, a compiler that was replaced,
        # and a path that was left. (CMake's own --fresh drops objects, too.)
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        for compiler_notes in build.glob("CMakeFiles/[0-9]*"):
            shutil.rmtree(compiler_notes)
    listener(Step("configure llama.cpp", 0, None, "lines"))
    configure: list[str | Path] = [
        program("cmake"), "-S", home / "src", "-B", build, "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={program('ninja')}", *flags,
    ]  # fmt: skip
    _run_logged(build, configure, None)
    parallel = str(jobs or hardware.usable_cores())
    _run_logged(build, [program("ninja"), "-C", build, "-j", parallel, *TOOLS], _ninja_progress(listener))
    return _compiler_of(build)


def _run_logged(build: Path, command: Sequence[str | Path], watch: process.LineHandler | None) -> None:
    """Run a step of the build. A failure leaves all that it said in a file, and its first error in words."""
    done = process.run(command, watch=process.Watch(watch), check=False)
    if done.returncode == 0:
        return
    lines = (*done.stdout, *done.stderr)
    log = build / _LOG
    with files.explain_os_error(log):
        log.write_text("\n".join((" ".join(done.command), *lines, "")), encoding="utf-8")
    raise explain(lines, log)


def explain(lines: Sequence[str], log: Path) -> GgqError:
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
        f"All of it is in {log}. Fix what it names, then run `ggq setup` again: it resumes.",
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
