import base64
import hashlib
import json
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import quote

import numpy as np
import pytest

from agentgym.action import call
from agentgym.cli import reporting
from agentgym.outcome import Outcome
from agentgym.report import Curve, Series, Table, before_after, tree_record, write_report
from agentgym.statistics import Interval, compare
from agentgym.store import RunStore
from agentgym.task import Task
from agentgym.trainers.logs import log_step
from agentgym.turn import Turn, TurnTree

PAYLOAD = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>{{data}}"


def add(tree, parent, action, observation, **fields):
    turn = Turn(0, parent, fields.pop("author", "policy"), 0, action=action, **fields)
    turn.replies = [{"role": "tool", "name": "search", "content": observation}]
    return tree.add(turn)


def a_tree(name="tree one", hostile=""):
    tree = TurnTree(name, Task("iceland", f"Capital of Iceland?{hostile}"))
    root = add(tree, None, "", f"The task is read here.{hostile}", author="env", ids=[1, 2, 3])
    first = call("search", query=f"Iceland{hostile}", thought=f"A thinking thought.{hostile}")
    search = add(tree, root, first, f"Seen it.{hostile}")
    search.ids, search.sampled_tokens = [4, 5, 6, 7], 2
    search.streams["advantage"] = np.array([0.5, 1.0, 0.0, 0.0])
    add(tree, search, call("answer", text="Reykjavík"), "", reward=1.0, end="done", metrics={"f1": 1.0})
    broken = f"<tool_call>{{broken{hostile}</tool_call>"
    add(tree, search, broken, "Not JSON.", outcome=Outcome.MODEL_ERROR, end="truncated")
    lost = add(tree, root, call("read", page=2), "", reward=None, end="error", outcome=Outcome.INFRASTRUCTURE)
    lost.error = f"TimeoutError{hostile}"
    add(tree, root, call("search", query="label"), "", author="teacher", executed=False)
    return tree


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text by the tag that holds it."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.scripts, self._open = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        (self.scripts if self._open == "script" else self.text).append(data)


def test_a_record_says_what_each_turn_did():
    record = json.loads(json.dumps(tree_record(a_tree())))
    assert (record["episodes"], record["scored"], record["solved"], record["reward"]) == (3, 2, 1, 0.5)
    root, search, answer, broken, lost, label = record["turns"]
    assert root["parent"] is None
    assert [turn["parent"] for turn in (search, answer, broken, lost, label)] == [0, 1, 1, 0, 0]
    assert (search["thought"], search["calls"]) == ("A thinking thought.", ['search(query="Iceland")'])
    assert search["observation"] == "Seen it."
    assert (search["advantage"], search["sampled"], search["tokens"]) == (0.75, 2, 4)  # over sampled tokens alone
    assert (answer["advantage"], answer["end"], answer["metrics"]) == (None, "done", {"f1": 1.0})
    assert broken["problem"].startswith("The tool call is not JSON")
    assert "broken" in broken["action"]
    assert (lost["reward"], lost["outcome"], lost["error"]) == (None, "infrastructure", "TimeoutError")
    assert not label["executed"]


def test_solved_is_a_threshold_on_the_return():
    assert tree_record(a_tree(), solved=0.0)["solved"] == 2


def test_a_page_is_whole_and_asks_for_nothing(tmp_path):
    values = {f"t{i}": [float(i % 2)] for i in range(8)}
    path = write_report(
        tmp_path / "new" / "page.html",
        "A <b>run</b>",
        summary={"tokens": 1000, "loss": float("nan"), "rate": Interval(0.5, 0.2, float("inf"), 3)},
        tables=[before_after({"success": compare(values, values)}), Table("Costs", ("what", "tokens"), [("all", 5)])],
        curves=[Curve("Reward", "steps", [Series("held-out", np.arange(2), [0.5, Interval(0.6, 0.5, 0.7, 9)])])],
        trees=[a_tree(), json.loads(json.dumps(tree_record(a_tree("second"))))],
    )
    page = path.read_text()
    elements = Elements(page)
    assert not [attrs for _, attrs in elements.tags if {"src", "href"} & attrs.keys()]
    assert "url(" not in page
    assert "A <b>run</b>" in elements.text  # as text
    embedded, script = elements.scripts
    data = json.loads(embedded)
    assert data["summary"][1] == ["loss", None]
    assert data["summary"][2][1] == {"estimate": 0.5, "low": 0.2, "high": None, "n": 3}
    assert data["tables"][0]["rows"][0][0] == "success"
    assert data["curves"][0]["series"][0]["y"][1]["low"] == 0.5
    assert data["trees"][0]["ends"] == {"done": 1, "truncated": 1, "error": 1}
    assert data["trees"][1]["outcomes"] == {"ok": 2, "model_error": 1, "infrastructure": 1}
    assert [tree["id"] for tree in data["trees"]] == ["tree one", "second"]
    policy = next(attrs["content"] for tag, attrs in elements.tags if tag == "meta" and "http-equiv" in attrs)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy  # no other script may run
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy


def test_hostile_text_stays_inside_the_data(tmp_path):
    page = write_report(tmp_path / "page.html", PAYLOAD, trees=[a_tree(PAYLOAD, PAYLOAD)]).read_text()
    elements = Elements(page)
    assert "img" not in [tag for tag, _ in elements.tags]
    assert [tag for tag, _ in elements.tags].count("script") == 2
    record = json.loads(elements.scripts[0])["trees"][0]
    assert record["turns"][1]["observation"] == f"Seen it.{PAYLOAD}"


def test_text_that_no_encoding_holds_is_still_written(tmp_path):
    tree = a_tree()
    brackets = "[" * 1000 + "]" * 1000
    action = f'<tool_call>{{"name": "deep", "arguments": {{"x": {brackets}}}}}</tool_call>'
    deep = add(tree, tree.root, action, "\ud800")
    assert "nested deeper" in tree_record(tree)["turns"][deep.index]["problem"]
    page = write_report(tmp_path / "page.html", "surrogates \ud800", trees=[tree]).read_bytes().decode()
    assert "\\ud800" in page


def rendered(path, fragment, tmp_path):
    """The page after its script has run in a real browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
    command = [chromium, "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--disable-{feature}" for feature in quiet]
    command += ["--virtual-time-budget=3000", "--dump-dom", f"{path.as_uri()}#{fragment}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return Elements(dom)


def test_a_browser_opens_the_addressed_tree_and_runs_no_hostile_script(tmp_path):
    hostile = a_tree(f"tree {PAYLOAD}", PAYLOAD)
    others = [a_tree(f"other {i}") for i in range(300)]
    interval = Interval(0.6, 0.5, 0.7, 9)
    series = [Series("train", [0, 1, 2], [0.1, 0.2, 0.4]), Series("held-out", [0, 2], [interval] * 2)]
    curves = [Curve("Reward", "steps", series)]
    path = write_report(tmp_path / "page.html", "A run", curves=curves, trees=[*others, hostile])
    elements = rendered(path, "tree=" + quote(hostile.id, safe=""), tmp_path)
    text = "\n".join(elements.text)
    assert f"A thinking thought.{PAYLOAD}" in text
    assert 'search(query="Iceland</script>' in text
    assert f"Seen it.{PAYLOAD}" in text
    assert "+0.750" in text  # the advantage
    names = [tag for tag, _ in elements.tags]
    assert "img" not in names
    assert names.count("script") == 2
    assert "owned" not in [t.strip() for t in elements.text]
    assert names.count("article") == 3  # the task, the search and the answer of one tree: no other tree is drawn yet
    assert names.count("details") == 1  # its page of the list
    assert {"602", "301"} <= set(elements.text)  # of the outcomes of all trees
    assert (names.count("polyline"), names.count("circle")) == (2, 2)


def test_a_summary_and_the_metrics_of_a_run_are_shown_as_they_were_saved(tmp_path):
    rate = {"estimate": 0.25, "low": 0.125, "high": 0.5, "n": 8}
    success = {"k": 2, "average": rate, "any_of_k": rate, "all_of_k": rate}
    summary = {"success": success, "metrics": {"f1": rate}, "tasks": 8, "ends": {"done": 3}, "before": {"success": success}}
    metrics = [{"step": step, "reward": step / 9, "loss": None, **{f"m{i}": i for i in range(5)}} for step in range(9)]
    elements = rendered(write_report(tmp_path / "page.html", "A run", summary=summary, metrics=metrics), "", tmp_path)
    text = elements.text
    shown = {"avg@2", "pass@2", "pass^2", "before avg@2", "f1", "tasks", "[0.125, 0.500]", "reward", "last 1", "m0"}
    assert shown <= set(map(str.strip, text))
    assert "3 more curves: m2, m3, m4" in text
    assert [tag for tag, _ in elements.tags].count("figure") == 4


def test_the_page_of_a_run_holds_its_times_and_the_steps_whose_trees_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "MOST_TREES", 2)
    store = RunStore.create(tmp_path / "run", {})
    for step in range(1, 5):
        tree = a_tree(f"tree {step}")
        for turn in tree.turns:
            store.turn(tree, turn)
        log_step(store, step, {"reward": 0.5, "seconds_generate": 3.0, "seconds_learn": 1.0}, [tree], [tree])
    page = reporting.write(tmp_path / "run")
    assert [row["step"] for row in json.loads(Elements(page.read_text()).scripts[0])["steps"]] == [3, 4]
    elements = rendered(page, "step=4", tmp_path)
    assert "1 of 2 trees" in elements.text
    assert [text for text in elements.text if text.endswith("%)")] == ["generate 12 s (75%)", "learn 4 s (25%)"]
    assert "0 of 2 trees" in rendered(page, "step=1", tmp_path).text


def test_a_browser_draws_nothing_of_a_closed_tree(tmp_path):
    elements = rendered(write_report(tmp_path / "page.html", "A run", trees=[a_tree()]), "", tmp_path)
    assert "Capital of Iceland?" in elements.text
    assert "Seen it." not in "\n".join(elements.text)
