"""How a model is loaded and how it answers, as a person may set it. What is not set is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from ggq.errors import UsageProblem
from ggq.llamacpp.offload import parse_layers
from ggq.llamacpp.words import CacheType
from ggq.settings import Option

DEFAULT_CONTEXT_TOKENS = 8192


class LoadMode(StrEnum):
    """How llama.cpp reads the file."""

    NONE = "none"
    MMAP = "mmap"
    MLOCK = "mlock"


class Fit(StrEnum):
    """Whether a model must fit the memory by llama.cpp's account."""

    ON = "on"
    OFF = "off"


class Use(StrEnum):
    """What a model answers with."""

    TEXT = "text"
    EMBEDDINGS = "embeddings"
    RERANKING = "reranking"


@dataclass(frozen=True)
class LoadSettings:
    """Context, cache, placement and threads; None: chosen for this file and machine."""

    context_tokens: Annotated[
        int | None,
        Option(
            "-c",
            "--ctx-size",
            least=16,
            metavar="TOKENS",
            help="Tokens of context. Default: at most 8192, as many as fit.",
        ),
    ] = None
    type_k: Annotated[
        CacheType | None,
        Option(
            "-ctk",
            "--cache-type-k",
            help="Type of the K cache. Default: f16, or q8_0 where that does not fit.",
        ),
    ] = None
    type_v: Annotated[
        CacheType | None, Option("-ctv", "--cache-type-v", help="Type of the V cache. Default: as -ctk.")
    ] = None
    n_gpu_layers: Annotated[
        int | None,
        Option(
            "-ngl",
            "--n-gpu-layers",
            parse=parse_layers,
            metavar="N|auto|all",
            help="Layers on GPUs. Default: auto, as many as fit.",
        ),
    ] = None
    threads: Annotated[
        int | None,
        Option("-t", "--threads", least=1, help="Threads. Default: one per core that may be used."),
    ] = None
    load_mode: Annotated[
        LoadMode | None,
        Option("-lm", "--load-mode", help="How the file is read. Default: what takes less memory."),
    ] = None
    fit: Annotated[
        Fit, Option("--fit", help="off: load it even if it should not fit.", shown_default="on")
    ] = Fit.ON


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is drawn; None: what the file says of itself, else llama.cpp's default."""

    temp: Annotated[
        float | None,
        Option(
            "--temp",
            least=0,
            help="Temperature; 0: always the likeliest token. Default: the file's, else 0.8.",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        Option(
            "--top-p", least=0, help="Draw from the likeliest tokens of so much probability. Default: 0.95."
        ),
    ] = None
    top_k: Annotated[
        int | None, Option("--top-k", least=0, help="Draw from so many likeliest tokens. Default: 40.")
    ] = None
    min_p: Annotated[
        float | None,
        Option(
            "--min-p",
            least=0,
            help="Leave out tokens less likely than this share of the likeliest. Default: 0.05.",
        ),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        Option("--repeat-penalty", least=0, help="Above 1: words are repeated less. Default: 1."),
    ] = None
    seed: Annotated[
        int | None,
        Option("--seed", least=0, help="The same seed, the same answer. Default: another one each time."),
    ] = None


@dataclass(frozen=True)
class GrammarSettings:
    """What an answer must look like."""

    grammar: Annotated[
        Path | None,
        Option("--grammar", exists=True, metavar="FILE", help="The answer follows this GBNF grammar."),
    ] = None
    json_schema: Annotated[
        str | None,
        Option("--json-schema", metavar="FILE|JSON", help="The answer is JSON that follows this schema."),
    ] = None

    def check(self) -> None:
        """Raises UsageProblem."""
        if self.grammar and self.json_schema:
            raise UsageProblem("--grammar and --json-schema exclude each other.", "", "Give one of them.")

    def schema_text(self) -> str:
        """The JSON schema, from the file that was named, or as it was typed. Raises UsageProblem."""
        word = self.json_schema or ""
        if word.lstrip().startswith("{"):
            return word
        try:
            return Path(word).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageProblem(
                f"{word} is no JSON schema.", f"{error}.", "Give a file, or the schema itself in braces."
            ) from error


@dataclass(frozen=True)
class AnswerSettings:
    """``max_tokens``: at the most, None: until the model ends; ``system``: a system prompt; ``raw``: the
    prompt is continued without the chat template."""

    max_tokens: Annotated[
        int | None, Option(
            "-n", "--max-tokens", aliases=("--tokens",), least=1,
            help="End an answer after so many tokens. Default: where the model ends it; 64 with --raw.",
        ),
    ] = None  # fmt: skip
    system: Annotated[str | None, Option("--system", metavar="TEXT", help="A system prompt.")] = None
    raw: Annotated[bool, Option("--raw", help="Continue PROMPT as it stands, without the chat template.")] = (
        False
    )
