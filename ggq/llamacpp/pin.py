"""Which llama.cpp ggq is made for, read from vendor/llama.cpp/requirements.txt."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from ggq.errors import ToolchainProblem
from ggq.system import package_data


@dataclass(frozen=True)
class Pin:
    """``version`` of the sdist ``package``, its ``sha256``, the llama.cpp ``commit`` inside it, and the pip
    requirements ``file`` that says so."""

    package: str
    version: str
    sha256: str
    commit: str
    file: Path


@functools.cache
def pin() -> Pin:
    """The pin. Raises ToolchainProblem when its file is missing or not as it should be."""
    file = package_data.data("vendor", "llama.cpp", "requirements.txt")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ToolchainProblem(
            "ggq's llama.cpp pin is missing.", f"{file}: {error.strerror}.", "Reinstall ggq."
        ) from error
    found = re.search(
        r"^(?P<package>[\w-]+)==(?P<version>\S+) .*?sha256:(?P<sha256>[0-9a-f]{64})", text, re.M | re.S
    )
    commit = re.search(r"^# commit: (?P<commit>[0-9a-f]{7,40})$", text, re.M)
    if not found or not commit:
        raise ToolchainProblem(
            "ggq's llama.cpp pin cannot be read.",
            f"{file} needs a line `# commit: …` and a requirement with its sha256.",
            "Reinstall ggq.",
        )
    return Pin(found["package"], found["version"], found["sha256"], commit["commit"], file)


def cmake_hook() -> Path:
    """The CMake file through which ggq adds to the build; what it adds is beside it."""
    return package_data.data("vendor", "llama.cpp", "cmake", "ggq.cmake")
