"""Python texts as syntax trees: whole, whatever other threads do."""

import ast
import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentgym.envs.syntax import expression_of, module_of

NESTED = "def f():\n" + "    x = [[[(1, {2: 3})]], lambda y: [y, [y]]]\n" * 400


@pytest.fixture
def threads_that_change_often():
    """Also in the middle of a tree: a collection of garbage may run Python, and another thread with it."""

    def visited(phase, info):
        sum(range(50))

    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(50)
    gc.callbacks.append(visited)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    gc.callbacks.remove(visited)
    gc.set_threshold(*threshold)


def test_trees_are_whole_whatever_other_threads_do(threads_that_change_often):
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(module_of, [NESTED] * 24))
    assert {len(list(ast.walk(tree))) for tree in found} == {len(list(ast.walk(ast.parse(NESTED))))}


def test_an_expression_is_one_alone():
    assert ast.literal_eval(expression_of("[1, 2]")) == [1, 2]
    with pytest.raises(SyntaxError):
        expression_of("a = 1")
