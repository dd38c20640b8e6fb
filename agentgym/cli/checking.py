"""``agentgym check``."""

from __future__ import annotations

from agentgym.cli import console
from agentgym.envs.check import check_env


def run(env: str) -> bool:
    report = check_env(env)
    for name in report.passed:
        console.print(f"[green]passed[/green]   {name}")
    for name, why in report.skipped:
        console.print(f"[yellow]skipped[/yellow]  {name}: {why}", highlight=False)
    for problem in report.problems:
        console.print(f"[red]broken[/red]   {problem.check}: {problem.message}", highlight=False, markup=True)
    return report.ok
