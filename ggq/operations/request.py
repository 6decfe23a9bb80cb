"""What is asked of the main job, and what of it can be refused before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from ggq import model_ref
from ggq.conversion import pipes
from ggq.conversion.settings import UNQUANTIZED, Outtype, Verify
from ggq.errors import UsageProblem
from ggq.llamacpp.tools import QuantizeOptions
from ggq.model_ref import ModelRef
from ggq.presets.catalogue import Preset
from ggq.quantization.engine import EngineName, parse_engine
from ggq.quantization.one_pass import MAX_MEMORY_BYTES
from ggq.quantization.recipe import check, without_imatrix
from ggq.session import Session
from ggq.settings import Option, settle
from ggq.units import parse_bytes

AUTO: Literal["auto"] = "auto"
DEFAULT_PRESETS = ("Q4_K_M",)


def _auto_or_file(word: str) -> Path | Literal["auto"]:
    """The word ``auto`` in any case, or a file. Raises ValueError."""
    if word.lower() == AUTO:
        return AUTO
    if not Path(word).is_file():
        raise ValueError(f"there is no file {word}.")
    return Path(word)


@dataclass(frozen=True)
class Settings:
    """How to make the files.

    ``imatrix``: an imatrix, or the word ``auto``: it is made of the 16-bit GGUF, from the text
    ``imatrix_text`` (None: the default one), whose special tokens count as such with ``parse_special``.
    ``max_memory_bytes``: what the blocks of rows of the one pass may take. ``threads`` None: the cores that
    one may use. ``stream``: a checkpoint of the Hub is read while it is quantized, and nothing is kept of its
    weights.
    """

    outtype: Annotated[
        Outtype, Option(
            "--outtype", choices=UNQUANTIZED,
            help="Type of the 16-bit GGUF; auto keeps the checkpoint's precision.",
        ),
    ] = Outtype.AUTO  # fmt: skip
    verify: Annotated[
        Verify, Option("--verify", help="How the conversion is checked: `full` looks at every value.")
    ] = Verify.SAMPLED
    keep_base: Annotated[bool, Option("--keep-base", help="Keep the 16-bit GGUF, too.")] = False
    stream: Annotated[
        bool, Option(
            "--stream",
            help="Read the weights from the Hub while they are quantized, and keep nothing of them.",
        ),
    ] = False  # fmt: skip
    imatrix: Annotated[
        Path | Literal["auto"] | None, Option(
            "--imatrix", parse=_auto_or_file, metavar="auto|FILE",
            help="An imatrix; auto makes that of the model (see `ggq imatrix`), or takes it up.",
        ),
    ] = None  # fmt: skip
    imatrix_text: Annotated[
        Path | None, Option(
            "--imatrix-text", metavar="FILE",
            help="The text for --imatrix auto. Default: Python's language reference.",
        ),
    ] = None  # fmt: skip
    parse_special: Annotated[
        bool, Option(
            "--parse-special",
            help="Names of special tokens in the text (<|im_start|>) are these tokens, not letters.",
        ),
    ] = False  # fmt: skip
    options: QuantizeOptions = field(default_factory=QuantizeOptions)
    engine: Annotated[
        EngineName, Option(
            "--engine", parse=parse_engine, metavar="|".join(EngineName), shown_default=EngineName.AUTO.value,
            help="one-pass makes all presets in one pass, with llama-quantize's bytes; auto leaves to"
            " llama-quantize what the one pass cannot make.",
        ),
    ] = EngineName.AUTO  # fmt: skip
    max_memory_bytes: Annotated[
        int, Option(
            "--max-memory", parse=parse_bytes, metavar="SIZE", shown_default=f"{MAX_MEMORY_BYTES >> 20}MiB",
            help="What the blocks of rows of the one pass may take.",
        ),
    ] = MAX_MEMORY_BYTES  # fmt: skip
    threads: Annotated[
        int | None, Option("-t", "--threads", least=1, help="Threads. Default: the cores one may use.")
    ] = None
    force: Annotated[bool, Option("--force", help="Overwrite outputs that exist.")] = False

    def __post_init__(self) -> None:
        settle(self)

    @property
    def makes_imatrix(self) -> bool:
        return self.imatrix == AUTO

    @property
    def quantize_options(self) -> QuantizeOptions:
        """llama-quantize's, with the imatrix that was given."""
        return self.with_imatrix(self.imatrix if isinstance(self.imatrix, Path) else self.options.imatrix)

    def with_imatrix(self, matrix: Path | None) -> QuantizeOptions:
        return replace(self.options, imatrix=matrix)


@dataclass(frozen=True)
class Request:
    """One job. ``presets`` None: the one that is recommended; ``outdir`` None: a folder of the model's name
    here, or beside a GGUF."""

    model: ModelRef
    presets: tuple[Preset, ...] | None
    outdir: Path | None
    settings: Settings


def request(
    model: str | Path | ModelRef,
    presets: str | Iterable[str] | None,
    outdir: str | Path | None,
    settings: Settings,
    session: Session,
) -> Request:
    """The one place where a job's arguments are read. Raises UsageProblem, also for what can be refused
    before anything is read."""
    names = (presets,) if isinstance(presets, str) else tuple(presets or ())
    if not names or [name.lower() for name in names] == [AUTO]:
        # Of options for llama-quantize a recommendation does not know.
        plain = settings.quantize_options == QuantizeOptions() and not settings.makes_imatrix
        names = () if plain else DEFAULT_PRESETS
    chosen = tuple(session.catalogue.resolve(names)) if names else None
    made = Request(model_ref.reference(model), chosen, None if outdir is None else Path(outdir), settings)
    refuse(made)
    return made


def refuse(made: Request) -> None:
    """What can be said before anything is read. Raises UsageProblem."""
    settings, ref = made.settings, made.model
    check(settings.quantize_options)
    _refuse_idle_options(settings)
    if settings.stream:
        _refuse_to_stream(settings, ref)
    if ref.kind == "gguf":
        return
    if settings.options.keep_split:
        raise UsageProblem(
            "There is no split 16-bit GGUF to keep the shards of.",
            "--keep-split is for a GGUF in shards; a checkpoint becomes one file.",
            "Leave --keep-split out.",
        )
    if settings.imatrix is None:
        refuse_without_imatrix(made.presets or ())


def refuse_without_imatrix(presets: Sequence[Preset]) -> None:
    """Raises UsageProblem for a preset that always needs an imatrix."""
    for preset in presets:
        if preset.needs_imatrix:
            raise without_imatrix(preset)


def _refuse_idle_options(settings: Settings) -> None:
    idle = {
        "--imatrix-text": (settings.imatrix_text is not None, "It is the text that the matrix is made from."),
        "--parse-special": (settings.parse_special, "It says how the matrix's text is read."),
    }  # fmt: skip
    for flag, (given, why) in idle.items():
        if given and not settings.makes_imatrix:
            raise UsageProblem(
                f"{flag} is of no use without --imatrix auto.",
                why,
                f"Give --imatrix auto, or leave {flag} out.",
            )


def _refuse_to_stream(settings: Settings, ref: ModelRef) -> None:
    if ref.path is not None:
        raise UsageProblem(
            f"{ref} is on this disk already.", "Only what is on the Hub is streamed.", "Leave --stream out."
        )
    obstacles = [
        (settings.keep_base, "--keep-base asks for it."),
        (settings.makes_imatrix, "An imatrix is to be made of it."),
        (settings.engine == EngineName.LLAMA_QUANTIZE, "llama-quantize reads it from the disk."),
        (settings.verify == Verify.FULL, "--verify full looks at all of it."),
        (not pipes.are_there(), "It is handed over by a named pipe, and this system has none."),
    ]
    for holds, why in obstacles:
        if holds:
            raise UsageProblem(
                "A stream leaves no 16-bit GGUF.",
                why,
                "Leave --stream out: the checkpoint is downloaded then.",
            )
