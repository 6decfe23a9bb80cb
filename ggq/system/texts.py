"""Texts that models read: looked through once, and given to llama.cpp's tools the same way everywhere.

The tools take a file's bytes as they are. So what is no part of a text (a byte order mark, the carriage
returns of Windows, UTF-16's zeros) would become tokens. A file with such is read through here into a copy.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ggq.errors import CannotServe, SourceChanged
from ggq.system import encodings, files, untrusted
from ggq.system.unchanged import Unchanged

_BLOCK = 1 << 20
_UTF8 = "UTF-8"
# The longer marks first: UTF-16's is the beginning of UTF-32's.
_MARKS = (
    (codecs.BOM_UTF8, _UTF8),
    (codecs.BOM_UTF32_LE, "UTF-32LE"),
    (codecs.BOM_UTF32_BE, "UTF-32BE"),
    (codecs.BOM_UTF16_LE, "UTF-16LE"),
    (codecs.BOM_UTF16_BE, "UTF-16BE"),
)
_LINE_END = re.compile(r"\r+\n")


@dataclass(frozen=True)
class Text:
    """A text that was looked through: not empty. ``name`` is a corpus's, or the file's own.

    ``sha256``: of what is read, in UTF-8; ``file_sha256``: of the file's bytes where these are others;
    ``file_bytes``: its size; ``remark``: how it is read, where that is not as it is.
    """

    name: str
    path: Path
    sha256: str
    file_bytes: int
    file_sha256: str = ""
    remark: str = ""


def read(path: Path) -> Text:
    """Look a text through, in blocks. Raises UsageProblem where it is no text, or in another encoding than
    UTF-8, UTF-16 or UTF-32 with their marks."""
    read_as, raw = hashlib.sha256(), hashlib.sha256()
    reader = _Reader(path)
    blank = True
    try:
        for block, text in reader.blocks():
            raw.update(block)
            read_as.update(text.encode())
            blank = blank and not text.strip()
    except OSError as error:
        why = f"{error.strerror}." if error.strerror else f"{error}."
        raise CannotServe(
            f"The text {path} cannot be read.", why, "Give a text file, for example with --text FILE."
        ) from error
    if blank:
        raise CannotServe(
            f"{path} holds no text.",
            f"Its {reader.bytes:,} bytes are all white space." if reader.bytes else "It is empty.",
            "Give another file.",
        )
    same = raw.digest() == read_as.digest()
    return Text(
        path.name, path, read_as.hexdigest(), reader.bytes, "" if same else raw.hexdigest(), reader.remark()
    )


def place(text: Text, folder: Path) -> Path:
    """The text as llama.cpp's tools are to read it, under its file's name in a folder of ggq's own: the file
    itself, or a copy in UTF-8. Raises DiskFull, OutputProblem, UsageProblem."""
    placed = folder / text.path.name
    with files.explain_os_error(placed):
        folder.mkdir(exist_ok=True)
        placed.unlink(missing_ok=True)
        if not text.file_sha256:
            placed.symlink_to(text.path.absolute())
            return placed
        with placed.open("wb") as sink:
            for _, part in _Reader(text.path).blocks():
                sink.write(part.encode())
    return placed


def unchanged(text: Text) -> Unchanged:
    """The text's file as it is now, and as it was looked through. Raises SourceChanged."""
    reading = Unchanged([text.path])
    with reading.explaining():
        same = files.sha256_file(text.path) == (text.file_sha256 or text.sha256)
    if not same:
        raise SourceChanged(
            f"{text.path} changed while ggq read it.",
            "Its sha256 is not that of a moment ago. Nothing of it is recorded.",
            "Run the same command again when nothing writes to that file any more.",
        )
    return reading


class _Reader:
    """One pass over a file. ``bytes``: so many were read."""

    def __init__(self, path: Path) -> None:
        self.bytes = 0
        self._path = path
        self._marked: str | None = None
        self._line_ends = 0

    def blocks(self) -> Iterator[tuple[bytes, str]]:
        """The bytes, and what is read of them."""
        with untrusted.open_regular(self._path) as stream:
            block = stream.read(max(_BLOCK, 4))
            mark, self._marked = next(
                ((mark, name) for mark, name in _MARKS if block.startswith(mark)), (b"", None)
            )
            decoder = codecs.getincrementaldecoder(self._marked or _UTF8)()
            held = ""  # a carriage return whose line may end in the next block
            while block:
                start = self.bytes
                if self._marked in (None, _UTF8) and b"\0" in block:
                    self._refuse_zeros(start + block.index(0))
                pending = len(decoder.getstate()[0])
                try:
                    text = held + decoder.decode(block[len(mark) :] if start == 0 else block)
                except UnicodeDecodeError as error:
                    self._refuse(start - pending + error.start + (len(mark) if start == 0 else 0))
                if "\0" in text:
                    self._refuse_zeros(start)
                self.bytes += len(block)
                held = text[len(text.rstrip("\r")) :]
                yield block, self._with_plain_ends(text.removesuffix(held))
                block = stream.read(_BLOCK)
            if pending := len(decoder.getstate()[0]):
                self._refuse(self.bytes - pending)
            if held:
                yield b"", held

    def remark(self) -> str:
        parts = []
        if self._marked not in (None, _UTF8):
            parts.append(f"is {self._marked}, and read as such")
        elif self._marked:
            parts.append("begins with a byte order mark, which is left out")
        if self._line_ends:
            parts.append(f"has {self._line_ends:,} line ends of Windows (CRLF), which are read as LF")
        return f"{self._path.name} {'; it '.join(parts)}." if parts else ""

    def _with_plain_ends(self, text: str) -> str:
        if "\r\n" not in text:
            return text
        text, found = _LINE_END.subn("\n", text)
        self._line_ends += found
        return text

    def _refuse_zeros(self, offset: int) -> NoReturn:
        name = None
        if self._marked in (None, _UTF8):
            with untrusted.open_regular(self._path) as stream:
                name = encodings.without_mark(stream.read(_BLOCK))
        has = f"It has a NUL byte at offset {offset:,}."
        if name:
            raise CannotServe(
                f"{self._path} is not UTF-8.",
                f"{has} It is most likely {name}, without a byte order mark.",
                f"Convert it: {self._iconv(name)}.",
            )
        raise CannotServe(
            f"{self._path} is not a text: {has[0].lower()}{has[1:]}",
            "Text has none; a model or an archive does.",
            "Give a plain text in UTF-8.",
        )

    def _refuse(self, offset: int) -> NoReturn:
        why = f"The byte at offset {offset:,} begins no character of it."
        if self._marked not in (None, _UTF8):
            raise CannotServe(
                f"{self._path} is corrupt.",
                f"Its mark says {self._marked}. {why}",
                "Give the text in UTF-8.",
            )
        with untrusted.open_regular(self._path) as stream:
            line = max(0, offset - _BLOCK // 2)
            stream.seek(line)
            before = stream.read(offset - line)
            stream.seek(line + before.rfind(b"\n") + 1 if b"\n" in before or not line else offset)
            guess = encodings.likely(stream.read(_BLOCK))
        if guess.name == _UTF8:
            raise CannotServe(
                f"{self._path} is not UTF-8.",
                f"{why} Other parts are UTF-8: it is truncated or corrupt there.",
                f"Give the whole text, or leave these bytes out: {self._iconv(_UTF8, '-c ')}.",
            )
        raise CannotServe(
            f"{self._path} is not UTF-8.",
            f"{why} {'It is most likely' if guess.sure else 'It may be'} {guess.name}; read so, it has:"
            f" “{guess.beginning}”.",
            f"Convert it: {self._iconv(guess.name)}"
            + ("." if guess.sure else ", with the encoding that it has instead of CP1252."),
        )

    def _iconv(self, name: str, options: str = "") -> str:
        return f"`iconv {options}-f {name} -t UTF-8 {shlex.quote(str(self._path))} > utf8.txt`"
