"""The child process of the reference: a checkpoint in transformers, chunk by chunk.

A process of its own, since a crash or a lack of memory in there is a finding and not the end of ggq. It reads
a job (JSON) from stdin and writes events to stdout, an object per line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.checkpoint.transformers_model import forbid_code, import_lightly, load_model, logits


@dataclass(frozen=True)
class Job:
    """What to do: see ``ggq.measurement.transformers_perplexity.perplexity``."""

    folder: str
    architecture: str
    chunks: Sequence[Sequence[int]]
    bos: int | None
    threads: int


def say(event: str, **content: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **content}) + "\n")
    sys.stdout.flush()


def main() -> int:
    import_lightly()
    forbid_code()
    job = Job(**json.loads(sys.stdin.read()))
    try:
        run(job)
    except Exception as error:
        say("failed", kind=type(error).__name__, text=str(error))
        return 1
    return 0


def run(job: Job) -> None:
    """Score the chunks. Raises what transformers and torch raise."""
    import torch
    import transformers

    model = load_model(Path(job.folder), job.architecture)
    for chunk in job.chunks:
        say("chunk", nlls=score(model, chunk, job.bos, job.threads))
    say("done", torch=torch.__version__, transformers=transformers.__version__)


def score(model: Any, chunk: Sequence[int], bos: int | None, threads: int) -> list[float]:
    """Negative log-likelihood, in nats, of each scored token of a chunk.

    As llama-perplexity does it (perplexity() in tools/perplexity/perplexity.cpp): the first token gives way
    to BOS, and the tokens after the positions from the middle on are scored, each given all before it.
    """
    first = len(chunk) // 2
    tokens = chunk if bos is None else [bos, *chunk[1:]]
    rows = logits(model, tokens, last=len(chunk) - first, threads=threads)
    return [_nll(row, token) for row, token in zip(rows[:-1], chunk[first + 1 :], strict=True)]


def _nll(row: Any, token: int) -> float:
    """One row at a time: all of them in float64 would take gigabytes for a large vocabulary."""
    import numpy as np

    wide = row.astype(np.float64)
    highest = wide.max()
    return float(highest + np.log(np.exp(wide - highest).sum()) - wide[token])


if __name__ == "__main__":
    sys.exit(main())
