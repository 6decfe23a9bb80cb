"""What llama.cpp's tools make of a text: its tokens, and the special tokens that stand in it as text.

llama-imatrix and llama-perplexity read the name of a special token (``<|im_start|>``) letter by letter,
unless they are told to parse it. The model never sees it so: the text of a chat gives them other tokens than
a chat does.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from ggq.gguf.file import GgufFile
from ggq.gguf.header import Array
from ggq.llamacpp import endings, tool_output
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import Listener, Notice, silent
from ggq.system import process
from ggq.system.texts import Text

_UNKNOWN, _CONTROL = 2, 3  # of tokenizer.ggml.token_type
# llama.cpp takes some tokens for special by their names alone.
_LOOKS_SPECIAL = re.compile(r"<.+>|\[[A-Z_]+\]")
_NAMES_SHOWN = 4


def token_ids(toolchain: Toolchain, model: Path, text: Path, *, parse_special: bool = False) -> list[int]:
    """The tokens that llama-imatrix and llama-perplexity make of a text, with those that the vocabulary adds.

    They drop the last line's end, and take a backslash as it is. Raises ToolFailed, ToolchainProblem.
    """
    done = process.run(
        [
            toolchain.tool("llama-tokenize"), "-m", model, "--stdin", "--ids", "--no-escape",
            *([] if parse_special else ["--no-parse-special"]),
        ],
        stdin=text.read_bytes().decode("utf-8").removesuffix("\n"),
        watch=process.Watch(echo=False),
        check=False,
    )  # fmt: skip
    return tool_output.token_ids(endings.checked(done).stdout)


def count(
    toolchain: Toolchain,
    model: GgufFile,
    text: Text,
    placed: Path,
    *,
    parse_special: bool,
    listener: Listener = silent,
) -> int:
    """The number of a text's tokens; the listener is told how it is read, and of special tokens in it.

    ``placed``: see ``texts.place``. Raises ToolFailed, ToolchainProblem.
    """
    if text.remark:
        listener(Notice(text.remark))
    plain = token_ids(toolchain, model.path, placed)
    parsed = token_ids(toolchain, model.path, placed, parse_special=True)
    if plain != parsed:
        numbers = f"{len(plain):,} tokens instead of {len(parsed):,}"
        holds = f"{text.name} holds {_special(model, plain, parsed)}."
        if parse_special:
            listener(Notice(f"{holds} They are read as tokens: {len(parsed):,} in all, not {len(plain):,}."))
        else:
            listener(
                Notice(
                    f"{holds} They are read letter by letter: {numbers}. --parse-special reads them as"
                    " tokens, as in a chat.",
                    "warning",
                )
            )
    elif parse_special:
        listener(Notice(f"{text.name} holds no special tokens: --parse-special changes nothing."))
    return len(parsed if parse_special else plain)


def _special(model: GgufFile, plain: list[int], parsed: list[int]) -> str:
    """How many special tokens only parsing finds, and their names, the most frequent first."""
    names, kinds = (model.metadata.get(f"tokenizer.ggml.{it}") for it in ("tokens", "token_type"))
    found: Counter[str] = Counter()
    for token, times in (Counter(parsed) - Counter(plain)).items():
        name = str(names[token]) if isinstance(names, Array) and token < len(names) else ""
        kind = kinds[token] if isinstance(kinds, Array) and token < len(kinds) else None
        if kind in (_UNKNOWN, _CONTROL) or _LOOKS_SPECIAL.fullmatch(name):
            found[name] = times
    if not found:
        return "special tokens of this model as text"
    shown = ", ".join(f"{name} {times:,} times" for name, times in found.most_common(_NAMES_SHOWN))
    more = f", {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
    return f"{found.total():,} special tokens of this model as text ({shown}{more})"
