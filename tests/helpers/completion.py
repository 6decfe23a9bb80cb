"""What a model writes, by llama.cpp's own tool."""

from __future__ import annotations

from pathlib import Path

from ggq.llamacpp.toolchain import Toolchain
from ggq.system import process


def complete(toolchain: Toolchain, model: Path, prompt: str, tokens: int, threads: int | None = None) -> str:
    """Greedy continuation of ``prompt`` by ``tokens`` tokens, the prompt included. Raises ToolFailed."""
    # A token is a byte of text at least, but for the few that a tokenizer adds. The model's whole context,
    # the tool's default, would take gigabytes.
    context = len(prompt.encode("utf-8", "surrogateescape")) + tokens + 16
    # The tool parses the model's chat template even where it uses none, and aborts where it cannot. So a
    # template of its own is named.
    command: list[str | Path] = [
        toolchain.tool("llama-completion"), "-m", model, "-p", prompt, "-n", str(tokens), "--no-escape",
        "--temp", "0", "--seed", "1", "-no-cnv", "--ctx-size", str(context), "-fit", "off", "-ngl", "0",
        "--chat-template", "chatml",
    ]  # fmt: skip
    if threads:
        command += ["-t", str(threads)]
    return "\n".join(process.run(command).stdout).strip()
