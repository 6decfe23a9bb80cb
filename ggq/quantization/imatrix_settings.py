"""How an importance matrix is made, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ggq.llamacpp import imatrix as tool
from ggq.llamacpp.offload import parse_layers
from ggq.settings import Option, settle


@dataclass(frozen=True)
class ImatrixSettings:
    """``text`` None: that of ``calibration.default``; ``chunks``: of its beginning (None: all of it), each of
    ``context`` tokens (None: 512, or what the model has where that is less); ``threads`` do not change the
    result. ``n_gpu_layers``: -1 for all; None leaves it to llama.cpp, if there is a GPU. ``parse_special``:
    the names of special tokens in the text stand for them. ``output`` None: beside the GGUF."""

    text: Annotated[
        Path | None, Option(
            "--text", metavar="FILE",
            help="The text to make it from. Default: Python's language reference, which needs no network.",
        ),
    ] = None  # fmt: skip
    chunks: Annotated[
        int | None, Option("--chunks", least=1, help="Of the text's beginning. Default: all of it.")
    ] = None
    context: Annotated[
        int | None, Option(
            "-c", "--ctx-size", aliases=("--ctx",), least=tool.LEAST_CONTEXT, metavar="TOKENS",
            help="Tokens in a chunk. Default: 512, or what the model has, if that is less.",
        ),
    ] = None  # fmt: skip
    n_gpu_layers: Annotated[
        int | None, Option(
            "-ngl", "--n-gpu-layers", parse=parse_layers, metavar="N|auto|all",
            help="Layers on GPUs, the output layer counted. Default: as many as llama.cpp finds room for.",
        ),
    ] = None  # fmt: skip
    parse_special: Annotated[
        bool, Option(
            "--parse-special",
            help="Names of special tokens in the text (<|im_start|>) are these tokens, not letters.",
        ),
    ] = False  # fmt: skip
    threads: Annotated[
        int | None, Option("-t", "--threads", least=1, help="Threads. Default: the cores one may use.")
    ] = None
    output: Annotated[
        Path | None,
        Option("-o", "--output", metavar="FILE", help="Default: NAME-imatrix.gguf beside the GGUF."),
    ] = None
    force: Annotated[bool, Option("--force", help="Overwrite outputs that exist.")] = False

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class ImatrixResult:
    """A matrix: the sums over ``tokens`` of the text, for ``entries`` tensors of the base. In
    ``partial_entries`` of them some experts met no token: they count as they would without a matrix.
    ``resumed_chunks``: an earlier run had computed so many; ``reused``: the whole file was there."""

    path: Path
    file_bytes: int
    chunks: int
    context: int
    tokens: int
    entries: int
    partial_entries: int
    text_name: str
    text_sha256: str
    parse_special: bool
    seconds: float
    resumed_chunks: int
    reused: bool
