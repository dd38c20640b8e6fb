"""Evaluations from the command line: shards, saved runs, bad rows, and policies on servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import agentgym, fails, folder  # noqa: F401  (a fixture)
from test_endpoint import called, said, serve  # noqa: F401  (a fixture)


def evaluated(folder: Path, *options: object, out: str = "run") -> str:  # noqa: F811
    done = agentgym("eval", "orders:Orders", "--policy", "gold", "--split", "train", "--out", out, *options, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def episodes(folder: Path, run: str) -> list[dict[str, object]]:  # noqa: F811
    return [json.loads(line) for line in (folder / run / "episodes.jsonl").read_text().splitlines()]


def test_shards_merge_into_what_one_machine_would_have_played(folder: Path):  # noqa: F811
    evaluated(folder, out="whole")
    for number in (1, 2):
        evaluated(folder, "--shard", f"{number}/2", out=f"part{number}")
    missing = fails(agentgym("merge", "all", "part1", folder=folder))
    assert "missing: 2/2" in missing
    twice = fails(agentgym("merge", "all", "part1", "part1", folder=folder))
    assert "a shard is given twice: 1/2, 1/2" in twice
    done = agentgym("merge", "all", "part2", "part1", folder=folder)
    assert done.returncode == 0, done.stderr
    assert sorted(map(str, episodes(folder, "all"))) == sorted(map(str, episodes(folder, "whole")))
    assert (folder / "all" / "summary.json").read_text() == (folder / "whole" / "summary.json").read_text()
    log = folder / "part2" / "episodes.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:1]))
    assert "has 1 of 3 episodes: run it again" in fails(agentgym("merge", "fewer", "part2", "part1", folder=folder))
    evaluated(folder, "--shard", "2/2", "--seed", 5, out="other")
    assert "other seed" in fails(agentgym("merge", "more", "part1", "other", folder=folder))
    assert "write 2/5" in fails(agentgym("eval", "orders:Orders", "--shard", "0/2", folder=folder))


def test_a_saved_run_is_judged_anew_after_its_environment_was_mended(folder: Path):  # noqa: F811
    evaluated(folder)
    source = (folder / "orders.py").read_text()
    (folder / "orders.py").write_text(source.replace("return float(", "return 0.5 * float("))
    done = agentgym("rescore", "run", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 rewards changed" in done.stdout
    assert "0 episodes observed other things" in done.stdout
    assert {one["reward"] for one in episodes(folder, "run-rescored")} == {0.5}
    assert {one["reward"] for one in episodes(folder, "run")} == {1.0}
    assert "holds a rescoring" in fails(agentgym("rescore", "run-rescored", folder=folder))


CORPUS = {"title": "Iceland", "text": "Reykjavík is its capital."}
QUESTION = {"id": "q", "question": "Capital of Iceland?", "answer": "Reykjavík"}


def test_bad_rows_are_left_out_only_where_that_is_asked_for(tmp_path: Path):
    (tmp_path / "corpus.jsonl").write_text(json.dumps(CORPUS) + "\n")
    rows = [json.dumps(QUESTION), '{"id": "bad", "question": "", "answer": "x"}', "no JSON"]
    (tmp_path / "test.jsonl").write_text("\n".join(rows) + "\n")
    command = ("eval", "agentgym/Search-v0", "--policy", "tiny", "--data", ".", "--split", "test", "--out", "run")
    assert "test.jsonl, line 2: question" in fails(agentgym(*command, folder=tmp_path))
    done = agentgym(*command, "--skip-bad", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bad rows left out: 2" in done.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["bad_rows"] == 2
    assert agentgym("rescore", "run", folder=tmp_path).returncode == 0
    assert "line 3: not JSON" in done.stdout.replace("\n", "")
    assert [one["task"] for one in episodes(tmp_path, "run")] == ["q"]


def test_a_served_model_plays_and_costs_what_its_server_counted(folder: Path, serve):  # noqa: F811
    usage = {"usage": {"prompt_tokens": 1_000_000, "completion_tokens": 100_000}}
    server = serve(called("{}", name="ready"), {**called('{"order": 6}', name="cancel"), **usage})
    command = ("eval", "orders:Orders", "--policy", server.url, "--model", "m", "--split", "test", "--tasks", 1)
    done = agentgym(*command, "--price", "2.5,10", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "$3.50" in done.stdout
    silent = serve(said("I cannot call tools."))
    refused = fails(agentgym("eval", "orders:Orders", "--policy", silent.url, "--model", "m", "--out", "never", folder=folder))
    assert "Serve it with tool calling" in refused
    assert not (folder / "never").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--policy", "http://localhost:9/v1"), "name its model with --model"),
        (("--model", "m"), "'tiny' is no address"),
        (("--price", "cheap"), "write 2.5,10"),
        (("--precision", 0.1, "--shard", "1/2"), "give one of them"),
        (("--k", 0), "--k must be at least 1"),
        (("--set", "size"), "write --set NAME=VALUE"),
        (("--set", "size=3"), "unexpected keyword argument 'size'"),
    ],
)
def test_what_contradicts_itself_is_refused(folder: Path, options: tuple[object, ...], reason: str):  # noqa: F811
    assert reason in fails(agentgym("eval", "orders:Orders", *options, folder=folder))


def test_what_others_wrote_reaches_the_terminal_without_markup_or_control_sequences(folder: Path):  # noqa: F811
    source = (folder / "orders.py").read_text()
    broken = "    def score(self):\n        raise RuntimeError('[/done] \\x1b[2J')"
    (folder / "orders.py").write_text(source.replace("    def score(self):", broken, 1))
    assert "[/done] \\x1b[2J" in fails(agentgym("eval", "orders:Orders", "--policy", "gold", folder=folder))
    assert "[/y]" in fails(agentgym("eval", "x[/y]", folder=folder))


def test_evaluations_of_other_tasks_are_not_paired(folder: Path):  # noqa: F811
    evaluated(folder)
    done = agentgym("eval", "orders:Orders", "--policy", "gold", "--split", "test", "--out", "test", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "played other tasks (other split)" in fails(agentgym("compare", "run", "test", folder=folder))
