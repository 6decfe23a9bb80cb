"""Commands that run a file as it was measured."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from ggq.publishing.collection import Measured, SpeedPoint


@dataclass(frozen=True)
class Commands:
    """A file's commands, by what they are for: to be typed where the file lies."""

    file: Measured
    lines: tuple[tuple[str, str], ...]


def commands(it: Measured) -> Commands:
    """With the layers, threads and context that were measured."""
    name = it.row.file_name
    file = shlex.quote(name if not name.startswith("-") else f"./{name}")
    best = _best(it)
    context = max((each.context_tokens for each in it.memories), default=0)
    llama = ["llama-server", "-m", file]
    python = [repr(name)]
    if context:
        llama += ["-c", str(context)]
        python.append(f"n_ctx={context}")
    if best is not None:
        llama += ["-t", str(best.threads)]
        python.append(f"n_threads={best.threads}")
        if best.n_gpu_layers:
            llama += ["-ngl", str(best.n_gpu_layers)]
            python.append(f"n_gpu_layers={best.n_gpu_layers}")
    return Commands(
        it,
        (
            ("chat", f"ggq chat {file}"),
            ("one prompt", f"ggq run {file} 'Once upon a time'"),
            ("server", " ".join(llama)),
            ("Python", f"llama_cpp.Llama({', '.join(python)})"),
            ("Ollama", f"ggq export {file} --to ollama --create"),
        ),
    )


def _best(it: Measured) -> SpeedPoint | None:
    """The fastest generation that was measured in the emptiest context."""
    generated = [each for each in it.speeds if each.test == "generation"]
    return min(generated, key=lambda each: (each.depth_tokens, -each.median), default=None)
