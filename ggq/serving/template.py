"""A model's own chat template: a conversation becomes a prompt. It is rendered in jinja2's sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ggq.errors import CannotServe
from ggq.llamacpp import chat_sandbox

Message = Mapping[str, str]


class ChatTemplate:
    """``text``: the template of the file; ``bos``, ``eos``: the texts of these tokens."""

    def __init__(self, text: str, bos: str, eos: str) -> None:
        """Raises CannotServe for a template that is none."""
        self._render: Callable[[Sequence[Message]], str] = chat_sandbox.renderer(text, bos, eos)

    def prompt(self, messages: Sequence[Message]) -> str:
        """A conversation up to where the model answers. Of a model that knows no system prompt, that becomes
        a part of what the user says first. Raises CannotServe with the template's words."""
        try:
            return self._render(messages)
        except CannotServe:
            if len(messages) < 2 or messages[0]["role"] != "system":
                raise
            first, second, *rest = messages
            joined = {"role": second["role"], "content": f"{first['content']}\n\n{second['content']}"}
            return self._render([joined, *rest])
