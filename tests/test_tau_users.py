"""Users of tau-bench's tasks: they open, answer and end the conversation, in both domains, and their faults are nobody's reward."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tau_bench import DATA, folder_of, shared, started

from agentgym import AgentGymError, Call, Lineage, Outcome, Rollout, Start, call
from agentgym.envs.airline import Airline
from agentgym.envs.retail import Retail
from agentgym.envs.rows import skipping_bad
from agentgym.envs.tau import TauEnv
from agentgym.envs.tau.users import GREETING, STOP, InstructedUser, ReplayingUser
from agentgym.envs.user.users import User, UserFailure, UserTurn, UserView
from agentgym.expand import Groups
from agentgym.policies.scripted import Scripted
from agentgym.tools.completion import Said, ScriptedCompletion

ADD_A_BAG = call("update_reservation_baggages", reservation_id="R", total_baggages=2, nonfree_baggages=1, payment_id="gift_card_1")
TOLD = call("respond", content="Done, for $50.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path)


def talking(folder: Path, *words: str) -> Airline:
    env = Airline(folder, ReplayingUser(words))
    env.reset(seed=0, options={"split": "test", "task": "a0"})
    return env


def modelled(*answers: Said | str) -> tuple[InstructedUser, ScriptedCompletion]:
    completion = ScriptedCompletion(answers)
    return InstructedUser(completion), completion


def test_the_agent_reads_the_users_words_and_not_its_instruction(folder: Path) -> None:
    env = Airline(folder, ReplayingUser(["Hello."]))
    observation, info = env.reset(options={"task": "a0"})
    assert observation == "Hello."
    assert info["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello."}]
    assert "Una 0" not in str(info)


def test_the_user_ends_the_conversation_and_then_it_is_scored(folder: Path) -> None:
    env = talking(folder, "A bag, please.", "How much?", f"Thanks. {STOP}")
    assert env.step(call("respond", content="Gladly."))[0] == "How much?"
    assert env.step(ADD_A_BAG)[2] is False
    assert env.step(TOLD)[:4] == (f"Thanks. {STOP}", 1.0, True, False)


def test_plain_words_are_said_too(folder: Path) -> None:
    env = talking(folder, "A bag, please.", STOP)
    env.step(ADD_A_BAG)
    assert env.step("Done, for $50.")[:3] == (STOP, 1.0, True)
    alone = started(Airline(folder), env.tasks("test")[0])
    alone.step(ADD_A_BAG)
    assert alone.step("Done, for $50.")[:3] == ("Said.", 0.0, False)
    assert alone.step(call("done"))[:3] == ("Done.", 1.0, True)


def test_words_of_the_greeting_or_of_the_user_are_not_the_agents(folder: Path) -> None:
    env = talking(folder, "A bag, please.", f"That is 50. {STOP}")
    env.step(ADD_A_BAG)
    assert env.step("Done.")[1:3] == (0.0, True)


def test_the_agent_has_no_way_to_end_it_alone_but_a_transfer(folder: Path) -> None:
    env = talking(folder, "Hello.")
    assert {tool.name for tool in Airline(folder).tools} - {tool.name for tool in env.tools} == {"done"}
    assert env.gold(env.task) is None
    assert env.step(call("done"))[2] is False
    assert env.step(call("transfer_to_human_agents", summary="?"))[:3] == ("Transfer successful", 0.0, True)


def test_the_thirtieth_turn_is_the_last_and_may_still_be_the_users_end(folder: Path) -> None:
    for last, ended in (("More?", (0.0, False, True)), (STOP, (1.0, True, False))):
        env = talking(folder, "A bag, please.", *["Well."] * 28, last)
        env.step(ADD_A_BAG)
        assert [env.step("50, then?")[1:4] for _ in range(29)][-1] == ended


def test_a_fork_goes_on_with_the_same_conversation(folder: Path) -> None:
    one, other = talking(folder, "A bag, please.", "How much?", STOP), Airline(folder, ReplayingUser(["", "", STOP]))
    one.step("Gladly.")
    other.restore(one.snapshot())
    assert (other.task.prompt, other.key()) == ("A bag, please.", one.key())
    other.step(ADD_A_BAG)
    assert other.step(TOLD)[:3] == (STOP, 1.0, True)
    assert len(one.state.dialogue) == 3


def test_a_task_that_was_begun_can_be_begun_again(folder: Path) -> None:
    user, completion = modelled("Hello.", "Good day.")
    env = Airline(folder, user)
    env.reset(options={"task": "a0"})
    assert env.reset(options={"task": env.task})[0] == "Good day."
    assert completion.asked[0][0] == completion.asked[1][0]


def test_a_model_is_told_its_goal_and_hears_the_agent_as_its_user(folder: Path) -> None:
    user, completion = modelled("Hello.", "Yes.")
    env = started(Airline(folder, user), Airline(folder).tasks("test")[0])
    env.step("A bag?")
    system, *talk = completion.asked[1]
    assert system["role"] == "system"
    assert "Add a bag to R, Una 0." in system["content"]
    assert STOP in system["content"]
    assert talk == [
        {"role": "user", "content": GREETING},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "A bag?"},
    ]
    assert env.blocking


def test_a_model_that_says_nothing_is_asked_again_three_times_in_all(folder: Path) -> None:
    user, _ = modelled("", Said("x", (Call("pay", {}),)), "Hello.")
    assert started(Airline(folder, user), Airline(folder).tasks("test")[0]).task.prompt == "Hello."
    user, _ = modelled("", " ", Said(problem="no JSON"))
    with pytest.raises(UserFailure, match="was asked 3 times and said nothing"):
        started(Airline(folder, user), Airline(folder).tasks("test")[0])


def test_bad_rows_are_named_and_on_request_left_out(folder: Path) -> None:
    rows = folder / "tasks_dev.jsonl"
    rows.write_text('{"id": "a", "instruction": "Hi.", "actions": []}\n{"id": "b", "instruction": "Hi."}\n\nno JSON\n')
    with pytest.raises(AgentGymError, match=r"tasks_dev\.jsonl, line 2: actions: "):
        Airline(folder)
    with skipping_bad() as skipped:
        assert [task.id for task in Airline(folder).tasks("dev")] == ["a"]
    assert [reason.split(": ")[0] for reason in skipped] == [f"{rows}, line {number}" for number in (2, 4)]


def test_what_a_user_said_is_remembered_in_a_file(folder: Path, tmp_path: Path) -> None:
    for answers in (("Hello.", STOP), ()):
        user, _ = modelled(*answers)
        env = started(Airline(folder, user, cache=tmp_path / "user.jsonl"), Airline(folder).tasks("test")[0])
        assert (env.task.prompt, env.step("Hi.")[0]) == ("Hello.", STOP)


class Silent:
    blocking = False

    def reply(self, view: UserView, rng: Any) -> UserTurn:
        return UserTurn("Hello." if len(view.dialogue) == 1 else "")


class Busy(Silent):
    def reply(self, view: UserView, rng: Any) -> UserTurn:
        return UserTurn("Hello.", () if len(view.dialogue) == 1 else (Call("restart", {}),))


@pytest.mark.parametrize("user", [Silent(), Busy(), ReplayingUser(["Hello."]), ReplayingUser([])])
def test_an_episode_whose_user_fails_has_no_verdict(folder: Path, user: User) -> None:
    actors = {"agent": Scripted(lambda prompt: "Hi.")}
    rollout = Rollout(lambda: Airline(folder, user), Groups(1, "agent"), actors, None, Lineage.of(0, "test"))
    (leaf,) = asyncio.run(rollout.run([Start(Airline(folder).tasks("test")[0])]))[0].leaves()
    assert (leaf.reward, leaf.end, leaf.outcome) == (None, "error", Outcome.INFRASTRUCTURE)
    assert leaf.error.startswith("UserFailure: ")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"url": "http://x"}, "url= and model= together"),
        ({"model": "m"}, "url= and model= together"),
        ({"user": Silent(), "url": "http://x", "model": "m"}, "then no user="),
        ({"cache": "user.jsonl"}, "cache= remembers what a user says"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(folder: Path, arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(AgentGymError, match=why):
        Airline(folder, **arguments)


@shared
@pytest.mark.parametrize("domain", [Airline, Retail])
def test_gold_actions_in_a_conversation_earn_what_they_earn_alone(domain: type[TauEnv]) -> None:
    for task in domain(DATA).tasks("test"):
        actions = domain(DATA).gold(task)
        assert actions is not None
        env = started(domain(DATA, ReplayingUser(["Hello.", "Thanks.", STOP])), task)
        replies = [env.step(action) for action in actions if '"done"' not in action]
        while env.ended is None:
            replies.append(env.step("Anything else?"))
        assert replies[-1][1:3] == (1.0, True), task.id
