"""A base's tokenizer: its chat template, prompts in it, and what ends an answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from kit.errors import ModelError
from kit.model.prompts import MARK, Chat, Prompts

log = logging.getLogger(__name__)

PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\n"
    "{% elif m.role == 'assistant' %}Answer: {{ m.content }}{{ eos_token }}\n"
    "{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer: {% endif %}"
)
# before a template that knows no system message: its text opens the user's, as Gemma 3 has it
SYSTEM_IN_USER = (
    "{% if messages[0].role == 'system' %}{% set messages = [{'role': messages[1].role, "
    "'content': messages[0].content + '\\n\\n' + messages[1].content}] + messages[2:] %}{% endif %}"
)


def prepare_tokenizer(tokenizer: Any, name: str) -> None:
    """Give it what is missing: a pad token, a chat template, a place for the system message.

    All of it is saved with the tokenizer, so whoever loads that has the same prompts. Raises
    ModelError for a tokenizer without an end of text or with a chat template that fails.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {name} has no end-of-text token")
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {name} is not one of the tokenizers library, which the kit needs to "
            "keep control tokens out of messages; convert it (tokenizer.json)"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _opening(tokenizer) + PLAIN_TEMPLATE
        log.warning("%s has no chat template; using 'Question: … Answer: …'", name)
    _check_template(tokenizer, name)
    if not _takes_system(tokenizer):
        tokenizer.chat_template = SYSTEM_IN_USER + tokenizer.get_chat_template()
        log.info("%s knows no system message; it is put before the user's text", name)
    _flag_marks(tokenizer)


@lru_cache(maxsize=4)
def prompts_of(tokenizer: Any) -> Prompts:
    """What encodes the chats of a tokenizer, once it is prepared."""
    return Prompts(tokenizer)


def prompt_ids(tokenizer: Any, messages: Chat) -> list[int]:
    """Token ids of a chat prompt, up to where the assistant's answer begins.

    Control tokens are the template's alone: what messages say stays text.
    """
    return prompts_of(tokenizer).chat_ids(messages)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a message's text alone, without control tokens."""
    return prompts_of(tokenizer).text_ids(text)


def warn_of_forged(tokenizer: Any, chats: Iterable[Chat], where: str) -> None:
    """Say once how many chats spell control tokens, which reach the model as text."""
    found = [words for chat in chats if (words := prompts_of(tokenizer).forged(chat))]
    if found:
        words = sorted({word for row in found for word in row})
        log.warning(
            "%d problems of %s spell control tokens of the model (%s); they are encoded as the "
            "text they are and open or end no turn",
            *(len(found), where, ", ".join(words[:5]) + (", …" if len(words) > 5 else "")),
        )


def end_of_turn(tokenizer: Any) -> int:
    """The token that its chat template closes an assistant's turn with, or the end of text."""
    return prompts_of(tokenizer).end_of_turn()


def stop_ids(tokenizer: Any, eos: int | list[int] | None) -> frozenset[int]:
    """What ends a completion: the model's eos_token_id, the tokenizer's, and the turn's end."""
    return frozenset(prompts_of(tokenizer).ends(eos))


def _opening(tokenizer: Any) -> str:
    """What it puts before a text (the beginning of text, mostly, or nothing), for a template.

    In a template it is text like the rest, and some tokenizers then want a space after it to read
    the first word as they do at the beginning.
    """
    text = "Question: ?\nAnswer: "
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    starts = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    before = whole[: next(starts, 0)]
    opening = "".join(tokenizer.convert_ids_to_tokens(before))
    if not opening:
        return ""
    for candidate in (opening, opening + " "):
        if tokenizer(candidate + text, add_special_tokens=False)["input_ids"] == before + bare:
            opening = candidate
            break
    return "{{ " + json.dumps(opening, ensure_ascii=False) + " }}"


def _check_template(tokenizer: Any, name: str) -> None:
    from jinja2 import TemplateError

    try:
        text = _rendered(tokenizer, "user")
    except TemplateError as error:
        raise ModelError(f"the chat template of {name} fails on a question: {error}") from error
    if MARK not in text:
        raise ModelError(f"the chat template of {name} leaves out what the user says")


def _takes_system(tokenizer: Any) -> bool:
    """Whether a system message reaches the prompt: some templates raise, others pass over it."""
    from jinja2 import TemplateError

    try:
        return _rendered(tokenizer, "system", "user").count(MARK) == 2
    except TemplateError:
        return False


def _flag_marks(tokenizer: Any) -> None:
    """Flag the added tokens that the template puts around turns as special, where they are not.

    Others that are not, like `<think>`, are words of the models: text may hold them.
    """
    from tokenizers import AddedToken

    text = _rendered(tokenizer, "user", "assistant", "user", add_generation_prompt=False)
    written = set(tokenizer(text, add_special_tokens=False)["input_ids"])
    for i, token in tokenizer.added_tokens_decoder.items():
        if i in written and not token.special and token.content.strip():
            flags = {
                k: getattr(token, k) for k in ("lstrip", "rstrip", "single_word", "normalized")
            }
            mark = AddedToken(token.content, **flags, special=True)
            tokenizer.add_tokens([mark], special_tokens=True)


def _rendered(tokenizer: Any, *roles: str, add_generation_prompt: bool = True) -> str:
    chat = [{"role": role, "content": MARK} for role in roles]
    settings = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    return str(tokenizer.apply_chat_template(chat, **settings))
