"""A conversation with a model: what was said, and the prompt that becomes of it within the context."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggq.errors import CannotServe, OutputProblem
from ggq.serving.model import Model, Sampling
from ggq.serving.template import ChatTemplate, Message
from ggq.system import files

_SCHEMA = 1
_ROLES = ("user", "assistant")
# Of the context at least so much is left to an answer: older turns go first.
_SHARE_FOR_ANSWER = 4


@dataclass
class Conversation:
    """``messages``: the user's and the model's, in turn; ``left_out``: of the oldest so many are no longer in
    the prompt, because the context has no room for them."""

    model: Model
    template: ChatTemplate
    sampling: Sampling
    system: str | None = None
    most_tokens: int | None = None
    grammar: Any = None
    messages: list[dict[str, str]] = field(default_factory=list)
    left_out: int = 0

    def ask(self, text: str) -> Generator[str]:
        """The answer, piece by piece. An answer that is broken off stays, as far as it came; a question that
        fails, or gets not one piece, does not.

        Raises CannotServe when the question alone does not fit the context, or the template refuses it.
        """
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        self.model.last = None
        try:
            answer = self.model.stream(
                self._prompt(),
                self.sampling,
                most_tokens=self.most_tokens,
                grammar=self.grammar,
                trim=True,
            )
            with contextlib.closing(answer):
                for piece in answer:
                    said.append(piece)
                    yield piece
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": "".join(said).strip()})
            elif self.model.last is None or self.model.last.ending != "stop":
                self.messages.pop()
            else:
                self.messages.append({"role": "assistant", "content": ""})

    def forget_last(self) -> str | None:
        """Take the last question and its answer back; returns the question, None where there is none."""
        while self.messages:
            taken = self.messages.pop()
            if taken["role"] == "user":
                self.left_out = min(self.left_out, len(self.messages))
                return taken["content"]
        return None

    def clear(self) -> None:
        self.messages.clear()
        self.left_out = 0

    def _prompt(self) -> list[int]:
        """The tokens of the prompt, without the oldest turns where these leave too little room.

        What was left out once stays out: the cache keeps what comes after it.
        """
        room = self.model.context_tokens
        wanted = room - min(self.most_tokens or room, room // _SHARE_FOR_ANSWER)
        tokens = self._tokens()
        left_out = self.left_out
        while len(tokens) > wanted and self.left_out + 2 < len(self.messages):
            self.left_out += 2
            tokens = self._tokens()
        try:
            self.model.require_room(len(tokens))
        except CannotServe:
            self.left_out = left_out
            raise
        return tokens

    def _tokens(self) -> list[int]:
        first: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return self.model.tokens(
            self.template.prompt([*first, *self.messages[self.left_out :]]), special=True
        )

    # --- on the disk -------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the conversation as JSON. Raises OutputProblem."""
        content = {
            "schema_version": _SCHEMA,
            "model": self.model.parameters.file.path.name,
            "system": self.system,
            "messages": self.messages,
        }
        files.write_json(path.absolute(), content)

    def load(self, path: Path) -> None:
        """Take up a conversation that was saved. Raises OutputProblem for what is none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            system, messages = content.get("system"), content["messages"]
            if not (system is None or isinstance(system, str)) or not _is_history(messages):
                raise ValueError("roles or texts are not where they should be")
        except OSError as error:
            raise OutputProblem(f"{path} cannot be read.", f"{error.strerror}.", "Check the path.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputProblem(
                f"{path} is no saved conversation.", f"{error}.", "Give a file that /save has written."
            ) from error
        self.system = system
        self.messages = [{"role": it["role"], "content": it["content"]} for it in messages]
        self.left_out = 0


def _is_history(messages: Any) -> bool:
    """Whether these are turns of the user and the model, each a text."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) % 2:
        return False
    return all(
        isinstance(it, dict) and it.get("role") == _ROLES[index % 2] and isinstance(it.get("content"), str)
        for index, it in enumerate(messages)
    )
