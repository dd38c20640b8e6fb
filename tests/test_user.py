"""A user with a phone of its own: both sides are needed, no persona keeps its word back, and each fault has its author."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentgym
from agentgym import AgentGymError, Call, InfrastructureError, Lineage, Outcome, Rollout, Start, Task, TurnTree, call
from agentgym.action import parse_action
from agentgym.envs.user import UserEnv
from agentgym.envs.user.expert import LOOK, RESTART, Expert
from agentgym.envs.user.phone import CONNECTED, DEVICE_TOOLS, Device, status, use
from agentgym.envs.user.quality import Faults, blame, faults
from agentgym.envs.user.scripted import FORGETFUL, ONCE_MORE, PERSONAS, PUZZLED, TERSE, WORDY, ScriptedUser
from agentgym.envs.user.tasks import DOUBLE, SINGLE, SIZES, mended, phone_tasks, split_of, start
from agentgym.envs.user.users import CachedUser, Line, ModelUser, User, UserFailure, UserTurn, UserView, memory
from agentgym.evaluation import blamed
from agentgym.expand import Groups
from agentgym.policies.scripted import Scripted
from agentgym.tools.completion import Said, ScriptedCompletion
from agentgym.turn import total_reward

KNOWN = {"name": "Mara", "plan": "Small"}


def phone(*causes: str, persona: str = TERSE) -> Task:
    others = {"Otto": {"plan": "Large", "gb": 3, "blocked": True}}
    data = {"name": "Mara", "wants": "Small", "persona": persona, "causes": list(causes), "plan": "Large", "gb": 7, "others": others}
    return Task("phone", "My phone has no connection.", data=data)


def started(task: Task, user: User | None = None) -> UserEnv:
    env = UserEnv(user)
    env.reset(seed=0, options={"task": task})
    return env


def say(env: UserEnv, text: str) -> str:
    return str(env.step(call("say", text=text))[0])


def reward(env: UserEnv, *actions: str) -> float:
    for action in actions:
        _, value, *_ = env.step(action)
    return float(value)


def play(tasks: Sequence[Task], mistakes: float, seed: int = 0) -> list[TurnTree]:
    rollout = Rollout(UserEnv, Groups(1, "expert"), {"expert": Expert(seed, mistakes)}, None, Lineage.of(0, "test"))
    return asyncio.run(rollout.run([Start(task) for task in tasks]))


# The world.


def test_the_phone_shows_the_first_thing_in_the_way_and_what_is_behind_it_only_then() -> None:
    account = {"plan": "Talk", "gb": 0, "blocked": True}
    device = Device(airplane=True, data=False, sim=False, stuck=True)
    shown = [status(device, account)]
    for deed in (Call("airplane_mode", {"on": False}), Call("reseat_sim", {}), Call("restart", {})):
        device = use(device, deed)
        shown.append(status(device, account))
    account["blocked"] = False
    shown.append(status(device, account))
    device = use(device, Call("mobile_data", {"on": True}))
    shown.append(status(device, account))
    account["gb"] = 1
    shown.append(status(device, account))
    assert shown == ["airplane mode", "no SIM", "no service", "no service", "data is off", "no internet", CONNECTED]


def test_what_a_phone_cannot_do_is_refused() -> None:
    with pytest.raises(agentgym.ToolError, match="a phone has no 'fly'"):
        use(Device(), Call("fly", {}))
    with pytest.raises(agentgym.ToolError, match="on: field required"):
        use(Device(), Call("airplane_mode", {}))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_gold_actions_connect_every_phone_in_time(split: str) -> None:
    lengths = Counter[int]()
    for task in phone_tasks(split):
        env = started(task)
        rewards = [float(env.step(action)[1]) for action in env.gold(task)]
        assert rewards == [0.0] * (len(rewards) - 1) + [1.0], task
        lengths[len(rewards)] += 1
    assert max(lengths) <= UserEnv.max_turns
    assert sum(lengths[length] for length in range(2, 7)) > 0.7 * SIZES[split]


def test_an_episode_that_ends_at_once_or_never_begins_earns_nothing() -> None:
    for task in phone_tasks("validation"):
        assert reward(started(task), call("done")) == 0.0
        assert reward(started(task), *[""] * UserEnv.max_turns) == 0.0


def test_neither_side_can_do_without_the_other() -> None:
    account_alone = started(phone("airplane", "blocked"))
    assert reward(account_alone, call("unblock", name="Mara"), call("done")) == 0.0
    device_alone = started(phone("airplane", "blocked"))
    assert reward(device_alone, call("say", text="Turn airplane mode off."), call("done")) == 0.0
    both = [call("unblock", name="Mara"), call("say", text="Turn airplane mode off."), call("done")]
    assert reward(started(phone("airplane", "blocked")), *both) == 1.0


@pytest.mark.parametrize(
    "needless",
    [
        call("add_data", name="Mara"),
        call("set_plan", name="Mara", plan="Small"),
        call("unblock", name="Otto"),
        call("add_data", name="Otto"),
    ],
)
def test_a_change_that_nobody_needs_costs_the_reward(needless: str) -> None:
    env = started(phone("stuck"))
    assert reward(env, needless, call("say", text=RESTART), call("done")) == 0.0
    assert env.metrics()["needless_change"] == 1.0
    assert started(phone("stuck")).metrics()["needless_change"] == 0.0


def test_the_plan_must_be_the_one_that_the_user_wants() -> None:
    for plan, earned in (("Small", 1.0), ("Large", 0.0), ("Talk", 0.0)):
        assert reward(started(phone("plan")), call("set_plan", name="Mara", plan=plan), call("done")) == earned


def test_the_provider_refuses_what_makes_no_sense() -> None:
    env = started(phone("plan"))
    refused = [call("unblock", name="Mara"), call("add_data", name="Mara"), call("account", name="Nobody"), call("say", text=" ")]
    for action in refused:
        text, _, _, _, info = env.step(action)
        assert (text[:7], info["outcome"]) == ("Error: ", Outcome.TOOL_ERROR)
    assert env.state.accounts == start(env.task.data)[1]


def test_plain_words_are_said_to_the_user() -> None:
    env = started(phone("sim"))
    text, _, _, _, info = env.step("<think>\nhm\n</think>\nWhat do you see?")
    assert (text, info["messages"]) == ("no SIM.", [{"role": "user", "content": "no SIM."}])
    assert say(env, "Put the SIM in again.") == f"Done: {CONNECTED}."
    assert "no tool call" in str(env.step("")[0])


def test_every_turn_of_a_gold_play_can_be_forked_and_finished() -> None:
    for task in phone_tasks("test")[:30]:
        env = started(task)
        gold = env.gold(task)
        for turn, action in enumerate(gold):
            fork = UserEnv()
            fork.restore(env.snapshot())
            assert reward(fork, *gold[turn:]) == 1.0
            env.step(action)
    assert started(phone("sim")).key() == started(phone("sim")).key() != started(phone("stuck")).key()


def test_splits_share_no_pair_of_a_name_and_its_causes_and_every_name_is_met_in_training() -> None:
    pairs = {split: {(task.data["name"], tuple(task.data["causes"])) for task in phone_tasks(split)} for split in SIZES}
    assert all(split_of(*pair) == split for split, found in pairs.items() for pair in found)
    assert {name for name, _ in pairs["train"]} >= {name for name, _ in pairs["validation"] | pairs["test"]}
    assert {causes for _, causes in pairs["validation"]} <= {causes for _, causes in pairs["train"]} == {*SINGLE, *DOUBLE}
    assert {task.data["persona"] for task in phone_tasks("validation")} == set(PERSONAS)
    assert UserEnv().tasks("nowhere") == ()


@given(st.integers(0, SIZES["train"] - 1))
@settings(max_examples=60)
def test_no_phone_begins_connected_and_its_data_survive_json(number: int) -> None:
    task = phone_tasks("train")[number]
    env = started(replace(task, data=json.loads(json.dumps(task.data))))
    assert env.score() == 0.0
    assert (env.state.device, env.state.accounts) == start(task.data)
    assert set(mended(task.data)) == {task.data["name"], *task.data["others"]}


@pytest.mark.long
def test_the_contract_holds() -> None:
    agentgym.check_env(UserEnv).raise_if_broken()


# The user by rules.


@pytest.mark.parametrize("persona", PERSONAS)
def test_each_persona_tells_what_it_is_asked_and_does_what_it_is_told(persona: str) -> None:
    env = started(phone("airplane", "sim", persona=persona))
    assert "Mara" in say(env, "What is your name?")
    assert "Small" in say(env, "Which plan?")
    assert "airplane mode" in say(env, LOOK)
    if persona == FORGETFUL:
        assert say(env, "Turn airplane mode off.") == ONCE_MORE
    assert "no SIM" in say(env, "Turn airplane mode off.")
    assert CONNECTED in say(env, "Put the SIM in again.")
    assert env.metrics() == dict.fromkeys(env.metrics(), 0.0)


def test_a_user_does_one_thing_at_a_time_and_nothing_that_it_is_not_told() -> None:
    env = started(phone("airplane", "sim"))
    assert say(env, "Hello!") == PUZZLED
    assert say(env, "Airplane mode?") == PUZZLED
    assert env.state.device == start(env.task.data)[0]
    say(env, "Turn airplane mode off, put the SIM in again and restart the phone.")
    assert env.state.device == Device(sim=False)
    say(env, "Turn airplane mode on.")
    say(env, "Turn mobile data off.")
    assert env.state.device == Device(airplane=True, data=False, sim=False)


def test_the_wordy_user_says_its_name_unasked() -> None:
    prompts = {persona: [task.prompt for task in phone_tasks("train") if task.data["persona"] == persona] for persona in PERSONAS}
    assert all(prompt.startswith("I am ") for prompt in prompts[WORDY])
    assert {prompt.startswith("I am ") for prompt in prompts[TERSE]} == {False}


@given(st.text(max_size=60), st.sampled_from(PERSONAS))
def test_whatever_the_agent_says_is_answered(text: str, persona: str) -> None:
    env = started(phone("stuck", "empty", persona=persona))
    answer, _, terminated, _, info = env.step(call("say", text=text))
    assert answer
    assert not terminated
    assert info["outcome"] in (Outcome.OK, Outcome.TOOL_ERROR)


# A model as the user.


def modelled(*answers: Said | str, cache: Path | None = None) -> tuple[UserEnv, ScriptedCompletion]:
    completion = ScriptedCompletion(answers)
    user: User = ModelUser(completion)
    return started(phone("airplane"), user if cache is None else CachedUser(user, cache)), completion


OFF = Said("", (Call("airplane_mode", {"on": False}),))


def test_a_model_acts_with_its_own_tools_and_then_says_what_it_sees() -> None:
    env, completion = modelled("It shows airplane mode.", OFF, "It works, thank you.")
    assert say(env, LOOK) == "It shows airplane mode."
    assert say(env, "Turn airplane mode off.") == "It works, thank you."
    assert reward(env, call("done")) == 1.0
    roles = [message["role"] for message in completion.asked[2]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant", "tool"]
    assert completion.asked[2][-1]["content"] == f"It shows: {CONNECTED}"
    assert completion.asked[2][-1]["tool_call_id"] == completion.asked[2][-2]["tool_calls"][0]["id"]
    assert "Mara" in completion.asked[0][0]["content"]
    assert env.blocking


BAD = [Said(""), Said(problem="the arguments are no JSON"), Said("", (Call("fly", {}),)), Said("", (Call("airplane_mode", {"on": "?"}),))]


@pytest.mark.parametrize("bad", BAD)
def test_an_empty_or_malformed_answer_is_asked_for_twice_more_and_then_the_user_is_blamed(bad: Said) -> None:
    assert say(modelled(bad, bad, "Here I am.")[0], LOOK) == "Here I am."
    env, completion = modelled(bad, bad, bad, "Too late.")
    with pytest.raises(UserFailure, match="failed 3 times to answer"):
        say(env, LOOK)
    assert len(completion.asked) == 3


def test_a_user_that_only_plays_with_its_phone_or_says_nothing_fails() -> None:
    env, _ = modelled(*[OFF] * 9)
    with pytest.raises(UserFailure, match="before a word"):
        say(env, LOOK)

    class Mute:
        blocking = False

        def reply(self, view: UserView, rng: Random) -> UserTurn:
            return UserTurn()

    with pytest.raises(UserFailure, match="says and does nothing"):
        say(started(phone("sim"), Mute()), LOOK)


def lost_episode(answer: Callable[[Any, Any, Any], Said | str]) -> TurnTree:
    env = UserEnv(ModelUser(ScriptedCompletion(answer)))
    actor = Scripted(lambda prompt: call("say", text=LOOK))
    rollout = Rollout(lambda: env, Groups(1, "agent"), {"agent": actor}, None, Lineage.of(0, "lost"))
    return asyncio.run(rollout.run([Start(phone("sim"))]))[0]


def test_a_failed_user_or_a_failed_server_is_never_the_agents_reward() -> None:
    def unreachable(*_: Any) -> str:
        raise InfrastructureError("no server")

    for answer, who in ((lambda *_: "", "user"), (unreachable, "environment")):
        (leaf,) = lost_episode(answer).leaves()
        assert (leaf.outcome, total_reward(leaf), blamed(leaf, False)) == (Outcome.INFRASTRUCTURE, None, who)


def test_the_same_dialogue_has_the_same_reply_in_another_process_too(tmp_path: Path) -> None:
    file = tmp_path / "user.jsonl"
    env, _ = modelled(OFF, "It works.", cache=file)
    assert say(env, "Turn airplane mode off.") == "It works."
    assert len(file.read_text().splitlines()) == 2
    memory.cache_clear()
    again, completion = modelled(cache=file)
    assert say(again, "Turn airplane mode off.") == "It works."
    assert (again.state, completion.asked) == (env.state, [])
    with pytest.raises(InfrastructureError):
        say(again, LOOK)  # another dialogue


def test_a_memory_that_was_cut_off_goes_on_and_one_that_is_no_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "user.jsonl"
    env, _ = modelled("Airplane mode.", cache=file)
    say(env, LOOK)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": "12')
    memory.cache_clear()
    env, _ = modelled("I do not know.", cache=file)
    assert [say(env, LOOK), say(env, "Why?")] == ["Airplane mode.", "I do not know."]
    memory.cache_clear()
    assert len(memory(file).known) == 2
    file.write_bytes(b"{}\n" + whole)
    memory.cache_clear()
    with pytest.raises(AgentGymError, match="line 1 is no remembered reply"):
        CachedUser(ScriptedUser(), file)


def test_episodes_of_one_process_hear_the_same_reply_and_other_models_have_their_own(tmp_path: Path) -> None:
    file = tmp_path / "user.jsonl"
    first, second = modelled("Airplane mode.", cache=file)[0], modelled("No SIM.", cache=file)[0]
    assert [say(first, LOOK), say(second, LOOK)] == ["Airplane mode."] * 2
    another = started(phone("airplane"), CachedUser(ModelUser(ScriptedCompletion(["No SIM."])), file, "another"))
    assert say(another, LOOK) == "No SIM."


def test_of_two_who_ask_at_once_the_first_reply_counts_for_both(tmp_path: Path) -> None:
    file = tmp_path / "user.jsonl"
    quick, _ = modelled("Airplane mode.", cache=file)

    def slow(*_: Any) -> str:
        assert say(quick, LOOK) == "Airplane mode."
        return "No SIM."

    env = started(phone("airplane"), CachedUser(ModelUser(ScriptedCompletion(slow)), file))
    assert say(env, LOOK) == "Airplane mode."
    assert len(file.read_text().splitlines()) == 1


def test_a_model_is_asked_with_seeds_of_the_episodes_lineage_each_time_another() -> None:
    def seeds(episode: int) -> list[int | None]:
        found: list[int | None] = []

        def answer(messages: Any, tools: Any, seed: int | None) -> str:
            found.append(seed)
            return "Why?" if len(found) > 2 else ""

        env = UserEnv(ModelUser(ScriptedCompletion(answer)))
        env.reset(seed=episode, options={"task": phone("airplane")})
        say(env, LOOK)
        return found

    assert len(set(seeds(0))) == 3
    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


def test_a_model_is_given_by_its_address_or_as_a_user_but_not_by_halves(tmp_path: Path) -> None:
    address = {"url": "http://localhost:1/v1", "model": "m"}
    assert isinstance(UserEnv(**address).user, ModelUser)
    assert UserEnv(**address).user is UserEnv(**address).user  # and so are its connections
    cached = UserEnv(**address, cache=tmp_path / "user.jsonl").user
    assert isinstance(cached, CachedUser)
    assert cached.model == "m"
    with pytest.raises(AgentGymError, match="url= and model= together"):
        UserEnv(url="http://localhost:1/v1")
    with pytest.raises(AgentGymError, match="no user="):
        UserEnv(ScriptedUser(), url="http://localhost:1/v1", model="m")


# Quality and blame.


def dialogue(*words: str) -> list[Line]:
    """The agent and the user by turns, after the user's first words."""
    return [Line("user", "My phone has no connection."), *(Line("user" if i % 2 else "agent", text) for i, text in enumerate(words))]


def judged(*words: str, met: bool = False) -> Faults:
    return faults("You want a connection.", KNOWN, dialogue(*words), met)


def test_a_fact_that_was_asked_for_and_never_given_is_withheld() -> None:
    assert judged("What is your name?", "I would rather not say.").withheld == ("name",)
    assert judged("Tell me your name.", "no", "Which plan?", "no").withheld == ("name", "plan")
    assert judged("What is your name?", "Why?", "Your name, please?", "mara").withheld == ()
    assert judged("I know your name.", "Good.").withheld == ()
    assert judged("Which plan?", "Smaller.").withheld == ("plan",)


def test_who_answers_one_request_at_a_time_withholds_nothing() -> None:
    for both in ("Tell me your name and plan", "What do you see, and what is your name?", "Turn data on. Your name?"):
        assert judged(both, "no").withheld == ()
        assert "name" in judged(both, "no", both, "no").withheld
    env = started(phone("stuck"))
    assert say(env, "What is your name, and which plan?") == "Mara."
    assert not env.faults()


def test_a_goodbye_before_the_goal_is_met_is_too_early() -> None:
    assert judged("Wait.", "Goodbye!").stopped_early
    assert not judged("Wait.", "Goodbye!", met=True).stopped_early
    assert not judged("Wait.", "I stand by.").stopped_early


def test_numbers_and_names_from_nowhere_are_invented() -> None:
    assert judged("What is your name?", "I am Mara Lopez, and I have 3.5 GB.").invented == ("3.5", "Lopez")
    assert judged("Do you have 7 GB, Mara?", "Yes, 7. Mara it is.").invented == ()
    assert judged("Hello.", "It shows no SIM. The phone is old.").invented == ()
    assert judged("Hello.", "It says 4.", "Is it 5?", "Yes, 5.").invented == ("4",)


def test_no_scripted_user_has_a_fault_whatever_the_agent_does() -> None:
    trees = play(phone_tasks("validation"), 0.3)
    metrics = [tree.leaves()[0].metrics for tree in trees]
    assert not any(one[name] for one in metrics for name in ("user_withheld", "user_stopped_early", "user_invented", "blame_user"))
    for tree in trees:
        (leaf,) = tree.leaves()
        assert blamed(leaf, total_reward(leaf) == 1.0) == ("" if total_reward(leaf) == 1.0 else "agent")


@pytest.mark.parametrize(
    ("said", "metric"),
    [("I will not tell. Ask my cat.", "user_withheld"), ("Goodbye.", "user_stopped_early"), ("I am Mara, and I pay 99.", "user_invented")],
)
def test_a_users_fault_in_a_failed_episode_is_the_users(said: str, metric: str) -> None:
    env, _ = modelled(said)
    _, value, terminated, _, info = env.step(call("say", text="What is your name?"))
    if not terminated:
        _, value, _, _, info = env.step(call("done"))
    metrics = info["metrics"]
    assert (value, metrics[metric], metrics["blame_user"], metrics["blame_agent"]) == (0.0, 1.0, 1.0, 0.0)


def test_a_goodbye_ends_the_episode_and_one_in_time_is_no_fault() -> None:
    env, _ = modelled(OFF, "It works, bye!")
    _, value, terminated, _, info = env.step(call("say", text="Turn airplane mode off."))
    assert (value, terminated, info["metrics"]["user_stopped_early"]) == (1.0, True, 0.0)


def test_blame_goes_by_the_record() -> None:
    guilty = Faults(withheld=("name",))
    assert blame(True, guilty) is None
    assert blame(False, guilty) == "user"
    assert blame(False, Faults()) == "agent"


# The expert.


def test_the_expert_connects_every_phone_and_an_erring_one_some() -> None:
    tasks = phone_tasks("validation")
    found = {mistakes: [total_reward(tree.leaves()[0]) for tree in play(tasks, mistakes)] for mistakes in (0.0, 0.3)}
    assert found[0.0] == [1.0] * len(tasks)
    assert 0.2 < sum(filter(None, found[0.3])) / len(tasks) < 0.6
    assert found[0.3] == [total_reward(tree.leaves()[0]) for tree in play(tasks, 0.3)]


def test_the_expert_goes_on_from_what_another_began() -> None:
    task = phone("airplane", "blocked", persona=FORGETFUL)
    begun = ["What do you see?", "<tool_call>no</tool_call>", call("say", text="Sing."), call("account", name="Nobody")]
    expert = Expert()

    def act(prompt: agentgym.Prompt) -> str:
        done = len(prompt.tree.turns) - 1
        return begun[done] if done < len(begun) else expert.act(prompt, Random(0))

    env = UserEnv()
    env.max_turns = 20
    rollout = Rollout(lambda: env, Groups(1, "agent"), {"agent": Scripted(act)}, None, Lineage.of(0, "go on"))
    (leaf,) = asyncio.run(rollout.run([Start(task)]))[0].leaves()
    assert total_reward(leaf) == 1.0


def test_demonstrations_are_short_and_of_few_phrases() -> None:
    trees = UserEnv().demonstrations(None, 0, 0.3).play(100)
    phrases = {
        one.arguments["text"] for tree in trees for turn in tree.turns for one in parse_action(turn.action).calls if one.name == "say"
    }
    assert len(phrases) == 7
    assert max(len(turn.observation) for tree in trees for turn in tree.turns[1:]) < 60
    assert set(DEVICE_TOOLS) == {"airplane_mode", "mobile_data", "reseat_sim", "restart"}
