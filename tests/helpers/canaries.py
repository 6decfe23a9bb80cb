"""Code that leaves a note when it runs."""

from __future__ import annotations

from pathlib import Path

# A module of the standard library tells what a child sees: `python -m base64 -h` would run one from here.
CANARY = "open({note!r}, 'a').write(__file__ + '\\n')\n"


def plant(folder: Path, note: Path) -> None:
    """Code in every form that Python looks for in a folder that it imports from."""
    folder.mkdir(parents=True, exist_ok=True)
    code = CANARY.format(note=str(note))
    for name in ("json", "base64", "pip", "ggq", "sitecustomize", "usercustomize", "torch"):
        (folder / f"{name}.py").write_text(code)
    (folder / "evil.pth").write_text(f"import os; os.system('echo pth >> {note}')\n")
