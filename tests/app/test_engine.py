"""The engine: every side as it is alone, every user an answer, and the model freed each time."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from safetensors.torch import load_file, save_file

from kit.app.compare import engine as module
from kit.app.compare.background import Background
from kit.app.compare.comparison import Kept
from kit.app.compare.engine import Engine, pieces
from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT, Setup
from kit.app.library.adapters import Choice
from kit.config import DataConfig, ModelConfig
from kit.errors import AdapterError, ConfigError, ModelError, ResultsError
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject
from kit.model.adapter_files import adapter_sha256
from kit.model.lora import load_adapters
from kit.model.policy import BASE, Policy
from kit.model.rollout import Request, Sampling, sample
from kit.model.tokenizer import end_of_turn, text_ids
from tests.conftest import add_noise

QUESTION = "Tom has 3 apples and buys 5 more. How many apples does he have?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def engine(base):
    engine = Engine(base)
    yield engine
    if engine._policy.model is not None:
        engine._policy.model.unload()


@pytest.fixture
def job(adapters):
    def make(**changes):
        values = {"adapters": {LEFT: str(adapters / "first"), RIGHT: str(adapters / "second")}}
        values |= {"temperature": 0.0, "max_new_tokens": 24, "seed": 0} | changes
        sides = {
            side: Choice(side, source, "embedded", "", None, None, None)
            for side, source in values.pop("adapters").items()
        }
        question = values.pop("question", QUESTION)
        return Setup(question, "", None, sides, **values)

    return make


def last(items):
    *_, item = items
    return item


def said(comparison):
    return {side: [a.completion.tokens for a in mine] for side, mine in comparison.answers.items()}


@pytest.mark.smoke
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_each_side_says_what_it_says_alone(engine, job, base, adapters, temperature):
    samples = 1 if temperature == 0 else 3
    wanted = job(temperature=temperature, samples=samples, seed=5)
    sides = {**wanted.adapters, BASE_SIDE: None}
    together = said(
        last(engine.run(job(adapters=sides, temperature=temperature, samples=samples, seed=5)))
    )
    engine._policy.model.unload()
    prompt = tuple(base.prompt_ids(MESSAGES))
    for side, source in sides.items():
        model = load_adapters(base, {"alone": source}) if source else None
        requests = [Request(prompt, (5, i), "alone" if source else BASE) for i in range(samples)]
        alone = sample(Policy(base, model), requests, Sampling(24, temperature))
        if model is not None:
            model.unload()
        assert together[side] == [c.tokens for c in alone]
    assert together[LEFT] != together[RIGHT] != together[BASE_SIDE]
    engine._policy = Policy(base)


@pytest.fixture
def dora(base, adapters, tmp_path):
    """A saved adapter of DoRA, which PEFT does not compute in one batch with others."""
    model = load_adapters(base, {"plain": str(adapters / "first")})
    settings = model.peft_config["plain"].to_dict() | {"use_dora": True}
    model.add_adapter("dora", PeftLoraConfig(**settings))
    add_noise(model, 3)
    model.save_pretrained(tmp_path, selected_adapters=["dora"])
    model.unload()
    return str(tmp_path / "dora")


@pytest.mark.smoke
def test_an_adapter_that_is_computed_alone_is_asked_before_or_after_the_others(
    engine, job, adapters, dora
):
    first, began = str(adapters / "first"), time.perf_counter()
    sides = {LEFT: first, RIGHT: dora, BASE_SIDE: None}
    steps = list(engine.run(job(adapters=sides)))
    together = said(steps[-1])
    assert set(steps[-1].scores[0]) == set(sides)
    for side, source in sides.items():
        alone = job(adapters={LEFT: source, RIGHT: source})
        assert said(last(engine.run(alone)))[LEFT] == together[side]
    assert together[LEFT] != together[RIGHT] != together[BASE_SIDE]
    answers = [[mine[0] for mine in step.answers.values()] for step in steps]
    assert sorted(len(one.completion.tokens) for one in answers[0]) == [0, 0, 1]
    for before, after in pairwise(answers[:-1]):  # one adapter is written at a time
        assert sum(one != other for one, other in zip(before, after, strict=True)) == 1
    # each in its own time
    assert sum(one.seconds for one in answers[-1]) <= time.perf_counter() - began


@pytest.mark.smoke
def test_answers_grow_token_by_token_on_all_sides_at_once(engine, job):
    steps = list(engine.run(job()))
    counts = [len(step.answers[LEFT][0].completion.tokens) for step in steps[:-1]]
    assert counts[:3] == [1, 2, 3] and max(counts) == counts[-1]
    assert [len(s.answers[RIGHT][0].completion.tokens) for s in steps[:3]] == [1, 2, 3]
    for earlier, later in pairwise(steps):
        before, after = earlier.answers[LEFT][0].completion, later.answers[LEFT][0].completion
        assert after.tokens[: len(before.tokens)] == before.tokens
    assert not steps[-2].scores and set(steps[-1].scores[0]) == {LEFT, RIGHT}
    times = [step.answers[LEFT][0].seconds for step in steps[:-1]]
    assert times == sorted(times) and times[0] > 0


@pytest.mark.smoke
def test_scores_are_those_of_plain_forward_passes(engine, job, base):
    done = last(engine.run(job()))
    prompt = base.prompt_ids(MESSAGES)
    policy = engine._policy
    names = {
        side: engine._names[source, done.hashes[side]] for side, source in job().adapters.items()
    }
    for side, (answer,) in done.answers.items():
        completion = answer.completion
        ids = torch.tensor([prompt + completion.tokens])
        full = {}
        for name in (*names.values(), BASE):
            with torch.no_grad(), policy.view(name):
                logits = policy.causal(ids).logits[0, len(prompt) - 1 : -1]
            full[name] = torch.log_softmax(logits.double(), -1)
        scores = done.scores[0][side]
        assert "".join(t.text for t in scores.tokens) == base.tokenizer.decode(completion.tokens)
        for i, (token, id_) in enumerate(zip(scores.tokens, completion.tokens, strict=True)):
            for other in (LEFT, RIGHT):
                expected = float(full[names[other]][i, id_])
                assert token.logprobs[other] == pytest.approx(expected, abs=1e-4)
            assert token.logprobs[BASE_SIDE] == pytest.approx(float(full[BASE][i, id_]), abs=1e-4)
            best = full[names[side]][i].max()
            assert token.alternatives[0][1] == pytest.approx(float(best.exp()), abs=1e-4)
            shares = [share for _, share in token.alternatives]
            assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-5
        mine, theirs = full[names[side]], full[BASE]
        kl = float((mine.exp() * (mine - theirs)).sum(-1).mean())
        assert scores.kl_to_base == pytest.approx(kl, rel=1e-3) and kl > 1e-3
        mean = sum(t.logprobs[side] for t in scores.tokens) / len(scores.tokens)
        assert scores.mean_logprob[side] == pytest.approx(mean)


@pytest.mark.smoke
def test_what_is_stored_is_scored_as_the_tokens_of_its_text(engine, job, base):
    done = last(engine.run(job()))
    kept = {}
    for side, (answer,) in done.answers.items():
        said = answer.completion
        completion = Kept(range(len(said.tokens)), said.truncated, said.text)
        kept[side] = (replace(answer, completion=completion),)
    stored = replace(done, prompt="", answers=kept, scores={})
    scores, compared = engine.score(stored, 0), []
    for side, (answer,) in done.answers.items():
        tokens = text_ids(base.tokenizer, answer.completion.text)
        tokens += [] if answer.completion.truncated else [end_of_turn(base.tokenizer)]
        assert [t.text for t in scores[side].tokens] == list(pieces(base.tokenizer, tokens))
        if tokens == answer.completion.tokens:
            compared.append(side)
            for one, other in zip(scores[side].tokens, done.scores[0][side].tokens, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert compared
    nothing = {LEFT: (replace(done.answers[LEFT][0], completion=Kept(range(3), True, "")),)}
    with pytest.raises(ModelError, match="left has no text"):
        engine.score(replace(stored, answers=nothing), 0)
    changed = replace(stored, hashes=dict.fromkeys(stored.hashes, "another"))
    with pytest.raises(ModelError, match="an adapter has changed since"):
        engine.score(changed, 0)


@pytest.mark.smoke
def test_the_base_has_not_moved_from_itself(engine, job):
    done = last(engine.run(job(adapters={LEFT: None, RIGHT: None})))
    assert done.scores[0][LEFT].kl_to_base == 0
    assert all(t.logprobs[LEFT] == t.logprobs[BASE_SIDE] for t in done.scores[0][LEFT].tokens)


@pytest.mark.smoke
def test_switching_adapters_loads_each_once(engine, job, adapters, monkeypatch):
    loaded = []
    load = module.load_adapters
    monkeypatch.setattr(
        module, "load_adapters", lambda *a: loaded.extend(a[1].values()) or load(*a)
    )
    first, second = str(adapters / "first"), str(adapters / "second")
    texts = []
    for sides in ((first, None), (None, second), (second, first), (first, second), (first, first)):
        done = last(engine.run(job(adapters=dict(zip((LEFT, RIGHT), sides, strict=True)))))
        texts.append(tuple(a[0].completion.text for a in done.answers.values()))
    assert loaded == [first, second]
    assert texts[2] == texts[3][::-1] and texts[3][0] == texts[0][0] and texts[3][1] == texts[1][1]
    assert texts[4][0] == texts[4][1]


@pytest.mark.smoke
def test_two_users_at_once_get_their_own_answers(engine, job, adapters):
    jobs = [
        job(
            adapters={LEFT: str(adapters / a), RIGHT: str(adapters / b)}, seed=seed, temperature=1.0
        )
        for seed, (a, b) in enumerate(
            [("first", "second"), ("second", "first"), ("first", "first")]
        )
    ]
    alone = [said(last(engine.run(one))) for one in jobs]
    results = [None] * len(jobs)

    def use(i):
        results[i] = said(last(Background(lambda: engine.run(jobs[i]))))

    threads = [threading.Thread(target=use, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == alone and len({str(a) for a in alone}) == 3


@pytest.mark.smoke
def test_leaving_in_the_middle_frees_the_model(engine, job, base):
    running = Background(lambda: engine.run(job(max_new_tokens=400, temperature=2.0)))
    for _ in running:
        break
    assert running.join(10)
    assert engine._lock.acquire(timeout=1)
    engine._lock.release()
    linear = [m for m in base.model.modules() if "forward" in vars(m)]
    assert not linear  # neither dequantized nor mixed layers are left behind
    assert last(engine.run(job())).scores


@pytest.mark.smoke
def test_an_answer_ends_where_the_model_sees_no_further(engine, job, base, monkeypatch):
    monkeypatch.setattr(base.model.config, "max_position_embeddings", 100)
    setup = last(engine.run(job(max_new_tokens=400))).setup
    assert setup.max_new_tokens == 100 - len(base.prompt_ids(setup.messages))


@pytest.mark.smoke
def test_bad_jobs_are_refused_and_do_no_harm(engine, job, adapters, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"the prompt has \d+ tokens, .* this model can see"):
        list(engine.run(job(question="word " * engine.context)))
    with pytest.raises(AdapterError, match="no adapter at"):
        list(engine.run(job(adapters={LEFT: str(tmp_path / "none"), RIGHT: None})))
    stream = module.stream

    def full(*arguments):
        yield from [next(stream(*arguments))] if arguments else []
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "stream", full)
    with pytest.raises(ModelError, match=r"out of memory with 6 answers of up to 24 .* --cpu"):
        list(engine.run(job(samples=3, temperature=1.0)))
    monkeypatch.setattr(module, "stream", lambda *a: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        list(engine.run(job()))
    monkeypatch.setattr(module, "stream", stream)
    done = last(engine.run(job()))
    assert said(done)[LEFT]
    monkeypatch.setattr(module, "score", lambda *a: full().send(None))
    with pytest.raises(ModelError, match="out of memory"):
        engine.score(done, 0)


@pytest.mark.smoke
def test_an_adapter_that_fails_leaves_no_trace(engine, job, adapters, tmp_path):
    """Neither as the first on the base nor among others; the next one takes its place."""
    first, second = str(adapters / "first"), str(adapters / "second")
    wanted = said(last(engine.run(job(adapters={LEFT: None, RIGHT: second}))))
    bad = shutil.copytree(first, tmp_path / "bad")
    change(bad, lambda name, weight: weight.repeat(1, 2) if "lora_A" in name else weight)
    lacking = shutil.copytree(first, tmp_path / "lacking")
    change(lacking, lambda name, weight: None if "layers.1." in name else weight)
    infinite = shutil.copytree(first, tmp_path / "infinite")
    change(infinite, lambda name, weight: weight / 0 if "lora_B" in name else weight)
    engine._policy.model.unload()
    engine.__init__(engine.base)
    broken_ones = (
        (bad, "size mismatch"),
        (lacking, "lacks .* of its weights"),
        (infinite, "lora_B.* is not finite"),
    )
    for broken, reason in broken_ones:
        with pytest.raises(AdapterError, match=f"cannot load the adapter {broken}: .*{reason}"):
            list(engine.run(job(adapters={LEFT: None, RIGHT: str(broken)})))
        assert not any("lora" in name for name, _ in engine.base.model.named_parameters())
    list(engine.run(job(adapters={LEFT: None, RIGHT: first})))
    with pytest.raises(AdapterError, match="size mismatch"):
        list(engine.run(job(adapters={LEFT: second, RIGHT: str(bad)})))
    assert said(last(engine.run(job(adapters={LEFT: None, RIGHT: second})))) == wanted


@pytest.mark.smoke
def test_an_adapter_that_was_trained_on_is_loaded_anew(engine, job, adapters, tmp_path):
    changing = str(shutil.copytree(adapters / "first", tmp_path / "run"))
    before = last(engine.run(job(adapters={LEFT: None, RIGHT: changing}, samples=1)))
    change(Path(changing), lambda name, weight: 0 * weight)
    after = last(engine.run(job(adapters={LEFT: None, RIGHT: changing})))
    assert before.hashes[RIGHT] != after.hashes[RIGHT] == adapter_sha256(changing)
    assert before.hashes[LEFT] is after.hashes[LEFT] is None
    assert before.scores[0][RIGHT].kl_to_base > 0 == after.scores[0][RIGHT].kl_to_base
    # what the adapter said before is still scored by what it was then
    again = engine.score(before, 0)
    assert again[RIGHT].kl_to_base == before.scores[0][RIGHT].kl_to_base


@pytest.mark.smoke
def test_a_sample_is_scored_after_a_queue_took_the_adapters_off(engine, job, adapters, tmp_path):
    changing = str(shutil.copytree(adapters / "first", tmp_path / "run"))
    done = last(engine.run(job(adapters={LEFT: None, RIGHT: changing})))
    data = DataConfig(name="gsm_symbolic")
    where = [tmp_path / "a", tmp_path / "b"]

    def queue(limit, **changes):
        subjects = [
            Subject(str(at), ModelConfig(id="embedded"), source, "", at)
            for at, source in zip(where, (None, changing), strict=True)
        ]
        asked = EvalSettings(limit=limit, max_new_tokens=4, **changes)
        return list(engine.evaluate(subjects, data, asked, "queue"))

    assert queue(6) == [4, 6] and queue(6) == [6] and queue(2) == [2]
    again = engine.score(done, 0)
    assert again[RIGHT].kl_to_base == pytest.approx(done.scores[0][RIGHT].kl_to_base)
    with pytest.raises(ResultsError, match="seed"):  # finished, but not what is asked for
        queue(6, seed=1)  # and the adapters are off again
    change(Path(changing), lambda name, weight: 0 * weight)
    with pytest.raises(ModelError, match="an adapter has changed since"):
        engine.score(done, 0)


def change(folder: Path, new) -> None:
    """Other weights, and no probe of those that were saved."""
    path = Path(folder) / "adapter_model.safetensors"
    path.with_name("probe.safetensors").unlink(missing_ok=True)
    weights = {name: new(name, weight) for name, weight in load_file(path).items()}
    save_file({n: w.contiguous() for n, w in weights.items() if w is not None}, path)


def test_pieces_join_to_the_text_and_unfinished_characters_wait(base):
    tokenizer = base.tokenizer
    text = "Sum: 3 + 4 = 7 €, naïve 🍎🍏 日本"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = list(pieces(tokenizer, ids))
    assert len(parts) == len(ids) and "".join(parts) == text
    assert "" in parts and "\ufffd" not in "".join(parts)
    # cut in the middle of a character: what is there is shown, the rest is not invented
    assert "".join(pieces(tokenizer, ids[:-1])) in text
