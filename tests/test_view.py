"""The page over finished and running runs: a real server, and a real browser that opens it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlencode

import pytest
from browsing import Browser, chromium
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym.action import call
from agentgym.errors import AgentGymError
from agentgym.outcome import Outcome
from agentgym.report import tree_record
from agentgym.report.viewing import Index, Viewer
from agentgym.store import RunStore
from agentgym.task import Task
from agentgym.trainers.logs import log_step
from agentgym.turn import Turn, TurnTree

PAYLOAD = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
CONFIG = {"kind": "training", "env": {"id": "agentgym/Search-v0"}, "policy": "tiny", "seed": 0}
ROWS = "document.querySelectorAll('.tree').length"


def grow(tree, parent, action, observation, **fields):
    turn = Turn(0, parent, fields.pop("author", "policy"), 0, action=action, **fields)
    turn.replies = [{"role": "tool", "name": "search", "content": observation}]
    return tree.add(turn)


def a_tree(number=0, hostile="", reward=1.0):
    tree = TurnTree(f"{number}/train{hostile}", Task(f"task-{number}", f"Capital of country {number}?{hostile}"))
    root = grow(tree, None, "", f"The task is read here.{hostile}", author="env", ids=[1, 2, 3])
    query = f"country {number}{hostile}"
    first = grow(tree, root, call("search", query=query, thought=f"A thinking thought.{hostile}"), f"Seen it.{hostile}")
    first.ids, first.sampled_tokens = [4, 5, 6, 7], 2
    second = grow(tree, root, call("search", query=f"city {number}"), "Seen nothing here, it says.", outcome=Outcome.TOOL_ERROR)
    second.error = f"RefusedHere{hostile}"
    grow(tree, first, call("answer", text="Right"), "", reward=reward, end="done")
    grow(tree, second, call("answer", text="Wrong"), "", reward=0.0, end="truncated")
    return tree


def log(store, *trees):
    for tree in trees:
        for turn in tree.turns:
            store.turn(tree, turn)


def a_run(folder, *trees, config=CONFIG):
    store = RunStore.create(folder, config)
    log(store, *trees)
    return store


@contextmanager
def viewed(folder):
    with Viewer(folder) as viewer:
        thread = threading.Thread(target=viewer.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield viewer
        finally:
            viewer.shutdown()
            thread.join()


def asked(viewer, name, **parameters):
    """The answer, or the status and the sentence of a refusal."""
    try:
        with urllib.request.urlopen(f"{viewer.address}{name}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]


def changes(viewer, generation="", since=0, rows=0, times=0, run=""):
    return asked(viewer, "changes", run=run, generation=generation, since=since, rows=rows, times=times)


@pytest.fixture(scope="module")
def browser():
    if chromium() is None:
        pytest.skip("chromium is not installed")
    with Browser() as opened:
        yield opened


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a run's folder and waits until so many rows are there."""
    viewers = []

    def show(folder, rows=1, fragment=""):
        viewers.append(viewed(folder))
        browser.open(viewers[-1].__enter__().address + fragment)
        browser.wait(f"{ROWS} === {rows} && document.querySelector('#about')?.textContent.includes('reading, ') === false")
        return browser

    yield show
    browser.open("about:blank")
    for viewer in viewers:
        viewer.__exit__(None, None, None)


def choose(browser, title, value):
    find = f"document.querySelector('[aria-label={json.dumps(title)}]')"
    kind = "input" if title.startswith("search") else "change"
    browser.run(f"{find}.value = {json.dumps(value)}; {find}.dispatchEvent(new Event('{kind}'))")


def status(browser):
    return browser.run("document.querySelector('.filters [role=status]').textContent")


def test_the_list_is_paged_and_filtered(tmp_path, opened):
    trees = [a_tree(number, reward=float(number % 10 == 0)) for number in range(250)]
    trees[7].task = Task("task-7", "Capital of country 7?", split="test")
    a_run(tmp_path / "run", *trees)
    page = opened(tmp_path / "run", 100)
    assert status(page) == "250 trees"
    assert "1 to 100 of 250" in page.text()
    page.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'Next').click()")
    assert "Capital of country 100?" in page.text()
    choose(page, "result", "some solved")
    assert (status(page), page.run(ROWS)) == ("25 of 250 trees", 25)
    choose(page, "result", "any result")
    choose(page, "split", "test")
    assert status(page) == "1 of 250 trees"
    choose(page, "split", "any split")
    choose(page, "outcome", "tool_error")
    choose(page, "end", "truncated")
    assert status(page) == "250 trees"
    choose(page, "search tasks and turns", "CITY 24")  # what was done, whatever its case
    page.wait("document.querySelector('.filters [role=status]').textContent === '11 of 250 trees'")
    choose(page, "search tasks and turns", "nobody wrote this")
    page.wait(f"{ROWS} === 0")


def test_an_addressed_tree_is_open_on_its_page(tmp_path, opened):
    a_run(tmp_path / "run", *map(a_tree, range(150)))
    page = opened(tmp_path / "run", 50, "#tree=120%2Ftrain")
    page.wait("document.querySelectorAll('article').length === 3")
    text = page.text()
    for shown in ("Turn 1", "A thinking thought.", 'search(query="country 120")', "Seen it.", "2 sampled of 4"):
        assert shown in text


def test_siblings_stand_side_by_side_with_their_differences_marked(tmp_path, opened):
    a_run(tmp_path / "run", a_tree())
    page = opened(tmp_path / "run", 1, "#tree=0%2Ftrain")
    page.wait("document.querySelector('.siblings')")
    choose(page, "compare with", "2")
    cells = page.run("[...document.querySelectorAll('.against tbody tr')].map(row => [...row.children].map(cell => cell.textContent))")
    rows = {name: values for name, *values in cells}
    assert rows["≠ action"] == ['search(query="country 0")', 'search(query="city 0")']
    assert rows["= reward"] == ["0"]
    assert rows["≠ returns below"] == ["1, mean of 1 episode", "0, mean of 1 episode"]
    assert rows["≠ error"] == ["", "RefusedHere"]
    marks = page.run("[...document.querySelectorAll('.against mark')].map(mark => mark.textContent)")
    assert marks == ["A thinking thought.", "country", "city", "nothing here, ", " says", "RefusedHere"]


def test_hostile_text_is_shown_as_text(tmp_path, opened):
    tree = a_tree(0, PAYLOAD)
    store = a_run(tmp_path / f"run{PAYLOAD.replace('/', '')}", tree, config={**CONFIG, "policy": PAYLOAD})
    store.append("metrics", {"step": 1, PAYLOAD: 1.0, "reward": 0.5})
    store.append("metrics", {"step": PAYLOAD})
    store.write("summary.json", {PAYLOAD: PAYLOAD, "metrics": {PAYLOAD: {"estimate": 0.5, "low": 0.1, "high": 0.9, "n": 3}}})
    page = opened(store.folder, 1, "#" + urlencode({"tree": tree.id}))
    page.wait("document.querySelectorAll('article').length === 3")
    choose(page, "compare with", "2")
    time.sleep(0.2)
    assert page.run("document.querySelectorAll('img, main script, main iframe').length") == 0
    assert page.run("document.title") != "owned"
    text = page.run("document.body.textContent")
    for shown in (f"A thinking thought.{PAYLOAD}", f"Seen it.{PAYLOAD}", f"RefusedHere{PAYLOAD}", f"policy {PAYLOAD}"):
        assert shown in text


def test_a_running_run_grows_on_the_page_and_what_is_open_stays(tmp_path, opened):
    trees = [a_tree(number) for number in range(40)]
    store = a_run(tmp_path / "run", *trees)
    page = opened(tmp_path / "run", 40, "#tree=5%2Ftrain")
    page.wait("document.querySelector('.siblings')")
    page.run("opened = document.querySelector('.tree[open]'); document.querySelectorAll('.outline button')[3].click(); scrollTo(0, 400)")
    more = a_tree(40)
    log(store, more)
    store.append("metrics", {"step": 1, "reward": 0.25})
    trees[5].turns[-1].error = "added later"
    store.turn(trees[5], trees[5].turns[-1])
    page.wait(f"{ROWS} === 41")
    page.wait("document.body.innerText.includes('added later')")
    page.wait("document.querySelectorAll('#curves figure').length === 1")
    assert page.run("opened.isConnected && opened.open")
    assert page.run("document.querySelector('.outline [aria-current] .clip').textContent") == 'search(query="city 5")'
    assert page.run("document.querySelector('.turn.chosen').dataset.turn") == "2"
    assert page.run("scrollY") > 300


def test_only_what_is_new_is_read_and_told(tmp_path):
    store = a_run(tmp_path / "run", *map(a_tree, range(3)))
    index = Index(tmp_path / "run")
    first = index.changes("", 0, 0, 0)
    assert [tree["id"] for tree in first["trees"]] == ["0/train", "1/train", "2/train"]
    data = bytearray((tmp_path / "run/turns.jsonl").read_bytes())
    data[10:40] = b"x" * 30  # of what was read already
    (tmp_path / "run/turns.jsonl").write_bytes(data)
    log(store, a_tree(3))
    store.append("metrics", {"step": 1, "reward": 0.5})
    then = index.changes(first["generation"], first["version"], first["rows"], len(first["times"]))
    assert [tree["id"] for tree in then["trees"]] == ["3/train"]
    assert (then["metrics"], then["problems"]) == ([{"step": 1, "reward": 0.5}], [])


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.sampled_from([None, 0.0, 1.0]), st.sampled_from([None, "done", "error"]),
                          st.sampled_from(Outcome), st.booleans(), st.text(max_size=5)), max_size=12), st.integers(0, 400))  # fmt: skip
def test_the_list_says_what_the_whole_trees_say_however_the_log_grew(tmp_path_factory, turns, cut):
    folder = tmp_path_factory.mktemp("runs") / "run"
    trees = [a_tree(number) for number in range(4)]
    for number, parent, reward, end, outcome, executed, text in turns:
        tree = trees[number]
        above = tree.turns[parent % len(tree.turns)]
        grow(tree, above, f'"ids":[{text}"reward":', text, reward=reward, end=end, outcome=outcome, executed=executed)
    a_run(folder, *trees)
    path = folder / "turns.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: cut * len(whole) // 400])
    index = Index(folder)
    known = index.changes("", 0, 0, 0)
    listed = {tree["id"]: tree for tree in known["trees"]}
    path.write_bytes(whole)
    news = index.changes(known["generation"], known["version"], known["rows"], 0)
    assert news["problems"] == []
    listed |= {tree["id"]: tree for tree in news["trees"]}
    for tree in trees:
        record = json.loads(json.dumps(tree_record(tree)))
        assert index.tree(tree.id) == tree_record(tree)
        del record["turns"]
        assert {name: listed[tree.id][name] for name in record} == record


ITEMS = st.none() | st.booleans() | st.integers(-3, 9) | st.just(10**30) | st.floats(allow_nan=False) | st.text(max_size=3)
JSON = st.recursive(ITEMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner), max_leaves=4)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30), JSON), min_size=1, max_size=3), JSON)
def test_whatever_a_log_holds_is_listed_or_named(tmp_path_factory, changed, row):
    folder = tmp_path_factory.mktemp("runs") / "run"
    store = a_run(folder, a_tree())
    store.append("turns", {"tree": "0/train", "advantages": [0.5] * 5})
    records = [json.loads(line) for line in (folder / "turns.jsonl").read_text().splitlines()]
    for line, field, value in changed:
        names = sorted(records[line])
        records[line][names[field % len(names)]] = value
    (folder / "turns.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"step": 1, "reward": row}) + "\n")
    with viewed(folder) as viewer:
        news = changes(viewer)
        assert isinstance(news, dict)
        for tree in news["trees"]:
            found = asked(viewer, "tree", run="", id=tree["id"])
            assert isinstance(found, dict) or found[0] == 404
        assert isinstance(asked(viewer, "search", run="", words="seen"), list)


def test_damaged_and_torn_lines_are_named_and_the_rest_is_shown(tmp_path):
    store = a_run(tmp_path / "run", a_tree(0))
    store.append("turns", {"tree": "nowhere", "turn": 0, "parent": None})
    path = tmp_path / "run/turns.jsonl"
    with open(path, "ab") as file:
        file.write(b"\x00\xff not JSON\n")
    store.append("turns", {**json.loads(path.read_bytes().splitlines()[3]), "parent": 0.5})
    deep = '{"step": 1, "nested": ' + "[" * 300 + "]" * 300 + "}"
    (tmp_path / "run/metrics.jsonl").write_text(deep + '\n{"reward": 1.0}\n')
    log(store, a_tree(1))
    with open(path, "ab") as file:
        file.write(b'{"tree": "1/train", "turn": 5, "par')
    with viewed(tmp_path / "run") as viewer:
        found = changes(viewer)
        assert [tree["size"] for tree in found["trees"]] == [5, 5]
        damaged = ["metrics.jsonl, line 2: damaged", *(f"turns.jsonl, line {n}: damaged" for n in (7, 8, 9))]
        assert [problem.split(", left out")[0] for problem in found["problems"]] == damaged
        assert found["metrics"] == [{"step": 1}]
        assert not found["behind"]
        with open(path, "ab") as file:
            file.write(b'ent": 0}\n' + b"[]\n" * 20)
        found = changes(viewer)
        assert found["problems"][-1] == "… and 15 more such lines"


def test_a_log_that_was_cut_for_a_resumed_run_is_read_anew(tmp_path, opened):
    store = a_run(tmp_path / "run", *map(a_tree, range(9)))
    page = opened(tmp_path / "run", 9)
    store.close()
    (tmp_path / "run/turns.jsonl").write_bytes(b"")
    log(RunStore.open(tmp_path / "run"), *map(a_tree, (20, 21)))
    page.wait(f"{ROWS} === 2")
    assert "Capital of country 21?" in page.text()


def stepped(folder, trees, steps):
    """A run of so many steps, each played on two trees, the last learnt from the first tree too."""
    store = a_run(folder, *trees)
    for step in range(1, steps + 1):
        played = trees[2 * step - 2 : 2 * step]
        metrics = {"reward": step / 10, "seconds_generate": 3.0, "seconds_learn": float(step), "seconds_idle": 0.0}
        log_step(store, step, metrics, played, [*played, *trees[: step == steps]])
    return store


def test_a_step_leads_to_the_trees_that_it_was_computed_from(tmp_path, opened):
    trees = [a_tree(number) for number in range(8)]
    stepped(tmp_path / "run", trees, 4)
    page = opened(tmp_path / "run", 8)
    box = "document.querySelector('#curves svg.pick').getBoundingClientRect()"
    page.run(f"""document.querySelector('#curves svg.pick').dispatchEvent(new MouseEvent('click', {{
        clientX: {box}.left + {box}.width * 0.39, clientY: {box}.top + 20, bubbles: true }}))""")
    page.wait(f"{ROWS} === 2")
    assert status(page) == "2 of 8 trees"
    assert [f"Capital of country {number}?" in page.text() for number in range(8)] == [False, False, True, True, *[False] * 4]
    assert page.run("location.hash") == "#step=2"
    assert page.run("document.querySelector('[aria-label=\"trees of step\"]').value") == "2"
    page.run("document.querySelector('#times [data-step=\"4\"]').dispatchEvent(new MouseEvent('click'))")
    page.wait(f"{ROWS} === 3")
    assert [f"Capital of country {number}?" in page.text() for number in (0, 1, 6, 7)] == [True, False, True, True]
    page.run("{ const box = document.querySelector('[type=number]'); box.value = null; box.dispatchEvent(new Event('input')); }")
    page.wait(f"{ROWS} === 8")


def test_an_address_names_a_step_and_a_run_without_that_log_offers_none(tmp_path, opened):
    stepped(tmp_path / "run", [a_tree(number) for number in range(4)], 2)
    assert status(opened(tmp_path / "run", 2, "#step=1")) == "2 of 4 trees"
    store = a_run(tmp_path / "old", a_tree())
    store.append("metrics", {"step": 1, "reward": 0.5})
    page = opened(tmp_path / "old")
    assert page.run("document.querySelector('[aria-label=\"trees of step\"]').hidden && !document.querySelector('.pick')")


def test_where_time_went_is_shown_and_grows(tmp_path, opened):
    trees = [a_tree(number) for number in range(6)]
    store = stepped(tmp_path / "run", trees, 3)
    page = opened(tmp_path / "run", 6)
    shown = "document.querySelector('#times svg').getAttribute('aria-label')"
    assert page.run(shown) == "seconds of all steps: generate 9 s (60%), learn 6 s (40%)"
    assert page.run("document.querySelectorAll('#times rect').length") == 6
    page.run("document.querySelector('#times [data-step=\"3\"]').dispatchEvent(new Event('pointerenter'))")
    assert "step 3" in page.text()
    assert "learn 3 s (50%)" in page.text()
    store.append("times", {"step": 4, "seconds_generate": 0.0, "seconds_environment": 5.0})
    page.wait(f"{shown} === 'seconds of all steps: generate 9 s (45%), environment 5 s (25%), learn 6 s (30%)'")
    for step in range(5, 400):
        store.append("times", {"step": step, "seconds_generate": 1.0})
    page.wait("document.querySelectorAll('#times g').length > 100")
    assert page.run("document.querySelectorAll('#times g').length") <= 150
    page.run("document.querySelector('#times g:last-of-type').dispatchEvent(new Event('pointerenter'))")
    assert "mean of steps 397 to 399generate 1 s (100%)" in page.run("document.querySelector('#times .legend').textContent")


def test_steps_and_times_are_read_from_their_logs(tmp_path):
    trees = [a_tree(number) for number in range(4)]
    store = stepped(tmp_path / "run", trees, 2)
    assert [row.keys() for row in store.read("metrics")] == [{"step", "reward"}] * 2
    index = Index(tmp_path / "run")
    first = index.changes("", 0, 0, 0)
    assert (first["steps"], [row["seconds_learn"] for row in first["times"]]) == (True, [1.0, 2.0])
    assert [index.step(n) for n in (1, 2, 3)] == [[trees[0].id, trees[1].id], [trees[2].id, trees[3].id, trees[0].id], []]
    assert index.changes(first["generation"], first["version"], 2, 2)["times"] == []
    store.rewrite("times", [{"step": 1, "seconds_learn": 9.0}])
    assert [row["seconds_learn"] for row in index.changes(first["generation"], first["version"], 2, 2)["times"]] == [9.0]


def test_a_log_that_is_gone_is_forgotten(tmp_path):
    a_run(tmp_path / "run", a_tree())
    index = Index(tmp_path / "run")
    known = index.changes("", 0, 0, 0)
    (tmp_path / "run/turns.jsonl").unlink()
    then = index.changes(known["generation"], known["version"], 0, 0)
    assert (then["trees"], then["generation"] == known["generation"]) == ([], False)


def test_a_run_that_goes_away_is_one_sentence_and_the_server_lives_on(tmp_path, opened):
    a_run(tmp_path / "runs/one", a_tree())
    a_run(tmp_path / "runs/two", a_tree())
    page = opened(tmp_path / "runs/one", 1)
    shutil.move(tmp_path / "runs/one", tmp_path / "elsewhere")
    page.wait("document.querySelector('#notice').innerText.includes('holds no run (run.json is missing)')")
    assert page.run(ROWS) == 1  # what was read is still there
    shutil.move(tmp_path / "elsewhere", tmp_path / "runs/one")
    page.wait("document.querySelector('#notice').hidden")
    with viewed(tmp_path / "runs") as viewer:
        shutil.rmtree(tmp_path / "runs/one")
        assert changes(viewer, run="one")[0] == 404
        assert "one" not in {run["name"] for run in asked(viewer, "runs")}
        assert len(changes(viewer, run="two")["trees"]) == 1
        (tmp_path / "runs/two/summary.json").write_text("[1, 2")
        assert changes(viewer, run="two")[1].startswith(f"{tmp_path}/runs/two/summary.json is damaged")


@pytest.mark.parametrize("question", [
    ("tree", {"run": "", "id": "unknown"}), ("tree", {"run": "../run", "id": "0/train"}), ("changes", {"run": "", "since": "x"}),
    ("../../etc/passwd", {"run": ""}), ("turns.jsonl", {"run": ""}), ("compare", {"a": "", "b": ""}), ("tree", {}),
])  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_one_sentence(tmp_path, question):
    a_run(tmp_path / "run", a_tree())
    with viewed(tmp_path / "run") as viewer:
        code, sentence = asked(viewer, question[0], **question[1])
        assert code in (400, 404)
        assert "\n" not in sentence
        assert len(changes(viewer)["trees"]) == 1


def refused(address, **headers):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(address, **headers), timeout=10)
    return caught.value.code


def test_nobody_reads_without_the_token_nor_through_another_name(tmp_path):
    a_run(tmp_path / "run", a_tree())
    with viewed(tmp_path / "run") as viewer:
        base = f"http://127.0.0.1:{viewer.server_port}"
        wrong = viewer.address[:-2] + ("A" if viewer.address[-2] != "A" else "B")
        for address in (base, f"{base}/", f"{base}/runs", f"{base}/{'x' * 22}/runs", f"{wrong}/runs", viewer.address[:-1]):
            assert refused(address) == 403
        for host in ("evil.example", f"evil.example:{viewer.server_port}", "127.0.0.1.evil.example", ""):
            assert refused(viewer.address, headers={"Host": host}) == 403
        assert refused(viewer.address, data=b"", method="POST") == 501
        assert viewer.server_address[0] == "127.0.0.1"
        with urllib.request.urlopen(viewer.address.replace("127.0.0.1", "localhost")) as page:
            assert "connect-src 'self'" in page.read().decode()
            assert page.headers["Content-Security-Policy"] == "frame-ancestors 'none'"


def test_a_folder_of_runs_is_a_list_to_choose_from_and_to_compare(tmp_path, opened, browser):
    for name, shift in (("a", 0), ("b", 1)):
        store = a_run(tmp_path / "runs" / name, a_tree(), config={**CONFIG, "kind": "evaluation"})
        store.append("episodes", *({"task": f"t{i}", "reward": float((i + shift * (i % 3)) % 2)} for i in range(30)))
        average = {"estimate": 0.25 + shift / 2, "low": 0.1, "high": 0.9, "n": 9}
        store.write("summary.json", {"success": {"k": 1, "average": average, "any_of_k": average, "all_of_k": average}})
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/run.json").write_text("{")
    outside = a_run(tmp_path / "outside", a_tree()).folder
    (tmp_path / "runs/linked").symlink_to(outside)
    opened(tmp_path / "runs", 0)
    browser.wait("document.querySelectorAll('#runs tbody tr').length === 3")
    assert "0.250[0.100, 0.900]" in browser.run("document.body.textContent")
    assert "run.json is damaged" in browser.text()
    browser.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'Compare').click()")
    browser.wait("document.body.innerText.includes('detectable')")
    browser.run("document.querySelector('#runs a').click()")
    browser.wait(f"{ROWS} === 1")
    assert "Capital of country 0?" in browser.text()
    browser.run("history.back()")
    browser.wait("document.querySelectorAll('#runs tbody tr').length === 3")


def command(*arguments):
    return [sys.executable, "-c", "from agentgym.cli import main; main()", "view", *map(str, arguments)]


def test_the_command_prints_its_address_and_ends_quietly(tmp_path):
    a_run(tmp_path / "run", a_tree())
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and so does what they start
    run = subprocess.Popen(command(tmp_path / "run"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    address = run.stdout.readline().split()[0]
    assert urllib.request.urlopen(address).status == 200
    run.send_signal(signal.SIGINT)
    _, complaints = run.communicate(timeout=60)
    assert (run.returncode, complaints) == (0, "")


def test_a_folder_without_runs_and_a_taken_port_are_said_at_once(tmp_path):
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds no run" in done.stderr
    a_run(tmp_path / "run", a_tree())
    with viewed(tmp_path / "run") as viewer, pytest.raises(AgentGymError, match=f"port {viewer.server_port} cannot be served on"):
        Viewer(tmp_path / "run", viewer.server_port)
