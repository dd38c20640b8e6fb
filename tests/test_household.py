"""Households of text: ALFWorld's games line by line, homes of our own, states that recur, and an expert that can err."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from hypothesis import given, settings
from hypothesis import strategies as st

import agentgym
from agentgym import AgentGymError, Lineage, Outcome, Rollout, Start, Task, TurnTree, call, evaluate
from agentgym.envs.household import Household
from agentgym.envs.household.expert import Expert, Memory, next_step
from agentgym.envs.household.games import OfficialGame, entity_names, read_games
from agentgym.envs.household.homes import LIGHT, PLACE, SIZES, TYPES, Home, game_of, home_tasks, split_of
from agentgym.envs.household.pddl import Atom, Formula, formula, is_a, parse_domain, parse_problem, solutions
from agentgym.envs.household.texts import NOTHING_HAPPENS, play
from agentgym.envs.household.world import Game, Scene
from agentgym.expand import Groups
from agentgym.policies.scripted import Scripted
from agentgym.turn import total_reward

ALFWORLD = Path(__file__).parents[2] / "shared" / "data" / "alfworld"
GAMES = 66
official = pytest.mark.skipif(not ALFWORLD.is_dir(), reason=f"ALFWorld's games are not at {ALFWORLD}")


def do(env: agentgym.AgentEnv, command: str) -> str:
    return str(env.step(call("do", command=command))[0])


def started(task: Task) -> Household:
    env = Household()
    env.reset(seed=0, options={"task": task})
    return env


def home(type: str = PLACE, thing: str = "Mug", target: str = "Shelf", **things: str) -> Task:
    """A kitchen of one's own: ``things`` says where each lies, with _ for a space."""
    receptacles = ("Cabinet 1", "Fridge 1", "Microwave 1", "Shelf 1", "Sinkbasin 1", "Table 1")
    lie = tuple((name.replace("_", " "), place) for name, place in things.items())
    data = {"type": type, "object": thing, "target": target, "receptacles": receptacles, "things": lie}
    around = ", ".join(f"a {name}" for name in receptacles[:-1]) + f", and a {receptacles[-1]}"
    opening = f"You are in the middle of a room. Looking quickly around you, you see {around}.\nYour task is to: win."
    return Task("kitchen", opening, data=data)


def expert_play(tasks: Iterable[Task], mistakes: float, games: Path | None = None, seed: int = 0) -> list[TurnTree]:
    rollout = Rollout(lambda: Household(games), Groups(1, "expert"), {"expert": Expert(seed, mistakes)}, None, Lineage.of(0, "test"))
    return asyncio.run(rollout.run([Start(task) for task in tasks]))


def returns(trees: Iterable[TurnTree]) -> list[float | None]:
    return [total_reward(leaf) for tree in trees for leaf in tree.leaves()]


# ALFWorld's games.


def official_games() -> list[OfficialGame]:
    return read_games(ALFWORLD)["valid_unseen"]


@official
def test_every_opening_is_that_of_the_official_engine() -> None:
    with gzip.open(ALFWORLD / "valid_unseen.jsonl.gz") as lines:
        recorded = {row["id"]: row["initial_observation"] for row in map(json.loads, lines)}
    assert {task.id: task.prompt for task in Household(ALFWORLD).tasks("valid_unseen")} == recorded
    assert len(recorded) == GAMES


@official
def test_every_line_of_every_official_transcript_is_answered_alike_and_ends_at_the_goal() -> None:
    matched = 0
    for official_game in official_games():
        game, world = official_game.game, official_game.game.start
        for command, recorded in official_game.transcript:
            assert not game.done(world), official_game.row.id
            world, answer = play(game, world, command)
            if command.startswith("go to "):  # the transcripts leave the first sentence out
                arrival, _, answer = answer.partition(". ")
                assert arrival == f"You arrive at {command.removeprefix('go to ')}"
            assert answer == recorded, (official_game.row.id, command)
        assert game.done(world), official_game.row.id
        matched += 1
    assert matched == GAMES


@official
def test_gymnasium_makes_the_official_games_and_their_transcripts_earn_full_reward_within_50_steps() -> None:
    env = gymnasium.make("agentgym/Household-v0", data=str(ALFWORLD), disable_env_checker=True).unwrapped
    assert isinstance(env, Household)
    assert (env.splits, env.max_turns) == (("valid_unseen",), 50)
    for task in env.tasks("valid_unseen"):
        env.reset(seed=0, options={"task": task})
        *earlier, last = [env.step(action) for action in env.gold(task)]
        assert [float(reward) for _, reward, *_ in earlier] == [0.0] * len(earlier)
        assert last[1:4] == (1.0, True, False)
        assert last[4]["metrics"] == {f"success/{task.data['type']}": 1.0}


@official
def test_the_expert_solves_every_official_game_by_reading_alone() -> None:
    tasks = Household(ALFWORLD).tasks("valid_unseen")
    trees = expert_play(tasks, mistakes=0.0, games=ALFWORLD)
    assert returns(trees) == [1.0] * GAMES
    assert Counter(task.data["type"] for task in tasks).keys() == set(TYPES)


@official
def test_an_official_game_is_forked_and_recurs() -> None:
    env = Household(ALFWORLD)
    env.reset(seed=0, options={"task": env.tasks("valid_unseen")[0].id})
    do(env, "go to armchair 1")
    key, snapshot = env.key(), env.snapshot()
    do(env, "take pillow 1 from armchair 1")
    assert env.key() != key
    do(env, "put pillow 1 in/on armchair 1")
    assert env.key() == key
    other = Household(ALFWORLD)
    other.restore(snapshot)
    assert do(other, "take pillow 1 from armchair 1") == "You pick up the pillow 1 from the armchair 1."
    assert (other.key() == key, env.key() == key) == (False, True)


def test_entities_are_numbered_downwards_in_the_order_of_their_ids() -> None:
    ids = ("mug_bar_2", "mug_bar_1", "sink_bar_1_bar_sinkbasin", "sink_bar_1", "loc_bar_1", "mugtype")
    kinds = ("object", "object", "receptacle", "object", "location", "otype")
    names = entity_names(dict(zip(ids, kinds, strict=True)))
    assert names == {"mug_bar_1": "mug 2", "mug_bar_2": "mug 1", "sink_bar_1": "sink 1", "sink_bar_1_bar_sinkbasin": "sinkbasin 1"}


def test_a_bad_folder_or_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentGymError, match="holds no games"):
        Household(tmp_path)
    games = tmp_path / "dev.jsonl"
    games.write_text('{"id": "a", "task_type": "x"}\n')
    with pytest.raises(AgentGymError, match=r"dev\.jsonl, line 1: goal: Field required"):
        Household(tmp_path)
    games.write_text("{\n")
    with pytest.raises(AgentGymError, match=r"dev\.jsonl, line 1: not JSON"):
        Household(tmp_path)
    row = {"id": "a", "task_type": "x", "goal": "g", "domain": "d", "pddl_problem": "", "pddl_params": {"object_target": "Mug"}}
    games.write_text(json.dumps(row))
    env = Household(str(tmp_path))
    with pytest.raises(AgentGymError, match="no game 'kitchen'"):
        env.reset(options={"task": home()})
    with pytest.raises(AgentGymError, match=r"d\.pddl is missing|common_lines\.json is missing"):
        env.tasks("dev")


# The engine.


def test_commands_answer_in_the_words_of_the_grammar() -> None:
    env = started(home("pick_clean_then_place_in_recep", Mug_1="Table 1", Egg_1="Cabinet 1"))
    said = {
        "inventory": "You are not carrying anything.",
        "go to Cabinet 1": "You arrive at Cabinet 1. The Cabinet 1 is closed.",
        "examine Egg 1": NOTHING_HAPPENS,
        "open Cabinet 1": "You open the Cabinet 1. The Cabinet 1 is open. In it, you see a Egg 1.",
        "examine Egg 1 ": "There's nothing special about Egg 1.",
        "take Egg 1 from Cabinet 1": "You pick up the Egg 1 from the Cabinet 1.",
        "close Cabinet 1": "You close the Cabinet 1.",
        "put Egg 1 in/on Cabinet 1": NOTHING_HAPPENS,
        "go to Microwave 1": "You arrive at Microwave 1. The Microwave 1 is closed.",
        "heat Egg 1 with Microwave 1": "You heat the Egg 1 using the Microwave 1.",
        "examine Egg 1  ": "This is a hot Egg 1.",
        "go to Fridge 1": "You arrive at Fridge 1. The Fridge 1 is closed.",
        "cool Egg 1 with Fridge 1": "You cool the Egg 1 using the Fridge 1.",
        "look": "You are facing the Fridge 1. Next to it, you see nothing.",
        "examine Egg 1   ": "This is a cold Egg 1.",
        "inventory ": "You are carrying: a Egg 1.",
    }
    assert {command: do(env, command) for command in said} == said


def test_an_impossible_command_changes_nothing_and_is_the_policys_fault() -> None:
    env = started(home(Mug_1="Table 1"))
    key = env.key()
    for command in ("take Mug 1 from Table 1", "open Shelf 1", "go to Mug 1", "go to Shelf 9", "dance", ""):
        answer, reward, _, _, info = env.step(call("do", command=command))
        assert (answer, reward, info["outcome"]) == (NOTHING_HAPPENS, 0.0, Outcome.TOOL_ERROR)
    assert env.key() == key
    assert do(env, "go to Table 1") != NOTHING_HAPPENS


def test_a_clean_mug_must_be_clean_and_in_its_place() -> None:
    env = started(home("pick_clean_then_place_in_recep", Mug_1="Table 1"))
    do(env, "go to Table 1")
    do(env, "take Mug 1 from Table 1")
    do(env, "go to Shelf 1")
    _, reward, terminated, _, _ = env.step(call("do", command="put Mug 1 in/on Shelf 1"))
    assert (reward, terminated) == (0.0, False)
    for command in ("take Mug 1 from Shelf 1", "go to Sinkbasin 1", "clean Mug 1 with Sinkbasin 1", "go to Shelf 1"):
        do(env, command)
    assert env.step(call("do", command="put Mug 1 in/on Shelf 1"))[1:4] == (1.0, True, False)


def test_the_lamp_counts_only_with_the_thing_in_hand_beside_it() -> None:
    env = started(home(LIGHT, "Book", "Desklamp", Book_1="Table 1", Desklamp_1="Shelf 1"))
    do(env, "go to Shelf 1")
    assert env.step(call("do", command="use Desklamp 1"))[:2] == ("You turn on the Desklamp 1.", 0.0)
    assert do(env, "take Desklamp 1 from Shelf 1") == NOTHING_HAPPENS
    do(env, "go to Table 1")
    do(env, "take Book 1 from Table 1")
    assert env.score() == 0.0
    assert env.step(call("do", command="go to Shelf 1"))[1:3] == (1.0, True)


def test_a_turn_of_many_commands_cannot_outrun_the_limit() -> None:
    env = started(home(Mug_1="Table 1"))
    look = call("do", command="look")
    *_, truncated, info = env.step(look * 21)
    assert (truncated, env.calls, len(info["messages"])) == (True, 20, 21)
    assert "limit of 20" in info["messages"][-1]["content"]


def test_two_things_must_be_in_the_same_receptacle() -> None:
    data = {"type": TYPES[1], "object": "Pen", "target": "Shelf", "receptacles": ["Shelf 1", "Shelf 2"]}
    apart = game_of(Home.of(data | {"things": [["Pen 1", "Shelf 1"], ["Pen 2", "Shelf 2"]]}))
    together = game_of(Home.of(data | {"things": [["Pen 1", "Shelf 2"], ["Pen 2", "Shelf 2"]]}))
    assert (apart.done(apart.start), together.done(together.start)) == (False, True)


ACTIONS = parse_domain(
    """(define (domain lights) (:action press :parameters (?a - agent ?s - object)  ; a comment
    :precondition (and (near ?a ?s) (forall (?o - object) (or (= ?o ?s) (not (locked ?o)))))
    :effect (and (pressed ?s) (when (on ?s) (not (on ?s))) (when (not (on ?s)) (on ?s)) (increase (total-cost) 1))))"""
)


def test_pddl_conditional_effects_look_at_the_state_before() -> None:
    parsed = parse_problem(
        "(define (problem p) (:objects me - agent s1 s2 - object) (:init (near me s1) (on s1) (= (total-cost) 0)) (:goal (on s2)))"
    )
    game = Game({"ToggleObject": ACTIONS["press"]}, parsed, {"s1": "s1", "s2": "s2"})
    scene = Scene(game, game.start)
    action, start = ACTIONS["press"], {"?a": "me", "?s": "s1"}
    assert list(solutions(action.condition, {}, scene)) == [start]
    after = game._after(game.start, action, start, scene)
    assert ("on", "s1") not in Scene(game, after)
    again = game._after(after, action, start, Scene(game, after))
    assert again == game.start


@pytest.mark.parametrize(
    ("text", "problem"),
    [("(define (domain d) (:action", "leaves 2 parentheses open"), ("(define))", "is not open"), ("(domain d)", "begin with"),
     ("(define (domain d) (:derived (on ?x) (off ?x)))", "derived")],
)  # fmt: skip
def test_pddl_that_cannot_be_read_is_refused(text: str, problem: str) -> None:
    with pytest.raises(AgentGymError, match=problem):
        parse_domain(text)


class Truth:
    def __init__(self, atoms: Iterable[Atom]) -> None:
        self.atoms = set(atoms)

    def __contains__(self, atom: Atom) -> bool:
        return atom in self.atoms

    def matching(self, atom: Atom) -> list[Atom]:
        alike = [one for one in self.atoms if len(one) == len(atom)]
        return [one for one in alike if all(asked in (word, "?x", "?y") for word, asked in zip(one, atom, strict=True))]


def true(sentence: Formula, binding: dict[str, str], truth: Truth) -> bool:
    """The textbook's definition: every value tried for every variable."""
    if sentence.operator == "and":
        return all(true(part, binding, truth) for part in sentence.parts)
    if sentence.operator == "or":
        return any(true(part, binding, truth) for part in sentence.parts)
    if sentence.operator == "not":
        return not true(sentence.parts[0], binding, truth)
    words = tuple(binding.get(word, word) for word in sentence.atom)
    if sentence.operator == "=":
        return words[1] == words[2]
    if sentence.operator == "exists":
        inner = sorted(sentence.parts[0].free - sentence.free)
        return any(
            true(sentence.parts[0], binding | dict(zip(inner, values, strict=True)), truth)
            for values in itertools.product("abc", repeat=len(inner))
        )
    return words in truth


def sentences() -> st.SearchStrategy[str]:
    words = st.sampled_from(["?x", "?y", "a"])
    atoms = st.one_of(words.map("(p {})".format), st.tuples(words, words).map(lambda two: "(q {} {})".format(*two)))
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(["and", "or"]), inner, inner).map("({0[0]} {0[1]} {0[2]})".format),
            inner.map("(not {})".format),
            inner.map("(exists (?y - thing) {})".format),
            inner.map("(forall (?y - thing) {})".format),
        ),
        max_leaves=5,
    )


@given(sentences(), st.sets(st.sampled_from(["p a", "p b", "p c", "q a a", "q a b", "q b c", "q c a", "q c c"])))
@settings(max_examples=200, deadline=None)
def test_solutions_are_all_the_bindings_that_make_a_formula_true(text: str, facts: set[str]) -> None:
    types = [is_a("thing", name) for name in "abc"]
    truth = Truth([*(tuple(fact.split()) for fact in facts), *types])
    whole = formula(f"(and (= ?x ?x) (= ?y ?y) {text})")
    typed = formula(f"(and {text})")
    for values in itertools.product("abc", repeat=2):
        binding = dict(zip(("?x", "?y"), values, strict=True))
        assert (next(solutions(whole, binding, truth), None) is not None) == true(typed, binding, truth)


def random_play(task: Task, draws: list[int]) -> tuple[Household, list[str]]:
    env, played = started(task), list[str]()
    for draw in draws:
        commands = env.commands()
        played.append(commands[draw % len(commands)])
        if env.step(call("do", command=played[-1]))[2]:
            break
    return env, played


@given(st.integers(0, 199), st.lists(st.integers(0, 10**6), max_size=12))
@settings(max_examples=40, deadline=None)
def test_the_commands_that_are_listed_are_exactly_the_possible_ones(number: int, draws: list[int]) -> None:
    env, _ = random_play(home_tasks("validation")[number], draws)
    game = game_of(Home.of(env.task.data))
    names = sorted(game.ids)
    shapes = ("go to {}", "open {}", "close {}", "use {}", "examine {}", "take {} from {}", "put {} in/on {}", "heat {} with {}")
    tried = {shape.format(*pair) for shape in shapes for pair in itertools.product(names, names)} | {"look", "inventory"}
    possible = {command for command in tried if play(game, env.state, command)[1] != NOTHING_HAPPENS}
    assert possible == {command for command in env.commands() if command.split()[0] not in ("clean", "cool")}


@given(st.integers(0, 199), st.lists(st.integers(0, 10**6), max_size=12))
@settings(max_examples=40, deadline=None)
def test_the_hash_of_a_state_is_that_of_its_facts_alone(number: int, draws: list[int]) -> None:
    env, _ = random_play(home_tasks("validation")[number], draws)
    game = game_of(Home.of(env.task.data))
    empty = game.start.changed([], [atom for atoms in game.start.facts.values() for atom in atoms])
    assert empty.mark == 0
    assert empty.changed([atom for atoms in env.state.facts.values() for atom in atoms], []).mark == env.state.mark


# Homes of our own.


def test_states_recur_with_equal_keys_whatever_way_led_there() -> None:
    env = started(home(Mug_1="Table 1", Egg_1="Cabinet 1"))
    do(env, "go to Cabinet 1")
    at_cabinet = env.key()
    do(env, "open Cabinet 1")
    do(env, "look")
    opened = env.key()
    do(env, "close Cabinet 1")
    assert env.key() == at_cabinet != opened
    do(env, "go to Table 1")
    do(env, "go to Cabinet 1")
    assert env.key() == at_cabinet
    other = started(home(Mug_1="Table 1", Egg_1="Shelf 1"))
    do(other, "go to Cabinet 1")
    assert other.key() != at_cabinet


def test_equal_keys_in_a_group_of_erring_episodes_are_common() -> None:
    tasks = home_tasks("train")[:8]
    rollout = Rollout(Household, Groups(4, "expert"), {"expert": Expert(0, 0.3)}, None, Lineage.of(0, "groups"))
    trees = asyncio.run(rollout.run([Start(task) for task in tasks]))
    sizes = [count for tree in trees for count in Counter(turn.key for turn in tree.turns[1:]).values()]
    assert sum(count for count in sizes if count > 1) > 0.6 * sum(sizes)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_gold_actions_solve_every_home_in_time(split: str) -> None:
    for task in home_tasks(split):
        env = started(task)
        rewards = [float(env.step(action)[1]) for action in env.gold(task)]
        assert rewards == [0.0] * (len(rewards) - 1) + [1.0], task


def test_no_pair_of_an_object_and_its_target_is_in_two_splits() -> None:
    pairs = {split: {(task.data["object"], task.data["target"]) for task in home_tasks(split)} for split in SIZES}
    assert all(split_of(*pair) == split for split, found in pairs.items() for pair in found)
    assert all(not pairs[one] & pairs[other] for one, other in itertools.combinations(SIZES, 2))
    kinds = [{kind for pair in pairs[split] for kind in pair} for split in SIZES]
    assert kinds[0] >= kinds[1] | kinds[2]  # every word of a test was met in training


def test_types_are_equally_many_and_no_task_is_there_twice() -> None:
    for split, size in SIZES.items():
        tasks = home_tasks(split)
        counts = Counter(task.data["type"] for task in tasks)
        assert counts.keys() == set(TYPES)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len({task.id for task in tasks}) == len(tasks) == size
        assert len({Home.of(task.data) for task in tasks}) >= 0.99 * size
    assert Household().tasks("nowhere") == ()


def test_no_home_begins_solved_and_its_data_survive_json() -> None:
    for task in home_tasks("train")[::10]:
        read = Home.of(json.loads(json.dumps(task.data)))
        game = game_of(read)
        assert not game.done(game.start)
        assert read == Home.of(task.data)


@pytest.mark.long
def test_the_contract_holds() -> None:
    agentgym.check_env("agentgym/Household-v0").raise_if_broken()


def test_gymnasiums_own_check_passes() -> None:
    gymnasium_check(gymnasium.make("agentgym/Household-v0", disable_env_checker=True).unwrapped, skip_render_check=True)


# The expert.


def test_an_erring_expert_is_weaker_and_equal_seeds_err_alike() -> None:
    tasks = home_tasks("validation")[:60]
    perfect, erring, again, other = (
        returns(expert_play(tasks, mistakes, seed=seed)) for mistakes, seed in ((0.0, 0), (0.5, 0), (0.5, 0), (0.5, 1))
    )
    assert perfect == [1.0] * 60
    assert 10 <= sum(filter(None, erring)) <= 45
    assert erring == again != other


def test_the_experts_mistakes_are_possible_commands() -> None:
    trees = expert_play(home_tasks("validation")[:30], 0.5)
    assert {turn.outcome for tree in trees for turn in tree.turns} == {Outcome.OK}


def test_the_expert_goes_on_from_what_another_began() -> None:
    task = home("pick_heat_then_place_in_recep", Mug_1="Table 1", Egg_1="Cabinet 1")
    env, memory = started(task), Memory.of(task.prompt)
    for command in ("go to Cabinet 1", "open Cabinet 1", "take Egg 1 from Cabinet 1", "go to Table 1", "dance"):
        memory.read(command, do(env, command))
    assert (memory.holding, memory.here, memory.contents["Cabinet 1"]) == ("Egg 1", "Table 1", [])
    steps: list[str] = []
    while env.ended is None:
        steps.append(next_step(task.data, memory).command)
        memory.read(steps[-1], do(env, steps[-1]))
    assert env.score() == 1.0
    assert steps[:2] == ["put Egg 1 in/on Table 1", "take Mug 1 from Table 1"]


def test_metrics_by_type_average_over_the_tasks_of_that_type() -> None:
    gold = Household()

    def act(prompt: agentgym.Prompt) -> str:
        task = prompt.tree.task
        return gold.gold(task)[len(prompt.tree.turns) - 1] if task.data["type"] == PLACE else call("do", command="look")

    result, _ = asyncio.run(evaluate(Household, Scripted(act), home_tasks("validation")[:12]))
    assert {name: interval.estimate for name, interval in result.metrics.items()} == {
        f"success/{type}": float(type == PLACE) for type in TYPES
    }


# Warm start.


def test_a_warm_start_on_households_writes_a_policy_that_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from agentgym.cli.policies import find_policy

    warmstart = import_module("agentgym.cli.warmstart")  # the package holds the command of that name
    monkeypatch.setattr(warmstart, "FOR_TOKENIZER", 40)
    monkeypatch.setattr(warmstart, "POOL", 8)
    warmstart.run("agentgym/Household-v0", tmp_path, seed=0, steps=2, mistakes=0.3)
    assert "--env agentgym/Household-v0" in json.loads((tmp_path / "warmstart.json").read_text())["command"]
    policy, chat = find_policy(str(tmp_path), Household)
    assert chat is not None
    assert max(tree.leaves()[0].length for tree in Household().demonstrations(chat, 1, 0.3).play(16)) <= 1024
    result, _ = asyncio.run(evaluate(Household, policy, home_tasks("validation")[:2], chat=chat, limits=agentgym.Limits(tokens=256)))
    assert result.lost == 0


def test_a_warm_start_needs_demonstrations(tmp_path: Path) -> None:
    warmstart = import_module("agentgym.cli.warmstart")
    with pytest.raises(AgentGymError, match=r"broken_envs:.* has no demonstrations"):
        warmstart.run("broken_envs:Good", tmp_path, seed=0, steps=1, mistakes=0.3)
    with pytest.raises(AgentGymError, match="--mistakes is 2"):
        warmstart.run("agentgym/Household-v0", tmp_path, seed=0, steps=1, mistakes=2.0)
