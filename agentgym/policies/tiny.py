"""The embedded tiny policy: a Qwen3 of half a million parameters, its tokenizer and its chat format."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from renderers.base import ParsedResponse
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from agentgym.chat import Chat
from agentgym.errors import AgentGymError, MissingExtra
from agentgym.turn import Message

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

SHIPPED = Path(__file__).parent / "tiny"
MARKERS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
VOCABULARY = 560  # before the markers
COMMON = 0.01  # of the texts: a capitalised word in more of them is no name, and is kept whole
_PIECES = r"\p{Lu}\p{Ll}+|\p{N}|[^\p{Lu}\p{N}]+"  # names and digits apart; all else may merge across words
_MARKED = re.compile("|".join(map(re.escape, MARKERS)))
_WORD = re.compile(r"[^\W\d_]+")


class TinyTokenizer:
    """Bytes merged by frequency, with names spelled by letters: a tiny model copies letters, not rare words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.encode_untrusted = lru_cache(4096)(self._encode_untrusted)  # siblings often read the same
        self.unk_token_id = None
        self.eos_token_id = MARKERS.index("<|im_end|>") + tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @classmethod
    def train(cls, texts: Sequence[str]) -> TinyTokenizer:
        """Learn the merges from demonstrations, in which each rare capitalised word is cut to its first letter."""
        counts = Counter(word for text in texts for word in set(_WORD.findall(text)))
        common = {word for word, count in counts.items() if count > COMMON * len(texts)}

        def shortened(match: re.Match[str]) -> str:
            word = match[0]
            return word[0] if _capitalised(word) and word not in common else word

        pieces = [piece for text in texts for piece in _MARKED.split(_WORD.sub(shortened, text))]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), "isolated"),
                pre_tokenizers.Split(Regex(_letters_of_names(common)), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(pieces, trainer)
        tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in MARKERS])
        return cls(tokenizer)

    @classmethod
    def load(cls, folder: Path) -> TinyTokenizer:
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def save_pretrained(self, folder: Path) -> None:
        self._tokenizer.save(str(folder / "tokenizer.json"))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        self._tokenizer.encode_special_tokens = False
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def _encode_untrusted(self, text: str) -> tuple[int, ...]:
        """Markers in the text become ordinary characters: what a tool says cannot end its own message."""
        self._tokenizer.encode_special_tokens = True
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def get_vocab(self) -> dict[str, int]:
        return dict(self._tokenizer.get_vocab())

    def convert_tokens_to_ids(self, token: str) -> int | None:
        id: int | None = self._tokenizer.token_to_id(token)
        return id


def _letters_of_names(common: set[str]) -> str:
    """Matches each letter of a piece that is a capitalised word, unless the word is a common one."""
    words = "|".join(sorted(filter(_capitalised, common))) or "(?!)"
    return rf"\G(?!(?:{words})$)(?:\p{{Lu}}|(?<=\p{{L}})\p{{Ll}})(?=\p{{L}}*$)"


class TinyRenderer:
    """Qwen's chat format without the tool specifications, which are too long for a tiny model; it knows its tools."""

    is_prefix_stable = True

    def __init__(self, tokenizer: TinyTokenizer) -> None:
        self.tokenizer = tokenizer
        self._end = tokenizer.eos_token_id
        trusted = tokenizer.encode
        self._open = {role: trusted(f"<|im_start|>{role}\n") for role in ("system", "user", "assistant")}
        self._close = trusted("<|im_end|>\n")
        self._newline = trusted("\n")
        self._open_result = trusted("<|im_start|>user\n<tool_response>\n")
        self._next_result = trusted("\n<tool_response>\n")
        self._close_result = trusted("\n</tool_response>")

    def get_stop_token_ids(self) -> list[int]:
        return [self._end]

    def render_ids(
        self, messages: Sequence[Message], *, tools: Any = None, add_generation_prompt: bool = False
    ) -> list[int]:
        ids: list[int] = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                ids += [*self._open["assistant"], *self.tokenizer.encode(_words(message)), *self._close]
            else:
                self._add(ids, messages, number)
        return ids + self._open["assistant"] if add_generation_prompt else ids

    def bridge_to_next_turn(
        self, previous_prompt_ids: list[int], previous_completion_ids: list[int], new_messages: Sequence[Message]
    ) -> list[int]:
        ended = previous_completion_ids and previous_completion_ids[-1] == self._end
        ids = [*previous_prompt_ids, *previous_completion_ids, *(self._newline if ended else self._close)]
        for number in range(len(new_messages)):
            self._add(ids, new_messages, number)
        ids += self._open["assistant"]
        return ids

    def parse_response(self, token_ids: list[int]) -> ParsedResponse:
        """The sampled text is in the canonical form already."""
        return ParsedResponse(content=self.tokenizer.decode(token_ids))

    def _add(self, ids: list[int], messages: Sequence[Message], number: int) -> None:
        message = messages[number]
        is_result = message["role"] == "tool"
        if not is_result:
            ids += self._open[message["role"]]
        elif number == 0 or messages[number - 1]["role"] != "tool":
            ids += self._open_result
        else:
            ids += self._next_result
        ids += self.tokenizer.encode_untrusted(str(message["content"]))
        if is_result:
            ids += self._close_result
        if not is_result or number + 1 == len(messages) or messages[number + 1]["role"] != "tool":
            ids += self._close


def _words(message: Message) -> str:
    """An assistant message in the canonical text of `agentgym.action`."""
    from agentgym.action import Call, format_action

    functions = [call["function"] for call in message.get("tool_calls", ())]
    calls = [Call(function["name"], function["arguments"]) for function in functions]
    return format_action(*calls, thought=message.get("reasoning_content", ""), content=message["content"])


def _capitalised(word: str) -> bool:
    return word[0].isupper() and word[1:].islower()


def tiny_chat(tokenizer: TinyTokenizer) -> Chat:
    return Chat(tokenizer, TinyRenderer(tokenizer))


def one_thread() -> None:
    """More threads slow a model this small down."""
    import torch

    torch.set_num_threads(1)


def new_model(vocabulary: int, seed: int) -> Qwen3ForCausalLM:
    """A fresh Qwen3 of half a million parameters: two layers of width 128, eight heads.

    Eight heads of 16, each with its own keys, learn to copy names several times sooner than four of 32.
    """
    try:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError as error:
        raise MissingExtra(error.name or "torch", "train") from error

    config = Qwen3Config(
        vocab_size=-(-vocabulary // 8) * 8,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=16,
        intermediate_size=384,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        initializer_range=0.04,
    )
    one_thread()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Qwen3ForCausalLM = Qwen3ForCausalLM(config)
        return model


def save(model: Any, tokenizer: TinyTokenizer, folder: Path) -> None:
    """Weights in bfloat16, which changes no answer and halves the size; ``load`` reads them as float32."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def folder_of(name: str) -> Path | None:
    """Where the tiny policy ``name`` is saved: ``tiny`` is the shipped one. None for what is no tiny policy."""
    folder = SHIPPED if name == "tiny" else Path(name)
    is_ours = (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file()  # which Hugging Face would write
    return folder if is_ours else None


def load(folder: str | Path = SHIPPED) -> tuple[Any, Chat]:
    """A saved tiny policy: its model in float32 and its chat format. Without an argument: the one that is shipped."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtra(error.name or "torch", "train") from error

    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise AgentGymError(f"{folder} holds no tiny policy (tokenizer.json is missing): make one with 'agentgym warmstart'")
    one_thread()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, tiny_chat(TinyTokenizer.load(folder))


