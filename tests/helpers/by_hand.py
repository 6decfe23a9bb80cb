"""llama-quantize many times over, for tests.

The program spends up to ten seconds of every run on the tables of the smallest types. Here its own entry
function is called in a process that has made them once, and forks for every run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ggq.llamacpp.toolchain import Toolchain

PROGRAM = """
import ctypes, json, os, sys
library = ctypes.CDLL(f"{sys.argv[1]}/libggml-base.so")
for number in range(40):
    library.ggml_quantize_init(number)
tool = ctypes.CDLL(f"{sys.argv[1]}/libllama-quantize-impl.so")
null = os.open(os.devnull, os.O_WRONLY)
for line in sys.stdin:
    children = []
    for words in json.loads(line):
        children.append(os.fork())
        if children[-1] == 0:
            os.dup2(null, 1), os.dup2(null, 2)
            argv = (ctypes.c_char_p * (len(words) + 1))(*map(str.encode, words))
            os._exit(tool._Z14llama_quantizeiPPc(len(words), argv))  # int llama_quantize(int, char **)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""


class ByHand:
    """llama-quantize, ready to run."""

    def __init__(self, toolchain: Toolchain) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(toolchain.lib_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, commands: Sequence[Sequence[str | Path]]) -> list[int]:
        """Run it with each of these arguments, all at the same time; returns the exit statuses."""
        assert self._child.stdin is not None and self._child.stdout is not None
        words = [["llama-quantize", *map(str, command)] for command in commands]
        print(json.dumps(words), file=self._child.stdin, flush=True)
        codes: list[int] = json.loads(self._child.stdout.readline())
        return codes

    def close(self) -> None:
        self._child.communicate()
