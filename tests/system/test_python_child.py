"""Children that are Python: isolated from the current folder, and started in one place only."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from canaries import plant

import ggq
from ggq.system import process, python_child

PACKAGE = Path(ggq.__file__).parent


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, PYTHONPATH and PYTHONSTARTUP full of code; returns where it would leave a note."""
    note = tmp_path / "fired"
    plant(tmp_path / "here", note)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'here'}{os.pathsep}")
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "here" / "json.py"))
    return note


def test_a_child_imports_nothing_from_the_current_folder(hostile: Path) -> None:
    done = python_child.run("base64", "-t")
    assert done.returncode == 0 and not hostile.exists()


def test_the_canaries_of_this_test_do_fire(hostile: Path) -> None:
    process.run([sys.executable, "-m", "base64", "-t"], cwd=Path.cwd(), check=False)
    assert hostile.exists()


def test_pip_of_the_current_folder_is_not_run(hostile: Path) -> None:
    assert "pip" in python_child.run("pip", "--version").stdout[0]
    assert not hostile.exists()


def test_what_this_process_can_import_its_children_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a module system's PYTHONPATH, or a user's site; and ggq itself from where it is."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "added.py").write_text("import ggq, sys; print(ggq.__file__, *sys.argv)")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    done = python_child.run("added", "one", tmp_path)
    assert done.stdout == (f"{PACKAGE / '__init__.py'} {tmp_path / 'elsewhere' / 'added.py'} one {tmp_path}",)


def test_it_runs_in_an_empty_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "told.py").write_text("import json, os, sys; print(json.dumps([os.getcwd(), sys.path]))")
    monkeypatch.syspath_prepend(tmp_path)
    where, places = json.loads(python_child.run("told").stdout[0])
    assert Path(where) != Path.cwd() and not Path(where).exists()
    assert "" not in places and str(PACKAGE.parent) not in places


def test_a_folder_that_is_gone_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    code = (
        "import os, sys; from ggq.system import python_child; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]);"
        " print(python_child.run('base64', '-t').returncode)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "gone"], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.stdout == "0\n", done.stderr


def test_python_is_started_in_one_place_only() -> None:
    """What else asks for the interpreter's path only names it in words."""
    starting = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.name != "python_child.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.List) and any("sys.executable" in ast.unparse(item) for item in node.elts)
    ]
    assert not starting
