"""The layout on disk is the map: a new kernel file must be under the import contract, files stay short, and methods are small files."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "agentgym"
WINGS = {"tools", "envs", "policies", "trainers"}
LONGEST = {"credit": 60, "objectives": 40, "expanders": 80, "hooks": 60, "sources": 60, "schedules": 60}  # lines of code, not reached
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def test_every_kernel_module_is_under_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = set(contracts[0]["source_modules"])
    found = {f"agentgym.{path.stem}" for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    found |= {f"agentgym.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py") if path.parent.name not in WINGS | {"cli"}}
    assert named == found


def test_the_wings_open_from_the_front_door():
    for wing in WINGS:
        assert (ROOT / wing).is_symlink()
        assert (ROOT / wing).resolve() == PACKAGE / wing


def test_sizes():
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*") if path.suffix in (".py", ".html", ".js")}
    assert max(lines.values()) < 500
    python = {path.relative_to(PACKAGE).parts: count for path, count in lines.items() if path.suffix == ".py"}
    front = {"cli", "report"}  # where people ask and look
    assert sum(count for parts, count in python.items() if parts[0] not in WINGS | front) < 3500  # the kernel
    assert sum(count for parts, count in python.items() if parts[0] in front) < 2000
    assert lines[PACKAGE / "trainers" / "loop.py"] < 100
    assert len((ROOT / "examples" / "train_search.py").read_text().splitlines()) <= 25


@pytest.mark.parametrize("room", LONGEST)
def test_a_method_is_a_small_file(room: str) -> None:
    found = {path.name: code_lines(path.read_text()) for path in (PACKAGE / "trainers" / room).glob("*.py")}
    assert len(found) > 1
    assert {name: count for name, count in found.items() if count >= LONGEST[room]} == {}


def test_lines_of_code_are_counted_without_prose_and_imports() -> None:
    source = '''"""Of two
lines."""

from a import (
    b,
)


class C:  # one
    """Prose."""

    # a comment

    text = """two lines
    that are no docstring"""

    def f(self) -> str:
        "Prose."
        import c

        return b(
            c,
        )
'''
    assert code_lines(source) == 1 + 2 + 1 + 3


def code_lines(source: str) -> int:
    """Those that hold code: no blank line, comment, docstring or import."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prose |= _lines(node)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            prose |= _lines(node.body[0])
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({line for token in tokens if token.type not in NO_CODE for line in range(token.start[0], token.end[0] + 1)} - prose)


def _lines(node: ast.stmt) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


def test_importing_the_package_loads_no_torch():
    code = "import sys, agentgym; print([name for name in ('torch', 'transformers', 'pydantic') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
