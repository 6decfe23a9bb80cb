"""Where the data that ggq ships is: at the top of a checkout, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """The root of the source checkout that this ggq runs from, or None when installed from a wheel."""
    root = _PACKAGE.parent
    return root if (root / "vendor" / "llama.cpp" / "requirements.txt").is_file() else None


def data(*parts: str) -> Path:
    """A shipped folder or file, as ``data("presets")`` or ``data("vendor", "llama.cpp")``."""
    return (checkout() or _PACKAGE / "_data").joinpath(*parts)
