"""One base in memory, any number of adapters on it, and one job at a time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.app.compare.comparison import Answer, Comparison, Kept
from kit.app.compare.setup import BASE_SIDE, Setup
from kit.app.compare.tokens import ScoredAnswer, Token
from kit.config import DataConfig
from kit.errors import ConfigError, ModelError, is_out_of_memory
from kit.evaluation.benchmark import benchmark
from kit.evaluation.results import read_result, result_path
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject
from kit.model.adapter_files import adapter_sha256
from kit.model.base import Base
from kit.model.lora import load_adapters
from kit.model.policy import BASE, Policy
from kit.model.rollout import Completion, Request, Sampling, stream
from kit.model.tokenizer import end_of_turn, text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEP = 4  # problems evaluated between two looks at whether somebody still wants them
CHUNK = 64  # positions whose distributions over the vocabulary exist at once
ALTERNATIVES = 5  # to a token that are told
WINDOW = 16  # tokens that are decoded together: an unfinished character never spans more


class Engine:
    """Decodes all sides of a job in one batch, but for adapters that are computed alone. Adapters
    stay loaded once they have been used."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._policy = Policy(base)
        # by folder or hub id and hash: a run that goes on while the app is open changes its adapter
        self._names: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    @property
    def context(self) -> int:
        """Tokens of prompt and completion that the base can see."""
        return self._policy.causal.config.max_position_embeddings

    def prompt_text(self, messages: list[dict[str, Any]]) -> str:
        """The prompt exactly as it is sent."""
        return str(self.base.tokenizer.decode(self.base.prompt_ids(messages)))

    def run(self, setup: Setup) -> Iterator[Comparison]:
        """Sample, then score. Waits while another job runs; closing it frees the model.

        Raises AdapterError for an adapter that does not load, ConfigError for a prompt that is too
        long, ModelError when memory runs out.
        """
        with self._lock, _advice(setup):
            hashes = self._load(setup)
            prompts = {side: self._prompt_of(setup, side) for side in setup.sides}
            setup = self._within_context(max(prompts.values(), key=len), setup)
            requests = [
                Request(prompts[side], (setup.seed, number), name)
                for side, name in self._names_of(setup, hashes).items()
                for number in range(setup.samples)
            ]
            in_turn = bool(self._policy.alone_of([request.adapter for request in requests]))
            prompt = self.prompt_text(setup.shared_messages)
            said = Comparison(setup, prompt, {}, hashes, is_in_turn=in_turn)
            sampling = Sampling(setup.max_new_tokens, setup.temperature)
            for answers in self._answers(requests, sampling, in_turn):
                starts = range(0, len(answers), setup.samples)
                by_side = [tuple(answers[start : start + setup.samples]) for start in starts]
                said = replace(said, answers=dict(zip(setup.sides, by_side, strict=True)))
                yield said
            yield replace(said, scores={0: self._score(said, 0)})

    def _answers(
        self, requests: Sequence[Request], sampling: Sampling, in_turn: bool
    ) -> Iterator[list[Answer]]:
        """What all rows say so far; `in_turn`, one adapter after the other, in an order of chance
        that tells a blind voter nothing."""
        groups: dict[str, list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault(request.adapter if in_turn else "", []).append(row)
        said = [Answer(Completion([], [], True, ""), 0.0)] * len(requests)
        for rows in random.sample([*groups.values()], len(groups)):
            began = time.perf_counter()
            for completions in stream(self._policy, [requests[row] for row in rows], sampling):
                now = time.perf_counter() - began
                for row, completion in zip(rows, completions, strict=True):
                    said[row] = _timed(completion, said[row], now)
                yield [*said]

    def evaluate(
        self, subjects: Sequence[Subject], data: DataConfig, settings: EvalSettings, tag: str
    ) -> Iterator[int]:
        """`kit evaluate` on the base in memory, a few problems at a time: how many are on disk.

        Closing it ends it between two of these; what is on disk is not done again. Raises what
        `benchmark` raises: it looks even at finished results, which may be of other settings.
        """
        wanted = settings.limit or 0
        before = [_evaluated(result_path(one.results, data.name, tag)) for one in subjects]
        done = min(limit if is_finished else 0 for limit, is_finished in before)
        begun = max(limit for limit, _ in before)  # what was begun is finished first
        for limit in range(min(max(done + STEP, begun), wanted), wanted + STEP, STEP):
            with self._lock:
                if self._names:  # `benchmark` puts the subjects' own adapters on the bare base
                    self._policy.peft.unload()
                    self._policy, self._names = Policy(self.base), {}
                some = settings.model_copy(update={"limit": min(limit, wanted)})
                benchmark(subjects, [data], some, base=self.base, tag=tag)
            yield min(limit, wanted)

    def score(self, said: Comparison, sample: int) -> dict[str, ScoredAnswer]:
        """Scores of another sample of what was said; of a stored one, of the tokens of its text.

        Raises ModelError when memory runs out, or for an adapter that has changed since and is no
        longer in memory as it was; AdapterError for one that does not load.
        """
        with self._lock, _advice(said.setup):
            if not self._has(said):
                self._load(said.setup)
            if not self._has(said):
                raise ModelError(
                    "an adapter has changed since these answers were given, so their tokens cannot "
                    "be scored any more; Run asks it as it is now"
                )
            return self._score(said, sample)

    def _has(self, said: Comparison) -> bool:
        """Whether the adapters that gave these answers are loaded as they were."""
        adapters = said.setup.adapters.items()
        return all(
            not name or (name, str(said.hashes[side])) in self._names for side, name in adapters
        )

    def _within_context(self, prompt: Sequence[int], setup: Setup) -> Setup:
        """With as many new tokens as fit, at most those that are asked for."""
        room = self.context - len(prompt)
        if room < 1:
            raise ConfigError(
                f"the prompt has {len(prompt)} tokens, which leaves no room for an answer within "
                f"the {self.context} that this model can see; shorten the problem"
            )
        return replace(setup, max_new_tokens=min(setup.max_new_tokens, room))

    def _score(self, said: Comparison, sample: int) -> dict[str, ScoredAnswer]:
        names = self._names_of(said.setup, said.hashes)
        return {
            side: score(
                self._policy,
                self._prompt_of(said.setup, side),
                self._tokens(side, answers[sample].completion),
                *(names, side),
            )
            for side, answers in said.answers.items()
        }

    def _tokens(self, side: str, said: Completion | Kept) -> list[int]:
        """What was sampled, or where that is not kept, what the text is and what ended it."""
        if not isinstance(said, Kept):
            return list(said.tokens)
        tokenizer = self.base.tokenizer
        end = [] if said.truncated else [end_of_turn(tokenizer)]
        tokens = text_ids(tokenizer, said.text) + end
        if not tokens:
            raise ModelError(f"the stored answer on the {side} has no text, so no token is known")
        return tokens

    def _prompt_of(self, setup: Setup, side: str) -> tuple[int, ...]:
        return tuple(self.base.prompt_ids(setup.messages_to(side)))

    def _load(self, setup: Setup) -> dict[str, str | None]:
        """Load the adapters that are not there as they are now; hashes by side."""
        sources = {source: adapter_sha256(source) for source in setup.adapters.values() if source}
        new = [found for found in sources.items() if found not in self._names]
        names = {found: f"adapter{len(self._names) + i}" for i, found in enumerate(new)}
        if new:
            wanted = {name: source for (source, _), name in names.items()}
            self._policy = Policy(self.base, load_adapters(self.base, wanted, self._policy.model))
            self._names |= names
        return {side: source and sources[source] for side, source in setup.adapters.items()}

    def _names_of(self, setup: Setup, hashes: Mapping[str, str | None]) -> dict[str, str]:
        """The sides' names on the model."""
        return {
            side: BASE if source is None else self._names[source, str(hashes[side])]
            for side, source in setup.adapters.items()
        }


def _evaluated(path: Path) -> tuple[int, bool]:
    """Problems of a result file, and whether all of them are answered; 0 where there is none."""
    if not path.is_file():
        return 0, False
    record = read_result(path).record
    return int(record["settings"]["limit"] or 0), record["status"] == "finished"


def _timed(completion: Completion, before: Answer, now: float) -> Answer:
    """What one row has said by now, in as long as it took to its newest token."""
    if len(completion.tokens) == len(before.completion.tokens):
        now = before.seconds
    return Answer(completion, now)


@contextmanager
def _advice(setup: Setup) -> Iterator[None]:
    """ModelError with what to do when memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows = setup.samples * len(setup.sides)
        raise ModelError(
            f"out of memory with {rows} answers of up to {setup.max_new_tokens} tokens at once; "
            "ask for fewer samples or tokens, leave out the base's column, or start with --cpu"
        ) from error


@torch.no_grad()
def score(
    policy: Policy,
    prompt: Sequence[int],
    completion: list[int],
    adapters: Mapping[str, str],
    own: str,
) -> ScoredAnswer:
    """Score a completion under every side's adapter and the base, at temperature 1.

    `adapters` maps sides to names on the model, `own` is the side that wrote the completion: the
    alternatives and the divergence are its own.
    """
    views = {**adapters, BASE_SIDE: BASE}
    states = {n: _hidden(policy, prompt, completion, n) for n in dict.fromkeys(views.values())}
    hidden = {side: states[name] for side, name in views.items()}
    targets = torch.tensor(completion, device=policy.base.hardware.device)  # (T,)
    chosen: dict[str, list[float]] = {side: [] for side in views}
    likely: list[tuple[tuple[str, float], ...]] = []
    divergence = 0.0
    for start in range(0, len(completion), CHUNK):
        rows = slice(start, start + CHUNK)
        logprobs = {side: _logprobs(policy, hidden[side][rows]) for side in views}  # (C, V) each
        for side, values in logprobs.items():
            chosen[side] += values.gather(1, targets[rows, None]).squeeze(1).tolist()
        mine = logprobs[own]
        divergence += float((mine.exp() * (mine - logprobs[BASE_SIDE])).sum())
        likely += _alternatives(policy.base.tokenizer, mine)
    texts = pieces(policy.base.tokenizer, completion)
    return ScoredAnswer(
        tokens=tuple(
            Token(text, {side: chosen[side][i] for side in views}, likely[i])
            for i, text in enumerate(texts)
        ),
        kl_to_base=divergence / len(completion),
    )


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Iterator[str]:
    """What each token adds to the text; "" where it only begins a character.

    Tokens are decoded a few at a time together with those before them, because bytes and spaces of
    one token show only beside its neighbours.
    """
    start, before = 0, ""
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[start:end]))
        if text.endswith("\ufffd") and end - start < WINDOW:
            yield ""
            continue
        yield text[len(before) :]
        start, before = end - 1, str(tokenizer.decode(ids[end - 1 : end]))


def _hidden(policy: Policy, prompt: Sequence[int], completion: Sequence[int], name: str) -> Tensor:
    """(T, H) at the positions that predict the completion's tokens."""
    ids = torch.tensor([[*prompt, *completion]], device=policy.base.hardware.device)
    with policy.view(name):
        backbone = getattr(policy.causal, policy.causal.base_model_prefix)
        states = backbone(input_ids=ids, use_cache=False).last_hidden_state
    return states[0, len(prompt) - 1 : -1]


def _logprobs(policy: Policy, hidden: Tensor) -> Tensor:
    """(C, H) -> (C, V) float32."""
    return policy.causal.get_output_embeddings()(hidden).float().log_softmax(-1)


def _alternatives(
    tokenizer: PreTrainedTokenizerBase, logprobs: Tensor
) -> Iterator[tuple[tuple[str, float], ...]]:
    values, ids = logprobs.topk(min(ALTERNATIVES, logprobs.shape[1]), dim=-1)
    for row_values, row_ids in zip(values.exp().tolist(), ids.tolist(), strict=True):
        yield tuple(
            (str(tokenizer.decode([i])), p) for i, p in zip(row_ids, row_values, strict=True)
        )
