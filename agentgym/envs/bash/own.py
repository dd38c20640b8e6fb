"""A small file system and tasks on it, for where no data are at hand."""

from __future__ import annotations

from agentgym.envs.bash.tree import Entry, Tree, tree_of
from agentgym.task import Task

_AGE = 3600  # seconds
_TEXTS = {
    "/garden/plan.txt": "beans in May\npeas in March\nonions in April\n",
    "/garden/seeds.csv": "kind,grams\nbeans,120\npeas,80\nonions,15\n",
    "/garden/beds/north.txt": "peas\npeas\nonions\n",
    "/garden/beds/south.txt": "beans\n",
    "/garden/old/plan.txt": "potatoes\n",
    "/garden/old/empty.log": "",
    "/garden/water.sh": "#!/bin/sh\necho watered\n",
}
_FOLDERS = ("/garden", "/garden/beds", "/garden/old")
TREE: Tree = tree_of(
    {path: Entry("folder", 0o755, -_AGE) for path in _FOLDERS}
    | {path: Entry("file", 0o755 if path.endswith(".sh") else 0o644, -_AGE, text.encode()) for path, text in _TEXTS.items()}
)
_ASKED = {
    "count": ("How many lines has /garden/plan.txt? Print the number alone.", "wc -l < /garden/plan.txt"),
    "find": ("Print the paths of all files below /garden that end in .txt, sorted.", "find /garden -name '*.txt' | sort"),
    "empty": ("Print the paths of all empty files below /garden.", "find /garden -type f -empty"),
    "grep": ("Print the names of the files below /garden/beds that mention peas.", "grep -rl peas /garden/beds"),
    "sum": ("Print the sum of the second column of /garden/seeds.csv.", "awk -F, 'NR>1 {s+=$2} END {print s}' /garden/seeds.csv"),
    "unique": ("Print the different lines of /garden/beds/north.txt, sorted.", "sort -u /garden/beds/north.txt"),
    "sort": ("Print /garden/plan.txt sorted.", "sort /garden/plan.txt"),
    "make": ("Create the folder /garden/new with an empty file bed.txt in it.", "mkdir /garden/new; touch /garden/new/bed.txt"),
    "copy": ("Copy /garden/plan.txt to /garden/plan.bak.", "cp /garden/plan.txt /garden/plan.bak"),
    "delete": ("Delete all files below /garden that end in .log.", "find /garden -name '*.log' -delete"),
    "replace": ("In /garden/plan.txt, write leeks in place of onions.", "sed -i s/onions/leeks/ /garden/plan.txt"),
    "mode": ("Take the right to execute /garden/water.sh from everybody.", "chmod a-x /garden/water.sh"),
}
TASKS = tuple(Task(name, query, {"gold": gold}, "train", {"fs": 0}) for name, (query, gold) in _ASKED.items())
