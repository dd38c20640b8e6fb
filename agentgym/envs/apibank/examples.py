"""Dialogues and tables of our own in the form of the benchmark, to try the environment without its data."""

from __future__ import annotations

from typing import Any

TABLES: dict[str, dict[str, Any]] = {
    "Account": {"ida": {"password": "heron", "token": "t-ida", "email": "ida@example.org"}},
    "Alarm": {"1": {"time": "2023-05-02 06:00:00", "username": "ida"}},
}


def _api(name: str, given: dict[str, Any], output: Any) -> dict[str, Any]:
    return {"role": "API", "api_name": name, "result": {"input": given, "output": output}}


_ALARM = [
    {"role": "User", "text": "Wake me at seven on the third of May. I am ida, password heron."},
    {"role": "AI", "text": "One moment."},
    _api("GetUserToken", {"username": "ida", "password": "heron"}, {"token": "t-ida"}),
    _api("AddAlarm", {"token": "t-ida", "time": "2023-05-03 07:00:00"}, "success"),
    {"role": "AI", "text": "Your alarm is set to seven."},
]
_SUM = [
    {"role": "User", "text": "What is 12 times 11?"},
    _api("ToolSearcher", {"keywords": "calculator"}, {"name": "Calculator", "description": "Calculates."}),
    {"role": "AI", "text": "I have found a calculator."},
    _api("Calculator", {"formula": "12 * 11"}, 132.0),
    {"role": "AI", "text": "It is 132."},
]
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "level-1-given-desc": [{"id": "alarm", "turns": _ALARM}],
    "level-2-toolsearcher": [{"id": "sum", "turns": _SUM}],
}
