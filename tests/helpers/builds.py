"""Builds of llama.cpp that are none: their programs and their records."""

from __future__ import annotations

from pathlib import Path

from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.pin import pin
from ggq.llamacpp.toolchain import BuildInfo


def put_tools(bin_dir: Path, version: str = f"version: 0.5.0 (build 0, commit {pin().commit})") -> Path:
    """Programs with llama.cpp's names that only tell their version, on stderr as the real ones do."""
    bin_dir.mkdir(parents=True)
    for name in toolchains.TOOLS:
        (bin_dir / name).write_text(f"#!/bin/sh\necho '{version}' >&2\n")
        (bin_dir / name).chmod(0o755)
    return bin_dir


def info(**changes: object) -> BuildInfo:
    values: dict[str, object] = {
        "schema_version": 1, "stamp": "s", "commit": pin().commit, "package_version": pin().version,
        "backends": ("cpu",), "cmake_flags": (), "variant": "native", "avoided": "", "compiler": "GNU 12",
        "cmake": "4.4", "built_at": "2026-11-22T00:00:00Z", "seconds": 1.0, "self_test": {"F16": "ok"},
    }  # fmt: skip
    return BuildInfo(**{**values, **changes})  # type: ignore[arg-type]
