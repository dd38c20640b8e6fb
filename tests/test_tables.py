"""Tables that are values: they read like dicts and lists, never change, and hash by their contents alone."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym import AgentEnv, AgentGymError, Task, call, tool
from agentgym.snapshot import state_digest
from agentgym.tool import to_text
from agentgym.tools.tables import Frozen, FrozenDict, FrozenList, freeze

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "tau-bench"
SHOP = {"orders": {"W1": {"status": "pending", "items": [{"price": 5}, {"price": 7.5}]}, "W2": {"status": "new", "items": []}}, "users": {}}

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.integers(2**63, 2**70) | st.floats() | st.text(max_size=3)
names = st.sampled_from(["a", "b", "c", "0"])
values = st.recursive(
    scalars, lambda parts: st.lists(parts, max_size=4) | st.dictionaries(names, parts, max_size=4), max_leaves=12
)
tables = st.dictionaries(names, values, max_size=4)
places = st.lists(names | st.integers(-4, 4), min_size=1, max_size=4)
changes = st.lists(st.tuples(st.sampled_from(["set", "delete", "append", "digest"]), places, values), max_size=6)


def strictly(value: Any) -> Any:
    """Equal for equal contents with equal types, whatever the order of the keys."""
    if isinstance(value, dict):
        return {key: strictly(part) for key, part in value.items()}
    if isinstance(value, list):
        return [strictly(part) for part in value]
    return type(value).__name__, repr(value)


def change(plain: Any, what: str, place: list[Any], value: Any) -> Any:
    """The same change of a deep copy."""
    plain = copy.deepcopy(plain)
    *above, last = place
    inner = plain
    for key in above:
        inner = part_of(inner, key)
    if what == "append":
        inner = part_of(inner, last)
        if not isinstance(inner, list):
            raise TypeError(what)
        inner.append(value)
    elif what == "set":
        if isinstance(inner, list) or (isinstance(inner, dict) and isinstance(last, str)):
            inner[last] = value
        else:
            raise TypeError(what)
    else:
        part_of(inner, last)
        del inner[last]
    return plain


def part_of(inner: Any, key: Any) -> Any:
    if not isinstance(inner, dict | list) or isinstance(inner, dict) is not isinstance(key, str):
        raise TypeError(key)
    return inner[key]


@settings(max_examples=300, deadline=None)
@given(tables, changes)
def test_every_change_goes_as_in_a_deep_copy_and_leaves_all_older_versions_alone(
    plain: dict[str, Any], steps: list[tuple[str, list[Any], Any]]
) -> None:
    versions = [(freeze(plain), plain)]
    for what, place, value in steps:
        frozen, plain = versions[-1]
        if what == "digest":
            assert frozen.digest == freeze(plain).digest
            continue
        arguments = () if what == "delete" else (value,)
        try:
            expected = change(plain, what, place, value)
        except (TypeError, LookupError) as error:
            with pytest.raises(type(error)):
                getattr(frozen, what)(place, *arguments)
            continue
        versions.append((getattr(frozen, what)(place, *arguments), expected))
    for frozen, plain in versions:
        assert strictly(frozen.to_plain()) == strictly(plain)
        assert list(frozen) == list(plain), "the order of the keys is kept"
        assert frozen.digest == freeze(plain).digest
        assert frozen == freeze(plain)


@settings(max_examples=300, deadline=None)
@given(values, values)
def test_digests_are_equal_iff_contents_are(one: Any, other: Any) -> None:
    pair = freeze([one]), freeze([other])
    same = strictly(one) == strictly(other)
    assert (pair[0].digest == pair[1].digest) is same
    assert (pair[0] == pair[1]) is same
    assert (state_digest(pair[0]) == state_digest(pair[1])) is same
    assert not same or hash(pair[0]) == hash(pair[1])


ALIKE = [1, 1.0, True, "1", "True", 0, 0.0, -0.0, False, None, "None", "", [], {}, [1], ["1"], {"0": 1}, [[1]], [[]], [1, 2], [2, 1], "[1]"]


def test_things_that_look_alike_have_digests_of_their_own() -> None:
    assert len({freeze([value]).digest for value in ALIKE}) == len({freeze({"a": value}).digest for value in ALIKE}) == len(ALIKE)
    assert freeze({"a": 1}) != freeze({"a": 1.0}) != freeze({"a": True})
    assert freeze({"a": math.nan}) == freeze({"a": float("nan")})
    assert freeze({"a": 1}) != {"a": 1}
    assert freeze({"a": "\ud800"}) != freeze({"a": "\udc00"})


def test_what_moves_between_keys_or_levels_is_another_content() -> None:
    forms = [{"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": {"b": 1}}, {"b": {"a": 1}}, {"ab": 1}, {"a": {"b": {}}}, {"a": {}, "b": {}}]
    assert len({freeze(form).digest for form in forms}) == len(forms)


def test_the_order_of_keys_does_not_count_and_that_of_a_list_does() -> None:
    assert freeze({"a": 1, "b": [1, 2]}).digest == freeze({"b": [1, 2], "a": 1}).digest
    assert freeze({"b": [2, 1], "a": 1}).digest != freeze({"b": [1, 2], "a": 1}).digest
    assert freeze({"a": 1}).set("b", 2).delete("a").set("a", 1) == freeze({"a": 1, "b": 2})


def test_a_change_shares_all_that_it_does_not_touch() -> None:
    before = freeze(SHOP)
    after = before.set(("orders", "W1", "items", 0, "price"), 6)
    assert after["orders"]["W1"]["items"][0]["price"] == 6
    assert before["orders"]["W1"]["items"][0]["price"] == 5
    assert after["orders"]["W1"]["items"][1] is before["orders"]["W1"]["items"][1]
    assert after["orders"]["W2"] is before["orders"]["W2"]
    assert after["users"] is before["users"]


def test_only_the_path_is_hashed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Frozen] = []
    original = Frozen._hash

    def counted(self: Frozen) -> bytes:
        if self._digest is None:
            hashed.append(self)
        return original(self)

    wide = freeze({"rows": {str(n): {"cells": [n, n + 1]} for n in range(500)}})
    first = wide.digest
    monkeypatch.setattr(Frozen, "_hash", counted)
    changed = wide.set(("rows", "7", "cells", 0), -1)
    assert changed.digest != first
    assert len(hashed) == 4  # the cells, their row, all rows, the whole
    assert changed.set(("rows", "7", "cells", 0), 7).digest == first


def test_nothing_is_hashed_until_a_digest_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Frozen, "_hash", lambda self: pytest.fail("hashed"))
    freeze(SHOP).set(("orders", "W1", "status"), "sent").delete("users").append(("orders", "W2", "items"), {"price": 1})


def test_a_digest_is_the_same_in_every_process() -> None:
    code = f"from agentgym.tools.tables import freeze; print(freeze({SHOP!r}).digest)"
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "5"}, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == freeze(SHOP).digest


def test_tables_read_like_dicts_and_lists() -> None:
    shop = freeze(SHOP)
    items = shop["orders"]["W1"]["items"]
    assert isinstance(shop, FrozenDict)
    assert isinstance(shop, Mapping)
    assert isinstance(items, FrozenList)
    assert isinstance(items, Sequence)
    assert (list(shop), len(shop), "users" in shop, shop.get("none", 3)) == (["orders", "users"], 2, True, 3)
    assert [item["price"] for item in items] == [5, 7.5]
    assert (items[-1]["price"], items[1:].to_plain(), items.index(items[1])) == (7.5, [{"price": 7.5}], 1)
    assert dict(shop["orders"]["W2"]) == {"status": "new", "items": freeze([])}
    assert {**shop}.keys() == SHOP.keys()
    match shop["orders"]["W1"]:
        case {"status": "pending", "items": [first, *_]}:
            assert first["price"] == 5
        case _:
            pytest.fail("no match")
    with pytest.raises(TypeError):
        shop["users"] = {}  # type: ignore[index]
    with pytest.raises(KeyError, match="W3"):
        shop["orders"]["W3"]


def test_a_plain_copy_may_be_changed() -> None:
    shop = freeze(SHOP)
    shop.to_plain()["orders"]["W1"]["items"].append("more")
    assert shop.to_plain() == SHOP
    assert json.loads(to_text(shop["orders"])) == SHOP["orders"]


def test_what_was_frozen_does_not_follow_its_source() -> None:
    source = copy.deepcopy(SHOP)
    shop = freeze(source)
    source["orders"]["W1"]["items"].clear()
    assert shop == freeze(SHOP)


def test_copies_are_the_same_object_and_pickles_the_same_contents() -> None:
    shop = freeze(SHOP)
    assert copy.deepcopy(shop) is copy.copy(shop) is shop
    assert pickle.loads(pickle.dumps(shop)) == shop
    assert eval(repr(shop)) == shop


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, {2}]}, r"\['a'\]\[1\] is a set"),
        ({"a": {"b": {1: 2}}}, r"write 1 as text in \['a'\]\['b'\]"),
        ({None: 2}, "write None as text in the outermost dict"),
        (b"a", "this is a bytes"),
    ],
)
def test_what_json_does_not_have_is_refused_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(AgentGymError, match=words):
        freeze(value)


def test_wrong_places_are_refused_as_by_dicts_and_lists() -> None:
    shop = freeze(SHOP)
    with pytest.raises(KeyError, match="W3"):
        shop.set(("orders", "W3", "status"), 1)
    with pytest.raises(IndexError, match="index 2 of a list of 2"):
        shop.set(("orders", "W1", "items", 2), 1)
    with pytest.raises(TypeError, match="'status' is 'pending', which has no parts"):
        shop.set(("orders", "W1", "status", "x"), 1)
    with pytest.raises(TypeError, match="a dict has no end"):
        shop.append("users", 1)
    with pytest.raises(TypeError, match="cannot be a place in a list"):
        shop.delete(("orders", "W1", "items", "price"))
    with pytest.raises(TypeError, match="the path is empty"):
        shop.delete(())


class Shop(AgentEnv):
    snapshots = "value"

    def begin(self, task: Task) -> None:
        self.state = freeze(SHOP)

    @tool
    def cancel(self, order: str) -> Any:
        """Cancel an order."""
        self.state = self.state.set(("orders", order, "status"), "cancelled")
        return self.state["orders"][order]


def test_a_fork_of_tables_is_a_value_that_siblings_do_not_share() -> None:
    env, fork = Shop(), Shop()
    env.reset(options={"task": Task("t", "Cancel.")})
    before = env.snapshot()
    observation, *_ = env.step(call("cancel", order="W2"))
    assert json.loads(observation) == {"status": "cancelled", "items": []}
    fork.restore(before)
    fork.step(call("cancel", order="W1"))
    assert (env.state["orders"]["W1"]["status"], fork.state["orders"]["W2"]["status"]) == ("pending", "new")
    assert fork.snapshot().digest != env.snapshot().digest != before.digest
    fork.step(call("cancel", order="W2"))
    env.step(call("cancel", order="W1"))
    assert fork.snapshot().digest == env.snapshot().digest
    missing, *_ = env.step(call("cancel", order="W9"))
    assert missing == "Error: 'W9'"


@pytest.mark.skipif(not DATA.is_dir(), reason="no tau-bench tables in ../shared/data")
def test_the_retail_tables_freeze_and_come_back() -> None:
    plain = {name: json.loads((DATA / "retail" / "db" / f"{name}.json").read_text()) for name in ("orders", "products", "users")}
    frozen = freeze(plain)
    order = next(iter(plain["orders"]))
    changed = frozen.set(("orders", order, "status"), "cancelled")
    assert frozen.to_plain() == plain
    assert changed.digest != frozen.digest
    assert changed.set(("orders", order, "status"), plain["orders"][order]["status"]).digest == frozen.digest


def report(*arguments: str) -> Any:
    script = ROOT / "benchmarks" / "forks.py"
    run = subprocess.run([sys.executable, script, "--quick", "--json", *arguments], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_the_fork_benchmark_says_what_it_skips() -> None:
    found = report("/nowhere")
    assert "no folder /nowhere/retail/db" in found["skipped"]
    assert [figure["target"] for figure in found["figures"]] == [10.0, None, None]


@pytest.mark.skipif(not DATA.is_dir(), reason="no tau-bench tables in ../shared/data")
def test_the_fork_benchmark_compares_copies_with_shared_tables() -> None:
    found = report(str(DATA))
    assert found["skipped"] == ""
    assert [figure["target"] for figure in found["figures"]] == [10.0, None, None, None, 200.0, None, None, None]
    assert all(figure["best"] > 0 for figure in found["figures"])
