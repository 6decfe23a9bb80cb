"""Texts on which tokenizers differ where they differ at all: for the comparison of a GGUF's tokenizer."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence

SENTENCES = (
    "Hello, world! The quick brown fox jumps over 13 lazy dogs.",
    "안녕하세요, 세계! 오늘은 12월 3일입니다. 개인정보보호법에 따라 3.5%를 낸다.",
    "敏捷的棕色狐狸跳过了13只懒狗。今天是2024年1月1日，星期一！",
    "今日は2024年1月1日、東京タワーに行きました。カタカナとひらがな。",
    "مرحبا بالعالم! كيف حالك اليوم؟ ١٢٣٤٥",
    "שלום עולם, 2024",
    "Привет, мир! Быстрая лиса прыгнула 123 раза.",
    "สวัสดีชาวโลก 123",
    "नमस्ते दुनिया १२३, यह एक परीक्षण है।",
    "naïve café, Übergröße, ß ẞ ﬁ ﬂ Å Å ﬀ Ⅷ ½ ² x² ㎏",
    "👩‍👩‍👧‍👦 🚀 ok ✅🏽 😀😀 🇰🇷🇺🇸 ❤️",
    "def f(x):\n    return x**2  # done\n\nif __name__ == '__main__':\n\tprint(f(3))\n",
    "for (int i=0;i<10;++i) { a[i] += b->c; } /* x */ // y\r\n\r\n#include <a.h>\r\n",
    '{"a": [1, 2.5, -3e10], "b": null, "c": "d\\n"}',
    "<div class='x'>a &amp; b</div>\n<br/>",
    "3.14159 1,000,000 2024-01-01 0xDEADBEEF 1e-5 12:34:56 v1.2.3",
    "It's we'll THEY'D I'M don't o'clock 'tis y'all'VE can't've 's 'S",
    "It’s we’ll don’t “quoted” ‘single’ — dash – en … ellipsis",
    "CamelCaseWords snake_case_words UPPERCASE lowercase MiXeD iPhone15ProMax",
    "https://example.org/a/b?c=d&e=f#g user@example.org /usr/bin/env C:\\Windows",
    "runs,   inner    runs \t\t tabs \n\n\n lines  ",
    "a \n b\n \n c\r\nd\re\u2028f\u00a0g\u200bh\u3000i",
    "!?!? ... ,,, ;;; ((())) [[]] {{}} <<>> ''' \"\"\" ``` ### --- === *** ~~~ ///",
    "$5.00 €10 £20 ¥30 ₩1,000 50% #1 @me a+b=c a|b ^x ~y",
    "x\x00y\x01z\x1b[0m\x7f\u0085",
    "\ufeffbom \ufffd \ue000 \U0001f9ff \U00020000",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "e\u0301e\u0301 가각 A\u030a n\u0303o o\u0308",
    "Section 5A: income apportionment, reapportionment.",
)
_PIECES = ("a", "A", "1", "한", "漢", "é", "?", "'s", "_", "\n", "\t", "\r\n", "🚀")


def ordinary() -> list[str]:
    """Texts that no one made for any tokenizer. Those that begin with a space come last."""
    found: list[str] = list(SENTENCES)
    found += [unicodedata.normalize("NFD", text) for text in SENTENCES if not text.isascii()]
    found += [unicodedata.normalize("NFC", text) for text in SENTENCES if not text.isascii()]
    found += ["1234567890123"[:length] for length in range(1, 14)]
    found += [f"x {'987654321'[:length]} y" for length in range(1, 10)]
    found += ["x" + space * count + "y" for space in (" ", "\n", "\t") for count in range(1, 10)]
    found += ["x" + tail for tail in (" ", "  ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\u3000")]
    found += [left + right for left, right in itertools.product(_PIECES, repeat=2)]
    found += [f"a{left} {right}b" for left, right in itertools.pairwise(_PIECES)]
    found += [space + "x y" for space in (" ", "  ", "    ", "\n", "\t", "\n ")]
    return list(dict.fromkeys(found))


def around(token: str, *, all_of_them: bool) -> Iterator[str]:
    """A token by itself, and (``all_of_them``) in the middle of other text."""
    yield token
    if all_of_them:
        yield from (
            token + token, f"ab{token}cd", f"ab {token} cd", f"ab  {token}  cd", f"ab{token} cd",
            f"ab {token}cd", f"{token}\nab", f"ab\n{token}", f"{token} {token}", f"12{token}34",
            f"ab.{token},cd",
        )  # fmt: skip


def sample(items: Sequence[int], count: int) -> list[int]:
    """``count`` of the items, evenly."""
    step = max(1, len(items) // count)
    return list(items[::step])[:count]
