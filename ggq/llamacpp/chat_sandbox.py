"""A chat template in the binding's formatter: jinja2's sandbox, with what transformers offers templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggq.errors import CannotServe

_NEXT = "Continue a text without the template: `ggq run FILE PROMPT --raw`."


def renderer(template: str, bos: str, eos: str) -> Callable[[Sequence[Mapping[str, str]]], str]:
    """A function that renders a conversation up to where the model answers. The binding must be loaded.

    Raises CannotServe for a template that is none, and when one fails or refuses the conversation.
    """
    import jinja2
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    try:
        formatter = Jinja2ChatFormatter(template, eos_token=eos, bos_token=bos)
    except (jinja2.TemplateError, RecursionError) as error:
        raise CannotServe("The model's chat template cannot be read.", f"{error}.", _NEXT) from error

    def render(messages: Sequence[Mapping[str, str]]) -> str:
        asked: list[Any] = [dict(message) for message in messages]
        try:
            return str(formatter(messages=asked).prompt)
        except Exception as error:  # a template is a stranger's program: it can fail in any way
            raise CannotServe(
                "The model's chat template refuses this conversation.",
                f"{type(error).__name__}: {error}",
                _NEXT,
            ) from error

    return render
