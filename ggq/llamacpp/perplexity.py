"""llama-perplexity: a text's perplexity, a base's logits on it, and another model's divergence from them.

The tool exits 0 even where it failed, so every figure is looked for, and missed in words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggq.errors import CannotServe, GgufProblem, ToolFailed
from ggq.llamacpp import logits_file, special_logits, tool_output, tools
from ggq.llamacpp.logits_file import LogitsFile
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import process

ChunkHandler = Callable[[int], None]

TOOL = "llama-perplexity"
# Below this many scored tokens the tool prints no summary of a divergence.
LEAST_SCORED_TOKENS = 100


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error, in the figure's own unit; None: it has none."""

    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class Divergence:
    """How far a model is from its base on the same tokens.

    ``ln_ppl_ratio``: mean of ln(PPL(model)/PPL(base)); ``*_kld``: of the Kullback-Leibler divergence of the
    next token's distribution from the base's, nats per token; ``same_top``: share of tokens for which both
    think the same one the likeliest; ``rms_dp``: root mean square of the change of the right token's
    probability. Shares and probabilities are between 0 and 1. Median, 99th percentile and maximum have no
    standard error of the tool's.
    """

    perplexity: Estimate
    base_perplexity: Estimate
    ln_ppl_ratio: Estimate
    mean_kld: Estimate
    median_kld: Estimate
    p99_kld: Estimate
    max_kld: float
    same_top: Estimate
    rms_dp: Estimate


@dataclass(frozen=True)
class Evaluation:
    """How a model is run: tokens in a chunk, threads (None: the tool's choice), placement."""

    context: int = 512
    threads: int | None = None
    offload: Offload = field(default_factory=Offload)

    def arguments(self) -> list[str]:
        # A batch is one chunk: the tool's default evaluates four at once, for four times the logits' memory.
        size = str(self.context)
        arguments = ["-c", size, "-b", size, "-fit", "off", "--no-warmup", *self.offload.arguments()]
        return arguments + (["-t", str(self.threads)] if self.threads else [])


def save_logits(
    toolchain: Toolchain,
    base: Path,
    text: Path,
    target: Path,
    how: Evaluation,
    *,
    chunks: int | None = None,
    parse_special: bool = False,
    on_chunk: ChunkHandler | None = None,
) -> LogitsFile:
    """Write the base's logits on ``text``, or its first ``chunks``, to a file.

    Raises ToolFailed, UsageProblem when the text is too short for two chunks, GgufProblem when the model
    computes no numbers.
    """
    if parse_special:
        return special_logits.save(
            toolchain,
            base,
            text,
            target,
            how.context,
            threads=how.threads,
            offload=how.offload,
            chunks=chunks,
        )
    seen = 0

    def watch(line: str) -> None:
        nonlocal seen
        if on_chunk and re.match(r"^\s*\d+  [\d.]+  -?[\d.]+", line):
            seen += 1
            on_chunk(seen)

    # "--ppl-output-type 1": a line for each chunk, rather than one long line at the end.
    command: list[str | Path] = [toolchain.tool(TOOL), "-m", base, "-f", text, "--ppl-output-type", "1"]
    command += [*how.arguments(), "--kl-divergence-base", target]
    if chunks:
        command += ["--chunks", str(chunks)]
    done = process.run(command, watch=process.Watch(watch), check=False)
    lines = (*done.stdout, *done.stderr)
    if done.returncode:
        raise tools.evaluation_failed(done, base)
    if any("failed to open" in line and "for writing" in line for line in lines):
        raise ToolFailed(done.command, done.returncode, done.tail)
    parse_perplexity(lines)
    return logits_file.read(target)


def divergence(
    toolchain: Toolchain,
    model: Path,
    logits: LogitsFile,
    how: Evaluation,
    *,
    on_chunk: ChunkHandler | None = None,
) -> Divergence:
    """Evaluate a model on the tokens of ``logits``, against the base's probabilities there.

    Raises ToolFailed, GgufProblem when it has another vocabulary or computes no numbers, ToolchainProblem.
    """

    def watch(line: str) -> None:
        if on_chunk and (found := re.match(r"^\s*(\d+)\s+\S+ ± ", line)):
            on_chunk(int(found[1]))

    command: list[str | Path] = [toolchain.tool(TOOL), "-m", model, *how.arguments()]
    command += ["--kl-divergence", "--kl-divergence-base", logits.path]
    done = process.run(command, watch=process.Watch(watch), check=False)
    lines = (*done.stdout, *done.stderr)
    if done.returncode:
        # A foreign vocabulary ends in an abort, after the words that explain it.
        refuse_foreign_vocabulary(lines)
        raise tools.evaluation_failed(done, model)
    return parse_divergence(lines)


def parse_perplexity(lines: Iterable[str]) -> Estimate:
    """Parse the estimate of a text's perplexity.

    Raises UsageProblem when the text is too short, GgufProblem when the model's probabilities are not
    numbers, ToolchainProblem when there is no estimate for no known reason.
    """
    wanted = ""
    for line in lines:
        if found := re.search(r"Final estimate: PPL = (\d[\d.]*) \+/- (\d[\d.]*)", line):
            return Estimate(float(found[1]), float(found[2]))
        if found := re.search(r"need at least (\d+) tokens to evaluate perplexity", line):
            wanted = found[1]
        elif found := re.search(r"tokenizes to only (\d+) tokens", line):
            raise CannotServe(
                "The text is too short to measure perplexity.",
                f"It has {found[1]} tokens; {wanted} are needed.",
                "Give a longer text, or a smaller context.",
            )
        elif "Unexpected negative standard deviation" in line:
            raise _no_numbers()
        elif "failed to decode" in line:
            raise _not_evaluated()
    raise tool_output.unknown(TOOL, "it gave no final estimate")


_FIGURE = re.compile(
    r"^(?P<name>[^:]+?)\s*:\s*(?P<value>-?(?:\d[\d.]*|nan|inf))%?"
    r"(?:\s*±\s*(?P<error>-?(?:\d[\d.]*|nan|inf)) ?%?)?\s*$"
)


def refuse_foreign_vocabulary(lines: Sequence[str]) -> None:
    """Raises GgufProblem when the tool said that the model has another vocabulary than the base."""
    for line in lines:
        why = ""
        if words := re.search(r"inconsistent vocabulary \((\d+) vs (\d+)\)", line):
            why = f"The 16-bit GGUF has {words[1]} tokens, this model {words[2]}."
        # It goes on until it aborts, which may come before the line above is written.
        elif token := re.search(r"failed to add token (\d+) at index \d+ \(error -2", line):
            why = f"The text has the token {token[1]} of the 16-bit GGUF, which this model lacks."
        if why:
            raise GgufProblem(
                "The model's vocabulary is not that of its 16-bit GGUF.",
                why,
                "Compare a model with the 16-bit GGUF that it was made from.",
            )


def parse_divergence(lines: Sequence[str]) -> Divergence:
    """Parse the summary of a divergence.

    Raises GgufProblem when vocabularies differ or the figures are not numbers, ToolchainProblem when one of
    them is missing.
    """
    found: dict[str, tuple[float, str | None]] = {}
    refuse_foreign_vocabulary(lines)
    for line in lines:
        if "failed to decode" in line:
            raise _not_evaluated()
        if figure := _FIGURE.match(line):
            found[" ".join(figure["name"].split())] = (float(figure["value"]), figure["error"])
    if not all(math.isfinite(value) for value, _ in found.values()):
        raise _no_numbers()

    def estimate(name: str, scale: float = 1.0) -> Estimate:
        value, error = _of(found, name)
        if error is None:
            raise tool_output.unknown(f"{TOOL} --kl-divergence", f"{name!r} has no standard error")
        # Between a model and itself the tool takes the root of what rounding left: -nan.
        spread = float(error) * scale
        return Estimate(value * scale, spread if math.isfinite(spread) else None)

    return Divergence(
        perplexity=estimate("Mean PPL(Q)"),
        base_perplexity=estimate("Mean PPL(base)"),
        ln_ppl_ratio=estimate("Mean ln(PPL(Q)/PPL(base))"),
        mean_kld=estimate("Mean KLD"),
        median_kld=Estimate(_of(found, "Median KLD")[0]),
        p99_kld=Estimate(_of(found, "99.0% KLD")[0]),
        max_kld=_of(found, "Maximum KLD")[0],
        same_top=estimate("Same top p", 0.01),
        rms_dp=estimate("RMS Δp", 0.01),
    )


def _of(found: dict[str, tuple[float, str | None]], name: str) -> tuple[float, str | None]:
    if name not in found:
        raise tool_output.unknown(f"{TOOL} --kl-divergence", f"its summary lacks {name!r}")
    return found[name]


def _no_numbers() -> GgufProblem:
    return GgufProblem(
        "The model's perplexity cannot be measured.",
        "Its probabilities are not numbers: some of its weights are NaN or infinite.",
        "Make the file again from its checkpoint.",
    )


def _not_evaluated() -> GgufProblem:
    return GgufProblem(
        "llama.cpp cannot evaluate this model.",
        "It failed to decode a chunk of the text.",
        "Try a smaller context, or fewer layers on the GPU.",
    )
