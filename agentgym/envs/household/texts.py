"""What a household says, in the words of ALFWorld's grammar (ALFWorld, arXiv 2010.03768)."""

from __future__ import annotations

from collections.abc import Sequence

from agentgym.envs.household.pddl import Action, Binding
from agentgym.envs.household.world import Game, Scene, World

NOTHING_HAPPENS = "Nothing happens."
# The first line of which all predicates are true of an object says what there is to see.
EXAMINED = (
    (("isClean", "isHot", "isSliced"), "This is a hot and clean sliced {}."),
    (("isClean", "isCool", "isSliced"), "This is a cool and clean sliced {}."),
    (("isClean", "isSliced"), "This is a clean sliced {}."),
    (("isHot", "isSliced"), "This is a hot sliced {}."),
    (("isCool", "isSliced"), "This is a cool sliced {}."),
    (("isClean", "isHot"), "This is a hot and clean {}."),
    (("isClean", "isCool"), "This is a cool and clean {}."),
    (("isHot",), "This is a hot {}."),
    (("isClean",), "This is a clean {}."),
    (("isCool",), "This is a cold {}."),
    (("toggleable", "isToggled"), "This {} is on."),
    (("toggleable",), "This {} is off."),
    (("sliceable", "isSliced"), "This is a sliced {}."),
    ((), "There's nothing special about {}."),
)
DONE = {
    "GotoLocation": "You arrive at {r}. {seen}",
    "OpenObject": "You open the {r}. {seen}",
    "CloseObject": "You close the {r}.",
    "PickupObject": "You pick up the {o} from the {r}.",
    "PutObject": "You put the {o} in/on the {r}.",
    "ToggleObject": "You turn on the {o}.",
    "HeatObject": "You heat the {o} using the {r}.",
    "CleanObject": "You clean the {o} using the {r}.",
    "CoolObject": "You cool the {o} using the {r}.",
    "SliceObject": "You sliced the {co} with the {ko}.",
    "examineReceptacle": "{seen}",
}


def play(game: Game, world: World, command: str) -> tuple[World, str]:
    """The world after a command and what the player reads; an impossible command changes nothing."""
    result = game.do(world, command)
    if result is None:
        return world, NOTHING_HAPPENS
    after, action, binding = result
    return after, _feedback(Scene(game, after), action, binding)


def opening(receptacles: Sequence[str], goal: str) -> str:
    """The first text of an episode: it names all receptacles."""
    return f"{_around(receptacles)}\nYour task is to: {goal}"


def look(scene: Scene) -> str:
    game = scene.game
    here = scene.find("atLocation", game.agent, "?")[0][2]
    near = [fact[1] for fact in scene.find("receptacleAtLocation", "?", here)]
    if near:
        facing = listed([game.names[receptacle] for receptacle in near])
        return f"You are facing the {facing}. Next to it, you see nothing."
    return _around([game.names[receptacle] for receptacle in game.receptacles])


def listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return names[0] if names else "nothing"
    return f"{', '.join(names[:-1])}, and {names[-1]}"


def _around(receptacles: Sequence[str]) -> str:
    seen = listed([f"a {name}" for name in receptacles])
    return f"You are in the middle of a room. Looking quickly around you, you see {seen}."


def _feedback(scene: Scene, action: Action, binding: Binding) -> str:
    names = {variable[1:]: scene.game.names.get(id, id) for variable, id in binding.items()}
    if action.name == "look":
        return look(scene)
    if action.name == "inventory":
        held = [f"a {scene.game.names[fact[2]]}" for fact in scene.find("holds", scene.game.agent, "?")]
        return f"You are carrying: {listed(held)}." if held else "You are not carrying anything."
    if action.name == "examineObject":
        return _examined(scene, binding["?o"])
    seen = _contents(scene, binding["?r"]) if "?r" in binding else ""
    return DONE[action.name].format(**names, seen=seen)


def _contents(scene: Scene, receptacle: str) -> str:
    name = scene.game.names[receptacle]
    things = listed([f"a {thing}" for thing in scene.objects_in(receptacle)])
    if not scene.true("openable", receptacle):
        return f"On the {name}, you see {things}."
    if scene.true("opened", receptacle):
        return f"The {name} is open. In it, you see {things}."
    return f"The {name} is closed."


def _examined(scene: Scene, thing: str) -> str:
    name = scene.game.names[thing]
    if scene.true("isReceptacleObject", thing):
        inside = [f"a {scene.game.names[fact[1]]}" for fact in scene.find("inReceptacleObject", "?", thing)]
        return f"This is a normal {name}. In it, you see {listed(inside)}."
    words = next(words for predicates, words in EXAMINED if all(scene.true(predicate, thing) for predicate in predicates))
    return words.format(name)
