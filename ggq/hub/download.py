"""A repository into the Hub cache: one commit, only what is needed, resumed, proven, linked as a snapshot."""

from __future__ import annotations

import fnmatch
import os
import shlex
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from ggq.errors import HubProblem, UsageProblem
from ggq.hub import client
from ggq.hub.client import DEFAULT_RETRY, Retry
from ggq.hub.file_download import fetch, partial_path
from ggq.hub.file_selection import missing_shards, select_files, weight_files
from ggq.hub.repository import RemoteFile, RemoteModel, inspect
from ggq.model_ref import ModelRef
from ggq.progress import Event, Listener, Step, silent
from ggq.system import files, untrusted

# One connection seldom fills a fast line, and shards come in numbers.
WORKERS = 4
_ELSEWHERE = "set HF_HOME to a folder on another disk"


@dataclass(frozen=True)
class Preview:
    """What a download would do. ``needed_bytes`` is still to come, ``cached_bytes`` is on disk (unfinished
    parts included); ``free_bytes`` is the free space of the disk that holds ``cache``."""

    repo_id: str
    commit: str
    license: str | None
    gated: bool
    files: tuple[RemoteFile, ...]
    left_out_files: int
    left_out_bytes: int
    needed_bytes: int
    cached_bytes: int
    cache: Path
    free_bytes: int


@dataclass(frozen=True)
class Download:
    """A model in the Hub cache. ``folder`` is its snapshot, ``commit`` what the revision was pinned to;
    ``downloaded_bytes`` came over the network now, ``cached_bytes`` lay on disk before."""

    folder: Path
    repo_id: str
    commit: str
    files: tuple[RemoteFile, ...]
    downloaded_bytes: int
    cached_bytes: int


def preview(
    ref: ModelRef,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    offline: bool = False,
    retry: Retry = DEFAULT_RETRY,
    listener: Listener = silent,
) -> Preview:
    """Say what ``download`` would do with the same arguments. Writes nothing. Raises as ``download`` does."""
    model, wanted = _look_up(ref, include, exclude, offline, retry, listener)
    return _preview(model, wanted)


def download(
    ref: ModelRef,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    offline: bool = False,
    retry: Retry = DEFAULT_RETRY,
    listener: Listener = silent,
) -> Download:
    """Bring what a conversion needs of a model into the Hub cache; what is there is not fetched again.

    Every file is checked against the size and digest that the Hub announces before it gets its place, and the
    snapshot appears when all are there. A download that breaks off goes on where it was. ``include`` and
    ``exclude``: see ``select_files``. ``offline``: from the cache, or not at all.

    Raises HubProblem, DiskFull, OutputProblem (the cache cannot be written), UsageProblem.
    """
    model, wanted = _look_up(ref, include, exclude, offline, retry, listener)
    ahead = _preview(model, wanted)
    received = 0
    if not client.is_offline(offline):
        received = bring(model, wanted, retry, listener)
    return Download(model.folder, model.repo_id, model.commit, wanted, received, ahead.cached_bytes)


def bring(repo: RemoteModel, wanted: Sequence[RemoteFile], retry: Retry, listener: Listener) -> int:
    """Have the snapshot of ``repo`` hold these files, and return the bytes received for them.

    Raises HubProblem, DiskFull, OutputProblem.
    """
    cache = client.cache_dir()
    files.require_space(cache, needed_bytes(repo, wanted), repo.repo_id, _ELSEWHERE)
    with files.explain_os_error(cache, _ELSEWHERE), client.explained(repo.repo_id, kind=repo.kind):
        received = _fetch_all(repo, [file for file in wanted if not file.cached], retry, listener)
        for file in wanted:
            _link(repo, file)
        _record_revision(repo)
    return received


def _look_up(
    ref: ModelRef,
    include: Sequence[str],
    exclude: Sequence[str],
    offline: bool,
    retry: Retry,
    listener: Listener,
) -> tuple[RemoteModel, tuple[RemoteFile, ...]]:
    if ref.kind != "hub":
        raise UsageProblem(
            f"{ref} is on this disk already.",
            "",
            f"There is nothing to download: ggq convert {shlex.quote(str(ref))}",
        )
    model = inspect(ref.repo_id, ref.revision, offline=offline, retry=retry, listener=listener)
    if client.is_offline(offline):
        require_whole(model, include, exclude)
    wanted = select_files(model.files, include, exclude)
    if not include and not weight_files([file.path for file in model.files]):
        raise without_weights(model)
    return model, wanted


def _preview(model: RemoteModel, wanted: Sequence[RemoteFile]) -> Preview:
    whole = sum(file.file_bytes for file in wanted)
    needed = needed_bytes(model, wanted)
    left_out = sum(file.file_bytes for file in model.files) - whole
    cache = client.cache_dir()
    return Preview(
        repo_id=model.repo_id,
        commit=model.commit,
        license=model.license,
        gated=model.gated,
        files=tuple(wanted),
        left_out_files=len(model.files) - len(wanted),
        left_out_bytes=left_out,
        needed_bytes=needed,
        cached_bytes=whole - needed,
        cache=cache,
        free_bytes=files.free_bytes(cache),
    )


def needed_bytes(repo: RemoteModel, wanted: Sequence[RemoteFile]) -> int:
    """Of these files, what is still to come: less unfinished parts."""
    blobs = {file.blob_name: file for file in wanted if not file.cached}
    return sum(file.file_bytes - _begun_bytes(repo, file) for file in blobs.values())


def _begun_bytes(repo: RemoteModel, file: RemoteFile) -> int:
    partial = partial_path(repo, file)
    return min(partial.stat().st_size, file.file_bytes) if partial.is_file() else 0


def _fetch_all(model: RemoteModel, missing: Iterable[RemoteFile], retry: Retry, listener: Listener) -> int:
    """Fetch the blobs, small ones first, some at a time; return the bytes received."""
    todo = sorted({file.blob_name: file for file in missing}.values(), key=lambda file: file.file_bytes)
    progress = _Progress(model.repo_id, todo, listener)
    stop = threading.Event()
    with ThreadPoolExecutor(WORKERS) as pool:
        running = [
            pool.submit(
                fetch, model, file,
                retry=retry, listener=progress.say, grown=progress.of(file), stop=stop,
            )
            for file in todo
        ]  # fmt: skip
        try:
            return sum(done.result() for done in as_completed(running))
        except BaseException:
            stop.set()
            for waiting in running:
                waiting.cancel()
            raise


class _Progress:
    """The threads' progress as one stream of events: a Step per file, and one for all of them."""

    def __init__(self, name: str, todo: Sequence[RemoteFile], listener: Listener) -> None:
        self._name = name
        self._listener = listener
        self._total = sum(file.file_bytes for file in todo)
        self._done = dict.fromkeys((file.path for file in todo), 0)
        self._lock = threading.Lock()

    def say(self, event: Event) -> None:
        with self._lock:
            self._listener(event)

    def of(self, file: RemoteFile) -> Callable[[int], None]:
        def grown(done: int) -> None:
            with self._lock:
                self._done[file.path] = done
                self._listener(Step(file.path, done, file.file_bytes))
                self._listener(Step(self._name, sum(self._done.values()), self._total))

        return grown


def _link(model: RemoteModel, file: RemoteFile) -> None:
    """Give a blob its name in the snapshot, as huggingface_hub does: a relative symlink."""
    blob = model.home / "blobs" / file.blob_name
    pointer = model.folder / file.path
    if pointer.is_file() and pointer.stat().st_size == file.file_bytes:
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        blob.replace(pointer)  # a file system without symlinks holds the file itself here


def _record_revision(model: RemoteModel) -> None:
    """Remember the commit of a branch or tag, so that ``--offline`` finds it by that name."""
    if model.revision == model.commit:
        return
    ref = model.home / "refs" / model.revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    fresh = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
    fresh.write_text(model.commit)
    fresh.replace(ref)


def require_whole(model: RemoteModel, include: Sequence[str], exclude: Sequence[str]) -> None:
    """Offline there is no listing to compare with: config, weights and all their shards must be there."""
    everything = [file.path for file in model.files]
    missing = [pattern for pattern in include if not fnmatch.filter(everything, pattern)]
    if not include and "config.json" not in everything:
        missing.append("config.json")
    if not include and not weight_files(everything):
        missing.append("the weights")
    for file in select_files(model.files, (), exclude):
        if file.path.endswith(".index.json"):
            shards = _shards(model.folder / file.path)
            missing += sorted(name for name in shards if name not in everything)
    if not include:
        weights = weight_files([file.path for file in select_files(model.files, (), exclude)])
        missing += [name for name in missing_shards(weights) if name not in missing]
    if missing:
        raise HubProblem(
            f"{model.repo_id} (revision {model.revision}) is only partly in the Hub cache.",
            f"The network is off, and these are missing: {_some(missing)}.",
            f"Run `ggq download {model.typed}` with the network; it fetches only what is missing.",
        )


def missing_files(model: RemoteModel) -> tuple[str, ...]:
    """The weights that others, or an index in the Hub cache, announce, and that are not listed."""
    names = [file.path for file in model.files]
    missing = set(missing_shards(weight_files(names)))
    for file in select_files(model.files):
        if file.path.endswith(".index.json") and (model.folder / file.path).is_file():
            missing |= _shards(model.folder / file.path) - set(names)
    return tuple(sorted(missing))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _shards(index: Path) -> set[str]:
    try:
        return {str(name) for name in untrusted.read_object(index, untrusted.INDEX)["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()  # a damaged index is a damaged checkpoint: found when that is read


def without_weights(model: RemoteModel) -> HubProblem:
    """The words for a repository that holds no weights: what it is instead."""
    names = [file.path for file in model.files]
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if "adapter_config.json" in names:
        base = _adapter_base(model)
        return HubProblem(
            f"{model.repo_id} is only a LoRA adapter{f' of {base}' if base else ''}, not a whole model.",
            "An adapter holds small changes to a base model's weights.",
            f"Convert the base model ({base or 'its model card names it'}), or merge the adapter into it "
            "first (peft: merge_and_unload, save_pretrained) and convert that folder.",
        )
    if ggufs:
        return HubProblem(
            f"{model.repo_id} holds GGUF files, not a checkpoint: it is converted already.",
            f"It has {len(ggufs)} of them, such as {ggufs[0]}.",
            f"Download one and use it as it is: ggq download {model.typed} --include {shlex.quote(ggufs[0])}",
        )
    heavy = sorted(model.files, key=lambda file: -file.file_bytes)[:3]
    found = ", ".join(f"{file.path} ({files.human_bytes(file.file_bytes)})" for file in heavy)
    return HubProblem(
        f"{model.repo_id} has no weights that can be converted.",
        f"Its largest files are {found}." if found else "It is empty.",
        "A conversion needs *.safetensors or pytorch_model*.bin in the top folder; choose another model.",
    )


def _adapter_base(model: RemoteModel) -> str:
    """The base model that adapter_config.json names; else the model card's."""
    from huggingface_hub import hf_hub_download

    with client.explained(model.repo_id):
        config = hf_hub_download(
            model.repo_id, "adapter_config.json", revision=model.commit,
            endpoint=client.endpoint(), cache_dir=client.cache_dir(),
        )  # fmt: skip
    try:
        named = untrusted.read_object(Path(config)).get("base_model_name_or_path")
    except (OSError, ValueError):
        named = None
    return str(named or next(iter(model.base_models), ""))
