"""The tools that make and run models, a typed function each.

The measuring tools have modules of their own beside this one. Outside this package nobody knows a tool's
name, flag or output line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ggq.errors import DoesNotFit, GgqError, ToolFailed
from ggq.llamacpp import endings, tool_output
from ggq.llamacpp.toolchain import Toolchain
from ggq.settings import Option
from ggq.system import files, hardware, process

Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class QuantizeOptions:
    """llama-quantize's options. ``tensor_types``: ``name=type`` overrides, as ``attn_v=q8_0``; ``imatrix``:
    a file that is there."""

    imatrix: Path | None = None
    tensor_types: Annotated[
        tuple[str, ...], Option(
            "--tensor-type", metavar="NAME=TYPE",
            help="A type for tensors whose name matches, as attn_v=q8_0; repeatable.",
        ),
    ] = ()  # fmt: skip
    output_tensor_type: Annotated[
        str | None, Option("--output-tensor-type", metavar="TYPE", help="A type for the output tensor.")
    ] = None
    token_embedding_type: Annotated[
        str | None, Option("--token-embedding-type", metavar="TYPE", help="A type for the token embeddings.")
    ] = None
    keep_split: Annotated[
        bool, Option("--keep-split", help="One shard for each shard of the 16-bit GGUF.")
    ] = False

    def arguments(self) -> list[str]:
        arguments: list[str] = []
        if self.imatrix is not None:
            arguments += ["--imatrix", str(self.imatrix.absolute())]
        for override in self.tensor_types:
            arguments += ["--tensor-type", override]
        if self.output_tensor_type:
            arguments += ["--output-tensor-type", self.output_tensor_type]
        if self.token_embedding_type:
            arguments += ["--token-embedding-type", self.token_embedding_type]
        if self.keep_split:
            arguments += ["--keep-split"]
        return arguments


def quantize_plan(
    toolchain: Toolchain, base: Path, ftype: str, options: QuantizeOptions | None = None
) -> tool_output.QuantizePlan:
    """The type of every tensor under ``ftype``, as llama-quantize itself decides it; nothing is written.

    Raises ToolFailed when it refuses the base, ToolchainProblem when its words are unknown.
    """
    arguments = (options or QuantizeOptions()).arguments()
    command: list[str | Path] = [toolchain.tool("llama-quantize"), *arguments, "--dry-run", base, ftype]
    done = endings.checked(process.run(command, check=False))
    return tool_output.quantize_plan((*done.stdout, *done.stderr))


def quantize(
    toolchain: Toolchain,
    base: Path,
    output: Path,
    ftype: str,
    options: QuantizeOptions | None = None,
    threads: int | None = None,
    on_tensor: Progress | None = None,
) -> process.Completed:
    """Run llama-quantize. With ``keep_split``, ``output`` is the prefix of the shards' names.

    Raises ToolFailed; a partial output may then be left behind, so give it a staging path.
    """

    def watch(line: str) -> None:
        progress = tool_output.quantize_progress(line)
        if progress and on_tensor:
            on_tensor(*progress)

    command: list[str | Path] = [
        toolchain.tool("llama-quantize"),
        *(options or QuantizeOptions()).arguments(),
        base,
        output,
        ftype,
    ]
    if threads:
        command.append(str(threads))
    return endings.checked(process.run(command, watch=process.Watch(watch, watch), check=False))


def bos_token(toolchain: Toolchain, model: Path) -> int | None:
    """The token that llama.cpp puts before a text, or None where the vocabulary wants none.

    Raises ToolFailed, ToolchainProblem.
    """
    command: list[str | Path] = [toolchain.tool("llama-tokenize"), "-m", model, "-p", "a", "--ids"]
    with_special = tool_output.token_ids(endings.checked(process.run(command, check=False)).stdout)
    without = tool_output.token_ids(endings.checked(process.run([*command, "--no-bos"], check=False)).stdout)
    return with_special[0] if len(with_special) > len(without) else None


def forward_pass(toolchain: Toolchain, model: Path, *, repack: bool, gpu: bool = False) -> None:
    """Evaluate a few tokens, as a batch and one by one, on the CPU alone or with every layer on the GPU.

    Raises ToolFailed; ``returncode`` < 0 is a crash.
    """
    # Without "-dev none" a GPU build would hand even a batch of the CPU's layers to the GPU.
    where = ["-ngl", "99"] if gpu else ["-ngl", "0", "-dev", "none"]
    done = process.run(
        [
            toolchain.tool("llama-bench"), "-m", model, "-p", "32", "-n", "2", "-r", "1", "-t", "1", *where,
            "--no-warmup", "--repack", "1" if repack else "0", "-o", "jsonl",
        ],
        timeout_s=120,
        check=False,
    )  # fmt: skip
    endings.checked(done, of_file=False)
    if sum(line.startswith("{") for line in done.stdout) != 2:
        raise ToolFailed(done.command, 1, done.tail)


def evaluation_failed(done: process.Completed, model: Path) -> GgqError:
    """The error for a tool that evaluated ``model`` and did not end well."""
    if done.out_of_memory:
        return DoesNotFit(
            f"Memory ran out while {model.name} was evaluated: {Path(done.command[0]).name} was ended by the"
            " kernel.",
            f"The file has {files.human_bytes(model.stat().st_size)}; now"
            f" {files.human_bytes(hardware.available_ram_bytes())} are free.",
            "Close other programs, or choose a smaller model; where the command has a context (-c), a smaller"
            " one needs less.",
        )
    return endings.failed(done, "Run `ggq doctor`; --verbose shows all that the tool says.")
