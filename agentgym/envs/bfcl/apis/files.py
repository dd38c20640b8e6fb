"""A file system of one user: a tree of directories, and where in it one stands."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from agentgym.envs.bfcl.apis.base import Api, Json

FORBIDDEN = set('|/\\?%*:"><')
DEEPEST, MOST = 50, 2_000  # directories within each other, and entries: beyond is no task but a runaway policy
UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


class GorillaFileSystem(Api):
    """A directory is ``{"name", "contents"}``, a file ``{"name", "content"}``. ``_path``: from the root to where one stands."""

    root: Json
    _path: list[str]

    @classmethod
    def start(cls, tables: Mapping[str, Any], config: Json) -> Json:
        name, top = next(iter(config.get("root", {}).items()), ("/", {"contents": {}}))
        return {"root": _entry(name, top), "_path": []}

    def pwd(self) -> Json:
        return {"current_working_directory": "/" + "/".join([self.root["name"], *self._path])}

    def ls(self, a: bool = False) -> Json:
        return {"current_directory_content": [name for name in self._here if a or not name.startswith(".")]}

    def cd(self, folder: str) -> Json:
        name = folder.rstrip("/")
        if "/" in name:
            return {"error": f"cd: {name}: Unsupported path. Only one folder level at a time is supported."}
        if name == "..":
            if not self._path:
                return {"error": "Current directory is already the root. Cannot go back."}
            self._path.pop()
            return {}
        if name == "":
            self._path.clear()
        elif name != ".":
            if not _is_directory(self._here.get(name)):
                return {"error": f"cd: '{name}': No such file or directory"}
            self._path.append(name)
        return {"current_working_directory": self._path[-1] if self._path else self.root["name"]}

    def mkdir(self, dir_name: str) -> Json | None:
        return self._make("mkdir: cannot create directory", dir_name, {"name": dir_name, "contents": {}})

    def touch(self, file_name: str) -> Json | None:
        return self._make("touch: cannot touch", file_name, {"name": file_name, "content": ""})

    def echo(self, content: str, file_name: str | None = None) -> Json | None:
        if not file_name:
            return {"terminal_output": content}
        if FORBIDDEN & set(file_name):
            return {"error": f"echo: cannot write to '{file_name}': Invalid character"}
        if not _is_file(self._here.get(file_name)):
            return {"error": f"echo: cannot write to '{file_name}': No such file"}
        self._here[file_name]["content"] = content
        return None

    def cat(self, file_name: str) -> Json:
        if FORBIDDEN & set(file_name):
            return {"error": f"cat: '{file_name}': Invalid character"}
        entry = self._here.get(file_name)
        if entry is None:
            return {"error": f"cat: '{file_name}': No such file or directory"}
        return {"file_content": entry["content"]} if _is_file(entry) else {"error": f"cat: '{file_name}': Is a directory"}

    def find(self, path: str = ".", name: str | None = None) -> Json:
        top = self._at(path)
        if top is None:
            return {"error": f"find: '{path}': No such file or directory"}
        below = _walk(top["contents"], path.rstrip("/"))
        return {"matches": [place for place, entry in below if name is None or name in entry["name"]]}

    def wc(self, file_name: str, mode: str = "l") -> Json:
        if mode not in ("l", "w", "c"):
            return {"error": f"wc: invalid mode '{mode}'"}
        content = self._content(file_name)
        if content is None:
            return _missing("wc", file_name)
        if mode == "l":
            return {"count": len(content.splitlines()), "type": "lines"}
        return {"count": len(content.split()), "type": "words"} if mode == "w" else {"count": len(content), "type": "characters"}

    def sort(self, file_name: str) -> Json:
        content = self._content(file_name)
        return _missing("sort", file_name) if content is None else {"sorted_content": "\n".join(sorted(content.splitlines()))}

    def grep(self, file_name: str, pattern: str) -> Json:
        content = self._content(file_name)
        if content is None:
            return _missing("grep", file_name)
        return {"matching_lines": [line for line in content.splitlines() if pattern in line]}

    def tail(self, file_name: str, lines: int = 10) -> Json:
        content = self._content(file_name)
        return _missing("tail", file_name) if content is None else {"last_lines": "\n".join(content.splitlines()[-lines:])}

    def diff(self, file_name1: str, file_name2: str) -> Json:
        one, other = self._content(file_name1), self._content(file_name2)
        if one is None or other is None:
            return _missing("diff", f"{file_name1} or {file_name2}")
        pairs = zip(one.splitlines(), other.splitlines(), strict=False)
        return {"diff_lines": "\n".join(f"- {a}\n+ {b}" for a, b in pairs if a != b)}

    def du(self, human_readable: bool = False) -> Json:
        size: float = sum(len(entry["content"].encode()) for _, entry in _walk(self._here, "") if _is_file(entry))
        if not human_readable:
            return {"disk_usage": f"{size} bytes"}
        unit = 0
        while size >= 1024 and unit < len(UNITS) - 1:
            size, unit = size / 1024, unit + 1
        return {"disk_usage": f"{size:.2f} {UNITS[unit]}"}

    def mv(self, source: str, destination: str) -> Json:
        return self._transfer("mv", "move", "moved", source, destination)

    def cp(self, source: str, destination: str) -> Json:
        return self._transfer("cp", "copy", "copied", source, destination)

    def rm(self, file_name: str) -> Json:
        if file_name not in self._here:
            return {"error": f"rm: cannot remove '{file_name}': No such file or directory"}
        del self._here[file_name]
        return {"result": f"'{file_name}' removed"}

    def rmdir(self, dir_name: str) -> Json:
        entry = self._here.get(dir_name)
        if entry is None:
            return {"error": f"rmdir: cannot remove '{dir_name}': No such file or directory"}
        if not _is_directory(entry):
            return {"error": f"rmdir: cannot remove '{dir_name}': Not a directory"}
        if entry["contents"]:
            return {"error": f"rmdir: cannot remove '{dir_name}': Directory not empty"}
        del self._here[dir_name]
        return {"result": f"'{dir_name}' removed"}

    @property
    def _here(self) -> Json:
        """The contents of the directory in which one stands."""
        place = self.root
        for name in self._path:
            place = place["contents"][name]
        contents: Json = place["contents"]
        return contents

    def _at(self, path: str) -> Json | None:
        """The directory of a path, from the root or from where one stands."""
        place: Json | None = self.root if path.startswith("/") else {"contents": self._here}
        names = [] if path == "/" else path.strip("/").split("/")
        for name in names:
            if not _is_directory(place) or place is None:
                return None
            place = place if name == "." else place["contents"].get(name)
        return place if _is_directory(place) else None

    def _content(self, file_name: str) -> str | None:
        entry = self._here.get(file_name)
        return entry["content"] if entry is not None and _is_file(entry) else None

    def _make(self, refusal: str, name: str, entry: Json) -> Json | None:
        if FORBIDDEN & set(name):
            return {"error": f"{refusal} '{name}': Invalid character"}
        if name in self._here:
            return {"error": f"{refusal} '{name}': File exists"}
        self._here[name] = entry
        self._check_size()
        return None

    def _transfer(self, command: str, verb: str, done: str, source: str, destination: str) -> Json:
        here = self._here
        if source not in here:
            return {"error": f"{command}: cannot {verb} '{source}': No such file or directory"}
        if "/" in destination:
            return {"error": f"{command}: path not allowed in destination. Provide only a file or directory name."}
        target = here.get(destination)
        if target is not None and not _is_directory(target):
            return {"error": f"{command}: cannot {verb} '{source}' to '{destination}': Not a directory"}
        if target is not None and source in target["contents"]:
            return {"error": f"{command}: cannot {verb} '{source}' to '{destination}/{source}': File exists"}
        entry = copy.deepcopy(here[source])
        if command == "mv":
            del here[source]
        if target is None:
            here[destination] = {**entry, "name": destination}
        else:
            target["contents"][source] = entry
        self._check_size()
        place = destination if target is None else f"{destination}/{source}"
        return {"result": f"'{source}' {done} to '{place}'"}

    def _check_size(self) -> None:
        for number, (place, _) in enumerate(_walk(self.root["contents"], ""), start=1):
            if number > MOST or place.count("/") > DEEPEST:
                raise OSError(f"no more than {MOST} entries, {DEEPEST} directories deep, are kept")


def _entry(name: str, given: Json) -> Json:
    """An entry of a task's configuration, in which ``type`` tells files from directories."""
    if "contents" in given:
        return {"name": name, "contents": {inner: _entry(inner, part) for inner, part in given["contents"].items()}}
    return {"name": name, "content": given.get("content", "")}


def _walk(contents: Json, place: str) -> Iterator[tuple[str, Json]]:
    """All entries below, with their places: each directory before what it holds."""
    for name, entry in contents.items():
        yield f"{place}/{name}", entry
        if _is_directory(entry):
            yield from _walk(entry["contents"], f"{place}/{name}")


def _is_directory(entry: Json | None) -> bool:
    return entry is not None and "contents" in entry


def _is_file(entry: Json | None) -> bool:
    return entry is not None and "content" in entry


def _missing(command: str, file_name: str) -> Json:
    return {"error": f"{command}: {file_name}: No such file or directory"}
