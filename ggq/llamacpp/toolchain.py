"""Where the tools are: an existing build that the user names, ggq's own build, or PATH."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ggq.errors import ToolchainProblem
from ggq.llamacpp import ownership
from ggq.llamacpp.ownership import Exposed, Part
from ggq.llamacpp.pin import pin
from ggq.system import codec, hardware, package_data, places, process

_log = logging.getLogger(__name__)
CONVERTER = "convert_hf_to_gguf.py"
NEEDED_TOOLS = ("llama-quantize",)
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
SETUP_HINT = "Run `ggq setup` (in a checkout: `make setup`); it takes some minutes, once."


@dataclass(frozen=True)
class BuildInfo:
    """What build.json records of a finished build.

    ``quick_types``: what its libggq-quants makes as ggml does (see ``quants``).
    """

    schema_version: int
    stamp: str
    commit: str
    package_version: str
    backends: tuple[str, ...]
    cmake_flags: tuple[str, ...]
    variant: str
    avoided: str
    compiler: str
    cmake: str
    built_at: str
    seconds: float
    self_test: dict[str, str] = field(default_factory=dict)
    quick_types: tuple[str, ...] = ()

    @staticmethod
    def load(file: Path) -> BuildInfo | None:
        """The record, or None when there is none that this ggq can read."""
        try:
            return codec.decode(BuildInfo, json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None


@dataclass(frozen=True)
class Toolchain:
    """A usable llama.cpp. ``origin``: ggq's own build, one that was named, or found on PATH.

    ``source_dir`` holds the converter (None: this toolchain cannot convert); ``lib_dir`` the shared
    libraries that the Python binding runs on; ``commit`` is None when the tools do not tell.
    """

    origin: Literal["built", "named", "path"]
    bin_dir: Path
    lib_dir: Path
    source_dir: Path | None
    commit: str | None
    build: BuildInfo | None = None

    def tool(self, name: str) -> Path:
        """The path of a tool. Raises ToolchainProblem when this llama.cpp does not have it."""
        found = shutil.which(name, path=str(self.bin_dir))
        if found is None:
            raise ToolchainProblem(f"{name} is missing.", f"It is not in {self.bin_dir}.", SETUP_HINT)
        return Path(found)

    @property
    def converter(self) -> Path:
        """The converter script. Raises ToolchainProblem when there is none."""
        if self.source_dir is None:
            raise ToolchainProblem(
                "llama.cpp's converter is missing.",
                f"The tools in {self.bin_dir} come without {CONVERTER}.",
                SETUP_HINT,
            )
        return self.source_dir / CONVERTER

    @property
    def may_see_gpus(self) -> bool:
        """False for a build that has code for none."""
        return self.build is None or not set(self.build.backends) <= {"cpu", "rpc"}

    @property
    def quick_types(self) -> tuple[str, ...]:
        """Types that its libggq-quants may make on this CPU; none without such a library."""
        made = self.build.quick_types if self.build else ()
        return made if made and "avx2" in hardware.instruction_sets() else ()

    @property
    def exposed(self) -> Exposed | None:
        """What of it somebody else can change."""
        return ownership.first_exposed(_parts(self))

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences that a person should read before trusting these tools; none for ggq's own build."""
        found = []
        if self.origin == "path":
            found.append(f"The llama.cpp in {self.bin_dir} was found on PATH; ggq has no build of its own.")
        if self.commit is None or not same_commit(self.commit, pin().commit):
            known = f"commit {self.commit}" if self.commit else "an unknown commit"
            found.append(f"The llama.cpp in {self.bin_dir} is of {known}; ggq is tested with {pin().commit}.")
        return tuple(found)


def home() -> Path:
    """Where ggq's own llama.cpp lives: vendor/llama.cpp in a checkout, else the platform's data folder."""
    root = package_data.checkout()
    if root is not None:
        return root / "vendor" / "llama.cpp"
    return places.data() / "llama.cpp"


def find(named: Path | None = None) -> Toolchain:
    """The toolchain to use: ``named`` or GGQ_LLAMA_CPP, then ggq's own build, then PATH.

    One that somebody else can change is used when it was chosen on purpose, and that is logged as a warning.
    Raises ToolchainProblem when there is none, when the named one is not one, and when somebody else can
    change ggq's own build.
    """
    if named is None and os.environ.get("GGQ_LLAMA_CPP"):
        named = places.expanded(os.environ["GGQ_LLAMA_CPP"])
    found = _named(named) if named is not None else built() or _on_path()
    if exposed := found.exposed:
        if found.origin == "built" and not exposed.as_ggq:
            raise _refused(found, exposed)
        _log.warning(exposure(exposed))
    return found


def exposure(exposed: Exposed) -> str:
    """The warning for tools that are used although somebody else can change them."""
    return f"{exposed} Whoever can change it decides what this llama.cpp does."


def _refused(found: Toolchain, exposed: Exposed) -> ToolchainProblem:
    home_ = found.bin_dir.parent.parent
    if exposed.path.is_relative_to(home_) and exposed.path != home_:
        first = "Run `ggq setup`: it builds llama.cpp again, for you alone"
    else:
        first = f"Take that right away (`chmod go-w {shlex.quote(str(exposed.path))}`), or move ggq's files"
        if "belongs" in exposed.whose:
            first = "Move ggq's files to a folder of your own"
    return ToolchainProblem(
        "ggq's llama.cpp is not used: somebody else can change it.",
        str(exposed),
        f"{first}. Where you trust whoever that is, name the build: set GGQ_LLAMA_CPP to {found.bin_dir}.",
    )


def own_parts(folder: Path) -> tuple[Part, ...]:
    """All that a build of ggq's in ``folder`` is made of and made from."""
    return (Part(folder / "build.json"), Part(folder / "src"), Part(folder / "build"))


def _parts(found: Toolchain) -> Iterator[Part]:
    """What is run of a toolchain: a few hundred files."""
    if found.origin == "built":
        yield Part(found.bin_dir.parent.parent / "build.json")
    # A folder of the system's has thousands of other programs.
    ours = re.compile(r"(lib)?(llama|ggml|mtmd|ggq)").match
    for folder in {found.bin_dir, found.lib_dir}:
        yield Part(folder, None if found.origin == "built" else lambda name: ours(name) is not None)
    if found.source_dir is not None:
        yield Part(found.source_dir, lambda name: name.endswith(".py"))
        yield Part(found.source_dir / "conversion")
        yield Part(found.source_dir / "gguf-py")


def built() -> Toolchain | None:
    """ggq's own build when it is finished, whole and of the current pin, else None."""
    base = home()
    info = BuildInfo.load(base / "build.json")
    bin_dir = base / "build" / "bin"
    if info is None or not same_commit(info.commit, pin().commit) or not _has_tools(bin_dir, TOOLS):
        return None
    return Toolchain("built", bin_dir, bin_dir, base / "src", info.commit, info)


def _named(folder: Path) -> Toolchain:
    """A llama.cpp build, install or source folder that the user points to."""
    for bin_dir in (folder, folder / "bin", folder / "build" / "bin"):
        if _has_tools(bin_dir):
            break
    else:
        raise ToolchainProblem(
            f"{folder} holds no llama.cpp tools.",
            f"Looked for {', '.join(NEEDED_TOOLS)} there, in bin/ and in build/bin/.",
            "Name the folder of a llama.cpp build, or unset GGQ_LLAMA_CPP and run `ggq setup`.",
        )
    return _foreign("named", bin_dir.resolve(), (folder, bin_dir.parent, bin_dir.parent.parent))


def _on_path() -> Toolchain:
    found = shutil.which(NEEDED_TOOLS[0])
    if found is None:
        raise ToolchainProblem(
            "llama.cpp's tools are not there.",
            f"No build in {home()}, nothing named by GGQ_LLAMA_CPP, no {NEEDED_TOOLS[0]} on PATH.",
            SETUP_HINT,
        )
    return _foreign("path", Path(found).resolve().parent, ())


def _foreign(
    origin: Literal["named", "path"], bin_dir: Path, source_candidates: tuple[Path, ...]
) -> Toolchain:
    sources = (*source_candidates, home() / "src")
    source = next((place.resolve() for place in sources if (place / CONVERTER).is_file()), None)
    lib_dir = next((place for place in (bin_dir, bin_dir.parent / "lib") if _has_library(place)), bin_dir)
    return Toolchain(origin, bin_dir, lib_dir, source, _commit_of(bin_dir))


def _commit_of(bin_dir: Path) -> str | None:
    """What the tools say of themselves: ``version: 0.5.0 (build 0, commit 0c1e57098)``."""
    for name in ("llama-completion", "llama-perplexity", "llama-cli", "llama-server"):
        tool = shutil.which(name, path=str(bin_dir))
        if tool is None:
            continue
        done = process.run([tool, "--version"], check=False, timeout_s=60)
        match = re.search(r"(?:commit |\()([0-9a-f]{7,40})\)", "\n".join((*done.stdout, *done.stderr)))
        if match:
            return match[1]
    return None


def _has_tools(folder: Path, names: tuple[str, ...] = NEEDED_TOOLS) -> bool:
    return all(shutil.which(name, path=str(folder)) for name in names)


def _has_library(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("libllama.so", "libllama.dylib", "llama.dll"))


def same_commit(one: str, other: str) -> bool:
    """Whether two abbreviated hashes can be the same commit."""
    length = min(len(one), len(other))
    return length >= 7 and one[:length] == other[:length]
