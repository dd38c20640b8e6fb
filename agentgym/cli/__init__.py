"""The command line. It alone opens the wings, and only for the command that is asked for."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape

from agentgym.errors import AgentGymError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()

Out = Annotated[Optional[Path], typer.Option(help="The run's folder.")]  # noqa: UP045  (typer reads it at run time)
Ray = Annotated[Optional[str], typer.Option(help="A Ray cluster that holds the environments: auto, local, or HOST:PORT.")]  # noqa: UP045
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The root of every draw.")]


def visible(text: object) -> str:
    """What others wrote, for a terminal: control sequences are shown, not obeyed."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", str(text))


def quoted(text: object) -> str:
    """The same within the markup of a console."""
    return escape(visible(text))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; see docs/training.md.")],
    out: Out = None,
    resume: Annotated[bool, typer.Option(help="Continue from the newest checkpoint.")] = False,
    ray: Ray = None,
) -> None:
    """Train a policy as a recipe says."""
    from agentgym.cli.training import run

    run(recipe, out or Path("runs") / recipe.stem, resume, ray)


@app.command(name="eval")
def eval_(
    env: Annotated[str, typer.Argument(help="A registered id, module:Class, or one of 'agentgym suites'.")],
    policy: Annotated[str, typer.Option(help="tiny, gold, a folder, owner/model, http://HOST/v1, or vllm+http://HOST.")] = "tiny",
    model: Annotated[Optional[str], typer.Option(help="A server's name for its model.")] = None,  # noqa: UP045
    key: Annotated[Optional[str], typer.Option(help="The environment variable that holds a server's key.")] = None,  # noqa: UP045
    data: Annotated[Optional[Path], typer.Option(help="The suite's folder; a folder or file for environments that take one.")] = None,  # noqa: UP045
    arguments: Annotated[list[str], typer.Option("--set", help="NAME=VALUE, an argument of the environment.")] = [],  # noqa: B006
    k: Annotated[int, typer.Option(help="Episodes of each task.")] = 1,
    split: Annotated[Optional[str], typer.Option(help="As it stands: the environment's last.")] = None,  # noqa: UP045
    tasks: Annotated[Optional[int], typer.Option(min=1, help="The first so many tasks only.")] = None,  # noqa: UP045
    shard: Annotated[Optional[str], typer.Option(help="2/5 plays the second of five parts; see 'agentgym merge'.")] = None,  # noqa: UP045
    precision: Annotated[Optional[float], typer.Option(help="Stop once the interval of success is no wider to either side.")] = None,  # noqa: UP045
    temperature: float = 1.0,
    tokens: Annotated[int, typer.Option(help="Of a whole episode, for policies whose tokens we see.")] = 2048,
    turn_tokens: Annotated[Optional[int], typer.Option(help="Of one action. As it stands: 256, of a served model 4096.")] = None,  # noqa: UP045
    seed: Seed = 0,
    skip_bad: Annotated[bool, typer.Option(help="Leave out bad rows of the data, and count them.")] = False,
    price: Annotated[Optional[str], typer.Option(help="US dollars a million tokens read, and written: 2.5,10.")] = None,  # noqa: UP045
    ray: Ray = None,
    out: Out = None,
) -> None:
    """Play k episodes of every task and print pass@k, avg@k and pass^k. Run again with the same --out to resume."""
    from agentgym.cli.evaluating import Asked, run
    from agentgym.registry import typed_settings

    given = typed_settings(arguments, taken=("data",))
    limits = (temperature, tokens, turn_tokens, seed, precision, skip_bad)
    run(Asked(env, policy, model, key, data, given, k, split, tasks, shard, *limits), out, price, ray)


@app.command()
def compare(run_a: Path, run_b: Path) -> None:
    """Test two evaluations against each other, paired by task."""
    from agentgym.cli.saved import compare_runs

    compare_runs(run_a, run_b)


@app.command()
def merge(out: Path, runs: list[Path]) -> None:
    """Make one evaluation of all its shards."""
    from agentgym.cli.saved import merge

    merge(out, runs)


@app.command()
def rescore(run: Path, out: Out = None) -> None:
    """Judge a saved evaluation anew, by the environment as it is today; no policy is asked."""
    from agentgym.cli.saved import rescore_run

    rescore_run(run, out)


@app.command()
def play(
    env: Annotated[str, typer.Argument(help="A registered id, module:Class, or one of 'agentgym suites'.")],
    task: Annotated[Optional[str], typer.Option(help="As it stands: any.")] = None,  # noqa: UP045
    split: Annotated[Optional[str], typer.Option(help="As it stands: the environment's first.")] = None,  # noqa: UP045
    data: Annotated[Optional[Path], typer.Option(help="As for eval.")] = None,  # noqa: UP045
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Play yourself, in the terminal; go back to any turn and go on from there."""
    from agentgym.cli.playing import run

    run(env, task, split, data, seed, out)


@app.command()
def reproduce(
    card: Annotated[Optional[str], typer.Argument(help="A YAML file, or the name of a shipped card; see docs/laboratory.md.")] = None,  # noqa: UP045
    seeds: Annotated[Optional[int], typer.Option(help="As it stands: what the card says.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="The folder of results. What it holds is not played again.")] = Path("docs/reproduction"),
    render: Annotated[bool, typer.Option(help="Write the document of all cards in it, beside the folder.")] = False,
) -> None:
    """Train a card's method and its baseline at an equal budget, and say whether its claims hold."""
    from agentgym.cli.reproducing import run

    run(card, seeds, out, render)


@app.command()
def chaos(
    recipe: Path,
    out: Annotated[Path, typer.Option(help="The folder of the run and its logs.")] = Path("runs/chaos"),
    tool_failures: Annotated[float, typer.Option(help="The share of turns whose environment fails.")] = 0.1,
    server_kills: Annotated[int, typer.Option(min=0, help="Of servers that are started for this.")] = 0,
    trainer_kills: Annotated[int, typer.Option(min=0)] = 2,
    seed: Seed = 0,
    python: Annotated[str, typer.Option(envvar="AGENTGYM_VLLM_PYTHON", help="That of an environment with vLLM.")] = "python",
) -> None:
    """Train as a recipe says while tools fail and processes are killed, and say whether the record is whole."""
    from agentgym.cli.chaos import Disturbance, run

    if not run(recipe, out, Disturbance(tool_failures, server_kills, trainer_kills, seed), python):
        raise typer.Exit(1)


@app.command()
def check(env: Annotated[str, typer.Argument(help="A registered id, or module:Class.")]) -> None:
    """Check that an environment keeps the contract."""
    from agentgym.cli.checking import run

    if not run(env):
        raise typer.Exit(1)


@app.command()
def warmstart(
    env: Annotated[str, typer.Option(help="An environment that has demonstrations.")] = "agentgym/Search-v0",
    out: Path = Path("runs/warmstart"),
    seed: Seed = 0,
    steps: int = 10000,
    mistakes: Annotated[float, typer.Option(help="How often the expert errs, between 0 and 1.")] = 0.3,
    like: Annotated[Optional[str], typer.Option(help="A tiny policy whose tokenizer the new one shares, as a teacher must.")] = None,  # noqa: UP045
) -> None:
    """Make the tiny policy from nothing: its tokenizer, and cloning of a scripted expert that errs."""
    from agentgym.cli.warmstart import run

    run(env, out, seed, steps, mistakes, like)


@app.command()
def report(run: Path) -> None:
    """Write a run's report.html: its curves and its turn trees."""
    from agentgym.cli.reporting import write

    console.print(f"wrote {write(run)}")


@app.command()
def view(
    run: Annotated[Path, typer.Argument(help="A run's folder, finished or running; or a folder of runs.")],
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 0,
) -> None:
    """Look at a run in the browser: curves, tables and turn trees, while it runs and after."""
    from agentgym.cli.viewing import run as serve

    serve(run, port)


@app.command(name="serve-policy")
def serve_policy(
    model: Annotated[str, typer.Argument(help="tiny, a folder, or owner/model.")],
    flags: Annotated[Optional[list[str]], typer.Argument(help="More flags for vLLM, after --.")] = None,  # noqa: UP045
    python: Annotated[str, typer.Option(envvar="AGENTGYM_VLLM_PYTHON", help="That of an environment with vLLM.")] = "python",
    host: Annotated[str, typer.Option(help="Weights are brought without a password: keep it private.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    name: Annotated[str, typer.Option(help="What requests call the model.")] = "policy",
    cpu: Annotated[bool, typer.Option(help="In float32 on processors, or as vLLM finds best on a GPU.")] = True,
    weights: Annotated[bool, typer.Option(help="A training may bring new ones; see docs/serving.md.")] = True,
    lora: Annotated[Optional[int], typer.Option(help="A training may bring adapters, of this rank at most.")] = None,  # noqa: UP045
    log: Path = Path("vllm.log"),
) -> None:
    """Serve a policy on vLLM, with what token-exact rollouts need, and start it again if it dies."""
    from agentgym.cli.serving import run

    run(model, log, flags or [], python=python, host=host, port=port, name=name, cpu=cpu, weights=weights, lora=lora)


@app.command()
def suites() -> None:
    """List the benchmark suites: size, metric, licence, published scores, and where their data comes from."""
    from agentgym.cli.evaluating import list_suites

    list_suites()


@app.command()
def envs() -> None:
    """List the registered environments."""
    from agentgym.registry import ours

    for id in sorted(ours()):
        console.print(id)


def main() -> None:
    """Bad input ends in one sentence, not in a traceback."""
    sys.path.insert(0, "")  # my_package:MyEnv may stand in the present folder
    try:
        app()
    except AgentGymError as error:
        Console(stderr=True).print(f"[red]error:[/red] {quoted(error)}", highlight=False, soft_wrap=True)
        sys.exit(2)
