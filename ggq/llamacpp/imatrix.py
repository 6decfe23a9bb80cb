"""llama-imatrix: how much each column of a model's weights counts, summed up over the chunks of a text.

What the tool saves on its way cannot be continued: it saves in the middle of a chunk, when the sums of the
first tensor have that chunk already and the others' have not (IMatrixCollector::collect_imatrix in
tools/imatrix/imatrix.cpp). So a matrix is made in stretches, each of them a run to its end that begins with
the sums of the one before. These are kept as they are computed, in float32, and a chunk is a batch of its
own: after any number of stretches the file is, to the byte, that of a single run.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggq.errors import CannotServe, DiskFull, GgqError, GgufProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import hollow as gguf_hollow
from ggq.gguf.file import GgufFile
from ggq.gguf.header import Array, TensorInfo
from ggq.gguf.hollow import HollowTensor
from ggq.llamacpp import bench, tool_output, tools
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import process, scratch
from ggq.system.files import free_bytes, human_bytes

TOOL = "llama-imatrix"
# It ignores multiplications of fewer rows.
LEAST_CONTEXT = 16
# It refuses a text of fewer.
LEAST_CHUNKS = 2

_TEXT, _COUNT, _SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_NEVER = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """How the model is run. ``context``: tokens in a chunk; ``threads`` do not change the result;
    ``offload``: None leaves it to llama.cpp how many layers go to the GPUs; ``parse_special``: the names of
    special tokens stand for them."""

    context: int
    threads: int
    offload: Offload | None
    parse_special: bool = False

    def arguments(self) -> list[str]:
        placement = ["-fit", "on"] if self.offload is None else ["-fit", "off", *self.offload.arguments()]
        size = str(self.context)
        special = ["--parse-special"] if self.parse_special else []
        return ["-c", size, "-b", size, "-t", str(self.threads), *placement, *special]


@dataclass(frozen=True)
class Sums:
    """A matrix on the disk. ``chunks``: of how many it is the sum; ``context``: tokens in each; ``entries``:
    tensors of the model that it knows; ``text_name``: of its text."""

    file: GgufFile
    chunks: int
    context: int
    entries: int
    text_name: str


@dataclass(frozen=True)
class Stretch:
    """A run over ``chunks``, from chunk ``first`` (from 0) on. ``sums``: of all before it, where any are."""

    first: int
    chunks: int
    sums: Sums | None


@dataclass(frozen=True)
class Time:
    """Seconds of a run: in all, and for each chunk (without what loading the model takes)."""

    seconds: float
    chunk_seconds: float


def last_start(tokens: int, context: int) -> int:
    """The last chunk that a stretch may begin with: the tool wants more than two chunks from there on."""
    return (tokens - 1) // context - LEAST_CHUNKS


def read(path: Path) -> Sums:
    """Read what ``add`` wrote. Raises GgufProblem."""
    found = gguf_file.read(path)
    chunks, context, texts = found.integer(_COUNT), found.integer(_SIZE), found.metadata.get(_TEXT)
    if chunks is None or context is None or not isinstance(texts, Array) or not len(texts):
        raise GgufProblem(f"{path} is not an imatrix.", "", "Make it again.")
    return Sums(found, chunks, context, len(found.tensors) // 2, str(texts[0]))


def add(
    toolchain: Toolchain,
    model: Path,
    text: Path,
    stretch: Stretch,
    target: Path,
    settings: Settings,
    on_chunk: Callable[[int], None],
) -> Time:
    """Write to ``target`` the sums over a text up to a stretch's end. ``on_chunk``: chunks so far.

    The file has the text's name, but not its folder. Raises CannotServe when the text is too short,
    GgufProblem when the model computes no numbers, DoesNotFit, DiskFull, ToolFailed, ToolchainProblem.
    """
    clock: list[float] = []

    def watch(line: str) -> None:
        if found := re.search(r'"time":(\d+).*"msg":"\[(\d+)\]', line):
            clock.append(int(found[1]) / 1e6)
            on_chunk(stretch.first + int(found[2]))

    target = target.absolute()
    fresh = target.with_name(f"{target.name}.fresh.gguf")
    command: list[str | Path] = [
        toolchain.tool(TOOL), "-m", model.absolute(), "-f", text.name, "-o", fresh,
        "--chunk", str(stretch.first), "--chunks", str(stretch.chunks), "--output-frequency", str(_NEVER),
        *settings.arguments(), "--log-jsonl",
    ]  # fmt: skip
    if stretch.sums is not None:
        # It takes a comma in the name for the end of it, unless it is quoted.
        command += ["--in-file", '"{}"'.format(str(stretch.sums.file.path.absolute()).replace('"', '""'))]
    # Beside the text, since the result has the text's path as it is given here; in a folder of ggq's own.
    with scratch.folder("text") as beside:
        (beside / text.name).symlink_to(text.absolute())
        done = process.run(
            command, cwd=beside, env=bench.ENVIRONMENT, watch=process.Watch(watch), check=False
        )
    errors = [line["msg"].strip() for line in _log(done.stdout) if line.get("level") == "error"]
    if done.returncode:
        raise _failed(done, errors, model, settings.context)
    if unwritten := [words for words in errors if "GGUF data" in words]:
        raise DiskFull(
            "The imatrix could not be written.",
            f"{unwritten[0]}; {human_bytes(free_bytes(target))} are free in {target.parent}.",
            "Free some space, then run the same command again: it resumes.",
        )
    made = read(fresh)
    if (made.chunks, made.context) != (stretch.first + stretch.chunks, settings.context):
        raise tool_output.unknown(TOOL, f"it wrote {made.chunks} chunks of {made.context} tokens")
    if stretch.sums is None:
        fresh.replace(target)
    else:
        _name_text_once(made, stretch.sums, target)
        fresh.unlink()
    return Time(done.seconds, (clock[-1] - clock[0]) / (len(clock) - 1) if len(clock) > 1 else done.seconds)


def _name_text_once(made: Sums, before: Sums, target: Path) -> None:
    """Write ``made`` as a run without interruption writes it: the tool adds the text's name in each."""
    texts = before.file.metadata[_TEXT]
    assert isinstance(texts, Array)
    gguf_hollow.write(
        target,
        made.file,
        [HollowTensor(tensor.name, tensor.shape, tensor.type, _data(tensor)) for tensor in made.file.tensors],
        {_TEXT: texts, _COUNT: made.chunks, _SIZE: made.context},
    )


def _data(tensor: TensorInfo) -> Iterator[bytes]:
    with tensor.path.open("rb") as stream:
        stream.seek(tensor.offset_bytes)
        yield stream.read(tensor.data_bytes)


def _log(lines: Sequence[str]) -> Iterator[dict[str, str]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            if line.startswith("{"):
                yield json.loads(line)


def _failed(done: process.Completed, errors: Sequence[str], model: Path, context: int) -> GgqError:
    words = "\n".join(errors)
    if found := re.search(r"non-finite values detected in (\S+)", words):
        return GgufProblem(
            "There is no imatrix of this model.",
            f"What reaches {found[1]} is not a number: some weights are NaN or infinite, or too large for"
            " their type.",
            "Make the 16-bit GGUF again from its checkpoint, in another type (`ggq convert --outtype`).",
        )
    if found := re.search(r"tokenizes to only (\d+) tokens", words):
        return too_short(int(found[1]), context)
    if errors and done.returncode > 0:
        done = replace(done, stdout=tuple(errors), stderr=())
    return tools.evaluation_failed(done, model)


def too_short(tokens: int, context: int) -> CannotServe:
    """The error for a text of fewer tokens than the tool wants."""
    return CannotServe(
        "The text is too short for an imatrix.",
        f"It has {tokens:,} tokens; {LEAST_CHUNKS * context:,} are needed, two chunks of {context:,}.",
        "Give a longer text, or make the matrix by `ggq imatrix -c` with a smaller context.",
    )
