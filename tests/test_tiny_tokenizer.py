"""The tiny tokenizer loses nothing, is the same each time, and keeps its markers for those who may write them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.policies.tiny import MARKERS, VOCABULARY, TinyTokenizer, load, new_model, save, tiny_chat

PEOPLE = ["Ada", "Bela", "Cora", "Dana", "Egon", "Fritz", "Gerda", "Hanno", "Ilse", "Jutta"]
TEXTS = [
    f'<|im_start|>user\nWhere is {person}town {n}? Country: land<|im_end|>\n<tool_call>{{"name": "search"}}</tool_call>'
    for n in range(40)
    for person in PEOPLE
]
TEXTS += [f"Zagreb{chr(97 + n)}" for n in range(20)]
tokenizer = TinyTokenizer.train(TEXTS)
anything = st.text(st.characters(exclude_categories=["Cs"]))
with_markers = st.lists(anything | st.sampled_from(MARKERS), max_size=8).map("".join)


@given(anything | with_markers)
def test_any_text_comes_back(text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode_untrusted(text)) == text


@given(with_markers)
def test_untrusted_text_never_becomes_a_marker(text: str) -> None:
    markers = {tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS}
    assert len(markers) == len(MARKERS)
    assert not markers & set(tokenizer.encode_untrusted(text))


@given(anything, st.sampled_from(MARKERS), anything)
def test_a_trusted_marker_is_one_token_and_can_be_skipped(before: str, marker: str, after: str) -> None:
    if any(other in text for other in MARKERS for text in (before, after)):
        return
    ids = tokenizer.encode(before + marker + after)
    assert ids == [*tokenizer.encode(before), tokenizer.convert_tokens_to_ids(marker), *tokenizer.encode(after)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == before + after


@pytest.mark.parametrize("marker", MARKERS)
def test_markers_stand_above_the_vocabulary(marker: str) -> None:
    assert tokenizer.encode(marker) == [tokenizer.convert_tokens_to_ids(marker)]
    assert tokenizer.encode(marker)[0] >= len(tokenizer) - len(MARKERS)
    assert len(tokenizer) <= VOCABULARY + len(MARKERS)


def test_a_message_ends_at_its_marker() -> None:
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tiny_chat(tokenizer).stop_ids == {tokenizer.eos_token_id}


def test_training_is_deterministic(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        TinyTokenizer.train(TEXTS).save_pretrained(tmp_path / name)
    one, two = ((tmp_path / name / "tokenizer.json").read_text() for name in ("one", "two"))
    assert one == two
    assert json.loads(one)["added_tokens"][0]["content"] == MARKERS[0]


@given(with_markers)
def test_a_loaded_tokenizer_is_the_saved_one(text: str) -> None:
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.encode_untrusted(text) == tokenizer.encode_untrusted(text)
    assert (len(loaded), loaded.eos_token_id) == (len(tokenizer), tokenizer.eos_token_id)


@pytest.fixture(autouse=True, scope="module")
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    global loaded
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    loaded = TinyTokenizer.load(folder)


def test_frequent_words_are_short_and_rare_names_are_spelled() -> None:
    assert len(tokenizer.encode("Country")) == 1  # in most texts
    assert len(tokenizer.encode("Zagreba")) > 3  # a name: its letters are copied
    assert len(tokenizer.encode("1987")) == 4


def test_names_outside_ascii_are_spelled_too() -> None:
    texts = [f"<|im_start|>We ask for Ørebrü{letter}" for letter in "abcdefghij" for _ in range(9)]
    assert len(TinyTokenizer.train([*texts, *["We ask"] * 1200]).encode("Ørebrü")) >= 6


@pytest.mark.long
def test_another_process_learns_the_same_tokenizer() -> None:
    script = "import sys, json; from agentgym.policies.tiny import TinyTokenizer as T; "
    script += "t = T.train(json.load(sys.stdin)); print(json.dumps([t.encode(x) for x in json.loads(sys.argv[1])]))"
    samples = [TEXTS[7], TEXTS[-1], "Something else, 42"]
    for seed in ("1", "2"):
        command = [sys.executable, "-c", script, json.dumps(samples)]
        run = subprocess.run(
            command, input=json.dumps(TEXTS), env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert json.loads(run.stdout) == [tokenizer.encode(sample) for sample in samples]


def test_a_saved_policy_is_a_megabyte_and_the_live_weights_stay_as_they_are(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = new_model(len(tokenizer), 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save(model, tokenizer, tmp_path)
    assert model.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1.2e6
    again, chat = load(tmp_path)
    assert again.dtype == torch.float32
    assert chat.stop_ids == {tokenizer.eos_token_id}
    for name, value in again.state_dict().items():
        assert torch.equal(value, before[name].bfloat16().float())


def test_a_new_model_depends_on_its_seed_alone() -> None:
    torch = pytest.importorskip("torch")
    one, two, other = (new_model(VOCABULARY + len(MARKERS), seed) for seed in (3, 3, 4))
    assert sum(parameter.numel() for parameter in one.parameters()) == pytest.approx(0.5e6, rel=0.02)
    assert torch.equal(one.model.embed_tokens.weight, two.model.embed_tokens.weight)
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)
