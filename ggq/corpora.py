"""The text that quality is measured on: a file, the field's own test set, or what is beside the model."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggq import hub
from ggq.errors import HubProblem, UsageProblem
from ggq.progress import Listener, Notice, silent
from ggq.system import files, places, texts
from ggq.system.texts import Text

BESIDE_MODEL = "heldout.txt"
_BLOCK = 1 << 20
_ELSEWHERE = "set XDG_CACHE_HOME to a folder on another disk"


@dataclass(frozen=True)
class Corpus:
    """A published text: ``member`` of the zip ``archive`` in a dataset of the Hub. ``sha256`` and
    ``file_bytes`` are the text's."""

    name: str
    repo_id: str
    archive: str
    member: str
    sha256: str
    file_bytes: int

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


# Where llama.cpp's scripts/get-wikitext-2.sh has it from; the text that published perplexities are of.
WIKITEXT_2 = Corpus(
    "wikitext-2",
    "ggml-org/ci",
    "wikitext-2-raw-v1.zip",
    "wikitext-2-raw/wiki.test.raw",
    "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    1_290_590,
)
CORPORA = (WIKITEXT_2,)


def resolve(
    near: Sequence[Path],
    *,
    text: Path | None = None,
    corpus: str | None = None,
    corpus_path: Path | None = None,
    offline: bool = False,
    listener: Listener = silent,
) -> Text:
    """Find the text to measure on, and look it through.

    ``text``: this file. ``corpus``: a published text by name, fetched from the Hub once and kept in ggq's
    cache folder, or read from ``corpus_path``, which may be named alone too. Without any of them: the file
    heldout.txt in the first of the folders ``near`` that has it, else WikiText-2; a Notice says which.

    Raises UsageProblem (an unknown corpus, options that contradict each other, a text that is missing, empty,
    in another encoding, or binary), HubProblem (not fetched, or not the text that is known), DiskFull,
    OutputProblem.
    """
    if text is not None:
        if corpus is not None or corpus_path is not None:
            raise UsageProblem(
                "The text is named twice: --text and --corpus cannot go together.",
                "",
                "Leave one of them out.",
            )
        return read(text)
    wanted = _known(corpus) if corpus is not None else None
    if corpus_path is not None:
        return _local_copy(corpus_path, wanted, listener)
    if wanted is not None:
        return _from_hub(wanted, offline, listener)
    for folder in near:
        if (folder / BESIDE_MODEL).exists():
            found = read(folder / BESIDE_MODEL)
            listener(Notice(f"The text is {found.path} ({files.human_bytes(found.file_bytes)})."))
            return found
    size = files.human_bytes(WIKITEXT_2.file_bytes)
    listener(Notice(f"There is no text beside the model: the text is {WIKITEXT_2.name} ({size})."))
    return _from_hub(WIKITEXT_2, offline, listener)


def read(path: Path) -> Text:
    """Look a text through; one that is a corpus's bears its name. Raises UsageProblem."""
    found = texts.read(path)
    name = next((known.name for known in CORPORA if known.sha256 == found.sha256), found.name)
    return replace(found, name=name)


def _known(name: str) -> Corpus:
    for corpus in CORPORA:
        if corpus.name == name.lower():
            return corpus
    raise UsageProblem(
        f"There is no corpus {name!r}.",
        f"ggq knows {', '.join(corpus.name for corpus in CORPORA)}.",
        "Choose one of these, or give a file of your own with --text FILE.",
    )


def _local_copy(path: Path, corpus: Corpus | None, listener: Listener) -> Text:
    found = read(path)
    if corpus is not None and found.sha256 != corpus.sha256:
        listener(
            Notice(
                f"{path} is not the {corpus.file_name} of {corpus.name}: its sha256 begins with "
                f"{found.sha256[:8]}, not {corpus.sha256[:8]}. The figures cannot be compared with published "
                "ones.",
                "warning",
            )
        )
    return found


def _from_hub(corpus: Corpus, offline: bool, listener: Listener) -> Text:
    """The text from ggq's cache folder; fetched and unpacked where it is not there whole."""
    kept = places.cache() / "corpora" / corpus.name / corpus.file_name
    if kept.is_file() and files.sha256_file(kept) == corpus.sha256:
        return read(kept)
    by_hand = f"Or give a copy of {corpus.file_name}: --corpus {corpus.name} --corpus-path FILE."
    try:
        archive = hub.dataset_file(corpus.repo_id, corpus.archive, offline=offline, listener=listener)
        _unpack(corpus, archive, kept)
    except HubProblem as problem:
        raise HubProblem(problem.what, problem.why, f"{problem.next_step} {by_hand}") from problem
    return read(kept)


def _unpack(corpus: Corpus, archive: Path, target: Path) -> None:
    """Take the one text out of the archive; it gets its name when its digest is right."""
    with files.explain_os_error(target, _ELSEWHERE):
        target.parent.mkdir(parents=True, exist_ok=True)
        files.require_space(target.parent, corpus.file_bytes, f"the text {corpus.name}", _ELSEWHERE)
        with tempfile.TemporaryDirectory(prefix=".ggq-", dir=target.parent) as work:
            fresh = Path(work) / target.name
            try:
                _extract(corpus, archive, fresh)
            except (zipfile.BadZipFile, zlib.error, EOFError, LookupError, RuntimeError, ValueError) as error:
                raise HubProblem(
                    f"{archive.name} of {corpus.repo_id} is not the archive that it should be.",
                    f"{' '.join(str(error.args[0] if error.args else error).split())}.",
                    f"Delete {archive.resolve()} and run the same command again.",
                ) from error
            found = files.sha256_file(fresh)
            if found != corpus.sha256:
                raise HubProblem(
                    f"{corpus.file_name} in {archive.name} of {corpus.repo_id} is not the known text.",
                    f"Its sha256 begins with {found[:16]}, not {corpus.sha256[:16]}.",
                    "The dataset was changed, or a mirror (HF_ENDPOINT) serves another one.",
                )
            files.publish(fresh, target)


def _extract(corpus: Corpus, archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        announced = opened.getinfo(corpus.member).file_size
        if announced != corpus.file_bytes:
            # Also so that nothing is unpacked that would fill the disk.
            raise ValueError(f"{corpus.member} has {announced:,} bytes, not {corpus.file_bytes:,}")
        with opened.open(corpus.member) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, _BLOCK)
