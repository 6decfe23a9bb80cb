"""Small changes to whole inputs, each made again by its seed: JSON, GGUF, plain bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 255, 1 << 15, 1 << 31, -(1 << 31), 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64,
    10**30, 50_000_000, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf"), True, None,
)  # fmt: skip
TEXTS = (
    "", " ", "\0", "a\0b", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "../../etc/passwd", "/etc/passwd",
    "~nobody", "x" * 300, "y" * 70_000, "한국어", "é", "e\u0301", "\u202eabc", "\ud800", "😀" * 9, "\n" * 200,
    "{{ 1/0 }}", "{% for i in range(10**9) %}x{% endfor %}", "%s%n{0}", "nan", "-1", "1e999", "gpt2", "BF16",
    "LlamaForCausalLM", "F8_E4M3", "---", "\ufeff", "$(id)", "CON", "a/b/c", "blk.0.attn_q.weight",
)  # fmt: skip


def value(random: Random) -> Any:
    """Anything that JSON can hold, and some that it cannot."""
    kind = random.randrange(8)
    if kind < 3:
        return random.choice(NUMBERS)
    if kind < 6:
        return random.choice(TEXTS)
    if kind == 6:
        return random.choice(([], {}, [[]], [None], [0] * 1000, [[[[{}]]]], {"": ""}, {"a": {"b": []}}))
    return random.choice((_nested(random.choice((10, 60, 900))), [random.choice(NUMBERS) for _ in range(5)]))


def _nested(depth: int) -> Any:
    made: Any = []
    for _ in range(depth):
        made = [made]
    return made


def _places(tree: Any, limit: int = 4000) -> list[tuple[Any, Any]]:
    """(container, key) of what a tree holds, the first ones of long lists only."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(found) < limit:
        here = waiting.pop()
        keys = list(here) if isinstance(here, dict) else list(range(min(len(here), 40)))
        for key in keys:
            found.append((here, key))
            if isinstance(here[key], (dict, list)):
                waiting.append(here[key])
    return found


def json_tree(tree: Any, random: Random) -> Any:
    """The tree (a copy of one's own), with one to three places changed."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = _places(tree)
        if not places:
            return value(random)
        # The upper places as often as the thousands below them.
        top = [it for it in places if it[0] is tree]
        holder, key = random.choice(top if top and random.random() < 0.5 else places)
        what = random.randrange(7)
        if what < 3:
            holder[key] = value(random)
        elif what == 3:
            del holder[key]
        elif what == 4 and isinstance(holder, dict):
            holder[random.choice(TEXTS)] = holder.pop(key)
        elif what == 5:
            holder[key] = [holder[key]]
        else:
            other, there = random.choice(places)
            holder[key] = other[there] if isinstance(other, list) or there in other else None
            if _is_endless(tree):
                holder[key] = None
    return tree


def _is_endless(tree: Any) -> bool:
    try:
        json.dumps(tree)
    except (ValueError, RecursionError):
        return True
    return False


def json_text(tree: Any, random: Random) -> bytes:
    """A file of JSON: the tree changed, or its text."""
    if random.random() < 0.75:
        try:
            text = json.dumps(json_tree(tree, random), ensure_ascii=random.random() < 0.5)
        except (RecursionError, ValueError):
            text = "[" * 2000
        made = text.encode("utf-8", "surrogatepass")
        return _duplicated(made, random) if random.random() < 0.1 else made
    whole = json.dumps(tree)
    what = random.randrange(7)
    if what == 0:
        return whole.encode(random.choice(("utf-16", "utf-8-sig", "utf-32", "utf-16-be")))
    if what == 1:
        return b"[" * random.choice((100, 5000, 200_000))
    if what == 2:
        return b'{"a":' * random.choice((100, 5000)) + b"1"
    if what == 3:
        return (whole + random.choice(("}", "\0", "x", whole, "\n\n", ","))).encode()
    if what == 4:
        return b"9" * random.choice((10, 4000, 5000, 300_000))
    return raw(whole.encode(), random)


def _duplicated(text: bytes, random: Random) -> bytes:
    if text[:1] != b"{":
        return text
    return b'{"architectures": 1, "model_type": [], "": null, ' + text[1:]


def raw(data: bytes, random: Random, near: int | None = None) -> bytes:
    """Bytes with something flipped, cut, doubled or put in; ``near``: most of it before that byte."""
    made = bytearray(data)
    reach = max(1, min(near or len(made), len(made)))
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(reach)
        what = random.randrange(7)
        if what == 0 and made:
            made[min(at, len(made) - 1)] ^= 1 << random.randrange(8)
        elif what == 1 and made:
            made[min(at, len(made) - 1)] = random.choice((0, 255, 127, 128, 10, 34))
        elif what == 2:
            del made[at:]
        elif what == 3:
            del made[at : at + random.choice((1, 4, 8, 100))]
        elif what == 4:
            made[at:at] = random.choice((b"\0", b"\xff" * 8, bytes(100), made[:64]))
        elif what == 5:
            made[at : at + 8] = struct.pack("<q", random.choice((-1, 0, 1 << 62, 1 << 40, 1 << 20)))
        else:
            other = random.randrange(reach)
            made[at : at + 32] = made[other : other + 32]
        reach = max(1, min(reach, len(made)))
    return bytes(made)


# ---- GGUF --------------------------------------------------------------------------------------------------

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SIZES = (0, 1, 2, 255, 1 << 16, 1 << 24, 1 << 31, 1 << 32, 1 << 40, 1 << 62, (1 << 64) - 1)
_TYPES = (*range(42), 255, 1 << 16, (1 << 32) - 1)


class Gguf:
    """A GGUF file taken apart: keys as (name, type, bytes of the value), tensors, the bytes of data."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self.magic, self.version, tensors, keys = self._take("<4sIQQ")
        self.keys = [self._key() for _ in range(keys)]
        self.tensors = [self._tensor() for _ in range(tensors)]
        self.body = data[-(-self._at // 32) * 32 :]
        self.tensor_count, self.key_count = tensors, keys

    def _take(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return found

    def _text(self) -> bytes:
        (length,) = self._take("<Q")
        self._at += length
        return self._data[self._at - length : self._at]

    def _key(self) -> list[Any]:
        name = self._text()
        (kind,) = self._take("<I")
        start = self._at
        if kind == _STRING:
            self._text()
        elif kind == _ARRAY:
            inner, count = self._take("<IQ")
            for _ in range(count):
                if inner == _STRING:
                    self._text()
                else:
                    self._take("<" + _SCALARS[inner])
        else:
            self._take("<" + _SCALARS[kind])
        return [name, kind, self._data[start : self._at]]

    def _tensor(self) -> list[Any]:
        name = self._text()
        (count,) = self._take("<I")
        dims = list(self._take(f"<{count}Q"))
        kind, offset = self._take("<IQ")
        return [name, count, dims, kind, offset]

    def bytes(self) -> bytes:
        out = [struct.pack("<4sIQQ", self.magic, self.version, self.tensor_count, self.key_count)]
        for name, kind, content in self.keys:
            out += [_packed(name), struct.pack("<I", kind), content]
        for name, count, dims, kind, offset in self.tensors:
            sizes = b"".join(struct.pack("<Q", size & ((1 << 64) - 1)) for size in dims)
            out += [_packed(name), struct.pack("<I", count), sizes, struct.pack("<IQ", kind, offset)]
        header = b"".join(out)
        return header + bytes(-len(header) % 32) + self.body


def _packed(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _name(random: Random) -> bytes:
    return random.choice(TEXTS).encode("utf-8", "surrogatepass") if random.random() < 0.8 else b"\xff\xfe\x80"


def gguf(whole: bytes, random: Random) -> bytes:
    """A GGUF file with one to three fields changed, or its bytes."""
    if random.random() < 0.2:
        return raw(whole, random, near=random.choice((24, 400, 60_000, len(whole))))
    made = Gguf(whole)
    changes: tuple[Callable[[Gguf, Random], None], ...] = (
        _change_key, _change_key, _change_key, _change_tensor, _change_tensor, _change_tensor, _change_head,
        _change_list,
    )  # fmt: skip
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(changes)(made, random)
    return made.bytes()


def _change_head(made: Gguf, random: Random) -> None:
    what = random.randrange(4)
    if what == 0:
        made.version = random.choice((0, 1, 2, 4, 3 << 24, (1 << 32) - 1))
    elif what == 1:
        made.tensor_count = random.choice(_SIZES)
    elif what == 2:
        made.key_count = random.choice(_SIZES)
    else:
        made.body = made.body[: random.choice((0, 1, 1000, len(made.body) - 1))]


def _change_list(made: Gguf, random: Random) -> None:
    held = random.choice((made.keys, made.tensors))
    if not held:
        return
    what = random.randrange(4)
    at = random.randrange(len(held))
    if what == 0:
        del held[at]
    elif what == 1:
        held.insert(at, list(held[random.randrange(len(held))]))
    elif what == 2:
        random.shuffle(held)
    else:
        held.append(held.pop(at))
    made.key_count, made.tensor_count = len(made.keys), len(made.tensors)


def _change_key(made: Gguf, random: Random) -> None:
    if not made.keys:
        return
    key = random.choice(made.keys)
    what = random.randrange(7)
    if what == 0:
        key[0] = _name(random)
    elif what == 1:
        key[1] = random.choice(_TYPES[:16])
    elif key[1] in _SCALARS:
        layout = _SCALARS[key[1]]
        bits = 8 * struct.calcsize("<" + layout)
        number = random.choice(NUMBERS)
        if layout in "fd":
            key[2] = struct.pack("<" + layout, random.choice((0.0, -1.0, 3e38, float("nan"), float("inf"))))
        else:
            key[2] = (
                int(number or 0) & ((1 << bits) - 1) if number == number and abs(number or 0) < 1e300 else 0
            ).to_bytes(bits // 8, "little")
    elif key[1] == _STRING:
        text = _name(random)
        key[2] = _packed(text, random.choice(_SIZES) if random.random() < 0.2 else None)
    elif key[1] == _ARRAY:
        inner, count = struct.unpack_from("<IQ", key[2])
        if what < 4:
            count = random.choice((*_SIZES, count - 1, count + 1))
            key[2] = struct.pack("<IQ", inner, count & ((1 << 64) - 1)) + key[2][12:]
        elif what == 4:
            key[2] = struct.pack("<IQ", random.choice(_TYPES[:16]), count) + key[2][12:]
        elif what == 5:
            key[2] = struct.pack("<IQ", _ARRAY, 1) * random.choice((10, 1000, 100_000)) + key[2]
        else:
            key[2] = key[2][:12] + raw(key[2][12:], random)


def _change_tensor(made: Gguf, random: Random) -> None:
    if not made.tensors:
        return
    tensor = random.choice(made.tensors)
    what = random.randrange(6)
    if what == 0:
        tensor[0] = _name(random) if random.random() < 0.7 else random.choice(made.tensors)[0]
    elif what == 1:
        tensor[1] = random.choice((0, 1, 2, 3, 4, 5, 8, 255, (1 << 32) - 1))
    elif what == 2:
        tensor[1] = random.choice((0, 1, 3, 4, 5, 9))
        tensor[2] = [random.choice((*_SIZES, 256)) for _ in range(tensor[1])]
    elif what == 3 and tensor[2]:
        tensor[2][random.randrange(len(tensor[2]))] = random.choice((*_SIZES, 255, 257))
    elif what == 4:
        tensor[3] = random.choice(_TYPES)
    else:
        tensor[4] = random.choice((*_SIZES, 16, 33, tensor[4] + 32))
