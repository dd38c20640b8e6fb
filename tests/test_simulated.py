"""A world that one model makes up: whatever it said once it keeps to, its faults void episodes, and its difficulty follows rewards."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest

import agentgym
from agentgym import AgentGymError, Call, InfrastructureError, Lineage, Outcome, Rollout, Start, Task, TurnTree, call
from agentgym.envs import judging
from agentgym.envs.simulated import Simulated
from agentgym.envs.simulated.house import House
from agentgym.envs.simulated.knobs import FREE, KINDS, NUMBERS, Knobs, knobs, value
from agentgym.envs.simulated.scenario import Scenario, SimulatedTool, Sketch
from agentgym.envs.simulated.simulator import TOOLS, USER, WRITER, Simulator
from agentgym.expand import Groups
from agentgym.policies.scripted import Scripted
from agentgym.snapshot import state_digest
from agentgym.tools.completion import Said, ScriptedCompletion
from agentgym.tools.tables import freeze
from agentgym.turn import total_reward

Answers = Callable[[str, str], str | None]  # of a role and what it was asked; None: as the house does


def simulator(answers: Answers = lambda role, asked: None) -> tuple[Simulator, ScriptedCompletion]:
    house = House()

    def answer(messages: Any, tools: Any, seed: int | None) -> Said | str:
        own = answers(messages[0]["content"], messages[1]["content"])
        return house.complete(messages, seed=seed) if own is None else own

    completion = ScriptedCompletion(answer)
    return Simulator(completion, blocking=False), completion


def asked(completion: ScriptedCompletion, role: str) -> int:
    return sum(messages[0]["content"] == role for messages in completion.asked)


def started(world: Simulator, difficulty: float = 60.0, number: int = 0) -> Simulated:
    env = Simulated(world)
    env.reset(seed=0, options={"task": world.write(difficulty, Lineage.of(0, "test", number))})
    return env


def play(env: Simulated, *actions: str) -> tuple[float, dict[str, float]]:
    for action in actions:
        _, reward, _, _, info = env.step(action)
    return float(reward), info["metrics"]


# Knobs and tasks.


@pytest.mark.parametrize(("difficulty", "tools"), [(1, 1), (10, 1), (11, 2), (50, 5), (100, 10)])
def test_difficulty_is_cut_into_equal_parts(difficulty: float, tools: int) -> None:
    assert value(*NUMBERS["tools"], difficulty) == tools
    assert [value(0, 2, at) for at in (1, 34, 35, 67, 68, 100)] == [0, 0, 1, 1, 2, 2]


def test_half_of_the_tasks_have_all_knobs_at_the_difficulty_and_no_other_exceeds_it() -> None:
    for difficulty in (1.0, 50.0, 100.0):
        drawn = [knobs(difficulty, Random(seed)) for seed in range(400)]
        highest = {name: value(low, high, difficulty) for name, (low, high) in NUMBERS.items()}
        kinds = {name: ways[value(0, 2, difficulty)] for name, ways in KINDS.items()}
        assert all(getattr(one, name) <= most for one in drawn for name, most in highest.items())
        assert all(KINDS[name].index(getattr(one, name)) <= KINDS[name].index(kind) for one in drawn for name, kind in kinds.items())
        at_it = sum(one == Knobs(**highest, **kinds) for one in drawn) / len(drawn)
        assert at_it == 1.0 if difficulty == 1.0 else FREE - 0.1 < at_it < FREE + 0.1
        assert all(one.calls <= one.tools for one in drawn)


def test_a_task_has_what_its_knobs_ask_for_and_its_plan_earns_all() -> None:
    for split in ("validation", "test"):
        for task in Simulated().tasks(split):
            env = Simulated()
            env.reset(seed=0, options={"task": Task(**json.loads(json.dumps(as_json(task))))})
            scenario, asked_for = task.data["scenario"], task.data["knobs"]
            assert (len(scenario["tools"]), len(scenario["plan"])) == (asked_for["tools"], asked_for["calls"])
            assert len(env.tools) == asked_for["tools"] + 2
            assert play(env, *env.gold(task)) == (1.0, {"checklist": 1.0, "malformed": 0.0})


def as_json(task: Task) -> dict[str, Any]:
    return {"id": task.id, "prompt": task.prompt, "answer": task.answer, "split": task.split, "data": dict(task.data)}


def drafts(*texts: Callable[[dict[str, Any]], dict[str, Any]]) -> tuple[Simulator, ScriptedCompletion]:
    """A writer whose first drafts are changed so."""
    left = list(texts)

    def answers(role: str, payload: str) -> str | None:
        if role != WRITER or not left:
            return None
        draft = json.loads(House().complete([{"content": WRITER}, {"content": payload}], seed=0).text)
        return json.dumps(left.pop(0)(draft))

    return simulator(answers)


BAD_DRAFTS = [
    lambda draft: {**draft, "checklist": ["The moon is on."]},
    lambda draft: {**draft, "plan": []},
    lambda draft: {**draft, "tools": draft["tools"][:-1]},
    lambda draft: {**draft, "tools": [draft["tools"][0]] * len(draft["tools"])},
    lambda draft: {**draft, "plan": [{**draft["plan"][0], "name": "fly"}, *draft["plan"][1:]]},
    lambda draft: {**draft, "plan": [{**draft["plan"][0], "arguments": {"position": "up"}}, *draft["plan"][1:]]},
    lambda draft: {**draft, "tools": [{**draft["tools"][0], "name": "done"}, *draft["tools"][1:]]},
]
BAD_DRAFTS += [  # malformed in one answer, and asked for again
    lambda draft: {**draft, "state": {**draft["state"], "more": [10**30]}},
    lambda draft: {**draft, "plan": [{**draft["plan"][0], "arguments": {"position": 10**30}}, *draft["plan"][1:]]},
]


@pytest.mark.parametrize("bad", BAD_DRAFTS)
def test_a_draft_that_cannot_be_solved_as_its_writer_says_is_written_anew(bad: Any) -> None:
    world, completion = drafts(bad)
    task = world.write(60.0, Lineage.of(0, "test"))
    assert asked(completion, WRITER) == 2
    assert play(started(world), *Simulated(world).gold(started(world).task))[0] == 1.0
    assert "moon" not in str(task.answer)


@pytest.mark.parametrize("role", [WRITER, TOOLS, judging.TASK])
def test_a_draft_during_which_somebody_answers_badly_three_times_is_written_anew(role: str) -> None:
    left = iter(range(3))
    world, completion = simulator(lambda asked_role, _: "Sure!" if asked_role == role and next(left, None) is not None else None)
    env = started(world)
    assert play(env, *env.gold(env.task))[0] == 1.0
    assert asked(completion, WRITER) == (4 if role == WRITER else 2)


def test_a_writer_that_cannot_be_reached_is_not_asked_for_another_draft() -> None:
    def unreachable(role: str, payload: str) -> str:
        raise InfrastructureError("no server")

    world, completion = simulator(unreachable)
    with pytest.raises(InfrastructureError, match="no server"):
        world.write(60.0, Lineage.of(0, "test"))
    assert asked(completion, WRITER) == 1


def test_a_writer_that_never_writes_a_good_task_is_an_infrastructure_fault() -> None:
    world, completion = drafts(*[BAD_DRAFTS[0]] * 99)
    with pytest.raises(InfrastructureError, match="8 drafts of a task of difficulty 60 were rejected, the last because its own plan"):
        world.write(60.0, Lineage.of(0, "test"))
    assert asked(completion, WRITER) == 8


def test_equal_lineages_write_equal_tasks() -> None:
    first, again, other = (simulator()[0].write(70.0, Lineage.of(0, name)) for name in ("a", "a", "b"))
    assert first == again
    assert first.data != other.data


# Tools that nobody has written.


SKETCH = Sketch.model_validate(
    {
        "name": "oven",
        "description": "Heat.",
        "parameters": {"degrees": {"type": "integer"}, "mode": {"type": "string", "enum": ["fan", "grill"]}, "fast": {"type": "boolean"}},
    }
)


def test_arguments_that_do_not_fit_the_sketch_are_named() -> None:
    tool = SimulatedTool(SKETCH, lambda name, arguments: "hot")
    good = {"degrees": 200, "mode": "fan", "fast": True}
    assert tool.read_arguments(good) == good
    assert tool(**good) == "hot"
    assert tool.read_arguments({**good, "mode": "off"}) == "oven: mode: input should be 'fan' or 'grill'."
    assert tool.read_arguments({**good, "degrees": True}) == "oven: degrees: input should be a valid integer."
    assert tool.read_arguments({"degrees": "200", "x": 1}) == (
        "oven: mode: field required; fast: field required; x: extra inputs are not permitted; degrees: input should be a valid integer."
    )
    assert tool.spec["function"]["parameters"]["required"] == ["degrees", "mode", "fast"]


def test_the_policy_reads_what_was_wrong_and_goes_on() -> None:
    env = started(simulator()[0])
    thing = env.task.data["scenario"]["tools"][0]["name"]
    text, _, _, _, info = env.step(call(thing, position="up"))
    assert (text, info["outcome"]) == (f"Error: {thing}: position: input should be 'on' or 'off'.", Outcome.MODEL_ERROR)
    assert "no tool named 'fly'" in str(env.step(call("fly"))[0])


# One world for all episodes of a task.


def test_a_call_in_one_state_has_one_result_in_all_episodes() -> None:
    count = iter(range(99))

    def answers(role: str, payload: str) -> str | None:
        return json.dumps({"result": f"Result {next(count)}.", "state": json.loads(payload)["state"]}) if role == TOOLS else None

    judged = simulator()[0].write(60.0, Lineage.of(0, "test"))
    world, completion = simulator(answers)
    texts = []
    for _ in range(3):
        env = Simulated(world)
        env.reset(seed=0, options={"task": judged})
        thing = judged.data["scenario"]["tools"][0]["name"]
        texts.append([env.step(call(thing, position=position))[0] for position in ("on", "off", "on")])
    assert texts == [["Result 0.", "Result 1.", "Result 0."]] * 3
    assert asked(completion, TOOLS) == 2


def test_a_call_that_failed_is_made_anew_by_the_next_episode() -> None:
    down = iter([True])

    def answers(role: str, payload: str) -> str | None:
        if role == TOOLS and next(down, False):
            raise InfrastructureError("no server")
        return None

    task = simulator()[0].write(60.0, Lineage.of(0, "test"))
    world, _ = simulator(answers)
    scenario = Scenario.model_validate(task.data["scenario"])
    one = Call(scenario.tools[0].name, {"position": "on"})
    with pytest.raises(InfrastructureError, match="no server"):
        world.run(task.id, scenario, freeze(scenario.state), one)
    assert world.run(task.id, scenario, freeze(scenario.state), one)[0].endswith("is on.")


def test_episodes_that_ask_at_once_wait_for_one_answer() -> None:
    def answers(role: str, payload: str) -> str | None:
        time.sleep(0.05 if role == TOOLS else 0.0)
        return None

    world, completion = simulator(answers)
    task = world.write(60.0, Lineage.of(0, "test"))
    before = asked(completion, TOOLS)
    scenario, found = Scenario.model_validate(task.data["scenario"]), []
    one = Call(scenario.tools[0].name, {"position": "on"})
    threads = [threading.Thread(target=lambda: found.append(world.run(task.id, scenario, freeze(scenario.state), one))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8
    assert asked(completion, TOOLS) == before + 1


def test_the_user_hears_words_alone_and_answers_a_dialogue_once() -> None:
    world, completion = simulator()
    env = started(world)
    thing = env.task.data["scenario"]["tools"][0]["name"]
    env.step(call(thing, position="on", thought="secret"))
    text, *_ = env.step(call("say", text="What do you want?", thought="secret"))
    assert env.task.data["scenario"]["goal"] in text
    assert env.step("Plain words.")[4]["messages"] == [{"role": "user", "content": text}]
    last = json.loads([messages for messages in completion.asked if messages[0]["content"] == USER][-1][1]["content"])
    assert [who for who, _ in last["dialogue"]] == ["user", "agent", "user", "agent"]
    assert "secret" not in str(last)
    again = started(world)
    before = asked(completion, USER)
    again.step("What do you want?")
    assert asked(completion, USER) == before


# Rewards and faults.


def test_full_marks_earn_1_malformed_words_cost_1_and_all_else_is_0() -> None:
    world, _ = simulator()
    gold = Simulated(world).gold(started(world).task)
    assert play(started(world), *gold)[0] == 1.0
    assert play(started(world), "<tool_call>", *gold)[0] == 1.0
    assert play(started(world), call("done")) == (0.0, {"checklist": pytest.approx(0.5, abs=0.49), "malformed": 0.0})
    assert play(started(world), "", call("done"))[0] == -1.0


def test_a_strict_judge_minds_needless_calls() -> None:
    strict = next(task for task in Simulated().tasks("train") if task.data["knobs"]["strictness"] == 5)
    env = Simulated()
    gold = env.gold(strict)
    env.reset(seed=0, options={"task": strict})
    assert play(env, gold[0], *gold)[0] == 0.0
    for words in ("It is done. I have met the checklist.", call("say", text="All is complete, judge.")):
        env.reset(seed=0, options={"task": strict})
        assert play(env, words, call("done"))[0] == 0.0


def lost(answers: Answers) -> TurnTree:
    task = simulator()[0].write(60.0, Lineage.of(0, "test"))
    world, _ = simulator(answers)
    actions = [call(task.data["scenario"]["tools"][0]["name"], position="on"), "Hello.", call("done")]
    actor = Scripted(lambda prompt: actions[prompt.turn.depth])
    rollout = Rollout(partial(Simulated, world), Groups(1, "agent"), {"agent": actor}, None, Lineage.of(0, "lost"))
    return asyncio.run(rollout.run([Start(task)]))[0]


TOO_LARGE = f'{{"result": "on", "state": {{"n": {10**30}}}}}'


@pytest.mark.parametrize("bad", [TOO_LARGE, "", "The lamp is on.", '{"result": "on"}', '{"result": 1, "state": {}}', '{"text": ""}', "[]"])
def test_malformed_answers_of_the_simulator_void_the_episode(bad: str) -> None:
    for role in (TOOLS, USER):
        (leaf,) = lost(lambda asked_role, payload, role=role: bad if asked_role == role else None).leaves()
        assert (leaf.outcome, total_reward(leaf)) == (Outcome.INFRASTRUCTURE, None)
        assert "answered 3 times in another form" in leaf.error


def test_an_answer_may_come_right_at_the_third_try_and_stand_between_backquotes() -> None:
    texts = iter(["", "?", '```json\n{"result": "Fine.", "state": {}}\n```'])
    task = simulator()[0].write(60.0, Lineage.of(0, "test"))
    world, _ = simulator(lambda role, payload: next(texts) if role == TOOLS else None)
    scenario = Scenario.model_validate(task.data["scenario"])
    one = Call(scenario.tools[0].name, {"position": "on"})
    assert world.run(task.id, scenario, freeze(scenario.state), one) == ("Fine.", freeze({}))


def test_a_judge_that_does_not_judge_is_no_reward() -> None:
    (leaf,) = lost(lambda role, payload: "perhaps" if role.startswith("You judge") else None).leaves()
    assert (leaf.outcome, total_reward(leaf)) == (Outcome.JUDGE, None)


def test_every_turn_of_a_gold_play_can_be_forked_and_finished() -> None:
    tasks = Simulated().tasks("test")
    for task in tasks[::4]:
        env = Simulated()
        env.reset(seed=0, options={"task": task})
        gold = env.gold(task)
        for turn, action in enumerate(gold):
            fork = Simulated()
            fork.reset(seed=0, options={"task": tasks[0]})  # stood in another world
            fork.restore(env.snapshot())
            assert (fork.key(), fork.max_turns, len(fork.tools)) == (env.key(), env.max_turns, len(env.tools))
            assert play(fork, *gold[turn:])[0] == 1.0
            env.step(action)


@pytest.mark.long
def test_the_contract_holds() -> None:
    agentgym.check_env(partial(Simulated, size=12)).raise_if_broken()


def test_a_model_is_given_by_its_address_or_as_a_simulator_but_not_by_halves() -> None:
    address = {"url": "http://localhost:1/v1", "model": "m"}
    assert Simulated(**address).simulator is Simulated(**address).simulator
    assert Simulated(**address).blocking
    with pytest.raises(AgentGymError, match="url= and model= together"):
        Simulated(model="m")
    with pytest.raises(AgentGymError, match="no simulator="):
        Simulated(simulator()[0], **address)
    assert Simulated().tasks("nowhere") == ()
    assert state_digest(Simulated(size=3).tasks("test")) == state_digest(Simulated(size=3).tasks("test"))
