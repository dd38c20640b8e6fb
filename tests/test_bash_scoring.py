"""What changed between two trees of files as git tells it, and InterCode's reward; the changes against git itself."""

import base64
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym import AgentGymError
from agentgym.envs.bash.scoring import score, similarity
from agentgym.envs.bash.tree import IGNORED, Entry, changes, read_manifest, tree_of


def file(text="", mode=0o644):
    return Entry("file", mode, 0, text.encode())


FOLDER = Entry("folder", 0o755, 0)
BEFORE = tree_of({"/a": FOLDER, "/a/one.txt": file("1"), "/a/two": file("2"), "/three": file("3"), "/a/my file": file("m")})
NEW = ["/b/c/d", "/b/e.txt", "/tmp/x", "/home/x", "/a/usr", "/four", "/a/g h"]
PATHS = st.sampled_from(["/a/one.txt", "/a/two", "/three", "/a/my file", *NEW])
FILES = st.builds(file, st.sampled_from(["1", "2", "3", "m", "n"]), st.sampled_from([0o644, 0o755, 0o600]))
LINK = Entry("link", 0o777, 0, b"/three")


def with_parents(entries):
    folders = {str(folder) for path in entries for folder in Path(path).parents if str(folder) != "/"}
    return tree_of(dict.fromkeys(folders, FOLDER) | dict(entries))


def write(root, tree):
    for path, entry in tree:
        at = f"{root}{path}"
        if entry.kind == "folder":
            os.makedirs(at, exist_ok=True)
        elif entry.kind == "link":
            os.symlink(entry.content, at)
        else:
            Path(at).write_bytes(entry.content)
            os.chmod(at, entry.mode)


def git(root, *words):
    environment = {"HOME": str(root), "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(PATHS, FILES | st.just(LINK), max_size=8))
def test_changes_are_those_that_git_tells(tmp_path_factory, entries):
    root, after = tmp_path_factory.mktemp("tree"), with_parents(entries)
    write(root, BEFORE)
    (root / ".git").mkdir()
    git(root, "init", "-q")
    (root / ".git/info/exclude").write_text("\n".join(IGNORED))
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "x")
    for path, entry in BEFORE[::-1]:
        (os.rmdir if entry.kind == "folder" else os.remove)(f"{root}{path}")
    write(root, after)
    words = git(root, "status", "--short").split()
    told = list(zip(words[1::2], words[::2], strict=False))
    assert [(change.path, change.code) for change in changes(BEFORE, after)] == told


def test_similarity_by_hand():
    # Two words that both have weigh 1, one that only the second has 1 + ln 1.5.
    alone = 1 + 0.4054651081081644
    assert similarity("ab cd", "cd AB ef") == pytest.approx(2 / (2**0.5 * (2 + alone**2) ** 0.5))
    assert similarity("a b", "a b") == 1.0
    assert similarity("a b", "b a") == 0.0
    assert similarity("", "ab") == 0.0


def test_the_three_parts_are_rounded_and_make_one():
    same = score(BEFORE, BEFORE, "out put", BEFORE, "out put")
    assert (same.paths, same.contents, same.output, same.total) == (0.33, 0.33, 0.33, 1.0)
    changed = tree_of(dict(BEFORE) | {"/new.txt": file("n")})
    assert score(BEFORE, BEFORE, "", changed, "").total == pytest.approx(0.01 + 0.05 + 0.33 + 0.33)
    assert score(BEFORE, tree_of({}), "", changed, "").paths == 0.0


def test_new_files_are_compared_by_content_where_the_official_comparison_does():
    def both(path, one, other):
        trees = [tree_of(dict(BEFORE) | {path: file(text)}) for text in (one, other)]
        return score(BEFORE, trees[0], "", trees[1], "").contents

    assert both("/new.txt", "x", "x") == 0.33
    assert both("/new.txt", "x", "y") == 0.0
    assert both("/new", "x", "y") == 0.33  # what has no dot in its path is taken for a folder
    assert both("/a/one.txt", "x", "y") == 0.33  # not new


def manifest(tmp_path, *items):
    path = tmp_path / "fs1_manifest.json"
    path.write_text(json.dumps(items))
    return path


def test_a_manifest_is_read_and_its_archives_are_made(tmp_path):
    items = [
        {"path": "/s", "type": "dir", "mode": "0o755"},
        {"path": "/s/f.txt", "type": "file", "mode": "0o640", "content": "text\n", "mtime": "2023-05-31T23:59:59"},
        {"path": "/s/b", "type": "file", "mode": "0o644", "content_b64": base64.b64encode(b"\0\xff").decode()},
        {"path": "/s/empty", "type": "dir", "mode": "0o755"},
        {"path": "/s.tar.gz", "type": "file", "mode": "0o644", "tar_gz_of": ["/s"]},
    ]
    tree = dict(read_manifest(manifest(tmp_path, *items), 600))
    assert tree["/s/f.txt"] == Entry("file", 0o640, 1685577599, b"text\n")
    assert tree["/s/b"] == Entry("file", 0o644, -600, b"\0\xff")
    assert "/s/empty" not in tree
    with tarfile.open(fileobj=io.BytesIO(tree["/s.tar.gz"].content)) as archive:
        assert sorted(archive.getnames()) == ["s", "s/b", "s/empty", "s/f.txt"]
    assert read_manifest(manifest(tmp_path, *items), 600) == tree_of(tree)


@pytest.mark.parametrize("change", [{"mode": "rw"}, {"type": "pipe"}, {"mtime": "now"}, {"content_b64": "?"}])
def test_a_bad_manifest_is_named(tmp_path, change):
    path = manifest(tmp_path, {"path": "/a", "type": "file", "mode": "0o644"} | change)
    with pytest.raises(AgentGymError, match="fs1_manifest"):
        read_manifest(path, 0)
