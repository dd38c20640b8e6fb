"""Python texts as syntax trees, from any thread.

CPython before 3.11.9 and 3.12.2 counts the depth of all trees that are being made in one place: of two threads, both may fail with
``SystemError: AST constructor recursion depth mismatch`` (python/cpython#106905). So trees are made one at a time.
"""

from __future__ import annotations

import ast
from threading import Lock

_one_at_a_time = Lock()


def module_of(source: str) -> ast.Module:
    """Raises as `ast.parse` does: SyntaxError, ValueError, RecursionError or MemoryError."""
    with _one_at_a_time:
        return ast.parse(source)


def expression_of(source: str) -> ast.expr:
    """Raises as `module_of`."""
    with _one_at_a_time:
        return ast.parse(source, mode="eval").body
