"""Which text is measured on, what is refused, and how the field's test set comes from a Hub on loopback."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import socket
import subprocess
import zipfile
from pathlib import Path

import platformdirs
import pytest
from hubserver import HubServer

from ggq import corpora as corpus
from ggq.corpora import Corpus, resolve
from ggq.errors import GgqError, HubProblem, UsageProblem
from ggq.progress import Event, Notice, Step
from ggq.system import texts
from ggq.system.texts import Text

WORDS = ("Once upon a time there was a little lamb. " * 50).encode()
SMALL = Corpus(
    "wikitext-2", "ggml-org/ci", "wikitext-2-raw-v1.zip", "wikitext-2-raw/wiki.test.raw",
    hashlib.sha256(WORDS).hexdigest(), len(WORDS),
)  # fmt: skip


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return buffer.getvalue()


def serve(hub: HubServer, content: bytes) -> None:
    hub.add_repo(SMALL.repo_id, {SMALL.archive: content}, kind="datasets")


def corpora() -> list[Path]:
    return sorted(
        path for path in (platformdirs.user_cache_path("ggq") / "corpora").rglob("*") if path.is_file()
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """A text of two kilobytes in WikiText-2's place."""
    monkeypatch.setattr(corpus, "WIKITEXT_2", SMALL)
    monkeypatch.setattr(corpus, "CORPORA", (SMALL,))
    return SMALL


@pytest.fixture
def served(small: Corpus, hub: HubServer) -> HubServer:
    serve(hub, archive({small.member: WORDS, "wikitext-2-raw/wiki.train.raw": b"more " * 1000}))
    return hub


def refusal(kind: type[GgqError], **options: object) -> GgqError:
    with pytest.raises(kind) as caught:
        resolve([], **options)
    assert caught.value.what and caught.value.next_step
    return caught.value


# ---- files -----------------------------------------------------------------------------------------------


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_bytes("안녕하세요, café.\n".encode())
    found = resolve([], text=file)
    content = file.read_bytes()
    assert found == Text("own.txt", file, hashlib.sha256(content).hexdigest(), len(content))


def test_a_character_across_two_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_BLOCK", 4)
    file = tmp_path / "own.txt"
    file.write_bytes("abc안녕".encode())
    assert resolve([], text=file).file_bytes == 9
    file.write_bytes("abc안녕".encode() + b"\xec\x95x")
    assert "offset 9 " in refusal(UsageProblem, text=file).why


@pytest.mark.parametrize(
    ("content", "what", "why", "cure"),
    [
        ("Müller".encode("cp1252"), "is not UTF-8", "offset 1 ", "iconv -f CP1252"),
        ("Müller is here".encode("utf-16-le"), "is not UTF-8", "UTF-16LE", "iconv -f UTF-16LE"),
        ("안녕".encode()[:-1], "is not UTF-8", "offset 3 ", "iconv"),
        (b"text\0text", "NUL byte at offset 4", "", "UTF-8"),
        (b"", "holds no text", "empty", "another"),
        (b" \n\t\n", "holds no text", "4 bytes", "another"),
    ],
)
def test_what_is_no_text(tmp_path: Path, content: bytes, what: str, why: str, cure: str) -> None:
    file = tmp_path / "a text.txt"
    file.write_bytes(content)
    error = refusal(UsageProblem, text=file)
    assert what in error.what and why in error.why and cure in error.next_step


def test_the_cure_cures(tmp_path: Path) -> None:
    if shutil.which("iconv") is None:
        pytest.skip("there is no iconv here")
    (tmp_path / "a text.txt").write_bytes("Müller\n".encode("cp1252"))
    error = refusal(UsageProblem, text=tmp_path / "a text.txt")
    subprocess.run(error.next_step.split("`")[1], shell=True, check=True, cwd=tmp_path)
    assert resolve([], text=tmp_path / "utf8.txt").file_bytes == len("Müller\n".encode())


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    assert "Is a directory" in refusal(UsageProblem, text=tmp_path).why
    assert "No such file" in refusal(UsageProblem, text=tmp_path / "none.txt").why


def test_two_texts_at_once(tmp_path: Path) -> None:
    assert "twice" in refusal(UsageProblem, text=tmp_path, corpus="wikitext-2").what


def test_an_unknown_corpus() -> None:
    assert "wikitext-2" in refusal(UsageProblem, corpus="wikitext-3").why


def test_the_text_beside_the_model(tmp_path: Path, example: Path) -> None:
    events: list[Event] = []
    found = resolve([tmp_path, example], listener=events.append)
    assert found.path == example / "heldout.txt" and found.name == "heldout.txt"
    [notice] = events
    assert isinstance(notice, Notice) and "heldout.txt" in notice.text


# ---- the corpus ------------------------------------------------------------------------------------------


@pytest.mark.hub
def test_the_corpus_is_fetched_once(served: HubServer) -> None:
    events: list[Event] = []
    found = resolve([], corpus="WikiText-2", listener=events.append)
    assert found.path.read_bytes() == WORDS
    assert (found.name, found.sha256, found.file_bytes) == (SMALL.name, SMALL.sha256, SMALL.file_bytes)
    assert corpora() == [found.path]
    assert any(isinstance(event, Step) and event.name == SMALL.archive for event in events)
    served.log.clear()
    assert resolve([], corpus="wikitext-2") == found
    assert resolve([], corpus="wikitext-2", offline=True) == found
    assert served.log == []


@pytest.mark.hub
def test_without_a_text_beside_the_model_it_is_the_corpus(served: HubServer, tmp_path: Path) -> None:
    events: list[Event] = []
    assert resolve([tmp_path], listener=events.append).name == "wikitext-2"
    assert any(isinstance(event, Notice) and "wikitext-2 (2.10 kB)" in event.text for event in events)


@pytest.mark.hub
def test_a_damaged_copy_is_made_anew_from_the_hub_cache(served: HubServer) -> None:
    found = resolve([], corpus="wikitext-2")
    found.path.write_bytes(WORDS[:-1])
    served.log.clear()
    assert resolve([], corpus="wikitext-2", offline=True) == found
    assert found.path.read_bytes() == WORDS
    assert served.log == []


@pytest.mark.hub
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (archive({SMALL.member: WORDS[::-1]}), "is not the known text"),
        (archive({SMALL.member: WORDS + b"!"}), "2,101 bytes, not 2,100"),
        (archive({"other.txt": WORDS}), "no item named"),
        (b"no archive at all", "not a zip file"),
        (
            archive({SMALL.member: WORDS}, zipfile.ZIP_STORED).replace(b"little lamb", b"little pig!", 1),
            "CRC",
        ),
        (archive({SMALL.member: WORDS})[:60] + b"\xff" * 20 + archive({SMALL.member: WORDS})[80:], ""),
    ],
)
def test_the_wrong_archive(small: Corpus, hub: HubServer, content: bytes, said: str) -> None:
    serve(hub, content)
    error = refusal(HubProblem, corpus="wikitext-2")
    assert said in str(error)
    assert "--corpus-path FILE" in error.next_step
    assert corpora() == []


@pytest.mark.hub
def test_offline_without_a_copy(served: HubServer) -> None:
    error = refusal(HubProblem, corpus="wikitext-2", offline=True)
    assert "not in the Hub cache" in error.what and "--corpus-path FILE" in error.next_step
    assert served.log == []


@pytest.mark.hub
def test_not_found(small: Corpus, hub: HubServer) -> None:
    error = refusal(HubProblem, corpus="wikitext-2")
    assert "no dataset ggml-org/ci" in error.what and "--corpus-path FILE" in error.next_step


def test_no_network(small: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{probe.getsockname()[1]}")
    error = refusal(HubProblem, corpus="wikitext-2")
    assert "could not be reached" in error.what and "--corpus-path FILE" in error.next_step


def test_a_local_copy(small: Corpus, tmp_path: Path) -> None:
    events: list[Event] = []
    copy = tmp_path / "copy.raw"
    copy.write_bytes(WORDS)
    found = resolve([], corpus="wikitext-2", corpus_path=copy, listener=events.append)
    assert found == Text("wikitext-2", copy, SMALL.sha256, SMALL.file_bytes)
    assert resolve([], corpus_path=copy, listener=events.append) == found
    assert events == []


def test_a_local_copy_of_something_else(small: Corpus, tmp_path: Path) -> None:
    events: list[Event] = []
    copy = tmp_path / "copy.raw"
    copy.write_bytes(WORDS + b"!")
    found = resolve([], corpus="wikitext-2", corpus_path=copy, listener=events.append)
    assert found.name == "copy.raw"
    [notice] = events
    assert isinstance(notice, Notice) and notice.level == "warning" and "published" in notice.text


@pytest.mark.hub
def test_the_real_text(hub: HubServer, data: Path) -> None:
    """WikiText-2's own test set, packed here as the dataset has it."""
    real = data / "wikitext-2" / "wiki.test.raw"
    serve(hub, archive({corpus.WIKITEXT_2.member: real.read_bytes()}))
    found = resolve([], corpus="wikitext-2")
    assert found == dataclasses.replace(resolve([], text=real), path=found.path)
    assert found.path.read_bytes() == real.read_bytes()
