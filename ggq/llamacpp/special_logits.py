"""A base's logits on a text whose special tokens are parsed, in the file that llama-perplexity would write.

llama-perplexity has no option for it: it reads special tokens letter by letter. But what it holds another
model against are the tokens in that file. So the file is computed by the binding, in a child process, with
llama-perplexity's own settings and its own steps. Of a text without special tokens it is the same file, but
for roundings of the last step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ggq.errors import CannotServe, DiskFull, GgufProblem, ToolchainProblem
from ggq.llamacpp import binding, logits_file, text_tokens, tools
from ggq.llamacpp.logits_file import LogitsFile, scored_tokens
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import SETUP_HINT, Toolchain
from ggq.system import python_child

_LEAST_CHUNKS = 2
_UBATCH = 512
_LOWEST = 16.0  # log probabilities further below the highest one are not told apart
_STEPS = 65535
_FAILED, _UNWRITTEN = "failed", "unwritten"


@dataclass(frozen=True)
class _Job:
    lib_dir: str
    model: str
    target: str
    context: int
    threads: int | None
    n_gpu_layers: int
    chunks: Sequence[Sequence[int]]


def require(offload: Offload) -> None:
    """Refuse a placement that the binding cannot have. Raises CannotServe, ToolchainProblem."""
    if binding.installed_version() is None:
        raise ToolchainProblem(
            "--parse-special cannot be measured here.", "llama-cpp-python is not installed.", SETUP_HINT
        )
    if offload.rpc and offload.n_gpu_layers:
        raise CannotServe(
            "--parse-special cannot be measured through --rpc.",
            "llama-perplexity has no such option; llama-cpp-python takes its place, without RPC servers.",
            "Leave one of them out.",
        )


def save(
    toolchain: Toolchain,
    base: Path,
    text: Path,
    target: Path,
    context: int,
    *,
    threads: int | None,
    offload: Offload,
    chunks: int | None = None,
) -> LogitsFile:
    """Write the base's logits on ``text``, or its first ``chunks``, to a file.

    Raises CannotServe when the text is too short for two chunks, GgufProblem when the model computes no
    numbers, ToolFailed, ToolchainProblem.
    """
    require(offload)
    tokens = text_tokens.token_ids(toolchain, base, text, parse_special=True)
    there = len(tokens) // context
    if there < _LEAST_CHUNKS:
        raise CannotServe(
            "The text is too short to measure perplexity.",
            f"It has {len(tokens)} tokens; {_LEAST_CHUNKS * context} are needed.",
            "Give a longer text, or a smaller context.",
        )
    count = min(chunks or there, there)
    job = _Job(
        lib_dir=str(toolchain.lib_dir.absolute()),
        model=str(base.absolute()),
        target=str(target.absolute()),
        context=context,
        threads=threads,
        n_gpu_layers=offload.n_gpu_layers,
        chunks=[tokens[at * context : (at + 1) * context] for at in range(count)],
    )
    done = python_child.run(__name__, stdin=json.dumps(asdict(job)), check=False)
    if done.returncode:
        raise tools.evaluation_failed(done, base)
    for line in done.stdout:
        kind, _, why = line.partition(": ")
        if kind == _UNWRITTEN:
            raise DiskFull(
                "The 16-bit GGUF's logits could not be written.", f"{why}.", "Free some space in that folder."
            )
        if kind == _FAILED:
            raise GgufProblem(
                f"{base.name} could not be evaluated.", f"{why}.", "Run `ggq doctor`, or convert it again."
            )
    return logits_file.read(target)


# ---- the child ---------------------------------------------------------------------------------------------


def _write(job: _Job, sink: BinaryIO) -> None:
    lib = binding.load(Toolchain("named", Path(job.lib_dir), Path(job.lib_dir), None, None))
    lib.llama_backend_init()
    model_settings = lib.llama_model_default_params()
    model_settings.n_gpu_layers = 999 if job.n_gpu_layers < 0 else job.n_gpu_layers
    model = lib.llama_model_load_from_file(job.model.encode(), model_settings)
    if not model:
        raise ValueError("llama.cpp does not load it")
    settings = lib.llama_context_default_params()
    settings.n_ctx = settings.n_batch = job.context
    settings.n_ubatch = min(_UBATCH, job.context)
    settings.n_seq_max = 1
    if job.threads:
        settings.n_threads = settings.n_threads_batch = job.threads
    if job.n_gpu_layers == 0:
        settings.op_offload = settings.offload_kqv = False
    context = lib.llama_init_from_model(model, settings)
    if not context:
        raise ValueError("llama.cpp makes no context for it")
    vocabulary = lib.llama_model_get_vocab(model)
    size = int(lib.llama_vocab_n_tokens(vocabulary))
    bos = lib.llama_vocab_bos(vocabulary) if lib.llama_vocab_get_add_bos(vocabulary) else None
    sink.write(logits_file.header(job.context, size, job.chunks))
    for number, chunk in enumerate(job.chunks, 1):
        for row in _rows(lib, context, chunk if bos is None else [bos, *chunk[1:]], size):
            sink.write(row)
        sys.stdout.write(f"chunk {number}\n")


def _rows(lib: Any, context: Any, tokens: Sequence[int], size: int) -> Iterator[bytes]:
    """Of each scored position what llama-perplexity writes."""
    import numpy as np

    first, scored = len(tokens) // 2, scored_tokens(len(tokens))
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index >= first
        if (status := lib.llama_decode(context, batch)) != 0:
            raise ValueError(f"llama_decode returned {status}")
    finally:
        lib.llama_batch_free(batch)
    for index in range(first, first + scored):
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, index), (size,))
        yield encoded(logits)


def encoded(logits: Any) -> bytes:
    """A row of the file: scale and lowest log probability (float32), then the vocabulary's as steps of the
    scale above the lowest (log_softmax in tools/perplexity/perplexity.cpp). Raises ValueError."""
    import numpy as np

    most = logits.max()
    if not np.isfinite(most) or np.isnan(logits).any():
        raise ValueError("its logits are not numbers")
    lowest = np.maximum(logits.min(), most - np.float32(_LOWEST))
    log_sum = np.float32(np.log(np.exp(logits - most).sum(dtype=np.float64)))
    scale = np.float32((most - lowest) / np.float32(_STEPS))
    steps = np.zeros(2 * ((len(logits) + 1) // 2), np.uint16)
    if scale:
        above = logits > lowest
        steps[: len(logits)][above] = np.rint((np.float32(1) / scale) * (logits[above] - lowest))
    return bytes(np.array([scale, lowest - most - log_sum], "<f4").tobytes() + steps.astype("<u2").tobytes())


def main() -> int:
    job = _Job(**json.loads(sys.stdin.read()))
    try:
        with Path(job.target).open("wb") as sink:
            _write(job, sink)
    except ValueError as error:
        sys.stdout.write(f"{_FAILED}: {error}\n")
    except OSError as error:
        sys.stdout.write(f"{_UNWRITTEN}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
