"""Tasks of our own in the form of the benchmark, to try the environment without its data."""

from __future__ import annotations

from typing import Any

_BAKE: dict[str, Any] = {
    "name": "bake_bread",
    "description": "Bakes bread in the oven of the house.",
    "parameters": {
        "type": "object",
        "properties": {
            "loaves": {"type": "integer", "description": "How many.", "minimum": 1},
            "flour": {"type": "string", "enum": ["rye", "wheat"]},
            "oven": {
                "type": "object",
                "properties": {"degrees": {"type": "integer"}, "fan": {"type": "boolean"}},
                "required": ["degrees"],
            },
        },
        "required": ["loaves", "flour"],
    },
}
_RING: dict[str, Any] = {
    "name": "ring.bell",
    "description": "Rings a bell of the house.",
    "parameters": {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]},
}
_TWO = "user: Two loaves of rye bread, please, at 230 degrees.\n"
_BAKED = "system: [bake_bread(loaves=2, flour='rye', oven={'degrees': 230})]\nsystem: They are in the oven.\n"


def _row(id: str, question: str, truth: Any) -> dict[str, Any]:
    return {"id": id, "question": question, "function": [_BAKE, _RING], "time": "Today is 2024-03-02, Saturday.", "ground_truth": truth}


EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "normal_single_turn_parallel_function": [
        _row("bells", "user: Ring in the hall and in the attic.\n", {"ring.bell_1": {"room": "hall"}, "ring.bell_2": {"room": "attic"}}),
        _row("bread", _TWO, {"bake_bread": {"loaves": 2, "flour": "rye", "oven": {"degrees": 230}}}),
    ],
    "normal_multi_turn_user_switch": [
        _row("bread_0_0", _TWO, {"bake_bread": {"loaves": 2, "flour": "rye", "oven": {"degrees": 230}}}),
        _row("bread_0_1", f"{_TWO}{_BAKED}user: Now ring in the hall.\n", {"ring.bell": {"room": "hall"}}),
    ],
    "special_incomplete": [_row("how_many", "user: Bake some rye bread.\n", {"bake_bread": ["loaves"]})],
    "special_error_param": [_row("no_loaves", "user: Bake two loaves of gold bread.\n", {"flour": ["gold"]})],
    "special_irrelevant": [_row("letter", "user: Write a letter to my aunt.\n", None)],
}
