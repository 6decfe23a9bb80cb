"""A reference: the perplexity that transformers gives the checkpoint itself, on the same tokens."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggq.checkpoint import checkpoint as checkpoints
from ggq.checkpoint import transformers_model
from ggq.checkpoint.checkpoint import Checkpoint
from ggq.conversion import checkpoint_view
from ggq.errors import CheckpointProblem, DoesNotFit, GgqError, UsageProblem, signal_name
from ggq.llamacpp.logits_file import scored_tokens
from ggq.measurement.transformers_perplexity_child import Job
from ggq.progress import Listener, Step, silent
from ggq.system import files, hardware, process, python_child, scratch
from ggq.system.process import Watch

_WITHOUT = "or leave --reference out"
_NO_MEMORY = re.compile(r"^MemoryError|not enough memory|[Cc]an(?:'t|not) allocate memory")


@dataclass(frozen=True)
class ReferencePerplexity:
    """``value`` = exp(``mean_nll``), the mean of the negative log-likelihood over all ``scored_tokens``, in
    nats; ``standard_error`` is the value's. ``chunk_nlls``: the mean of each chunk. ``seconds``: of the whole
    child process, its imports included."""

    value: float
    standard_error: float
    mean_nll: float
    chunk_nlls: tuple[float, ...]
    scored_tokens: int
    seconds: float
    torch_version: str
    transformers_version: str


def perplexity(
    checkpoint: Path,
    chunks: Sequence[Sequence[int]],
    *,
    bos: int | None,
    threads: int | None = None,
    listener: Listener = silent,
) -> ReferencePerplexity:
    """Perplexity of a checkpoint folder on given chunks of tokens, in float32, as llama-perplexity has it.

    Of a chunk of n tokens, evaluated alone, the n - 1 - n // 2 tokens after the positions n // 2 … n - 2 are
    scored, each given all before it. ``bos`` takes the first token's place; None where the vocabulary adds no
    BOS. ``threads``: None takes all cores that may be used. The standard error is value · √(variance of the
    negative log-likelihoods / (scored tokens - 1)), llama-perplexity's own.

    Raises CheckpointProblem (not a checkpoint; transformers does not run it), DoesNotFit (too little memory),
    UsageProblem (too few tokens).
    """
    given = checkpoints.read(checkpoint)
    _require_tokens(given, chunks)
    _require_memory(given, max(map(len, chunks)))
    job = Job(
        folder=str(checkpoint.absolute()),
        architecture=given.architectures[0],
        chunks=[list(chunk) for chunk in chunks],
        bos=bos,
        threads=threads or hardware.usable_cores(),
    )
    run = _Run(given, len(chunks), listener)
    with scratch.folder("reference") as work:
        job = replace(job, folder=str(checkpoint_view.make(given, work, None)))
        done = python_child.run(
            "ggq.measurement.transformers_perplexity_child",
            stdin=json.dumps(vars(job)),
            env=transformers_model.ENVIRONMENT,
            watch=Watch(run.hear),
            check=False,
        )
    run.require_success(done)
    return _summary(run.nlls, done.seconds, run.versions)


def require(checkpoint: Path, context: int) -> None:
    """Refuse in advance what ``perplexity`` would refuse. Raises CheckpointProblem, DoesNotFit."""
    _require_memory(checkpoints.read(checkpoint), context)


class _Run:
    """What the child process said."""

    def __init__(self, given: Checkpoint, chunks: int, listener: Listener) -> None:
        self._given = given
        self._chunks = chunks
        self._listener = listener
        self._failed: Mapping[str, Any] | None = None
        self.nlls: list[list[float]] = []
        self.versions: Mapping[str, str] = {}

    def hear(self, line: str) -> None:
        if not line.startswith('{"event"'):
            return
        event = json.loads(line)
        kind = event.pop("event")
        if kind == "chunk":
            self.nlls.append(event["nlls"])
            self._listener(Step("reference", len(self.nlls), self._chunks, "chunks"))
        elif kind == "failed":
            self._failed = event
        elif kind == "done":
            self.versions = event

    def require_success(self, done: process.Completed) -> None:
        """Raises the GgqError that the child's end is."""
        if self._failed is not None:
            raise _refused(self._given.path, str(self._failed["kind"]), str(self._failed["text"]))
        if done.returncode or not self.versions:
            raise _died(self._given.path, done)
        for number, nlls in enumerate(self.nlls, 1):
            if not all(map(math.isfinite, nlls)):
                raise CheckpointProblem(
                    f"{self._given.path} computes values that are not numbers.",
                    f"In chunk {number} of {self._chunks} transformers gives NaN or infinity.",
                    "Download the checkpoint again: its weights may be damaged.",
                )


def _require_tokens(given: Checkpoint, chunks: Sequence[Sequence[int]]) -> None:
    scored = sum(scored_tokens(len(chunk)) for chunk in chunks)
    if scored < 2 or min(map(len, chunks)) < 3:
        raise UsageProblem(
            "There are too few tokens for a perplexity.",
            f"{sum(map(len, chunks))} tokens in {len(chunks)} chunks leave {scored} to score.",
            "Give a longer text.",
        )
    highest = max(map(max, chunks))
    if given.vocabulary_size is not None and highest >= given.vocabulary_size:
        raise CheckpointProblem(
            f"The tokens are not those of {given.path}.",
            f"One has the id {highest}; the checkpoint's vocabulary has {given.vocabulary_size}.",
            "Give the checkpoint that the GGUF was converted from.",
        )


def _require_memory(given: Checkpoint, longest_chunk: int) -> None:
    logits_bytes = 4 * (given.vocabulary_size or 0) * (longest_chunk - longest_chunk // 2)
    wanted = transformers_model.needed_bytes(given) + logits_bytes
    available = hardware.available_ram_bytes()
    if wanted > available:
        raise DoesNotFit(
            f"{given.path} does not fit into memory for a run in transformers.",
            f"It takes {files.human_bytes(wanted)}; {files.human_bytes(available)} are free.",
            f"Close other programs, run it on a machine with more memory, {_WITHOUT}.",
        )


def _refused(folder: Path, kind: str, text: str) -> GgqError:
    if (short := transformers_model.without_advice(text)) != text:
        return CheckpointProblem(
            f"The weights of {folder} hold more than weights.",
            f"A pickle that would run code when it is loaded; it was not run ({short[:200]}).",
            f"Give a checkpoint of this model in safetensors, {_WITHOUT}.",
        )
    line = next((line.strip() for line in text.splitlines() if line.strip()), "nothing more is known")
    why = f"{kind}: {line[:300].rstrip('.')}."
    if _NO_MEMORY.search(f"{kind}: {text}"):
        return _out_of_memory(folder, why)
    # A plain LookupError is transformers_model's own word; of any other the kind says as much as the text.
    why = why.removeprefix("LookupError: ")
    return CheckpointProblem(
        f"transformers does not run {folder}.", why, f"Choose another release of transformers, {_WITHOUT}."
    )


def _died(folder: Path, done: process.Completed) -> GgqError:
    last = next((line.strip()[:300] for line in reversed(done.stderr) if line.strip()), "It said nothing.")
    if done.returncode == -signal.SIGKILL:
        seen = "The kernel's out-of-memory killer ended it."
        likely = "It was killed by SIGKILL, as happens when memory runs out."
        return _out_of_memory(folder, seen if done.out_of_memory else likely)
    if done.returncode < 0:
        return CheckpointProblem(
            f"transformers was killed by {signal_name(-done.returncode)} while it ran {folder}.",
            last,
            f"Run `ggq doctor`, {_WITHOUT}.",
        )
    return CheckpointProblem(
        f"transformers ended before it was done with {folder}.", last, f"Run `ggq doctor`, {_WITHOUT}."
    )


def _out_of_memory(folder: Path, why: str) -> GgqError:
    return DoesNotFit(
        f"Memory ran out while transformers ran {folder}.",
        why,
        f"Close other programs, choose a shorter context, {_WITHOUT}.",
    )


def _summary(
    nlls: Sequence[Sequence[float]], seconds: float, versions: Mapping[str, str]
) -> ReferencePerplexity:
    tokens = [nll for chunk in nlls for nll in chunk]
    count = len(tokens)
    mean = math.fsum(tokens) / count
    variance = math.fsum((nll - mean) ** 2 for nll in tokens) / count
    value = math.exp(mean)
    return ReferencePerplexity(
        value=value,
        standard_error=value * math.sqrt(variance / (count - 1)),
        mean_nll=mean,
        chunk_nlls=tuple(math.fsum(chunk) / len(chunk) for chunk in nlls),
        scored_tokens=count,
        seconds=round(seconds, 2),
        torch_version=versions["torch"],
        transformers_version=versions["transformers"],
    )
