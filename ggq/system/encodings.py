"""Which encoding a text that is not UTF-8 most likely has, judged by the letters that each makes of it."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

_SAMPLE = 1 << 16
_SHOWN = 24
# A multi-byte codec makes letters of nearly anything. A language has its letters in known shares, which a
# wrong codec misses: syllables of Korean's standard set, kana, the most frequent characters of Chinese, the
# most frequent letters of Russian.
_KOREAN, _KANA, _CHINESE, _RUSSIAN = 0.85, 0.2, 0.03, 0.25
_FREQUENT_SIMPLIFIED = frozenset("的一是不了在人有我他这中大来上国")
_FREQUENT_TRADITIONAL = frozenset("的一是不了在人有我他這中大來上國")
_FREQUENT_RUSSIAN = frozenset("оеаинт")


@dataclass(frozen=True)
class Guess:
    """``name``: as iconv and a person know it; ``sure``: its letters are those of a language; ``beginning``:
    how the text begins in it."""

    name: str
    sure: bool
    beginning: str


def likely(sample: bytes) -> Guess:
    """The encoding of bytes that are not UTF-8, of which the first is a character's first."""
    sample = sample[:_SAMPLE]
    found = _broken_utf8(sample)
    if found is None:
        shares = [(*_share(sample, codec, judge), name, least) for name, codec, judge, least in _KNOWN]
        for share, text, name, least in shares:
            if share >= least:
                return Guess(name, True, _beginning(text))
        single = max((_share(sample, codec, _russian), name) for name, codec in _CYRILLIC)
        (share, text), name = single
        found = (name, text, True) if share >= _RUSSIAN else ("CP1252", _decoded(sample, "cp1252"), False)
    name, text, sure = found
    return Guess(name, sure, _beginning(text))


def without_mark(sample: bytes) -> str | None:
    """The name of the UTF-16 or UTF-32 that bytes with NULs are; None: they are no text."""
    for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        width = 4 if "32" in name else 2
        text = _decoded(sample[: len(sample[:_SAMPLE]) // width * width], name)
        odd = sum(not (it.isprintable() or it.isspace()) or it == "�" for it in text)
        blanks = text.count(" ") + text.count("\n")
        if odd <= len(text) // 100 and blanks * 200 >= max(1, len(text)):
            return name
    return None


def _broken_utf8(sample: bytes) -> tuple[str, str, bool] | None:
    """UTF-8 all the same, with a few bytes that are not."""
    text = _decoded(sample, "utf-8")
    odd = text.count("�") - sample.count("�".encode())
    whole = sum(not it.isascii() and it != "�" for it in text)
    return ("UTF-8", text, True) if whole > 4 * odd or (whole and odd == 1) else None


def _share(sample: bytes, codec: str, judge: Callable[[str], bool]) -> tuple[float, str]:
    """Of the letters outside ASCII, those that the judge knows as the language's; and the text."""
    text = _decoded(sample, codec)
    letters = [it for it in text if not it.isascii() and (it == "�" or unicodedata.category(it)[0] == "L")]
    return sum(map(judge, letters)) / max(1, len(letters)), text


def _decoded(sample: bytes, codec: str) -> str:
    """A character that the sample's end cuts is left out."""
    return codecs.getincrementaldecoder(codec)("replace").decode(sample)


def _korean(letter: str) -> bool:
    """A syllable of KS X 1001: CP949 has the rarer ones at bytes below 0xA1."""
    return "가" <= letter <= "힣" and min(letter.encode("cp949")) >= 0xA1


def _kana(letter: str) -> bool:
    return "ぁ" <= letter <= "ヺ"


def _russian(letter: str) -> bool:
    return letter in _FREQUENT_RUSSIAN


_KNOWN: tuple[tuple[str, str, Callable[[str], bool], float], ...] = (
    ("CP949", "cp949", _korean, _KOREAN),
    ("CP932", "cp932", _kana, _KANA),
    ("EUC-JP", "euc_jp", _kana, _KANA),
    ("GB18030", "gb18030", _FREQUENT_SIMPLIFIED.__contains__, _CHINESE),
    ("BIG5", "big5", _FREQUENT_TRADITIONAL.__contains__, _CHINESE),
)
_CYRILLIC = (("CP1251", "cp1251"), ("KOI8-R", "koi8_r"))


def _beginning(text: str) -> str:
    """Words that let a person judge: the first line with a letter outside ASCII."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    telling = next((line for line in lines if line and not line.isascii()), "")
    at = next((index for index, letter in enumerate(telling) if not letter.isascii()), 0)
    return telling[max(0, at - _SHOWN // 2) :][:_SHOWN].strip()
