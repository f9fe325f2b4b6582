"""Token ids of chats in which what a message says stays text, even where it says `<|im_end|>`.

A chat template writes control tokens as text, and encoded as one text a message that spells one
would get it too: data could open or close turns. Needs transformers and nothing of the kit, so that
`kit verify`'s process and the examples prompt with this very code.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

Chat = Sequence[Mapping[str, Any]]
MARK = "\u2603"


class Prompts:
    """Encodes the chats of one (fast) tokenizer, whose special tokens must not change afterwards.

    Messages that spell no control token get the ids of `apply_chat_template(tokenize=True)`. For
    the others the template is rendered with such words hidden behind marks, so that what remains is
    the template's own. That is renamed to what nobody can guess, the words come back, and a copy of
    the tokenizer that knows the control tokens by their new names alone encodes the whole text at
    once: merges and spaces are those of the ordinary encoding.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        found = tokenizer.added_tokens_decoder.items()
        self.control = {i: token for i, token in found if token.special}
        key = f"\ue000{secrets.randbits(64)}\ue001"  # templates may change case or strip spaces
        self.marks = {token.content: f"{key}{i}\ue002" for i, token in self.control.items()}
        self.names = {token.content: f"{key}{i}\ue003" for i, token in self.control.items()}

    def chat_ids(self, messages: Chat) -> list[int]:
        """Token ids of a chat, up to where the assistant's answer begins."""
        return self.encoded(messages, add_generation_prompt=True)

    def encoded(self, messages: Chat, **settings: Any) -> list[int]:
        """`apply_chat_template(messages, tokenize=True, **settings)`, as ids.

        Raises TypeError for content that is not text: in its parts words could not be hidden.
        """
        odd = [m["content"] for m in messages if not isinstance(m.get("content", ""), str)]
        if odd:
            raise TypeError(f"a message's content must be text, got {type(odd[0]).__name__}")
        if not self.forged(messages):
            settings |= {"tokenize": True, "return_dict": False}
            return list(self.tokenizer.apply_chat_template(list(messages), **settings))
        hidden = [
            {k: _swap(v, self.marks) if isinstance(v, str) else v for k, v in message.items()}
            for message in messages
        ]
        settings["tokenize"] = False
        return self._encode(str(self.tokenizer.apply_chat_template(hidden, **settings)))

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a message's text alone."""
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids if self.control.keys().isdisjoint(ids) else self._encode(_swap(text, self.marks))

    def forged(self, messages: Chat) -> list[str]:
        """The control tokens that messages would become if they were encoded as they are."""
        texts = [text for message in messages for text in message.values() if isinstance(text, str)]
        found: dict[int, None] = {}
        for text in texts:
            found |= dict.fromkeys(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return [self.control[i].content for i in found if i in self.control]

    def end_of_turn(self) -> int:
        """The token that the template closes an assistant's turn with, or the end of text."""
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
        text = str(self.tokenizer.apply_chat_template(chat, tokenize=False))
        ids = self.tokenizer(text.rpartition(MARK)[2].strip(), add_special_tokens=False)
        first = next(iter(ids["input_ids"]), -1)
        return first if first in self.control else int(self.tokenizer.eos_token_id)

    def ends(self, eos: int | list[int] | None = None) -> list[int]:
        """What ends an answer: the model's `eos_token_id`, the tokenizer's, and the turn's end.

        A model that was not tuned for chat names its end of text alone.
        """
        own = eos if isinstance(eos, list) else [eos]
        every = {*own, self.tokenizer.eos_token_id, self.end_of_turn()}
        return sorted(i for i in every if i is not None)

    def _encode(self, text: str) -> list[int]:
        """A rendered text in which messages' words are hidden."""
        text = _swap(_swap(text, self.names), {mark: word for word, mark in self.marks.items()})
        tokenizer, real = self._renamed
        ids = []
        for i in tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]:
            if i in self.control and i != self.tokenizer.unk_token_id:
                # in a Unigram vocabulary </s> is a piece like others: letters instead
                ids += self.tokenizer.convert_tokens_to_ids([*self.control[i].content])
            else:
                ids.append(real.get(i, i))
        return [i for i in ids if i is not None]

    @cached_property
    def _renamed(self) -> tuple[Any, dict[int, int]]:
        """The copy, and {id of a new name: id of the control token}."""
        from tokenizers import AddedToken

        tokenizer, real = copy.deepcopy(self.tokenizer), {}
        for i, token in self.control.items():
            flags = {
                k: getattr(token, k) for k in ("lstrip", "rstrip", "single_word", "normalized")
            }
            # not special: it must match where special tokens do not
            tokenizer.add_tokens([AddedToken(self.names[token.content], **flags, special=False)])
            real[tokenizer.convert_tokens_to_ids(self.names[token.content])] = i
        return tokenizer, real


def guard(tokenizer: Any) -> Any:
    """A copy for libraries that call its `apply_chat_template` themselves (TRL).

    Where a message spells a control token, it then raises ValueError for settings that ask for
    more than ids and their mask.
    """
    guarded, prompts = copy.copy(tokenizer), Prompts(tokenizer)
    ordinary = tokenizer.apply_chat_template

    def apply_chat_template(
        conversation: Any, *, tokenize: bool = True, return_dict: bool = True, **settings: Any
    ) -> Any:
        batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        chats = conversation if batched else [conversation]
        if not tokenize or not any(prompts.forged(chat) for chat in chats):
            settings |= {"tokenize": tokenize, "return_dict": return_dict}
            return ordinary(conversation, **settings)
        beyond = ("return_assistant_tokens_mask", "return_tensors", "padding", "truncation")
        if asked := [name for name in beyond if settings.pop(name, None)]:
            raise ValueError(
                f"a message spells a control token and cannot stay text with {asked[0]}; leave out "
                "that setting or such messages"
            )
        ids = [prompts.encoded(chat, **settings) for chat in chats]
        masks = [[1] * len(row) for row in ids]
        columns = {"input_ids": ids, "attention_mask": masks}
        result = columns if batched else {name: rows[0] for name, rows in columns.items()}
        return result if return_dict else result["input_ids"]

    guarded.apply_chat_template = apply_chat_template
    return guarded


def _swap(text: str, table: Mapping[str, str]) -> str:
    """Replace words, the longest first as tokenizers do, each once."""
    words = sorted((word for word in table if word in text), key=len, reverse=True)
    if not words:
        return text
    return re.sub("|".join(map(re.escape, words)), lambda match: table[match[0]], text)
