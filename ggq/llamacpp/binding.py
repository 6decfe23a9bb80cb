"""llama-cpp-python on the tools' own libraries: installed without compiling, loaded from the toolchain."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ggq.errors import ToolchainProblem, ToolFailed
from ggq.llamacpp import endings
from ggq.llamacpp.pin import Pin
from ggq.llamacpp.toolchain import SETUP_HINT, Toolchain
from ggq.progress import Listener, Notice
from ggq.system import files, python_child, scratch


def load(toolchain: Toolchain) -> Any:
    """The module ``llama_cpp``, running on this toolchain's libraries.

    Raises ToolchainProblem when the binding is not installed or its library cannot be loaded.
    """
    os.environ["LLAMA_CPP_LIB_PATH"] = str(toolchain.lib_dir)
    try:
        import llama_cpp
    except ImportError as error:
        raise ToolchainProblem("The Python binding is not installed.", f"{error}.", SETUP_HINT) from error
    except (OSError, RuntimeError, AttributeError) as error:
        # AttributeError: the library is of another commit and lacks a function that the binding declares.
        raise ToolchainProblem("The Python binding does not load.", f"{error}.", SETUP_HINT) from error
    return llama_cpp


def probe(toolchain: Toolchain) -> str:
    """The version of the binding, loaded on this toolchain's libraries in a child process.

    Raises ToolFailed: with a traceback's last lines when it does not load, with a signal when it crashes.
    """
    done = endings.checked(
        python_child.run(__name__, toolchain.lib_dir.absolute(), timeout_s=120, check=False), of_file=False
    )
    return done.stdout[-1] if done.stdout else "unknown"


def install(home: Path, wanted: Pin, lib_dir: Path, listener: Listener) -> None:
    """Install llama-cpp-python without compiling anything, and point it at the libraries in ``lib_dir``.

    Raises ToolchainProblem, or OutputProblem when this Python environment cannot be written to.
    """
    if installed_version() != wanted.version:
        listener(Notice(f"Installing the Python binding {wanted.package} {wanted.version} (no compilation)."))
        # pip builds in the source folder; a copy keeps that one as it was unpacked.
        with scratch.folder("binding") as work:
            source = shutil.copytree(home / "src" / "binding", work / "binding")
            try:
                python_child.run(
                    "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
                    source,
                    env={"CMAKE_ARGS": "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"},
                )  # fmt: skip
            except ToolFailed as failure:
                raise ToolchainProblem(
                    "The Python binding could not be installed.",
                    "\n".join(failure.tail[-3:]),
                    "Check that this environment is writable and has pip, then run `ggq setup` again.",
                ) from failure
    _link_libraries(lib_dir)


def installed_version() -> str | None:
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return None


def _link_libraries(lib_dir: Path) -> None:
    """``llama_cpp/lib`` -> the build's libraries, so that a plain ``import llama_cpp`` works as well.

    A binding with libraries of its own (compiled by the user) is left as it is.
    """
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return
    link = Path(spec.origin).parent / "lib"
    with files.explain_os_error(link, "Use a Python environment of your own (`python3 -m venv`)"):
        if link.is_symlink():
            if link.readlink() == lib_dir:
                return
            link.unlink()
        elif link.is_dir():
            if any(link.iterdir()):
                return
            link.rmdir()
        link.symlink_to(lib_dir, target_is_directory=True)


if __name__ == "__main__":
    lib_dir = Path(sys.argv[1])
    library = load(Toolchain("named", lib_dir, lib_dir, None, None))
    library.llama_backend_init()
    sys.stdout.write(f"{library.__version__}\n")
