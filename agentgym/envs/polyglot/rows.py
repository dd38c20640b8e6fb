"""Exercises from JSON lines: what is asked, the files to begin with, hidden suites of unittest, and perhaps an example that passes."""

from __future__ import annotations

from random import Random

from pydantic import BaseModel, Field, field_validator

from agentgym.envs.polyglot.decoys import with_decoys
from agentgym.envs.rows import Rows, name_of, read
from agentgym.errors import AgentGymError
from agentgym.task import Task


class Row(BaseModel):
    id: str = Field(min_length=1)
    instructions: str
    solution_files: dict[str, str] = Field(min_length=1)
    test_files: dict[str, str] = Field(min_length=1)
    editor_files: dict[str, str] = {}
    example: dict[str, str] = {}
    split: str = "test"

    @field_validator("test_files")
    @classmethod
    def _suites(cls, files: dict[str, str]) -> dict[str, str]:
        for name, text in files.items():
            try:
                with_decoys(text, Random(0))
            except AgentGymError as error:
                raise ValueError(f"{name}: {error}") from None
        return files

    def task(self) -> Task:
        files = self.editor_files | self.solution_files
        texts = "\n\n".join(f"{path}:\n```\n{text.rstrip()}\n```" for path, text in sorted(files.items()))
        prompt = f"{self.instructions.strip()}\n\nThe files, of which {', '.join(self.solution_files)} must be completed:\n\n{texts}"
        hidden = {"tests": self.test_files, "example": dict(zip(self.solution_files, self.example.values(), strict=False))}
        return Task(self.id, prompt, hidden, self.split, {"files": files})


def read_rows(rows: Rows) -> dict[str, list[Task]]:
    """The tasks by split."""
    found: dict[str, dict[str, Task]] = {}
    for place, row in read(rows, Row):
        task = row.task()
        if task.id in found.setdefault(task.split, {}):
            raise AgentGymError(f"{place}: there is a task {task.id!r} already: give each its own id")
        found[task.split][task.id] = task
    if not found:
        raise AgentGymError(f"{name_of(rows)} holds no tasks")
    return {split: list(tasks.values()) for split, tasks in found.items()}
