"""A person who plays in a terminal: each observation is read, then an action is written, or an earlier turn is gone back to."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from agentgym.action import Call, format_action, parse_action
from agentgym.expand import Close, Command, Event, Extend, LeafDone, Memoryless, Started, TurnDone
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.turn import Turn, TurnTree, path, total_reward

HELP = """\
NAME key=value …   call a tool; quote what has spaces: search query="capital of Iceland"
NAME value         the same, for a tool that needs one thing
anything else      is said in words, or sent as it stands if it holds <tool_call>
:back N            stand after turn N again, and go on from there; 0 is the beginning
:tree              all turns so far
:tools             the tools and their arguments
:quit              leave; what was played is kept"""


class Person(Memoryless):
    """Actor and expander at once, for one task: whoever writes the next action says from which turn.

    ``read`` gives a line and raises ``EOFError`` at the end; ``show`` prints a text.
    """

    forks = True

    def __init__(self, read: Callable[[str], str] = input, show: Callable[[str], None] = print) -> None:
        self.read, self.show = read, show
        self._action = ""

    def plan(self, forest: Sequence[TurnTree], event: Event) -> Iterable[Command]:
        match event:
            case Started(tree):
                self.show("\n\n".join(str(message["content"]) for message in tree.root.replies))
                self.show(f"\n{_tools(tree)}\n\n:help says how to play.")
                yield self._choose(tree, tree.root)
            case TurnDone(tree, turn):
                self._tell(turn)
                yield self._choose(tree, turn)
            case LeafDone(tree, turn):
                self._tell(turn)
                self.show(_verdict(turn))
                yield self._choose(tree, turn)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        return Generation(text=self._action)

    def _tell(self, turn: Turn) -> None:
        self.show(turn.error or turn.observation)

    def _choose(self, tree: TurnTree, turn: Turn) -> Command:
        while True:
            try:
                line = self.read(f"\n[turn {turn.index}] > ").strip()
            except EOFError:
                line = ":quit"
            match line.split():
                case []:
                    pass
                case [":quit"]:
                    return Close(tree)
                case [":help"]:
                    self.show(HELP)
                case [":tools"]:
                    self.show(_tools(tree))
                case [":tree"]:
                    self.show("\n".join(_lines(tree)))
                case [":back", number] if number.isdecimal() and int(number) < len(tree.turns):
                    turn = tree.turns[int(number)]
                    self.show(f"You stand after turn {turn.index}.\n{turn.observation}")
                case [command, *_] if command.startswith(":"):
                    self.show(f"There is no {line!r}; turns are 0 to {len(tree.turns) - 1}.\n{HELP}")
                case _ if turn.end is not None:
                    self.show("This episode has ended: :back N goes on from an earlier turn, :quit leaves.")
                case _:
                    self._action = written(line, tree.tools)
                    return Extend(tree, turn)


def written(line: str, tools: Sequence[Mapping[str, Any]]) -> str:
    """The canonical text of what a person typed."""
    name, _, rest = line.partition(" ")
    functions = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    if name not in functions:
        return line if "<tool_call>" in line else format_action(content=line)
    properties = functions[name].get("properties", {})
    try:
        words = shlex.split(rest)
    except ValueError:  # a quotation mark alone
        words = [rest]
    if words and all(word.partition("=")[0] in properties and "=" in word for word in words):
        pairs = [word.partition("=")[::2] for word in words]
    else:
        needed = functions[name].get("required") or list(properties)
        pairs = [(str(needed[0]), rest.strip())] if needed and rest.strip() else []
    return format_action(Call(name, {key: _value(text, properties.get(key, {})) for key, text in pairs}))


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """JSON, except where the schema wants text."""
    if schema.get("type") == "string":
        return text
    try:
        return orjson.loads(text)
    except ValueError:
        return text


def _tools(tree: TurnTree) -> str:
    return "\n".join(_described(tool["function"]) for tool in tree.tools) or "There are no tools: what you write is the action."


def _described(function: Mapping[str, Any]) -> str:
    schema = function["parameters"]
    required = schema.get("required", ())
    names = [name if name in required else f"[{name}]" for name in schema.get("properties", {})]
    return f"{function['name']}({', '.join(names)}): {function.get('description', '').partition(chr(10))[0]}"


def _verdict(leaf: Turn) -> str:
    reward = total_reward(leaf)
    metrics = ", ".join(f"{name} {value:g}" for name, value in leaf.metrics.items())
    shown = "no verdict" if reward is None else f"{reward:g}"
    return f"\nThe episode has ended ({leaf.end}). Reward: {shown}{f' ({metrics})' if metrics else ''}"


def _lines(tree: TurnTree) -> Iterator[str]:
    for turn in tree.turns:
        mark = "" if turn.end is None else f"  [{turn.end}, reward {turn.reward}]"
        action = parse_action(turn.action)
        said = [action.content, *(f"{one.name} {' '.join(f'{k}={v!r}' for k, v in one.arguments.items())}" for one in action.calls)]
        first = " ".join(filter(None, said)) or turn.action or "the beginning"
        yield f"{turn.index:>4}{'  ' * len(path(turn))}{first[:100]}{mark}"
