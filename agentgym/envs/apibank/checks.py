"""API-Bank's metric: the same API, the same parameters as that API compares them, the same result."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from agentgym.action import Call
from agentgym.envs.apibank.apis import Apis, Network, devices_of, rename
from agentgym.envs.apibank.forms import Refused, day_of, folded, moment_of, month_and_day
from agentgym.envs.syntax import expression_of
from agentgym.tool import Tool
from agentgym.tools.search import Page, SearchIndex

Json = Mapping[str, Any]
Form = Callable[[Any], Any]
READ_ONLY = ("Bank", "History", "QuestionAnswering", "SearchEngine", "SpeechRecognition", "Stock", "Symptom", "Wiki")
SEARCHER = "ToolSearcher"
LANGUAGES = {
    "arabic": "ar", "chinese": "zh-cn", "dutch": "nl", "english": "en", "french": "fr", "german": "de", "hindi": "hi", "italian": "it",
    "japanese": "ja", "korean": "ko", "portuguese": "pt", "russian": "ru", "spanish": "es", "turkish": "tr",
}  # fmt: skip


def api_name(method: str) -> str:
    """``document_qa`` is DocumentQA, ``add_agenda`` AddAgenda."""
    return "".join(word.upper() if word == "qa" else word.capitalize() for word in method.split("_"))


def _public(owner: type) -> dict[str, str]:
    return {api_name(name): name for name in dir(owner) if not name.startswith("_")}


METHODS, ELSEWHERE = _public(Apis), _public(Network)


@cache
def tool_of(name: str) -> Tool:
    """How an API is described, and reads its arguments."""
    return Tool(getattr(Apis, METHODS[name]) if name in METHODS else getattr(Network, ELSEWHERE[name]))


# How an API's program brings a parameter into the form in which it compares it. Without one it compares the value as it is.


def _stripped(value: Any) -> str:
    return str(value).strip()


def _spaceless(value: Any) -> str:
    return str(value).replace(" ", "")


def _spoken(value: Any) -> str:
    return folded(value).replace("_", " ")


def _language(value: Any) -> str:
    return LANGUAGES.get(folded(value), folded(value))


FORMS: dict[str, dict[str, Form]] = {
    "AddScene": {"name": folded, "devices": devices_of},
    "AppointmentRegistration": {"patient_name": _stripped, "date": day_of, "doctor_name": _stripped},
    "Calculator": {"formula": _spaceless},
    "CancelRegistration": {"appointment_id": _stripped},
    "CancelTimedSwitch": {"device_id": folded, "time": moment_of},
    "DeleteScene": {"name": folded},
    "Dictionary": {"keyword": _spoken},
    "DocumentQA": {"url": _stripped, "question": _stripped},
    "EmergencyKnowledge": {"symptom": folded},
    "ModifyRegistration": {"appointment_id": _stripped, "new_appointment_date": day_of, "new_appointment_doctor": _stripped},
    "ModifyScene": {"name": folded, "devices": devices_of},
    "QueryHealthData": {"user_id": folded, "start_time": moment_of, "end_time": moment_of},
    "QueryHistoryToday": {"date": month_and_day},
    "QueryRegistration": {"patient_name": _stripped, "date": day_of},
    "QueryScene": {"name": folded},
    "QueryStock": {"stock_code": folded, "date": day_of},
    "RecordHealthData": {"user_id": folded, "time": moment_of},
    "SearchEngine": {"keyword": folded},
    "SendEmail": {"receiver": folded, "subject": _stripped, "content": _stripped},
    "SymptomSearch": {"symptom": folded},
    "TimedSwitch": {"device_id": folded, "time": moment_of},
    SEARCHER: {"keywords": folded},
    "Translate": {"tgt_lang": _language},
    "Wiki": {"keyword": _spoken},
}
# Parameters that are not compared: the result shows whether they were right.
FREE: dict[str, tuple[str, ...]] = {
    "AddAgenda": ("token",), "ModifyAgenda": ("token",), "QueryAgenda": ("token",), "DeleteAgenda": ("token", "content", "location"),
    "AddReminder": ("token",), "ModifyReminder": ("token",), "QueryReminder": ("token",), "DeleteReminder": ("token", "content"),
    "DeleteMeeting": ("token", "meeting_topic", "end_time", "location", "attendees"), "PlayMusic": ("music_name",),
    "RecordHealthData": ("health_data",), SEARCHER: ("keywords",), "Translate": ("src_lang",), "Wiki": ("keyword",),
}  # fmt: skip
# Parameters of which more than half of the words must be shared.
WORDS = {
    **dict.fromkeys(("AddAgenda", "ModifyAgenda", "QueryAgenda", "AddReminder", "ModifyReminder", "QueryReminder"), "content"),
    **dict.fromkeys(("AddMeeting", "ModifyMeeting", "QueryMeeting"), "meeting_topic"),
}


def is_right(call: Call, before: Sequence[Json], turn: Json, tables: Json) -> bool:
    """Whether ``call`` is right in place of the true call of ``turn``. ``before``: the true calls before it in the dialogue.

    Source: API-Bank (arXiv 2304.08244), each API's own check in its program [S]. Unlike there, calls act on what the dialogue has
    changed so far, not on the first state of the tables, so that every true call is right; and a meeting is deleted by its start,
    where the program looks for a parameter that no meeting has. `search` stands for a model of sentences [R].
    """
    name, true = turn["api_name"], arguments_of(turn)
    if call.name != name:
        return False
    given = {key: _like(value, true.get(key)) for key, value in call.arguments.items()}
    if all(_same_form(name, key, given.get(key), true.get(key)) for key in given.keys() | true.keys()):
        return True
    if not all(_passes(name, key, given.get(key), true.get(key)) for key in given.keys() | true.keys()):
        return False
    if name in ELSEWHERE:
        return name != SEARCHER or search(str(given.get("keywords", ""))) in found_tools(turn)[-1:]
    result = outcome(name, given, replayed(before, tables))
    return result is not None and result == outcome(name, true, replayed(before, tables))


def arguments_of(turn: Json) -> dict[str, Any]:
    """The true arguments of a call, in the types that the API was given."""
    read: dict[str, Any] = turn["result"]["input"] or {}
    return read


def outcome(name: str, arguments: Json, apis: Apis) -> tuple[Any] | None:
    """What an API gives; None where it refuses."""
    read = tool_of(name).read_arguments(dict(arguments))
    if isinstance(read, str):
        return None
    try:
        return (getattr(apis, METHODS[name])(**read),)
    except (Refused, LookupError, TypeError):  # what a policy passes within lists has any form
        return None


def found_tools(turn: Json) -> list[str]:
    """The tool that a call of the searcher found, last; before it, where it needs one, the tool that gives the user's token."""
    found = turn["result"]["output"] or []
    return [str(one["name"]) for one in (found if isinstance(found, list) else [found])]


def search(keywords: str) -> str | None:
    """The API whose name and description fit keywords best by BM25 [R]: the benchmark compares them with a model of sentences."""
    hits = _index().search(keywords, 1)
    return _spaced_names()[hits[0].title] if hits else None


@cache
def _index() -> SearchIndex:
    return SearchIndex([Page(title, tool_of(name).description) for title, name in _spaced_names().items()])


@cache
def _spaced_names() -> dict[str, str]:
    return {" ".join(re.findall(r"[A-Z][a-z]+|QA", name)).lower(): name for name in METHODS | ELSEWHERE if name != SEARCHER}


def replayed(before: Sequence[Json], tables: Json) -> Apis:
    """The APIs after the calls of a dialogue so far, with the results that these had."""
    apis = Apis({name: table if name in READ_ONLY else copy.deepcopy(table) for name, table in tables.items()})
    for turn in before:
        if turn["api_name"] in METHODS and outcome(turn["api_name"], arguments_of(turn), apis) is not None:
            rename(apis.tables, turn["api_name"], arguments_of(turn), turn["result"]["output"])
    return apis


def _like(value: Any, true: Any) -> Any:
    """A value in the type of the true one, as the benchmark reads calls that are written as text."""
    if isinstance(true, str):
        return value if value is None or isinstance(value, list | dict) else str(value)
    if not isinstance(value, str) or true is None:
        return value
    if isinstance(true, bool):
        return {"true": True, "false": False}.get(folded(value), value)
    try:
        read = ast.literal_eval(expression_of(value.lstrip(" \t")))
        str(read)  # an integer of more than 4,300 digits, such as a hexadecimal one, has no text to be compared by
        return read
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def _same_form(name: str, key: str, value: Any, true: Any) -> bool:
    if type(value) is type(true) and value == true:
        return True
    if value is None or true is None or key not in FORMS.get(name, {}):
        return False
    form = FORMS[name][key]
    try:
        return bool(form(value) == form(true))
    except (Refused, LookupError, TypeError, AttributeError):
        return False


def _passes(name: str, key: str, value: Any, true: Any) -> bool:
    if key in FREE.get(name, ()):
        return True
    if WORDS.get(name) == key:
        mine, theirs = ({*(str(text).lower() if "Reminder" in name else str(text)).split(" ")} for text in (value, true))
        return 2 * len(mine & theirs) > len(mine | theirs)
    return _same_form(name, key, value, true)
