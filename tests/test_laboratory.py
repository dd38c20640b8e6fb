"""The laboratory: what a card may say, how both arms are played, and what is said of them."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
import resumable_run
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agentgym import Limits
from agentgym.cli import reproducing
from agentgym.cli.training import build as build_as_the_command_line
from agentgym.errors import AgentGymError
from agentgym.policies.sync import SharedWeights
from agentgym.policies.tiny import TinyTokenizer, new_model, tiny_chat
from agentgym.policies.transformers import TransformersPolicy
from agentgym.store import RunStore
from agentgym.trainers.laboratory.card import SHIPPED, Card, Claim, find_card, read_card
from agentgym.trainers.laboratory.rendering import line, section, write_document, write_page
from agentgym.trainers.laboratory.results import Result, Results, figures, over_tasks
from agentgym.trainers.laboratory.run import reproduce
from agentgym.trainers.laboratory.verdict import judge, seeds_to_decide
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.loop import train
from agentgym.trainers.recipe import Recipe
from agentgym.trainers.training import Training

GROUPS = "agentgym.expand:Groups"
CARD = {
    "title": "Four against two",
    "common": {"env": {"id": "any"}, "batch": 2},
    "method": {"name": "fours", "expander": {"class": GROUPS, "size": 4}},
    "baseline": {"name": "twos", "expander": {"class": GROUPS, "size": 2}, "batch": 4},
    "budget": {"unit": "rollout_turns", "amount": 30},
    "claims": [{"metric": "reward", "accepted": 0.0, "source": "none"}],
    "seeds": 2,
    "tasks": 3,
    "looks": 2,
}


def a_card(**changes: object) -> Card:
    return Card.model_validate({**CARD, **changes})


def a_claim(**fields: object) -> Claim:
    return Claim.model_validate({"accepted": 0.0, "source": "", **fields})


class Letters(resumable_run.Letters):
    splits = ("train", "validation")


@cache
def tokenizer() -> TinyTokenizer:
    return TinyTokenizer.train(["Write etaoin. More!", "user assistant system"] * 3)


def build(recipe: Recipe, env: type[Letters] = Letters, weights: int = 0) -> Training:
    model = new_model(len(tokenizer()), seed=weights)
    policy = TransformersPolicy(model, tiny_chat(tokenizer()))
    return Training(
        make_env=env,
        actor=policy,
        chat=policy.chat,
        source=recipe.source.build(tasks=env().tasks("train"), seed=recipe.seed),
        expander=recipe.expander.build(),
        credit=recipe.credit.build(),
        objective=recipe.objective.build(),
        learner=TorchLearner(model, 1e-3),
        sync=SharedWeights(policy),
        limits=Limits(tokens=200, turn_tokens=8),
        batch=recipe.batch,
        seed=recipe.seed,
    )


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*-*.json"))}


# The verdict. Worked by hand: differences .02 .05 .03 .06 .04 have mean .04, s = sqrt(.001 / 4), and t(.975, 4) = 2.7764.

PAIRS = [(0.52, 0.50), (0.55, 0.50), (0.43, 0.40), (0.56, 0.50), (0.44, 0.40)]


@pytest.mark.parametrize(
    ("accepted", "direction", "word"),
    [
        (0.0, "higher", "supported"),
        (0.0203, "higher", "supported"),
        (0.0204, "higher", "undecided"),
        (0.0596, "higher", "undecided"),
        (0.0597, "higher", "not supported"),
        (0.0, "lower", "not supported"),
        (0.04, "lower", "undecided"),
        (0.06, "lower", "supported"),
    ],
)
def test_a_verdict_is_where_the_whole_interval_lies(accepted: float, direction: str, word: str):
    verdict = judge(a_claim(accepted=accepted, direction=direction), PAIRS)
    assert verdict.word == word
    assert verdict.effect.estimate == pytest.approx(0.04)
    assert (verdict.effect.low, verdict.effect.high) == pytest.approx((0.0203676, 0.0596324), abs=1e-7)
    assert verdict.effect.n == 5


def test_a_ratio_is_judged_by_its_logarithm():
    # Ratios 2, 3, 4.5: the logarithms have mean ln 3 and s = ln 1.5, and t(.975, 2) = 4.302653.
    pairs = [(2.0, 1.0), (0.3, 0.1), (9.0, 2.0)]
    half = 4.302653 * math.log(1.5) / math.sqrt(3)
    verdict = judge(a_claim(measure="ratio", accepted=1.05), pairs)
    assert verdict.word == "supported"
    assert verdict.effect.estimate == pytest.approx(3.0)
    assert (verdict.effect.low, verdict.effect.high) == pytest.approx((3 * math.exp(-half), 3 * math.exp(half)), rel=1e-6)
    assert judge(a_claim(measure="ratio", accepted=1.1), pairs).word == "undecided"
    assert judge(a_claim(measure="ratio", accepted=8.3), pairs).word == "not supported"


def test_seeds_that_would_decide():
    differences = [method - baseline for method, baseline in PAIRS]
    # 21 seeds: (2.0860 + 0.8600) * .0158114 / sqrt(21) = .01016 > .01; 22: (2.0796 + 0.8591) * .0158114 / sqrt(22) = .00991.
    assert seeds_to_decide(differences, 0.03) == 22
    assert seeds_to_decide(differences, 0.05) == 22
    assert seeds_to_decide(differences, 0.04) is None
    assert seeds_to_decide([0.1], 0.0) is None
    assert seeds_to_decide([0.1, 0.1], 0.0) == 2


def test_one_seed_and_equal_arms_decide_nothing():
    assert judge(a_claim(), [(1.0, 0.0)]).word == "undecided"
    assert judge(a_claim(measure="ratio", accepted=1.0), [(0.3, 0.1)]).word == "undecided"
    assert judge(a_claim(), [(0.5, 0.5)] * 5).word == "undecided"
    for method, baseline in [(0.1, 0.3), (0.9, 0.1)]:  # exactly the accepted ratio, but for the rounding of logarithms
        assert judge(a_claim(measure="ratio", accepted=method / baseline), [(method, baseline)] * 5).word == "undecided"


def test_what_cannot_be_judged_is_an_error_and_no_zero():
    with pytest.raises(AgentGymError, match="above 0"):
        judge(a_claim(measure="ratio", accepted=1.0), [(0.5, 0.0), (0.5, 0.1)])
    with pytest.raises(AgentGymError, match="finite"):
        judge(a_claim(), [(0.5, math.nan), (0.5, 0.1)])
    with pytest.raises(AgentGymError, match="no seed"):
        judge(a_claim(), [])


figure = st.floats(0.01, 1.0)


@given(st.lists(st.tuples(figure, figure), min_size=1, max_size=8), st.floats(-0.5, 0.5))
def test_turning_a_claim_round_turns_its_verdict_round(pairs: list[tuple[float, float]], accepted: float):
    turned = [(baseline, method) for method, baseline in pairs]
    word = judge(a_claim(accepted=accepted), pairs).word
    assert judge(a_claim(accepted=-accepted, direction="lower"), turned).word == word
    against = {"supported": "not supported", "not supported": "supported", "undecided": "undecided"}
    assert judge(a_claim(accepted=accepted, direction="lower"), pairs).word == against[word]


# Cards.


def written(folder: Path, **changes: object) -> Path:
    path = folder / "a.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in {**CARD, **changes}.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sedes": 3}, r"sedes: there is no such field; fields: title, common, .*seeds"),
        ({"title": None}, "title: it is required"),
        ({"seeds": 1}, "seeds: .*greater than or equal to 2"),
        ({"budget": {"unit": "tokens", "amount": 1}}, "budget.unit: .*sampled_tokens"),
        ({"budget": {"unit": "rollout_turns", "amount": 0}}, "budget.amount: .*greater than 0"),
        ({"claims": []}, "claims: .*at least 1"),
        ({"claims": [{"accepted": 1, "sauce": "x"}]}, "claims.0.sauce: there is no such field; fields: metric, where"),
        ({"claims": [{"accepted": 0, "measure": "ratio", "source": "x"}]}, "claims.0: a ratio is claimed"),
        ({"claims": [{"accepted": 2, "published": 1, "source": "x"}]}, "claims.0: published 1 does not itself reach accepted 2"),
        ({"method": {"name": "m", "creditt": {}}}, "method 'm': creditt: there is no such field"),
        ({"method": {"name": "m", "policy": "other"}}, "method.policy: both arms share it"),
        ({"common": {"env": {"id": "any"}, "steps": 3}}, "common.steps: the laboratory sets it"),
        ({"common": {"env": {"id": "any", "split": "validation"}}}, "it is not held out"),
        ({"common": {}}, "env: it is required"),
    ],
)
def test_a_bad_card_is_told_in_one_sentence(tmp_path: Path, changes: dict[str, object], said: str):
    with pytest.raises(AgentGymError, match=said) as error:
        read_card(written(tmp_path, **changes))
    assert len(str(error.value).splitlines()) == 1
    assert "a.yaml" in str(error.value)


def test_an_unknown_card_names_the_shipped_ones():
    with pytest.raises(AgentGymError, match="grpo-learns"):
        find_card("gpo-learns")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"name": "m", "credit": {"class": "agentgym.trainers.credit.grpo:GRPPO"}}}, "GRPPO.* cannot be loaded"),
        ({"budget": {"unit": "rollout_turns", "amount": 7}}, "7 rollout_turns is smaller than one step of 'fours', which spends"),
        ({"budget": {"unit": "teacher_tokens", "amount": 7}}, "a step of 'fours' spent no teacher_tokens"),
        ({"claims": [{"metric": "wit", "accepted": 0, "source": "x"}]}, "no held-out metric 'wit'; it has reward, success"),
        ({"claims": [{"metric": "wit", "where": "training", "accepted": 0, "source": "x"}]}, "no training metric 'wit'; it has .*reward"),
        ({"tasks": 99}, "has 6 tasks, but the card asks for 99"),
        ({"split": "test"}, "'test' has 0 tasks"),
    ],
)
def test_a_card_that_cannot_be_played_is_refused_at_the_start(tmp_path: Path, changes: dict[str, object], said: str):
    with pytest.raises(AgentGymError, match=said) as error:
        reproduce(a_card(**changes), tmp_path / "a", build)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "a").exists()  # the mended card may take its place


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_cards_can_be_built(path: Path):
    """With the shipped policy in place of those that a card says how to make."""
    card = read_card(find_card(path.stem))
    for arm in ("method", "baseline"):
        recipe = card.recipe(arm, 0)
        models = {name: "tiny" if isinstance(found, str) else found for name, found in recipe.models.items()}
        build_as_the_command_line(recipe.model_copy(update={"policy": "tiny", "models": models}))


# Playing.


@pytest.mark.parametrize("amount", [30, 32])  # a step has 16 turns: four trees of two episodes, or two of four, of two turns
def test_both_arms_begin_alike_and_stop_at_the_first_step_that_reaches_the_budget(tmp_path: Path, amount: int):
    results = reproduce(a_card(budget={"unit": "rollout_turns", "amount": amount}), tmp_path / "a", build).all()
    assert [(result.seed, result.arm) for result in results] == [(0, "method"), (0, "baseline"), (1, "method"), (1, "baseline")]
    assert len({result.start for result in results}) == 1
    for result in results:
        assert [step["spent"] for step in result.curve] == [16, 32]
        assert (result.steps, result.spent) == (2, 32)
        assert [look["share"] for look in result.looks] == [1, 2]
        assert result.looks[-1]["spent"] == result.spent
        assert len(result.tasks["reward"]) == 3
    assert results[0].curve != results[2].curve  # seeds differ


def test_arms_that_begin_differently_are_refused(tmp_path: Path):
    def builds(recipe: Recipe) -> Training:
        return build(recipe, weights=recipe.batch)

    with pytest.raises(AgentGymError, match="do not begin with the same weights"):
        reproduce(a_card(), tmp_path / "a", builds)


@pytest.mark.long
def test_a_killed_reproduction_goes_on_where_it_was(tmp_path: Path):
    whole = reproduce(a_card(), tmp_path / "whole", build)
    steps = 0

    def kill(result: Result) -> None:
        nonlocal steps
        steps += result.seed == 1 and result.arm == "method"
        if steps == 2:
            raise KeyboardInterrupt

    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        reproduce(a_card(), folder, build, kill)
    before = stored(folder)
    assert sorted(before) == ["baseline-0.json", "method-0.json"]
    played = []
    reproduce(a_card(), folder, build, lambda result: played.append((result.seed, result.arm)))
    assert dict.fromkeys(played) == dict.fromkeys([(1, "method"), (1, "baseline")])
    assert stored(folder) == stored(whole.store.folder)
    reproduce(a_card(), folder, build, lambda result: pytest.fail("it was finished"))


def test_an_arm_may_be_given_a_share_of_the_budget(tmp_path: Path):
    method = {"name": "fours", "expander": {"class": GROUPS, "size": 4}, "budget_share": 0.25}
    results = reproduce(a_card(method=method, budget={"unit": "rollout_turns", "amount": 120}), tmp_path / "a", build)
    for method_result, baseline in results.pairs().values():
        assert 30 <= method_result.spent < 30 + 16
        assert 120 <= baseline.spent < 120 + 16
        assert [look["share"] for look in method_result.looks] == [look["share"] for look in baseline.looks] == [1, 2]
    assert "30 rollout_turns against 120" in section(results)
    with pytest.raises(AgentGymError, match=r"the budget of 7\.5 rollout_turns is smaller than one step of 'fours'"):
        reproduce(a_card(method=method), tmp_path / "b", build)
    for share in (0.0, 1.5):
        with pytest.raises(AgentGymError, match=r"method\.budget_share"):
            read_card(written(tmp_path, method={**method, "budget_share": share}))


def test_results_from_before_a_field_had_a_default_may_be_gone_on_with(tmp_path: Path):
    folder = tmp_path / "a"
    before = stored(reproduce(a_card(), folder, build).store.folder)
    about = json.loads((folder / "run.json").read_text())
    del about["config"]["method"]["budget_share"]
    (folder / "run.json").write_text(json.dumps(about))
    assert stored(reproduce(a_card(), folder, build).store.folder) == before


def test_seeds_may_be_added_but_another_card_is_not_mixed_in(tmp_path: Path):
    folder = tmp_path / "a"
    before = stored(reproduce(a_card(), folder, build).store.folder)
    after = stored(reproduce(a_card(seeds=3), folder, build).store.folder)
    assert len(after) == 6
    assert before.items() <= after.items()
    with pytest.raises(AgentGymError, match=r"another version of this card \(other budget\)"):
        reproduce(a_card(budget={"unit": "rollout_turns", "amount": 31}), folder, build)


def test_a_card_that_fails_is_kept_and_shown(tmp_path: Path):
    def builds(recipe: Recipe) -> Training:
        if recipe.seed == 1 and recipe.batch == 4:
            raise RuntimeError("the teacher | went home")
        return build(recipe)

    results = reproduce(a_card(), tmp_path / "out" / "a", builds)
    assert [result.error for result in results.failed()] == ["RuntimeError: the teacher | went home"]
    assert len(results.finished()) == 3
    text = write_document(tmp_path / "out").read_text()
    row = next(row for row in text.splitlines() if row.startswith("| Four against two"))
    assert row.endswith("| 1 | **failed** |")
    assert "the teacher \\| went home" in text
    assert write_page(results).stat().st_size > 10_000
    mended = reproduce(a_card(), tmp_path / "out" / "a", build)
    assert not mended.failed()
    assert "**failed**" not in write_document(tmp_path / "out").read_text()


class Flaky(Letters):
    """The grader of one held-out task is down."""

    def score(self):
        if self.task.answer == "t":
            raise OSError("no answer")
        return super().score()


def test_lost_episodes_are_counted_and_are_no_zeros(tmp_path: Path):
    results = reproduce(a_card(), tmp_path / "a", lambda recipe: build(recipe, Flaky))
    for result in results.all():
        assert result.lost == 1
        assert set(result.tasks["reward"]) == {"e", "a"}
        assert result.looks[-1]["reward"] == pytest.approx(sum(value for (value,) in result.tasks["reward"].values()) / 2)


def test_a_task_that_one_arm_lost_is_left_out_of_both():
    method = Result("method", 0, tasks={"success": {"a": [1.0], "b": [1.0], "c": [0.0]}})
    baseline = Result("baseline", 0, tasks={"success": {"a": [0.0], "c": [0.0]}})
    pairs = {0: (method, baseline)}
    assert figures(a_claim(), pairs) == [(0.5, 0.0)]
    compared = over_tasks("success", pairs)
    assert compared is not None
    assert compared.paired.difference.n == 2
    assert compared.paired.difference.estimate == 0.5
    baseline.tasks = {"success": {}}
    assert over_tasks("success", pairs) is None


def test_a_training_metric_is_averaged_over_steps_that_have_it():
    method = Result("method", 0, curve=[{"m": 1.0}, {"m": None}, {"m": 0.0}])
    baseline = Result("baseline", 0, curve=[{"m": 0.25}])
    assert figures(a_claim(metric="m", where="training"), {0: (method, baseline)}) == [(0.5, 0.25)]


def test_a_line_says_what_is_missing(tmp_path: Path):
    card = a_card(claims=[{"metric": "success", "accepted": 0.03, "source": "x"}])
    results = Results.of(tmp_path / "a", card)
    assert line(results, card.claims[0]).startswith("unfinished")
    for seed, (method, baseline) in enumerate(PAIRS):
        results.write(Result("method", seed, tasks={"success": {"t": [method]}}))
        results.write(Result("baseline", seed, tasks={"success": {"t": [baseline]}}))
    said = line(results, card.claims[0])
    assert said.startswith("undecided: held-out success, fours − twos = 0.040 [0.020, 0.060] over 5 seeds, accepted above 0.03")
    assert said.endswith("about 22 seeds would decide")
    results.write(Result("baseline", 0, start="other", tasks={"success": {"t": [1.0]}}))
    with pytest.raises(AgentGymError, match="seed 0 began with different weights"):
        line(results, card.claims[0])


# The loop.


def test_training_ends_where_done_says_true_and_leaves_a_checkpoint_there(tmp_path: Path):
    store = RunStore.create(tmp_path / "run", {})
    seen = []

    async def done(step: int, metrics: dict[str, float], trees: object) -> bool:
        seen.append(metrics)
        return step == 3

    training = build(a_card().recipe("method", 0))
    asyncio.run(train(training, 9, store, done))
    assert len(seen) == 3
    assert store.resume() == (3, tmp_path / "run" / "checkpoints" / "step-00000003")
    assert all(metrics["rollout_turns"] == metrics["environment_steps"] == 16 for metrics in seen)  # 2 trees x 4 x 2 turns


@pytest.mark.long
def test_a_card_from_the_command_line_with_the_shipped_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = written(
        tmp_path,
        common={"env": {"id": "agentgym/Search-v0"}, "batch": 1},
        baseline={"name": "twos", "expander": {"class": GROUPS, "size": 2}, "batch": 2},
        budget={"unit": "sampled_tokens", "amount": 250},
        claims=[{"accepted": 0.0, "source": "none"}],
        looks=1,
    )
    reproducing.run(str(path), 2, tmp_path / "out", True)
    said = capsys.readouterr().out
    assert re.search(r"(supported|undecided): held-out success, fours − twos = ", said)
    assert "seed 1, twos: " in said
    results = Results.read(tmp_path / "out" / "a")
    assert len(results.finished()) == 4
    assert len({result.start for result in results.all()}) == 1
    page = (tmp_path / "out" / "a" / "report.html").read_text()
    assert "success on validation" in page
    assert "| Four against two | held-out success, difference |" in (tmp_path / "out.md").read_text()
    assert json.loads((tmp_path / "out" / "a" / "method-1.json").read_text())["spent"] >= 250


def test_the_document_is_what_the_stored_results_say(tmp_path):
    documents = Path(__file__).parent.parent / "docs"
    shutil.copytree(documents / "reproduction", tmp_path / "reproduction")
    assert write_document(tmp_path / "reproduction").read_text() == (documents / "reproduction.md").read_text()
