"""What `ggq bench` is asked for. Every option of its commands is declared here, on the field that it sets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from ggq.corpora import CORPORA
from ggq.errors import UsageProblem
from ggq.llamacpp import bench as llama_bench
from ggq.llamacpp.offload import ALL_LAYERS, Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.words import CacheType, FlashAttention, LoadMode
from ggq.measurement import words
from ggq.measurement.model_file import Subject
from ggq.measurement.throughput import Precision
from ggq.measurement.words import KINDS, Kind, MeasuredLoadMode, Until
from ggq.settings import Option
from ggq.units import parse_bytes

# A depth is measured where so many tokens have room after it.
_LEAST_ROOM = 256


THREADS = Option("-t", "--threads", least=1, help="Threads. Default: the cores one may use.")
RPC = Option("--rpc", split=True, metavar="HOST:PORT,…", help="Servers whose devices count as GPUs.")


# --- what several commands share -------------------------------------------------------------------------


@dataclass(frozen=True)
class TextChoice:
    """Which text quality is measured on (see ``ggq.corpora.resolve``), and how it is read."""

    text: Annotated[
        Path | None,
        Option(
            "--text",
            metavar="FILE",
            help="Text to measure quality on. Default: heldout.txt beside the model or its checkpoint, else"
            " WikiText-2.",
        ),
    ] = None
    corpus: Annotated[
        str | None,
        Option(
            "--corpus",
            metavar="NAME",
            help=f"A published text, fetched once: {', '.join(corpus.name for corpus in CORPORA)}.",
        ),
    ] = None
    corpus_path: Annotated[
        Path | None, Option("--corpus-path", metavar="FILE", help="That text as a file of yours.")
    ] = None
    parse_special: Annotated[
        bool,
        Option(
            "--parse-special",
            help="Names of special tokens in the text (<|im_start|>) are these tokens, not letters.",
        ),
    ] = False


@dataclass(frozen=True)
class Placement:
    """Where a model's layers are. ``exactly``: in place of the others, with experts, shares or devices."""

    n_gpu_layers: Annotated[
        int | None,
        Option(
            "-ngl",
            "--n-gpu-layers",
            parse=words.layers,
            metavar="N|all",
            help="Layers on GPUs, the output layer counted. Default: all, if any GPU.",
        ),
    ] = None
    rpc: Annotated[tuple[str, ...], RPC] = ()
    exactly: Offload | None = None

    def offload(self, toolchain: Toolchain) -> Offload:
        """All layers on GPUs where none are asked for and llama.cpp sees one.

        Raises ToolchainProblem when an RPC server cannot be reached.
        """
        if self.exactly is not None:
            return self.exactly
        count = self.n_gpu_layers
        if count is None:
            count = ALL_LAYERS if llama_bench.devices(toolchain, self.rpc) else 0
        return Offload(n_gpu_layers=count, rpc=self.rpc)


# --- quality ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QualitySettings:
    """How quality is measured.

    Without ``chunks`` and ``full``, random excerpts are measured until the order of the models is settled (of
    a single one: its mean KLD to ± 10 %), up to ``max_chunks``. ``indifference``: in nats per token;
    ``error_rate``: of the whole ranking; ``max_base_bytes``: of disk; ``seed``: of the excerpts' order;
    ``checkpoint``: what the base was converted from.
    """

    context: Annotated[
        int,
        Option("-c", "--ctx-size", least=8, help="Tokens in a chunk; the second half of each is scored."),
    ] = 512
    chunks: Annotated[
        int | None, Option("--chunks", least=1, help="Measure the text's first chunks, so many.")
    ] = None
    full: Annotated[bool, Option("--full", help="Measure the whole text.")] = False
    max_chunks: Annotated[
        int, Option("--max-chunks", least=2, help="Chunks at most when nothing settles the order.")
    ] = 256
    indifference: Annotated[
        float,
        Option("--indifference", least=0, help="Differences of mean KLD that need no order, in nats."),
    ] = 0.001
    max_base_bytes: Annotated[
        int,
        Option(
            "--max-base-bytes",
            parse=parse_bytes,
            metavar="SIZE",
            shown_default="4G",
            help="Disk for the 16-bit GGUF's logits at a time, as 500M.",
        ),
    ] = 4_000_000_000
    checkpoint: Annotated[
        Path | None,
        Option(
            "--reference",
            folder=True,
            metavar="CHECKPOINT",
            help="Compare the 16-bit GGUF with its checkpoint, too, computed by transformers.",
        ),
    ] = None
    placement: Placement = field(default_factory=Placement)
    threads: Annotated[int | None, THREADS] = None
    error_rate: float = 0.05
    seed: int = 1

    @property
    def until(self) -> Until:
        """Raises UsageProblem when two amounts of text are asked for."""
        if self.full and self.chunks:
            raise UsageProblem("--full and --chunks exclude each other.", "", "Leave one of them out.")
        return Until.FULL if self.full else Until.CHUNKS if self.chunks else Until.RANKED


# --- speed -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpeedSettings:
    """What to measure of speed.

    ``prompt_tokens``, ``generated_tokens``: lengths, () for none; None: 512 and 128 (``quick``: 128 and 32),
    or what the model's context has room for. ``n_gpu_layers``: see ggq.measurement.speed_tests.placements.
    """

    prompt_tokens: Annotated[
        tuple[int, ...] | None,
        Option(
            "-p",
            "--n-prompt",
            split=True,
            least=0,
            metavar="N,…",
            help="Lengths of prompts, as 128,512; 0: none. Default: 512, or what the context holds.",
        ),
    ] = None
    generated_tokens: Annotated[
        tuple[int, ...] | None,
        Option(
            "-n",
            "--n-gen",
            split=True,
            least=0,
            metavar="N,…",
            help="Tokens to generate; 0: none. Default: 128, or what the context holds.",
        ),
    ] = None
    depths: Annotated[
        tuple[int, ...],
        Option(
            "-d",
            "--n-depth",
            split=True,
            least=0,
            metavar="N,…",
            shown_default="0",
            help="Tokens in the context before that, as 0,4096.",
        ),
    ] = (0,)
    threads: Annotated[
        int | Literal["auto"] | None,
        Option(
            "-t",
            "--threads",
            parse=words.threads,
            metavar="N|auto",
            help="Threads; auto: the best count for each. Default: the cores one may use.",
        ),
    ] = None
    type_k: Annotated[CacheType, Option("-ctk", "--cache-type-k", help="Type of the cache's keys.")] = (
        CacheType.F16
    )
    type_v: Annotated[CacheType, Option("-ctv", "--cache-type-v", help="Type of its values.")] = CacheType.F16
    flash_attention: Annotated[FlashAttention, Option("-fa", "--flash-attn", help="Flash attention.")] = (
        FlashAttention.AUTO
    )
    load_mode: Annotated[LoadMode, Option("-lm", "--load-mode", help="Way of loading.")] = LoadMode.AUTO
    n_gpu_layers: Annotated[
        Literal["sweep"] | tuple[int, ...] | None,
        Option(
            "-ngl",
            "--n-gpu-layers",
            parse=words.layer_counts,
            metavar="N,…|all|sweep",
            help="Layers on GPUs, the output layer counted; sweep: none, quarters, all. Default: all, if any"
            " GPU.",
        ),
    ] = None
    n_cpu_moe: Annotated[
        int, Option("-ncmoe", "--n-cpu-moe", least=0, help="Layers whose experts stay on the CPU.")
    ] = 0
    tensor_split: Annotated[
        tuple[float, ...],
        Option(
            "-ts", "--tensor-split", split=True, least=0, metavar="X,…", help="Share of each GPU, as 3,1."
        ),
    ] = ()
    rpc: Annotated[tuple[str, ...], RPC] = ()
    precision: Precision = field(default_factory=Precision)
    quick: Annotated[
        bool, Option("--quick", help="A shorter prompt and fewer tokens by default: 128 and 32.")
    ] = False
    binding: Annotated[
        bool, Option("--binding/--no-binding", help="Measure llama-cpp-python as well, or leave it out.")
    ] = True


# --- memory ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemorySettings:
    """What to measure of memory: every context with every type of the cache, loaded in every way.

    ``types_v``: one for each of ``types_k``, one for all, or () for the same.
    """

    contexts: Annotated[
        tuple[int, ...],
        Option(
            "-c",
            "--ctx-size",
            split=True,
            metavar="N,…",
            help="Contexts in tokens, as 512,4096. Default: the model's own, at most 4096.",
        ),
    ] = ()
    types_k: Annotated[
        tuple[CacheType, ...],
        Option(
            "-ctk",
            "--cache-type-k",
            split=True,
            metavar="TYPE,…",
            shown_default="f16",
            help="Types of the cache's keys, as f16,q8_0.",
        ),
    ] = (CacheType.F16,)
    types_v: Annotated[
        tuple[CacheType, ...],
        Option(
            "-ctv",
            "--cache-type-v",
            split=True,
            metavar="TYPE,…",
            help="Types of its values, one for each of -ctk. Default: the same.",
        ),
    ] = ()
    load_modes: Annotated[
        tuple[MeasuredLoadMode, ...],
        Option(
            "-lm",
            "--load-mode",
            split=True,
            metavar="MODE,…",
            shown_default="mmap,none",
            help="Ways of loading: with mmap, or none.",
        ),
    ] = tuple(MeasuredLoadMode)
    flash_attention: Annotated[FlashAttention, Option("-fa", "--flash-attn", help="Flash attention.")] = (
        FlashAttention.AUTO
    )
    placement: Placement = field(default_factory=Placement)
    threads: Annotated[int | None, THREADS] = None
    quick: Annotated[bool, Option("--quick", help="Run only the shortest context; estimate the others.")] = (
        False
    )
    force: Annotated[bool, Option("--force", help="Run also what does not fit.")] = False

    @property
    def cache_types(self) -> tuple[tuple[CacheType, CacheType], ...]:
        """Types of keys and values that belong together. Raises UsageProblem."""
        types_v = self.types_v or self.types_k
        if len(types_v) == 1:
            types_v *= len(self.types_k)
        if len(self.types_k) != len(types_v):
            raise UsageProblem(
                "-ctk and -ctv name different numbers of types.",
                f"There are {len(self.types_k)} for keys and {len(types_v)} for values.",
                "Name one of -ctv for each of -ctk, a single one for all, or none for the same.",
            )
        return tuple(zip(self.types_k, types_v, strict=True))


# --- everything ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BenchSettings:
    """What to measure, and how.

    ``base``: the file that others are compared with; None: the widest one. ``within_context``: leave out
    contexts and depths that a model does not have, rather than refuse them.
    """

    kinds: tuple[Kind, ...] = KINDS
    base: Path | None = None
    text: TextChoice = field(default_factory=TextChoice)
    quality: QualitySettings = field(default_factory=QualitySettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    within_context: bool = False

    def for_model(self, found: Subject) -> BenchSettings:
        """These settings, less the contexts and depths that the model does not have, where that is wanted."""
        if not (self.within_context and found.context_length):
            return self
        most = found.context_length
        depths = tuple(depth for depth in self.speed.depths if depth + _LEAST_ROOM <= most) or (0,)
        contexts = tuple(context for context in self.memory.contexts if context <= most)
        return replace(
            self,
            quality=replace(self.quality, context=min(self.quality.context, most)),
            speed=replace(self.speed, depths=depths),
            memory=replace(self.memory, contexts=contexts),
        )
