"""The models that judge: any OpenAI-compatible endpoint, or a local one the kit loads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked

from kit.config import (
    ModelConfig,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SettingsSection,
)
from kit.errors import ConfigError, ModelError
from kit.preferences.rubric import Messages

MAX_REASON = 300  # characters of an endpoint's own words on a failure


class JudgeConfig(SettingsSection):
    """Which model judges, and how it is asked."""

    model: Name
    """Name of the model at the endpoint; without `base_url` a hub id or folder, loaded here."""
    base_url: str | None = None
    """Address of an OpenAI-compatible endpoint, up to /v1; None: the model is loaded here."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; None: the endpoint needs none."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    """0 is greedy; None: not sent, for endpoints that refuse it."""
    max_tokens: PositiveInt | None = 1024
    """Longer replies are cut off and malformed; None: not sent, the endpoint has its own limit."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 120.0
    """Seconds without an answer after which a request is tried again."""
    max_retries: NonNegativeInt = 5
    """How often a request is repeated after a time-out, a lost connection, 429 or 5xx."""
    concurrency: PositiveInt = 8
    """Requests at a time; prompts per batch of a local model."""
    price_input: NonNegativeFloat | None = None
    """Price of a million input tokens, in any currency; None: no cost is shown."""
    price_output: NonNegativeFloat | None = None
    """Price of a million output tokens."""
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    """How a local model sits in memory."""

    @property
    def signature(self) -> str:
        """What decides a judge's verdicts."""
        settings = self.model_dump(include={"model", "temperature", "max_tokens"})
        if self.base_url is None:
            settings["quantization"] = self.quantization
        return json.dumps(settings)

    @model_validator(mode="after")
    def _local_needs_limits(self) -> JudgeConfig:
        if self.base_url is None and None in (self.temperature, self.max_tokens):
            raise ValueError("temperature and max_tokens may be null only with a base_url")
        return self


@checked(frozen=True, slots=True, config=ConfigDict(strict=True))
class Reply:
    """What came back for one prompt: a text, or the reason why there is none.

    ValidationError for fields of other types: some are read from files.
    """

    text: str | None
    failure: str | None = None
    prompt_tokens: int | None = None  # None: the endpoint did not say
    completion_tokens: int | None = None


class JudgeModel(Protocol):
    """Answers prompts, in any order: (position of the prompt, reply) as each is there."""

    signature: str  # judgements of another signature are not mixed with these

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply]]: ...


def open_judge(config: JudgeConfig) -> JudgeModel:
    """Raises ConfigError for a missing key, ModelError for a model that cannot be loaded."""
    return LocalModel(config) if config.base_url is None else Endpoint(config)


class Endpoint:
    """A model behind an OpenAI-compatible chat endpoint."""

    def __init__(self, config: JudgeConfig) -> None:
        address = urlsplit(config.base_url or "")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError("judge.base_url must look like https://host/v1")
        if address.username or address.password or address.query:
            # it is written to the results; the message does not repeat it either
            raise ConfigError("judge.base_url must hold no password or query; see api_key_env")
        self.config = config
        self.signature = config.signature
        self._key = _key(config.api_key_env)
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=self._key or "none",  # the client would look for one in the environment
            timeout=config.timeout,
            max_retries=config.max_retries,
        )

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply]]:
        """Raises ModelError when the endpoint refuses the key or does not know the model."""
        positions = iter(range(len(prompts)))
        waiting: dict[Future[Reply], int] = {}
        pool = ThreadPoolExecutor(self.config.concurrency)
        try:
            while True:
                for i in islice(positions, self.config.concurrency - len(waiting)):
                    waiting[pool.submit(self._ask_one, prompts[i])] = i
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=False)

    def _ask_one(self, prompt: Messages) -> Reply:
        config = self.config
        optional = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        request: dict[str, Any] = {"model": config.model, "messages": prompt}
        request |= {name: value for name, value in optional.items() if value is not None}
        try:
            response = self._client.chat.completions.with_raw_response.create(**request)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ModelError(
                f"{config.base_url} refused the request ({self._reason(error)}); check the key in "
                f"the environment variable {config.api_key_env} and what it may use"
            ) from None
        except openai.NotFoundError as error:
            raise ModelError(
                f"{config.base_url} has no model {config.model!r} ({self._reason(error)}); check "
                "judge.model, and judge.base_url, which usually ends in /v1"
            ) from None
        except openai.OpenAIError as error:
            return Reply(None, self._reason(error))
        return self._read(response.text)

    def _read(self, body: str) -> Reply:
        try:
            answer = _Answer.model_validate_json(body)
        except ValidationError:
            return Reply(None, f"not a chat completion: {self._redact(body)[:MAX_REASON]}")
        text = self._redact(answer.choices[0].message.content or "")
        usage = answer.usage or _Usage()
        return Reply(text, None, usage.prompt_tokens, usage.completion_tokens)

    def _reason(self, error: openai.OpenAIError) -> str:
        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self.config.timeout:g} s"
        if isinstance(error, openai.APIStatusError):
            text = f"HTTP {error.status_code}: {error.response.text}"
        else:
            text = f"{error} {error.__cause__ or ''}"
        return self._redact(" ".join(text.split()))[:MAX_REASON]

    def _redact(self, text: str) -> str:
        """An endpoint may repeat the key in what it says."""
        return text.replace(self._key, "[key]") if self._key else text


class LocalModel:
    """A causal language model on this machine."""

    def __init__(self, config: JudgeConfig) -> None:
        from kit.model.base import load_base  # loads torch, which an endpoint does without
        from kit.model.policy import Policy

        self.config = config
        self.signature = config.signature
        self._policy = Policy(
            load_base(ModelConfig(id=config.model, quantization=config.quantization))
        )

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply]]:
        from kit.model.policy import BASE
        from kit.model.rollout import Request, Sampling, sample

        config = self.config
        assert config.max_tokens is not None and config.temperature is not None  # JudgeConfig
        sampling = Sampling(max_new_tokens=config.max_tokens, temperature=config.temperature)
        requests = [
            Request(tuple(self._policy.base.prompt_ids(prompt)), (i,), BASE)
            for i, prompt in enumerate(prompts)
        ]
        for start in range(0, len(requests), config.concurrency):
            batch = requests[start : start + config.concurrency]
            for i, completion in enumerate(sample(self._policy, batch, sampling), start):
                used = len(requests[i].prompt), len(completion.tokens)
                yield i, Reply(completion.text, None, *used)


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(BaseModel):
    """What is read of an endpoint's answer; the rest differs from server to server."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


def _key(variable: str | None) -> str | None:
    """The key in this environment variable. Messages do not repeat its name: it may be the key."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            "the environment variable that judge.api_key_env names is not set; export the key in "
            "it, or set judge.api_key_env=null for an endpoint that needs none"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(
            "the environment variable that judge.api_key_env names holds no key: keys have no "
            "spaces, line breaks or letters beyond ASCII"
        )
    return key
