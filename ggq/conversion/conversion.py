"""Checkpoint folder -> base GGUF: converted in a child process, checked there, published only when right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.checkpoint import checkpoint
from ggq.checkpoint.checkpoint import Checkpoint
from ggq.conversion.checkpoint_view import SourceInfo
from ggq.conversion.child_process import Child, Target
from ggq.conversion.settings import ConvertSettings, Outtype, Verify
from ggq.conversion.verification import KEY, Verification
from ggq.errors import OutputProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.progress import Listener, Notice
from ggq.session import Session
from ggq.settings import choice, filled
from ggq.system import files

BITS_PER_WEIGHT = {"bf16": 16.0, "f16": 16.0, "f32": 32.0, "q8_0": 8.5}
_OWN_TYPES = {"BF16": "bf16", "F16": "f16", "F32": "f32", "F64": "f32"}
# A token has 16 bytes of a GGUF's header beside its text; in the tokenizer's files it has 6 or more with it.
_HEADER_SHARE, _HEADER_BYTES = 4, 1 << 20


@dataclass(frozen=True)
class Conversion:
    """A base GGUF and how it came to be. ``architecture`` is the checkpoint's; ``completed_keys``: what its
    config lacked and the converter was given; ``seconds`` and ``peak_memory_bytes`` of the child process
    (None: the platform does not tell)."""

    output: Path
    file_bytes: int
    parameter_count: int
    tensor_count: int
    outtype: str
    architecture: str
    completed_keys: Mapping[str, Any]
    verification: Verification
    seconds: float
    peak_memory_bytes: int | None
    checkpoint: Path
    mmproj: bool


def resolve_outtype(given: Checkpoint, outtype: str) -> str:
    """``auto`` -> the type that keeps the checkpoint's precision; any other word in lower case.

    Weights that are quantized become the type that the config computes in, or bf16. Raises UsageProblem.
    """
    word = choice(outtype, "output type", Outtype)
    if word is not Outtype.AUTO:
        return word.value
    if given.dtype in _OWN_TYPES:
        return _OWN_TYPES[given.dtype]
    said = str(given.config.get("dtype") or given.config.get("torch_dtype")).removeprefix("torch.")
    return {"float16": "f16", "float32": "f32"}.get(said, "bf16")


def default_name(model_name: str, outtype: str, *, mmproj: bool = False) -> str:
    """``("Qwen3-0.6B", "bf16")`` -> ``Qwen3-0.6B-BF16.gguf``, as the community writes it."""
    return ("mmproj-" if mmproj else "") + gguf_names.output_name(model_name, outtype.upper())


def needed_bytes(given: Checkpoint, outtype: str) -> int:
    """Disk that the GGUF takes, from above. ``outtype``: resolved."""
    tokenizer_bytes = sum((given.path / name).stat().st_size for name in given.tokenizer_files)
    header_bytes = _HEADER_SHARE * tokenizer_bytes + _HEADER_BYTES
    return int(given.likely_parameter_count * BITS_PER_WEIGHT[outtype] / 8) + header_bytes


def convert(
    checkpoint_folder: str | Path,
    output: str | Path,
    settings: ConvertSettings | None = None,
    *,
    source: SourceInfo | None = None,
    session: Session | None = None,
    on_written: Callable[[Path], None] | None = None,
    **keywords: Any,
) -> Conversion:
    """Convert a checkpoint folder to one GGUF, and hold it against the checkpoint.

    ``keywords``: fields of the settings (``verify``: see ``verify()``). ``on_written`` is called, perhaps
    from another thread, with the staged file when it is complete and its checks begin; and again when its
    checks led to a change in it. The output gets its name only whole, and only when it passed.

    Raises CheckpointProblem, ConversionProblem, UsageProblem, OutputProblem, DiskFull, ToolchainProblem.
    """
    settings = filled(ConvertSettings, settings, keywords)
    session = session or Session()
    output = Path(output)
    refuse_existing(output, force=settings.force)
    given = checkpoint.read(Path(checkpoint_folder))
    checkpoint.require_convertible(given)
    reading = checkpoint.unchanged(given)
    kind = resolve_outtype(given, settings.outtype)
    folder = files.make_folder(output.absolute().parent)
    with ExitStack() as stack:
        stack.enter_context(files.lock(folder, listener=session.listener))
        staged = stack.enter_context(files.staging(folder)) / output.name
        files.require_space(folder, needed_bytes(given, kind), f"the {kind.upper()} GGUF")
        child = Child(given, Target(staged, kind, mmproj=settings.mmproj), session, source)
        with reading.guard():
            child.run(convert=True, level=settings.verify, on_written=on_written)
        made = gguf_file.read(staged)
        verification = child.verified(settings.verify, made)
        if verification.verdict != child.verdict:
            made.overwrite_text(KEY, verification.verdict)
            if on_written is not None:
                on_written(staged)
        if not settings.mmproj:
            remark(given, made, verification, session.listener)
        files.publish(staged, output)
    return Conversion(
        output=output,
        file_bytes=made.file_bytes,
        parameter_count=made.parameter_count,
        tensor_count=len(made.tensors),
        outtype=kind,
        architecture=given.architectures[0],
        completed_keys=child.completed,
        verification=verification,
        seconds=round(child.seconds, 2),
        peak_memory_bytes=child.peak_memory_bytes,
        checkpoint=Path(checkpoint_folder),
        mmproj=settings.mmproj,
    )


def refuse_existing(output: Path, *, force: bool) -> None:
    """Raises OutputProblem for an output that is there already."""
    if output.exists() and not force:
        raise OutputProblem(f"{output} exists.", "", "Use --force to overwrite it, or -o for another name.")


def convert_hollow(
    checkpoint_folder: Path,
    staged: Path,
    *,
    outtype: str = "auto",
    without_values: bool = False,
    source: SourceInfo | None = None,
    session: Session,
) -> int | None:
    """Write the file that ``convert`` would, with every byte of its header, and sparse, empty weights.

    Returns the peak memory of the child process in bytes (None: the platform does not tell).

    ``staged``: a path in a staging folder (``files.require_holes``). ``without_values``: the
    checkpoint's own weights are empty; what needs their values is refused.

    Raises CheckpointProblem, ConversionProblem, UsageProblem, ToolchainProblem.
    """
    given = checkpoint.read(checkpoint_folder)
    checkpoint.require_convertible(given)
    kind = resolve_outtype(given, outtype)
    target = Target(staged, kind, hollow=True, without_values=without_values)
    child = Child(given, target, session, source)
    child.run(convert=True, level=Verify.OFF)
    return child.peak_memory_bytes


def verify(made: Conversion, level: str = Verify.SAMPLED, session: Session | None = None) -> Verification:
    """Hold a converted GGUF against its checkpoint, in a child process.

    Values (no NaN, no infinity; ``sampled`` looks at 64 rows of each tensor, ``full`` at all), the count of
    parameters, the tokenizer against transformers' on a few texts, and the logits of a short prompt against
    transformers' when the model fits into memory. ``off`` does nothing.

    Raises ConversionProblem when it is not the same model.
    """
    wanted = choice(level, "verification", Verify)
    given = checkpoint.read(made.checkpoint)
    child = Child(given, Target(made.output, made.outtype, mmproj=made.mmproj), session or Session())
    if wanted is not Verify.OFF:
        child.run(convert=False, level=wanted)
    return child.verified(wanted, gguf_file.read(made.output))


def remark(
    given: Checkpoint, made: gguf_file.GgufFile, verification: Verification, listener: Listener
) -> None:
    """What a person should know of a conversion that is right."""
    for text in checkpoint.remarks(given):
        listener(Notice(text))
    for warning in verification.warnings:
        listener(Notice(f"{warning[:1].upper()}{warning[1:]}.", "warning"))
    window = verification.window if verification.window_lost else _lost_window(given, made)
    if window:
        listener(
            Notice(
                f"The checkpoint looks back {window} tokens at most; llama.cpp has no such window for this "
                f"architecture. Up to {window} tokens the two agree, beyond they do not.",
                "warning",
            )
        )
    if verification.why_not:
        what = "The vectors" if made.is_encoder else "The logits"
        listener(Notice(f"{what} were not compared: {verification.why_not}.", "warning"))
    if verification.tokenizer_why_not:
        listener(Notice(f"The tokenizer was not compared: {verification.tokenizer_why_not}.", "warning"))


def _lost_window(given: Checkpoint, made: gguf_file.GgufFile) -> int | None:
    """The checkpoint's sliding window in tokens, if llama.cpp will not keep to it.

    The converter writes no window for Mistral, Mixtral and Starcoder2 among others; for Phi-3 it writes one,
    and the loader ignores it (src/models/phi3.cpp).
    """
    part = given.config.get("text_config")
    config = {**given.config, **part} if isinstance(part, dict) else given.config
    window, context = config.get("sliding_window"), config.get("max_position_embeddings")
    layers = config.get("layer_types")
    if not isinstance(window, int) or config.get("use_sliding_window") is False:
        return None
    if isinstance(context, int) and window >= context:
        return None
    if isinstance(layers, list) and "sliding_attention" not in layers:
        return None
    written = made.integer(f"{made.architecture}.attention.sliding_window")
    return None if written and made.architecture != "phi3" else window
