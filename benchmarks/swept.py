"""The one pass alone, as a program: ``python -m benchmarks.swept BASE FOLDER THREADS PRESET…``.

It prints its own seconds, without the start of Python and the dry runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ggq.gguf import file as gguf_file
from ggq.llamacpp import toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.presets import catalogue
from ggq.quantization.one_pass import quantize_in_one_pass
from ggq.quantization.recipe import ask
from ggq.quantization.tensor_source import BaseFile


def main() -> None:
    base, folder, threads, *names = sys.argv[1:]
    tools = toolchain.find()
    whole = gguf_file.read_all(Path(base))
    recipes = [ask(tools, whole, preset, QuantizeOptions()) for preset in catalogue.load().resolve(names)]
    targets = [Path(folder) / f"{recipe.preset.name}.gguf" for recipe in recipes]
    print(quantize_in_one_pass(tools, BaseFile(whole), recipes, targets, threads=int(threads)).seconds)


if __name__ == "__main__":
    main()
