"""Give README.md and pyproject.toml the address of the public repository, before a release is built.

In a checkout the links of README.md are relative. On the package index they would lead nowhere.

    python scripts/prepare_release.py https://HOST/OWNER/NAME TAG
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?![a-z]+:|#)[^)\s]+)\)")


def with_absolute_links(text: str, address: str, tag: str) -> str:
    """``text`` with links into the repository at ``tag``, and with the address to clone."""

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link["picture"] else "blob"
        return f"{link['picture']}[{link['text']}]({address}/{kind}/{tag}/{link['target']})"

    return LINK.sub(absolute, text).replace("<this repository>", f"{address}.git")


def with_urls(pyproject: str, address: str, tag: str) -> str:
    """pyproject.toml with a table ``project.urls``."""
    urls = {
        "Repository": address,
        "Documentation": f"{address}/tree/{tag}/docs",
        "Changelog": f"{address}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }
    lines = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    return f"{pyproject.rstrip()}\n\n[project.urls]\n{lines}"


def main(address: str, tag: str) -> None:
    for name, change in (("README.md", with_absolute_links), ("pyproject.toml", with_urls)):
        file = ROOT / name
        file.write_text(change(file.read_text(encoding="utf-8"), address.rstrip("/"), tag), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
