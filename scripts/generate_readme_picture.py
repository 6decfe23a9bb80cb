"""Draw docs/images/session.svg from a real session: ``python scripts/generate_readme_picture.py``.

The commands run on this machine, in a temporary folder, so the picture shows what they print today. Speeds
differ from run to run: this is no part of ``make docs``.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "images" / "session.svg"
COLUMNS = 92
COMMANDS = (
    ("ggq", "convert-and-quantize", "tiny-llama", "--outdir", "quants"),
    ("ggq", "run", "quants/tiny-llama-Q8_0.gguf", "Remove the", "--raw", "-n", "24"),
)
# rich's own picture loads a font from the network; this one takes a font that the reader's system has.
FORMAT = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>A session in a terminal</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "examples" / "tiny-llama", Path(folder) / "tiny-llama")
        for command in COMMANDS:
            console.print(Text(f"$ {shown(command)}", style="bold"))
            console.print(Text(run(command, Path(folder))))
    TARGET.parent.mkdir(exist_ok=True)
    svg = console.export_svg(title="ggq", code_format=FORMAT, unique_id="ggq")
    TARGET.write_text(svg, encoding="utf-8")


def shown(command: tuple[str, ...]) -> str:
    return " ".join(f'"{word}"' if " " in word else word for word in command)


def run(command: tuple[str, ...], folder: Path) -> str:
    """What a command prints, both streams in their order. Raises CalledProcessError."""
    own = {
        "COLUMNS": str(COLUMNS),
        "NO_COLOR": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    made = subprocess.run(
        command, cwd=folder, env=os.environ | own, check=True, text=True, encoding="utf-8",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return made.stdout


if __name__ == "__main__":
    main()
