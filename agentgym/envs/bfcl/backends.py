"""The backends of one episode as a value: a call gives its answer, and the backends after it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from agentgym.action import Call
from agentgym.envs.bfcl.apis import APIS
from agentgym.envs.calls import DEEPEST_VALUE, Written, as_text, is_too_deep, read_written
from agentgym.errors import MissingExtra
from agentgym.tools.tables import FrozenDict, freeze

Tables = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Backends:
    """``fields``: by the name of a class, the fields of its one instance."""

    fields: FrozenDict

    @classmethod
    def start(cls, names: Sequence[str], config: Mapping[str, Any], tables: Tables) -> Backends:
        return cls(freeze({name: APIS[name].start(tables, config.get(name, {})) for name in names}))

    def call(self, tables: Tables, name: str, /, **arguments: Any) -> tuple[Any, Backends]:
        """What a function gives, as it is, and the backends after it. Raises whatever it raises, and then changes nothing."""
        owner = self._owner(name)
        fields, plain = self.fields[owner], self.fields[owner].to_plain()
        before = {field: orjson.dumps(value) for field, value in plain.items()}
        api = APIS[owner](tables, plain)
        result = getattr(api, name)(**arguments)
        for field, was in before.items():
            if orjson.dumps(vars(api)[field]) != was:
                fields = fields.set(field, vars(api)[field])
        return result, Backends(self.fields.set(owner, fields))

    def answer(self, tables: Tables, call: Call) -> tuple[str, bool, Backends]:
        """The benchmark's text of what a function gives, whether it was done, and the backends after it."""
        if is_too_deep(call.arguments):
            return f"Error during execution: the arguments are nested deeper than {DEEPEST_VALUE}", False, self
        try:
            result, after = self.call(tables, call.name, **call.arguments)
            text = as_text(result)
        except MissingExtra:
            raise
        except Exception as error:  # whatever a policy passes, the benchmark answers with the error
            return f"Error during execution: {error}", False, self
        return text, not (isinstance(result, dict) and "error" in result), after

    def read(self, tables: Tables, written: str) -> tuple[Call, Backends]:
        """A call written as Python, with the names of its arguments. Calls in its arguments are made: hence the backends after them."""
        after = self

        def made(value: Any) -> Any:
            nonlocal after
            if isinstance(value, Written):
                call = bound(value)
                result, after = after.call(tables, call.name, **call.arguments)
                return result
            if isinstance(value, dict):
                return {name: made(part) for name, part in value.items()}
            return type(value)(map(made, value)) if isinstance(value, list | tuple) else value

        def bound(call: Written) -> Call:
            args, kwargs = made(call.args), made(call.kwargs)
            parameters = inspect.signature(vars(APIS[self._owner(call.name)])[call.name]).bind(None, *args, **kwargs).arguments
            return Call(call.name, {name: value for name, value in parameters.items() if name != "self"})

        return bound(read_written(written)), after

    def _owner(self, name: str) -> str:
        for owner in self.fields:
            if not name.startswith("_") and inspect.isfunction(vars(APIS[owner]).get(name)):
                return owner
        raise NameError(f"name {name!r} is not defined")

    def public(self) -> dict[str, Any]:
        """All fields that are compared, by class."""
        return {owner: APIS[owner].public(fields.to_plain()) for owner, fields in self.fields.items()}
