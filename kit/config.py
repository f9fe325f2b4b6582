"""Configuration: small, typed and closed. Imports no torch, so that `kit --help` is quick.

A recipe is one YAML file; `extends:` names another file it builds on, and `key=value` arguments
override single fields (`rollout.group_size=4`). Unknown keys and values out of range are errors
that name the nearest key or the allowed range. In each section the fields most users touch come
first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from kit.guideline import Guideline, prompted
from kit.section import SettingsSection

SYSTEM_PROMPT = "Solve the problem step by step, then give the final answer as '#### <number>'."
AnswerKind = Literal["number", "latex"]  # how an answer is compared with the gold one

EMBEDDED = "embedded"
EMBEDDED_SUMS = "embedded-sums"
_ASSETS = Path(__file__).parent / "assets"
GUIDELINES = _ASSETS / "guidelines"  # those that ship, <name>.yaml
EMBEDDED_PATH = _ASSETS / "tiny-qwen2.5"
EMBEDDED_PATHS = {EMBEDDED: EMBEDDED_PATH, EMBEDDED_SUMS: _ASSETS / "sums-qwen2.5"}
# of each embedded model, with the problems that it knows
EMBEDDED_RECIPES = {EMBEDDED: _ASSETS / "word-problems.yaml", EMBEDDED_SUMS: _ASSETS / "sums.yaml"}
DEMO_RECIPE = _ASSETS / "demo.yaml"
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


UNITS = {"GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20}
SIZE = re.compile(rf"([0-9]{{1,6}}(?:\.[0-9]{{1,3}})?) ?({'|'.join(UNITS)})")


def memory_size(text: str) -> int:
    """Bytes of a size with its unit; ValueError for what is none."""
    found = SIZE.fullmatch(text)
    if found is None or not float(found[1]):
        raise ValueError(f"must be a size with its unit ({', '.join(UNITS)}), such as 6GB")
    return int(float(found[1]) * UNITS[found[2]])


def _check_size(text: str) -> str:
    memory_size(text)
    return text


MemorySize = Annotated[str, AfterValidator(_check_size)]
Name = Annotated[str, Field(min_length=1)]


class ModelConfig(SettingsSection):
    """Which base model, and how it sits in memory."""

    id: Name
    """Hub id or folder of a causal language model; `embedded` and `embedded-sums` are the
    tiny ones shipped here."""
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    """nf4: 4-bit NormalFloat with double quantization; int8: 8-bit; none: weights in `dtype`."""
    adapter: str | None = None
    """Folder or hub id of a LoRA adapter to start from; its snapshot becomes the reference."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type. auto: bfloat16 where the GPU has it, float16 with a scaled loss on older GPUs,
    else float32. docs/doctor.md says what each does on which."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel. sdpa: PyTorch's scaled_dot_product_attention as transformers calls it;
    auto: the same without repeated keys while decoding where the model has no windows or caps
    (Llama, Mistral, Qwen2, Qwen3), else sdpa; flash_attention_2: on a CUDA GPU."""
    gradient_checkpointing: Literal["auto", True, False] = "auto"
    """Recompute activations in the backward pass: less memory, about 30 % more time. auto: on a
    GPU, unless the update is estimated to fit without; on the CPU where memory_budget asks."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository; None: its default branch."""
    backend: Literal["auto", "transformers", "unsloth"] = "auto"
    """What loads and computes the model. auto: unsloth on a CUDA GPU where it is installed
    (`pip install -r requirements-gpu.txt`), else transformers."""
    path: str | None = None
    """Folder with a copy of `id`, for where the hub is out of reach; adapters still name `id`.
    Where there is no such folder, `id` is loaded."""

    @property
    def source(self) -> str:
        """What it is loaded from: a folder or hub id."""
        if self.id in EMBEDDED_PATHS:
            return str(EMBEDDED_PATHS[self.id])
        return self.path if self.path and Path(self.path).is_dir() else self.id


class LoraConfig(SettingsSection):
    """The trained low-rank weights; always float32. There is no dropout: it would make the
    importance ratio differ from 1 with unchanged weights."""

    rank: PositiveInt = 16
    """Rank of the update; 1 already learns with reinforcement learning, 16-32 is usual."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Modules that get an adapter. Attention alone learns markedly less than all linear layers."""


class DataConfig(SettingsSection):
    """The problems. Validation problems are held out of training and never trained on."""

    name: Name
    """gsm8k | svamp | asdiv | math500 | gsm_symbolic | reasoning_gym:<task>, a hub id
    (owner/name or owner/name:config), or a .jsonl, .csv or .parquet file."""
    data_dir: str | None = None
    """Folder with local copies (<name>/<split>.jsonl); None: the Hugging Face hub."""
    split: str | None = None
    """Split to take; None: the data set's training split (its only split where it has one)."""
    limit: PositiveInt | None = None
    """Use only this many problems, the first after shuffling with `train.seed`; None: all."""
    validation_size: NonNegativeInt = 128
    """Problems held out for validation; 0: no validation."""
    system_prompt: str = SYSTEM_PROMPT
    """System message of every prompt; empty: none is sent."""
    max_prompt_tokens: PositiveInt = 512
    """Longer prompts are dropped, with a count."""
    categories: list[str] | None = None
    """Keep only problems of these categories; None: all."""
    question_column: str = "question"
    """Column with the problem text, for files and hub ids the kit does not know."""
    answer_column: str = "answer"
    """Column with the final answer, likewise."""
    verifier: AnswerKind = "number"
    """How answers are compared, likewise. number: as exact rationals; latex: by math-verify."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of a reasoning_gym task (`size`, `seed`, …). Its own verifier scores it, but
    gsm_symbolic is compared as numbers."""


class RolloutConfig(SettingsSection):
    """How completions are sampled."""

    prompts_per_step: PositiveInt = 8
    """Problems per step, over all processes."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Completions per problem; advantages are relative to the group, so at least 2."""
    max_new_tokens: PositiveInt = 512
    """Longer completions are cut off and count as truncated."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Sampling temperature, used for every log-probability too."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus truncation; below 1 the sampled policy is not the differentiated one."""
    top_k: NonNegativeInt = 0
    """Keep the k most likely tokens; 0: all. The same caution as for top_p."""
    max_rows: NonNegativeInt = 0
    """Most completions decoded at once; 0: as many as memory allows."""
    dequantize: Literal["auto", "always", "never"] = "auto"
    """Hold a full-precision copy of the quantized weights while sampling: same numbers, faster
    decoding. auto: when it fits into memory."""
    cuda_graph: bool = True
    """On a CUDA GPU record a decoding step and replay it, instead of launching its kernels one by
    one. Where it cannot be recorded, the log and `decoding` in run.json say why."""


class TrustRegionSettings(SettingsSection):
    """What all trust regions have; docs/trust-regions.md sets them side by side."""

    source: ClassVar[str] = ""
    """Where it is published; an arXiv number is a link in the docs."""
    base_refused: ClassVar[str] = ""
    """Why it cannot be measured from the base; empty where it can."""
    sequence_refused: ClassVar[str] = ""
    """Why it has no length-normalised form; empty where it has."""
    pulls_on_all: ClassVar[bool] = False
    """Whether completions without advantage get a gradient too, from a penalty."""


class PSPO(TrustRegionSettings):
    """Probability smoothing: the ratio of a mixture with the old policy, (1 - alpha) r + alpha."""

    source: ClassVar[str] = "arXiv 2509.21282"
    name: Literal["pspo"] = "pspo"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Weight of the old policy in the smoothed one; 0 is noclip, 1 has no gradient."""


class Clip(TrustRegionSettings):
    """PPO's clipped ratio: no gradient beyond the range on the side the advantage pushes to."""

    source: ClassVar[str] = "arXiv 1707.06347, 2503.14476; dual clip 1912.09729"
    name: Literal["clip"]
    epsilon_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The ratio is clipped below 1 - epsilon_low."""
    epsilon_high: NonNegativeFloat = 0.28
    """The ratio is clipped above 1 + epsilon_high."""
    dual: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """Dual clip: with a negative advantage no gradient beyond this ratio either; 3 is usual,
    None: no bound."""


class NoClip(TrustRegionSettings):
    """The plain importance ratio: the control arm."""

    source: ClassVar[str] = "importance sampling"
    name: Literal["noclip"]


class SAPO(TrustRegionSettings):
    """A sigmoid gate: the gradient fades out on both sides of r = 1."""

    source: ClassVar[str] = "arXiv 2511.20347"
    name: Literal["sapo"]
    tau_positive: Annotated[float, Field(gt=0)] = 1.0
    """Steepness of the gate where the advantage is positive."""
    tau_negative: Annotated[float, Field(gt=0)] = 1.05
    """Steepness of the gate where the advantage is negative."""


class CISPO(TrustRegionSettings):
    """The ratio, capped, is a weight on the log-probability: every token keeps its gradient.

    As in TRL the cap is on top alone; 5 is what TRL's help quotes from ScaleRL (arXiv 2510.13786).
    """

    source: ClassVar[str] = "arXiv 2506.13585"
    name: Literal["cispo"]
    epsilon_max: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    """Largest weight."""


class GMPO(TrustRegionSettings):
    """The geometric mean of a completion's token ratios, each clipped in log space first.

    0.4 is the paper's number as TRL's help quotes it.
    """

    source: ClassVar[str] = "arXiv 2507.20673"
    base_refused: ClassVar[str] = "its range is for tokens that a few updates have moved"
    sequence_refused: ClassVar[str] = "it makes one ratio of a completion as it is"
    name: Literal["gmpo"]
    epsilon_low: NonNegativeFloat = 0.4
    """The log ratio is clipped below -epsilon_low, in nats."""
    epsilon_high: NonNegativeFloat = 0.4
    """The log ratio is clipped above epsilon_high, in nats."""


_FROM_THE_SAMPLER = "it bounds how far a token's probability moves from the one it was sampled with"
_OF_ONE_TOKEN = "it looks at the probability of a token, and a completion's has no use for it"


class DPPOTV(TrustRegionSettings):
    """CISPO's weight, but none where a probability has moved too far the way A pushes it.

    0.2 is what prime-rl takes; the authors' script in verl has 0.15 for Qwen3-30B-A3B, and the
    paper's own table could not be read. The cap of 20 is that of their loss.
    """

    source: ClassVar[str] = "arXiv 2602.04879"
    base_refused: ClassVar[str] = _FROM_THE_SAMPLER
    sequence_refused: ClassVar[str] = _OF_ONE_TOKEN
    name: Literal["dppo_tv"]
    delta_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    """With a negative advantage, the largest fall of the probability that still learns."""
    delta_high: Annotated[float, Field(ge=0, le=1)] = 0.2
    """With a positive advantage, the largest rise of the probability that still learns."""
    max_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20.0
    """Largest weight."""


class DPPOKL(TrustRegionSettings):
    """As dppo_tv, with the KL divergence of "this token or another" in place of the difference.

    0.05 is the authors' script in verl for Qwen3-30B-A3B; the paper's own table could not be read.
    """

    source: ClassVar[str] = "arXiv 2602.04879"
    base_refused: ClassVar[str] = _FROM_THE_SAMPLER
    sequence_refused: ClassVar[str] = _OF_ONE_TOKEN
    name: Literal["dppo_kl"]
    delta_low: NonNegativeFloat = 0.05
    """With a negative advantage, the largest divergence that still learns, in nats."""
    delta_high: NonNegativeFloat = 0.05
    """With a positive advantage, the largest divergence that still learns, in nats."""
    max_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20.0
    """Largest weight."""


class IPO(TrustRegionSettings):
    """The plain ratio where the probability moved little either way, and a pull on every token.

    Both defaults are those of prime-rl in August 2026.
    """

    source: ClassVar[str] = "prime-rl, ipo_loss_fn"
    base_refused: ClassVar[str] = _FROM_THE_SAMPLER
    sequence_refused: ClassVar[str] = _OF_ONE_TOKEN
    pulls_on_all: ClassVar[bool] = True
    name: Literal["ipo"]
    delta: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The largest change of the probability that still learns."""
    tau: NonNegativeFloat = 1e-3
    """Weight of the squared log ratio that pulls every token back."""


class VESPO(TrustRegionSettings):
    """A weight on the whole completion by the product of its ratios, greatest near 1.

    The defaults are TRL's.
    """

    source: ClassVar[str] = "arXiv 2602.10693"
    base_refused: ClassVar[str] = "its weight is that of the completion under the sampler"
    sequence_refused: ClassVar[str] = "it weighs whole completions as it is, by their product"
    name: Literal["vespo"]
    k_positive: NonNegativeFloat = 2.0
    """With a positive advantage or none, how fast the weight falls towards r = 0."""
    lambda_positive: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0
    """With a positive advantage or none, how fast the weight falls towards large r."""
    k_negative: NonNegativeFloat = 3.0
    """With a negative advantage, how fast the weight falls towards r = 0."""
    lambda_negative: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """With a negative advantage, how fast the weight falls towards large r."""


class CFPO(TrustRegionSettings):
    """The plain ratio minus a parabola around r = 1: beyond the range the gradient turns round.

    The paper has no setting besides the clip range. Its text could not be read: the factor is that
    of two public reimplementations, which name its equation 7, and of SPO (arXiv 2401.16025).
    """

    source: ClassVar[str] = "arXiv 2601.22801"
    name: Literal["cfpo"]
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.2
    """Where the gradient is 0: at 1 + epsilon with a positive advantage, else at 1 - epsilon."""


class DGPO(TrustRegionSettings):
    """Beyond the clip range the gradient decays instead of ending, as a power of the ratio.

    n and m are what the authors recommend; their script for a 7B model leaves the range as in PPO.
    """

    source: ClassVar[str] = "arXiv 2603.14389"
    name: Literal["dgpo"]
    epsilon_low: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """With a negative advantage it decays below 1 - epsilon_low."""
    epsilon_high: NonNegativeFloat = 0.2
    """With a positive advantage it decays above 1 + epsilon_high."""
    n: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Below the range the weight falls with the n-th power of the ratio."""
    m: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """Above the range the weight falls with the m-th root of the ratio."""


class DRO(TrustRegionSettings):
    """No ratio at all: the log-probability, and a pull back by the squared log ratio.

    verl asks for beta and has no default for it; 0.1 is ModelScope Twinkle's.
    """

    source: ClassVar[str] = "arXiv 2405.19107; verl, dro"
    base_refused: ClassVar[str] = "it has no importance ratio that a weight could correct"
    sequence_refused: ClassVar[str] = "it has no ratio to take the mean of"
    pulls_on_all: ClassVar[bool] = True
    name: Literal["dro"]
    beta: NonNegativeFloat = 0.1
    """Weight of half the squared log ratio, which pulls every token back."""


def spelled_out(region: Any) -> Any:
    """A trust region's name for short, as the section that it stands for."""
    return {"name": region} if isinstance(region, str) else region


TrustRegion = Annotated[
    PSPO | Clip | NoClip | SAPO | CISPO | GMPO | DPPOTV | DPPOKL | IPO | VESPO | CFPO | DGPO | DRO,
    Field(discriminator="name"),
    BeforeValidator(spelled_out),
]

# by name
TRUST_REGION_SETTINGS: dict[str, type[TrustRegionSettings]] = {
    get_args(region.model_fields["name"].annotation)[0]: region
    for region in get_args(get_args(TrustRegion)[0])
}


class ObjectiveConfig(SettingsSection):
    """What is maximised; docs/objective.md has the mathematics."""

    trust_region: TrustRegion = PSPO()
    """Its name, alone or with its own settings; `kit regions` lists them."""
    level: Literal["token", "sequence"] = "token"
    """Whether the ratio is per token or the length-normalised one of the completion."""
    old_policy: Literal["auto", "base", "sampler"] = "auto"
    """What the ratio is measured from. auto: base for pspo, sampler for the others."""
    max_weight: Annotated[float, Field(gt=0)] = 10.0
    """With old_policy base: cap of the importance weight exp(old - sampler)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the group's or the batch's standard deviation, or not at all."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """One denominator for all tokens (DAPO), a mean per completion (GRPO), or a constant one
    (Dr. GRPO)."""
    beta: NonNegativeFloat = 0.0
    """Weight of the KL term to the base; 0: none."""

    @property
    def resolved_old_policy(self) -> Literal["base", "sampler"]:
        if self.old_policy != "auto":
            return self.old_policy
        return "base" if self.trust_region.name == "pspo" else "sampler"

    @property
    def needs_all_rows(self) -> bool:
        """Whether completions without advantage teach something too: a penalty pulls on all."""
        return self.beta > 0 or self.trust_region.pulls_on_all

    @model_validator(mode="after")
    def _makes_sense(self) -> ObjectiveConfig:
        region = self.trust_region
        if self.old_policy == "base" and region.base_refused:
            raise _refused(region.name, "old_policy", "base", region.base_refused, "auto")
        if self.level == "sequence" and region.sequence_refused:
            raise _refused(region.name, "level", "sequence", region.sequence_refused, "token")
        return self


def _refused(region: str, key: str, value: str, reason: str, instead: str) -> PydanticCustomError:
    return PydanticCustomError(
        "refused",
        "objective.{key}={value} does not go with {region}: {reason}; take {key}={instead}",
        {"region": region, "key": key, "value": value, "reason": reason, "instead": instead},
    )


class RewardFunction(SettingsSection):
    """A reward function of the user's, with TRL's signature."""

    path: str
    """`package.module:function` or `file.py:function`."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Its value is multiplied by this."""


class RewardConfig(SettingsSection):
    """Reward of a completion: the sum of named parts."""

    correct: NonNegativeFloat = 1.0
    """Given when the answer is right, wherever it stands in the text."""
    strict: bool = True
    """Count an answer as right only in the `#### <number>` format."""
    format: NonNegativeFloat = 0.05
    """Given when the answer stands in the `#### <number>` format, right or wrong."""
    no_answer: Annotated[float, Field(le=0, allow_inf_nan=False)] = 0.0
    """Given when the text holds no answer at all."""
    clamp: tuple[float, float] | None = None
    """Smallest and largest total reward; None: no bounds."""
    functions: list[RewardFunction] = Field(default_factory=list)
    """Further parts."""

    @model_validator(mode="after")
    def _ordered(self) -> RewardConfig:
        if self.clamp is not None and not self.clamp[0] < self.clamp[1]:  # nor with NaN
            raise ValueError(f"clamp must be [low, high] with low < high, got {list(self.clamp)}")
        return self


class OptimConfig(SettingsSection):
    """The optimizer: AdamW."""

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-5
    """Peak learning rate; LoRA wants about 10 times that of full fine-tuning."""
    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit keeps the optimizer state in 8 bits (bitsandbytes)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: constant, or down to 0 at the last step."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of all steps over which the learning rate rises from 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """The gradient is scaled down to this norm; `.inf` turns it off."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the gradient's mean."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the gradient's square."""


class TrainConfig(SettingsSection):
    """The loop."""

    steps: PositiveInt = 250
    """Rollouts (grpo) or batches (the other methods) in the whole run."""
    updates_per_rollout: PositiveInt = 1
    """Optimizer steps on each rollout. With 1 and old_policy sampler, every ratio is 1 and no trust
    region acts."""
    micro_batch_tokens: Annotated[int, Field(ge=16)] = 8192
    """Tokens in one forward and backward, a prompt once for its completions there, padding counted;
    more is faster, less saves memory."""
    seed: NonNegativeInt = 0
    """Seeds LoRA's start, the order of problems and every sample."""
    validate_every: NonNegativeInt = 25
    """Steps between validations, the first before step 0; 0: never."""
    checkpoint_every: PositiveInt = 25
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Older checkpoints are deleted."""
    preflight_problems: NonNegativeInt = 32
    """Problems the base is sampled on before step 0; 0: no pre-flight."""
    sft_batch: PositiveInt = 32
    """Examples per step (sft only)."""
    logprob_chunk: PositiveInt = 256
    """Completion positions whose logits exist at once."""
    samples_per_step: NonNegativeInt = 4
    """Completions written to samples.jsonl each step."""
    max_nonfinite: PositiveInt = 10
    """Stop after this many updates in a row whose loss or gradient was not finite."""
    report_to: list[str] = Field(default_factory=list)
    """Accelerate's trackers: tensorboard, wandb, trackio, …"""


class PreferencesConfig(SettingsSection):
    """What dpo and kto learn from, and how; the other methods take none of it.

    Names and defaults are TRL's (DPOConfig, KTOConfig) where it has them.
    """

    source: str | None = None
    """votes.jsonl of the app, a .jsonl, .csv or .parquet file with TRL's columns (prompt, chosen,
    rejected; or prompt, completion, label), or a hub id with them."""
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Reward of one nat that a completion became likelier than under the reference; a higher beta
    keeps the policy nearer to it."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of preferences taken to be the wrong way round (dpo only)."""
    desirable_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Weight of the completions labelled true (kto only)."""
    undesirable_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Weight of the completions labelled false (kto only)."""
    batch: PositiveInt = 16
    """Pairs (dpo) or labelled completions (kto) per step, over all processes."""
    test_problems: bool = False
    """Whether preferences on test problems may be trained on; what is measured on those problems
    afterwards says nothing about others."""
    other_bases: bool = False
    """Whether preferences between answers of another base model may be trained on."""


# of PreferencesConfig, those that mean nothing to a method
PREFERENCE_METHODS = {
    "dpo": ("desirable_weight", "undesirable_weight"),
    "kto": ("label_smoothing",),
}


class Config(SettingsSection):
    """Everything that decides a run."""

    method: Literal["grpo", "sft", "dpo", "kto"] = "grpo"
    """grpo: reinforcement learning; sft: supervised on the worked solutions; dpo: on pairs of which
    one completion is preferred; kto: on completions that are good or bad."""
    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    reward: RewardConfig = RewardConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    guidelines: dict[str, Guideline] = Field(default_factory=dict)
    """What solutions are asked and rewarded to be like, beside right: a list of names of those that
    ship and paths of yours (docs/guidelines.md). A run records them whole, by name."""
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    memory_budget: MemorySize | None = None
    """Memory that training may take, e.g. 6GB (10^9 bytes) or 5.5GiB (2^30): rows decoded at once,
    micro-batch, dequantized copy and checkpointing are chosen to fit. None: all there is."""
    output: str | None = None
    """The run folder; None: runs/<name of the configuration file>."""

    @property
    def system_prompt(self) -> str:
        """Of every prompt: that of the data, and what the guidelines add."""
        return prompted(self.data.system_prompt, self.guidelines)

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of a training step: one where nothing is sampled."""
        return self.train.updates_per_rollout if self.method == "grpo" else 1

    @property
    def learns_from_preferences(self) -> bool:
        return self.method in PREFERENCE_METHODS

    @model_validator(mode="after")
    def _of_its_method(self) -> Config:
        if reason := _foreign(self):
            raise PydanticCustomError("refused", "{reason}", {"reason": reason})
        return self


def _foreign(config: Config) -> str:
    """Which setting does not go with the method, and what to do; "" where all do."""
    method, given = config.method, config.preferences
    if config.guidelines and method != "grpo":
        return (
            f"guidelines reward what is sampled, which method: {method} does not do; take "
            "method: grpo, or leave guidelines out"
        )
    unused = PREFERENCE_METHODS.get(method, tuple(PreferencesConfig.model_fields))
    for name in unused:
        if getattr(given, name) != PreferencesConfig.model_fields[name].default:
            owners = [other for other, foreign in PREFERENCE_METHODS.items() if name not in foreign]
            return (
                f"preferences.{name} is for method={' or '.join(owners)}, and this is "
                f"method={method}: leave it out, or change the method"
            )
    if not config.learns_from_preferences:
        return ""
    if given.source is None:
        return (
            f"method={method} needs preferences.source: votes.jsonl, a file or a hub id with "
            "preferences; kit preferences makes such a file"
        )
    if method == "kto" and given.batch < 2:
        return (
            "preferences.batch must be at least 2 with method=kto: what the policy drifts by is "
            "measured by giving every prompt of a step the completion of another"
        )
    if config.train.updates_per_rollout != 1:
        return (
            f"train.updates_per_rollout={config.train.updates_per_rollout} is for method=grpo: "
            f"set it to 1 with method={method}, which samples nothing and updates once a step"
        )
    return ""


READERS = {".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


PREFLIGHT_SAMPLES = 4  # per problem: enough to see whether rewards within a group differ
