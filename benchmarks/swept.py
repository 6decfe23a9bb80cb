"""The sweep alone, as a program: ``python -m benchmarks.swept BASE FOLDER THREADS PRESET…``.

It prints the sweep's own seconds, without the start of Python and the dry runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ggq import gguf_file, presets
from ggq.llamacpp import toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.quantize.recipe import ask
from ggq.quantize.source import BaseFile
from ggq.quantize.sweep import sweep


def main() -> None:
    base, folder, threads, *names = sys.argv[1:]
    tools = toolchain.find()
    whole = gguf_file.read_all(Path(base))
    recipes = [ask(tools, whole, preset, QuantizeOptions()) for preset in presets.load().resolve(names)]
    targets = [Path(folder) / f"{recipe.preset.name}.gguf" for recipe in recipes]
    print(sweep(tools, BaseFile(whole), recipes, targets, threads=int(threads)).seconds)


if __name__ == "__main__":
    main()
