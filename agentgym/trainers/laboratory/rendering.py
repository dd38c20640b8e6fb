"""Stored results as text: a line for each claim, a section for each card, one document, and a page of learning curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.report import Curve, Series, Table, before_after, write_report
from agentgym.statistics import Interval
from agentgym.trainers.laboratory.card import ARMS, ArmName, Card, Claim
from agentgym.trainers.laboratory.results import Result, Results, figures, mean, over_tasks
from agentgym.trainers.laboratory.verdict import Verdict, judge, t_interval

OPENING = """# Reproduction

Written by `agentgym reproduce --render` from the stored results. Both arms of a card begin with the same weights, train until they
have spent the same budget, and play the same held-out tasks. [What a verdict means](laboratory.md).

| card | claim | effect, 95% over seeds | accepted | published | seeds | verdict |
|---|---|---|---|---|---|---|
"""
POINTS = 24  # of a training curve


def line(results: Results, claim: Claim) -> str:
    """The verdict on one claim, and what it stands on."""
    word, verdict, why = _outcome(results, claim)
    card = results.card
    sign = "/" if claim.measure == "ratio" else "−"
    what = f"{claim.where} {claim.metric}, {card.method.name} {sign} {card.baseline.name}"
    if verdict is None:
        return f"{word}: {what}: {why}"
    return f"{word}: {what} = {_text(verdict.effect)} over {verdict.effect.n} seeds, accepted {_accepted(claim)}; {why}".rstrip("; ")


def section(results: Results) -> str:
    """One card in Markdown."""
    card, pairs = results.card, results.pairs()
    names = f"**{card.method.name}** against **{card.baseline.name}**"
    parts = [
        f"{names}, {_budget(card)}; {card.tasks} held-out tasks of split `{card.split}`.",
        "\n".join(f"- {line(results, claim)}. Source of the claim: {claim.source}" for claim in card.claims),
    ]
    if pairs:
        parts.append(_curve_table(results))
        parts.append("\n".join(_details(results)))
    if failed := results.failed():
        parts.append("\n".join(f"- failed: {result.arm}, seed {result.seed}: {_one_line(result.error)}" for result in failed))
    return f"## {card.title}\n\n" + "\n\n".join(parts) + "\n"


def write_document(out: Path) -> Path:
    """All cards of a results folder, in a Markdown file beside it."""
    found = [Results.read(path.parent) for path in sorted(out.glob("*/run.json"))]
    if not found:
        raise AgentGymError(f"{out} holds no results: reproduce a card first")
    rows = [_row(results, claim) for results in found for claim in results.card.claims]
    path = out.with_suffix(".md")
    path.write_text(OPENING + "".join(rows) + "\n" + "\n".join(map(section, found)), encoding="utf-8")
    return path


def write_page(results: Results) -> Path:
    """``report.html`` in the card's folder."""
    card, pairs = results.card, results.pairs()
    unit = card.budget.unit.replace("_", " ")
    curves = [Curve(f"{name} in training", unit, _in_training(results, name)) for name in _trained(results)]
    curves += [Curve(f"{name} on {card.split}", unit, _held_out(results, name)) for name in _evaluated(results)]
    rows = [(one.seed, card.arm(one.arm).name, one.spent, one.steps, one.lost, one.error) for one in results.all()]
    tables = [Table("Arms", ("seed", "arm", "spent", "steps", "lost episodes", "error"), rows)]
    if pairs:
        compared = {name: compared for name in _evaluated(results) if (compared := over_tasks(name, pairs))}
        tables.insert(0, before_after(compared, card.baseline.name, card.method.name))
    claims = {f"claim {i}": line(results, claim) for i, claim in enumerate(card.claims, start=1)}
    return write_report(results.store.folder / "report.html", card.title, summary=claims, tables=tables, curves=curves)


def _budget(card: Card) -> str:
    method, baseline = (f"{card.amount(arm):,g}" for arm in ARMS)
    return f"{method} {card.budget.unit} " + ("for each" if method == baseline else f"against {baseline}")


def _outcome(results: Results, claim: Claim) -> tuple[str, Verdict | None, str]:
    """A word, the figures if there are any, and what is to be said beside them."""
    failed, pairs = results.failed(), results.pairs()
    try:
        verdict = judge(claim, figures(claim, pairs)) if pairs else None
    except AgentGymError as error:
        return "failed", None, str(error)
    if failed:  # the other seeds alone would be a choice
        first = failed[0]
        return "failed", verdict, f"{first.arm}, seed {first.seed}: {_one_line(first.error)} ({len(failed)} such arms)"
    if verdict is None:
        return "unfinished", None, "no seed has been played by both arms"
    if verdict.word != "undecided":
        return verdict.word, verdict, ""
    return verdict.word, verdict, f"{_needed(verdict)} would decide"


def _needed(verdict: Verdict) -> str:
    if verdict.effect.n < 2:
        return "two seeds or more"
    return "no number of seeds up to 10,000" if verdict.seeds_to_decide is None else f"about {verdict.seeds_to_decide:,} seeds"


def _row(results: Results, claim: Claim) -> str:
    word, verdict, _ = _outcome(results, claim)
    effect, seeds = (_text(verdict.effect), str(verdict.effect.n)) if verdict else ("–", "0")
    more = f", {_needed(verdict)} would decide" if verdict and word == "undecided" else ""
    published = "–" if claim.published is None else f"{claim.published:g}"
    what = f"{claim.where} {claim.metric}, {claim.measure}"
    cells = (results.card.title, what, effect, _accepted(claim), published, seeds, f"**{word}**{more}")
    return "| " + " | ".join(map(_one_line, cells)) + " |\n"


def _details(results: Results) -> list[str]:
    """What each arm spent and lost, and the differences over tasks, which the verdict over seeds does not see."""
    lines = []
    pairs = results.pairs()
    for arm, of_arm in zip(ARMS, zip(*pairs.values(), strict=True), strict=True):
        spent, steps = _span([result.spent for result in of_arm]), _span([result.steps for result in of_arm])
        lost = sum(result.lost for result in of_arm)
        lines.append(f"- {results.card.arm(arm).name} spent {spent} in {steps} steps; {lost} held-out episodes without a verdict.")
    for name in _evaluated(results):
        if compared := over_tasks(name, pairs):
            difference, p = compared.paired.difference, compared.paired.p_value
            lines.append(
                f"- held-out {name}, difference clustered by task, all seeds together: {_text(difference)} over "
                f"{difference.n} tasks (p = {p:.3g})."
            )
    return lines


def _curve_table(results: Results) -> str:
    """The held-out learning curves: means over seeds at equal shares of the budget."""
    card, name = results.card, _evaluated(results)[0]
    columns = {arm: _by_share(results, arm, name) for arm in ARMS}
    head = f"| budget spent | {name}, {_one_line(card.method.name)} | {name}, {_one_line(card.baseline.name)} |\n|---|---|---|\n"
    rows = []
    for share in range(1, card.looks + 1):
        cells = [f"{mean(columns[arm].get(share, [])):.3f}" for arm in ARMS]
        rows.append(f"| {share / card.looks:.0%} | {' | '.join(cells)} |")
    return head + "\n".join(rows).replace("nan", "–")


def _by_share(results: Results, arm: ArmName, key: str) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for result in _finished(results, arm):
        for look in result.looks:
            if (value := look[key]) is not None:
                found.setdefault(int(look["share"] or 0), []).append(value)
    return found


def _held_out(results: Results, name: str) -> list[Series]:
    series = []
    for arm in ARMS:
        places, values = _by_share(results, arm, "spent"), _by_share(results, arm, name)
        shares = sorted(values)
        series.append(Series(results.card.arm(arm).name, [mean(places[at]) for at in shares], [_drawn(values[at]) for at in shares]))
    return series


def _drawn(values: Sequence[float]) -> Interval:
    """Student's interval over seeds, no wider than values in [0, 1] can lie."""
    interval = t_interval(values)
    if not all(0 <= value <= 1 for value in values):
        return interval
    return Interval(interval.estimate, max(0.0, interval.low), min(1.0, interval.high), interval.n)


def _in_training(results: Results, name: str) -> list[Series]:
    """The mean over seeds at equally spaced places, between which each seed's own steps are joined by lines."""
    series = []
    for arm in ARMS:
        steps = [[(s["spent"], s[name]) for s in result.curve if s[name] is not None] for result in _finished(results, arm)]
        known = [np.array(of_seed, np.float64).T for of_seed in steps if of_seed]
        if known:
            grid = np.linspace(max(spent[0] for spent, _ in known), min(spent[-1] for spent, _ in known), POINTS)
            lines = np.mean([np.interp(grid, spent, values) for spent, values in known], axis=0)
            series.append(Series(results.card.arm(arm).name, grid.tolist(), lines.tolist()))
    return series


def _finished(results: Results, arm: ArmName) -> list[Result]:
    return [result for result in results.all() if result.arm == arm and not result.error]


def _trained(results: Results) -> list[str]:
    return ["reward", *_claimed(results, lambda claim: claim.where == "training" and claim.metric != "reward")]


def _evaluated(results: Results) -> list[str]:
    """Held-out metrics, the claimed ones first."""
    return list(dict.fromkeys([*_claimed(results, lambda claim: claim.where == "held-out"), "success"]))


def _claimed(results: Results, wanted: Callable[[Claim], bool]) -> list[str]:
    return [claim.metric for claim in results.card.claims if wanted(claim)]


def _accepted(claim: Claim) -> str:
    return f"{'above' if claim.direction == 'higher' else 'below'} {claim.accepted:g}"


def _text(interval: Interval) -> str:
    estimate, low, high = (round(x, 3) + 0.0 for x in (interval.estimate, interval.low, interval.high))  # no minus before 0
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return low if low == high else f"{low} to {high}"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
