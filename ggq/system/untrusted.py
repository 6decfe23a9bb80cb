"""Files that strangers wrote, read within bounds: regular files only, of a bounded length and depth.

What a JSON's values will take in memory is estimated from its punctuation before any of them is made: three
bytes (``{},``) become seventy, and what reads the same file afterwards copies them.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


class Unsound(ValueError):
    """A file, or an answer, that is not what it should be; its text is a sentence without a full stop."""


@dataclass(frozen=True)
class Bounds:
    """What a JSON text may be. ``memory_bytes``: what its values take in Python, from above."""

    text_bytes: int
    memory_bytes: int
    depth: int = 64


# Well above any that there is. Settings: of a mixture of experts whose quantization names every expert, 5 MB.
# 28,000 tokens of audio that were added: 5 MB. A tokenizer of 262,144 tokens: 34 MB. An index of 200,000
# tensors: 20 MB. transformers takes a second for 10 MB of values.
SETTINGS = Bounds(12 << 20, 16 << 20)
ADDED_TOKENS = Bounds(24 << 20, 96 << 20)
TOKENIZER = Bounds(96 << 20, 320 << 20)
INDEX = Bounds(48 << 20, 160 << 20, depth=4)
TENSORS = Bounds(32 << 20, 192 << 20, depth=4)
ANSWER = Bounds(32 << 20, 128 << 20)

# Bytes of a value, by the character that announces it: an empty object or list; a value after a comma; a key
# with its place in the table and its value.
_COSTS = ((b"{", 64), (b"[", 64), (b",", 64), (b":", 160))
_DIGITS = 40  # a setting of 1e30 as an integer is usual, and means "none"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONG_NUMBER = re.compile(rb"\d{%d}" % (_DIGITS + 1))
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file (or a link to one) for reading; never waits for another program.

    Raises OSError, also for a pipe, a socket or a device (its ``strerror`` says so).
    """
    _refuse_irregular(path, path.stat().st_mode)  # some devices do something when they are opened
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    handle = os.open(path, flags)
    try:
        _refuse_irregular(path, os.fstat(handle).st_mode)  # it may be another one by now
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _refuse_irregular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = next((word for test, word in _KINDS if test(mode)), "something else")
        raise OSError(errno.EINVAL, f"It is {kind}, not a regular file", str(path))


def read_bytes(path: Path, most: int) -> bytes:
    """The whole content of a regular file. Raises Unsound when it is longer than ``most``, OSError."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(most + 1) if size <= most else b""
    if size > most or len(content) > most:
        raise Unsound(f"It is {max(size, len(content)):,} bytes long; up to {most:,} are read")
    return content


def read_json(path: Path, bounds: Bounds = SETTINGS) -> Any:
    """The value of a JSON file. Raises Unsound, OSError."""
    return parse(read_bytes(path, bounds.text_bytes), bounds)


def read_object(path: Path, bounds: Bounds = SETTINGS) -> dict[str, Any]:
    """The object that a JSON file is. Raises Unsound, OSError."""
    return as_object(read_json(path, bounds))


def as_object(value: Any) -> dict[str, Any]:
    """Raises Unsound for a JSON value of another kind."""
    if not isinstance(value, dict):
        raise Unsound("It is JSON, but not an object")
    return value


def parse(raw: bytes, bounds: Bounds = SETTINGS, *, unique_keys: bool = False) -> Any:
    """The value of a JSON text in UTF-8. Raises Unsound; ``unique_keys``: also for a key that comes twice."""
    text = decode(raw, bounds)
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique_keys else None)
    except Unsound:
        raise
    except RecursionError as error:
        raise _too_deep(bounds) from error
    except json.JSONDecodeError as error:
        raise Unsound(f"It is not JSON: {error}"[:160]) from error
    except ValueError as error:  # Python's bound on the digits of an integer
        raise Unsound("It holds a number of thousands of digits") from error
    del text
    if _needs_a_walk(raw, bounds):
        _walk(value, bounds)
    return value


def decode(raw: bytes, bounds: Bounds) -> str:
    """A JSON text that is not too long, and whose values would not take too much. Raises Unsound."""
    if len(raw) > bounds.text_bytes:
        raise Unsound(f"It is {len(raw):,} bytes long; up to {bounds.text_bytes:,} are read")
    needed = sum(cost * raw.count(mark) for mark, cost in _COSTS)
    if needed > bounds.memory_bytes:
        raise Unsound(
            f"Its values would take some {needed >> 20:,} MiB of memory; "
            f"up to {bounds.memory_bytes >> 20:,} are given"
        )
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw[:4]:
        raise Unsound("It is not JSON in UTF-8, but in UTF-16 or UTF-32, or no text at all")
    if raw.startswith(codecs.BOM_UTF8):
        raise Unsound(
            "It begins with a byte order mark, which transformers does not read: save it as plain UTF-8"
        )
    if not raw.strip():
        raise Unsound("It is empty")
    return as_text(raw)


def as_text(raw: bytes) -> str:
    """Raises Unsound for what is not in UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unsound(
            f"It is not in UTF-8: byte {error.start + 1:,} of it is 0x{raw[error.start]:02X}"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Unsound(f"The key {shown(twice)} is there twice")
    return found


def _needs_a_walk(raw: bytes, bounds: Bounds) -> bool:
    deep = raw.count(b"{") + raw.count(b"[") > bounds.depth
    return deep or bool(_SURROGATE.search(raw) or _LONG_NUMBER.search(raw))


def _walk(value: Any, bounds: Bounds) -> None:
    """What ``json.loads`` lets through and others do not: great depth, half characters, endless numbers."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > bounds.depth:
            raise _too_deep(bounds)
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                if not is_text(item):
                    raise Unsound(f"It holds half a character (a lone surrogate): {shown(item)}")
            elif isinstance(item, int) and abs(item) >= 10**_DIGITS:
                raise Unsound(f"It holds a number of more than {_DIGITS} digits")
        level = below


def _too_deep(bounds: Bounds) -> Unsound:
    return Unsound(f"It is nested deeper than {bounds.depth} levels")


def is_text(text: str) -> bool:
    """Whether it can be written down: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(text: object, most: int = 80) -> str:
    """A stranger's text for an error message: quoted, short, and with nothing that steers a terminal."""
    cut = str(text)[:most]
    return ascii(cut) if not cut.isprintable() else repr(cut)
