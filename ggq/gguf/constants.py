"""The numbers of the GGUF format, as gguf-py has them."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any


@functools.cache
def constants() -> Any:
    """The module ``gguf.constants``, by itself.

    The package around it takes NumPy, 9 MB of memory and a tenth of a second, which is more than quantizing
    needs.
    """
    package = importlib.util.find_spec("gguf")
    assert package is not None and package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "constants.py"
    spec = importlib.util.spec_from_file_location(__name__ + ".loaded", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
