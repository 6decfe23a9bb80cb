"""A chat template as Go has it, for Ollama: taken from what the model's own one makes of conversations.

A template that is written in another language cannot be translated word by word. But nearly all of them put
fixed pieces around what is said. The pieces are found by rendering a conversation of known words; whether
they are all that there is, is tried on others. Where they are not, there is no Go template.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ggq.errors import CannotServe

Message = Mapping[str, str]
Render = Callable[[Sequence[Message]], str]

_SYSTEM, _FIRST, _ANSWER, _SECOND = "ggqsystemggq", "ggqfirstggq", "ggqanswerggq", "ggqsecondggq"


@dataclass(frozen=True)
class Pieces:
    """What stands around the words of a conversation.

    ``start``: at its beginning where there is no system prompt; ``system``: before and after such a one;
    ``within``: the system prompt is in what the user says first; ``user``: before and after what the user
    says; ``answer_start``, ``answer_end``: around what the model said; ``open``: where it is to answer.
    """

    start: str
    system: tuple[str, str]
    within: bool
    user: tuple[str, str]
    answer_start: str
    answer_end: str
    open: str

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as these pieces have it."""
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        text = self.start if system is None else ""
        if system is not None and not self.within:
            text = f"{self.system[0]}{system}{self.system[1]}"
        first = True
        for message in messages[system is not None :]:
            content = message["content"]
            if message["role"] == "user":
                if first and system is not None and self.within:
                    text += f"{self.system[0]}{system}{self.system[1]}{content}{self.user[1]}"
                else:
                    text += f"{self.user[0]}{content}{self.user[1]}"
                first = False
            else:
                text += f"{self.answer_start}{content}{self.answer_end}"
        return text + self.open

    def go_template(self) -> str:
        """The same in Go's language, as Ollama runs it."""
        q = _quoted
        user = f"{q(self.user[0])}{{{{ $m.Content }}}}{q(self.user[1])}"
        system = ""
        if self.within:
            merged = f"{q(self.system[0])}{{{{ $.System }}}}{q(self.system[1])}"
            merged += f"{{{{ $m.Content }}}}{q(self.user[1])}"
            user = f"{{{{ if and $.System (eq $i 1) }}}}{merged}{{{{ else }}}}{user}{{{{ end }}}}"
        else:
            system = (
                f'{{{{ if eq $m.Role "system" }}}}{q(self.system[0])}{{{{ $m.Content }}}}{q(self.system[1])}'
                "{{ end }}"
            )
        start = f"{{{{ if not .System }}}}{q(self.start)}{{{{ end }}}}" if self.start else ""
        answer = f"{q(self.answer_start)}{{{{ $m.Content }}}}{q(self.answer_end)}"
        return (
            f"{start}{{{{ range $i, $m := .Messages }}}}{system}"
            f'{{{{ if eq $m.Role "user" }}}}{user}{{{{ end }}}}'
            f'{{{{ if eq $m.Role "assistant" }}}}{answer}{{{{ end }}}}'
            f"{{{{ end }}}}{q(self.open)}"
        )


def pieces(render: Render, bos: str = "") -> Pieces | None:
    """The pieces of a template; None where it does more than to put pieces around words. ``bos``: a text at
    the beginning that whoever reads the prompt puts there himself."""

    def rendered(messages: Sequence[Message]) -> str:
        text = render(messages)
        return text.removeprefix(bos) if bos else text

    try:
        found = _found(rendered)
        if found is None or not all(rendered(it) == found.render(it) for it in _trials(found)):
            return None
    except CannotServe:
        return None
    return found


def _found(render: Render) -> Pieces | None:
    plain = _around(render([_user(_FIRST), _assistant(_ANSWER), _user(_SECOND)]), _FIRST, _ANSWER, _SECOND)
    with_system = _around(render([_of("system", _SYSTEM), _user(_FIRST)]), _SYSTEM, _FIRST)
    if plain is None:
        return None
    before, to_answer, to_user, end = plain
    # What comes before the second question is the end of an answer, then what is before any question.
    user_start = _common_end(before, to_user)
    answer_end = to_user.removesuffix(user_start)
    user_end = _common_start(to_answer, end)
    system, within = ("", ""), False
    if with_system is not None:
        first, second, last = with_system
        if last != end:
            return None
        if second.endswith(user_start) and not (user_start and first.startswith(user_start)):
            system = (first, second.removesuffix(user_start))
        else:
            system, within = (first, second), True
    return Pieces(
        start=before.removesuffix(user_start),
        system=system,
        within=within,
        user=(user_start, user_end),
        answer_start=to_answer.removeprefix(user_end),
        answer_end=answer_end,
        open=end.removeprefix(user_end),
    )


def _trials(found: Pieces) -> list[list[Message]]:
    """Conversations that the pieces must render as the template does."""
    system = [_of("system", "Be brief.\nAnswer in English.")]
    talk = [
        _user("Who are you?"),
        _assistant("A model."),
        _user("Say it again: {x} <y>"),
        _assistant("A model"),
    ]
    trials: list[list[Message]] = [talk[:1], talk[:3], [*talk, _user("Thanks.")]]
    if found.system != ("", ""):
        trials += [[*system, *it] for it in trials]
    return trials


def _around(text: str, *words: str) -> list[str] | None:
    """What stands before, between and after words; None where one of them is not there once."""
    if any(text.count(word) != 1 for word in words):
        return None
    parts = []
    for word in words:
        part, found, text = text.partition(word)
        if not found:
            return None
        parts.append(part)
    return [*parts, text]


def _common_start(one: str, other: str) -> str:
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(letter for letter, _ in alike)


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _of(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _user(content: str) -> Message:
    return _of("user", content)


def _assistant(content: str) -> Message:
    return _of("assistant", content)


def _quoted(text: str) -> str:
    """A text that Go's templates leave as it is."""
    return text.replace("{{", "{{ `{{` }}") if "{{" in text else text
