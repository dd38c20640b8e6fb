"""``agentgym reproduce``."""

from __future__ import annotations

from pathlib import Path

from rich.progress import TaskID

from agentgym.cli import console
from agentgym.cli.training import build, progress
from agentgym.errors import AgentGymError


def run(name: str | None, seeds: int | None, out: Path, render: bool) -> None:
    if name is None and not render:
        raise AgentGymError("name a card to reproduce, or give --render to write the document of those that are")
    if name is not None:
        _reproduce(name, seeds, out)
    if render:
        from agentgym.trainers.laboratory.rendering import write_document

        console.print(f"wrote {write_document(out)}")


def _reproduce(name: str, seeds: int | None, out: Path) -> None:
    from agentgym.trainers.laboratory.card import find_card, read_card
    from agentgym.trainers.laboratory.rendering import section, write_page
    from agentgym.trainers.laboratory.results import Result
    from agentgym.trainers.laboratory.run import reproduce

    path = find_card(name)
    card = read_card(path, seeds)
    lines: dict[tuple[int, str], TaskID] = {}
    with progress("{task.description}") as bar:

        def heard(result: Result) -> None:
            arm, amount = (result.seed, result.arm), card.amount(result.arm)
            if arm not in lines:
                lines[arm] = bar.add_task(f"seed {result.seed}, {card.arm(result.arm).name}", total=amount, shown="")
            success = f"  held-out {result.looks[-1]['success']:.3f}" if result.looks else ""
            shown = f"{result.spent:,.0f} {card.budget.unit}  reward {result.curve[-1]['reward']:.2f}{success}"
            bar.update(lines[arm], completed=min(result.spent, amount), shown=shown)
            if not bar.console.is_terminal and result.spent >= amount:
                bar.console.print(f"seed {result.seed}, {card.arm(result.arm).name}: {shown}")

        results = reproduce(card, out / path.stem, build, heard)
    console.print(section(results), markup=False, highlight=False, soft_wrap=True)
    console.print(f"wrote {write_page(results)}")
