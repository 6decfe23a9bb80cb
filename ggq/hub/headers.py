"""A repository as a hollow checkpoint: its small files whole, of its weights the headers alone."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ggq.errors import NeedsWeights
from ggq.hub import client
from ggq.hub.client import DEFAULT_RETRY, Retry
from ggq.hub.download import WORKERS, bring, require_whole, without_weights
from ggq.hub.file_selection import select_files, weight_files
from ggq.hub.range_request import blocks
from ggq.hub.repository import RemoteFile, RemoteModel
from ggq.progress import Listener, Step, silent
from ggq.system import files

# Most headers fit: 290 tensors take some 30 kB, and a model of 8 B has four files of 75.
_FIRST_READ_BYTES = 32 << 10
HEADER_LIMIT_BYTES = 32 << 20
# Nothing of them is in a GGUF.
_NOT_READ = ("LICENSE", "LICENCE", "NOTICE")


@dataclass(frozen=True)
class Gathered:
    """A checkpoint folder of a repository. ``with_values``: it is the whole snapshot in the Hub cache, whose
    weights are on disk; else its weights are empty. ``received_bytes`` came over the network for it."""

    folder: Path
    with_values: bool
    received_bytes: int


def gather(
    model: RemoteModel,
    parent: Path,
    *,
    for_stream: bool = False,
    offline: bool = False,
    retry: Retry = DEFAULT_RETRY,
    listener: Listener = silent,
) -> Gathered:
    """The snapshot in the Hub cache when it is whole; else a hollow checkpoint, made below ``parent``.

    The small files (config, tokenizer, model card) go into the Hub cache, as a download would put them there,
    and are linked, as are weights that are there already; of each other safetensors file only the header is
    asked for, by a Range. ``for_stream``: the weights will be read, too, as far as they are the converter's
    own; what it reads by other means (the dense modules of sentence-transformers) is brought whole.
    ``parent``: a folder of our own that allows sparse files (``files.require_holes``).

    Raises HubProblem, CheckpointProblem (no weights), NeedsWeights (they are not safetensors), DiskFull,
    OutputProblem.
    """
    offline = client.is_offline(offline)
    if offline:
        require_whole(model, (), ())
    wanted = select_files(model.files)
    weights = weight_files([file.path for file in model.files])
    if not weights:
        raise without_weights(model)
    if all(file.cached for file in wanted):
        received = 0 if offline else bring(model, wanted, retry, listener)
        return Gathered(model.folder, True, received)
    tensors = [file for file in wanted if file.path.endswith(".safetensors")]
    if not any(file.path in weights for file in tensors):
        raise NeedsWeights(
            f"{model.repo_id} can only be planned after download.",
            f"Its weights ({weights[0]}) are not safetensors, whose headers can be read alone.",
            f"Run `ggq download {model.typed}` first; then the same command again.",
        )
    hollow = [file for file in tensors if not file.cached and (file.path in weights or not for_stream)]
    linked = [file for file in wanted if file not in hollow and not file.path.startswith(_NOT_READ)]
    received = bring(model, linked, retry, listener)
    folder = parent / model.repo_id.rpartition("/")[2]
    with files.explain_os_error(folder, "choose a folder on another file system (TMPDIR, XDG_CACHE_HOME)"):
        for file in linked:
            place = folder / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(model.folder / file.path)
        received += _hollow_out(model, hollow, folder, retry, listener)
    return Gathered(folder, False, received)


def _hollow_out(
    model: RemoteModel, weights: Sequence[RemoteFile], folder: Path, retry: Retry, listener: Listener
) -> int:
    received = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        headers = pool.map(lambda file: _header(model, file, retry, listener), weights)
        for index, (file, (header, came)) in enumerate(zip(weights, headers, strict=True), 1):
            received += came
            place = folder / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            files.write_hollow(place, header, file.file_bytes)
            listener(Step("read headers", index, len(weights), "files"))
    return received


def _header(model: RemoteModel, file: RemoteFile, retry: Retry, listener: Listener) -> tuple[bytes, int]:
    """A safetensors file's header with its length before it, and the bytes received for it.

    It is believed as far as the file reaches; what it says is checked with the checkpoint.
    """

    def first(size: int) -> bytes:
        with client.explained(model.repo_id, kind=model.kind):
            return client.ask(lambda: _ranged(model, file, size, retry.silence_s), retry, listener)

    start = first(_FIRST_READ_BYTES)
    came = len(start)
    size = min(8 + int.from_bytes(start[:8], "little"), file.file_bytes, HEADER_LIMIT_BYTES)
    if size > len(start):
        start = first(size)
        came += len(start)
    return start[:size], came


def _ranged(model: RemoteModel, file: RemoteFile, size: int, silence_s: float) -> bytes:
    size = min(size, file.file_bytes)
    found = b""
    with contextlib.closing(blocks(model, file, 0, size, silence_s)) as coming:
        # A server that knows no ranges sends the file from its start; we hang up where it is enough.
        for block in coming:
            found += block
            if len(found) >= size:
                break
    return found[:size]
