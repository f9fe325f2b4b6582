"""The lines of an adapter's card that make a prompt; they need transformers alone."""

import copy
import re
import secrets

from tokenizers import AddedToken


def chat_ids(tokenizer, messages):
    """Token ids of a chat; what messages say stays text, even where it spells control tokens."""
    special = {t.content: (i, t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    words = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
    mark, name = (f"\ue000{secrets.randbits(64)}-{{}}{end}" for end in "\ue001\ue002")
    hidden = [
        m | {"content": words.sub(lambda w: mark.format(special[w[0]][0]), m["content"])}
        for m in messages
    ]  # so that what the template renders has its own words alone
    text = tokenizer.apply_chat_template(hidden, add_generation_prompt=True, tokenize=False)
    text = words.sub(lambda w: name.format(special[w[0]][0]), text)
    other, real = copy.deepcopy(tokenizer), {}  # knows those by other names, nobody can guess them
    for word, (i, token) in special.items():
        text = text.replace(mark.format(i), word)
        flags = {k: getattr(token, k) for k in ("lstrip", "rstrip", "single_word", "normalized")}
        other.add_tokens([AddedToken(name.format(i), special=False, **flags)])
        real[other.convert_tokens_to_ids(name.format(i))] = [i]
        if i != tokenizer.unk_token_id:  # a vocabulary may have such a word: its letters instead
            real[i] = [j for j in tokenizer.convert_tokens_to_ids([*word]) if j is not None]
    ids = other(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [j for i in ids for j in real.get(i, [i])]
