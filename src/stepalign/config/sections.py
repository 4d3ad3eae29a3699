"""The keys of sampling, critic and guards: who draws, who writes feedback, what its faults cost, what stops a run."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stepalign.outside import names_a_secret


class Section(BaseModel):
    """A table of a recipe: frozen, and closed to keys that nothing reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


TeacherWeights = Literal["initial", "ema", "live", "trust_region"]


class TeacherSection(Section):
    """The weights of the self-teacher."""

    weights: TeacherWeights = "initial"
    """initial = as at the start, ema = a moving average, live = the student's own, trust_region = initial and live."""
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    """ema: teacher <- decay * teacher + (1 - decay) * student, after each optimizer step."""
    live_share: float = Field(default=0.05, ge=0, le=1)
    """trust_region: logits = (1 - share) * those of the initial weights + share * those of the live ones."""
    model: str = ""
    """Another model in the self-teacher's place, of the same vocabulary, loaded once and frozen: a folder, or a name as
    in ``model.path``. With the condition gkd it reads the question alone."""
    base_urls: tuple[str, ...] = ()
    """vLLM servers of such a model, which give their ``objective.top_k`` likeliest tokens at each place of a completion
    (started with ``--max-logprobs`` of at least as many)."""

    @property
    def is_other(self) -> bool:
        """Whether the teacher is another model than the solver."""
        return bool(self.model or self.base_urls)


class SamplingSection(Section):
    """How the solver attempts a problem while training."""

    num_generations: int = Field(default=1, ge=1)
    """Completions per problem and step (G)."""
    temperature: float = Field(default=1.0, gt=0)
    max_completion_length: int = Field(default=1024, ge=1)
    """Tokens. A completion that reaches them is cut, and has no answer."""
    skip_zero_std_groups: bool = False
    """Leave out problems whose completions all got the same reward: they neither train nor count in the mean. Under
    GRPO they have no gradient, but their tokens make the others' smaller. Needs ``num_generations`` of 2 or more."""
    max_batch_tokens: int = Field(default=65536, ge=1)
    """Prompt and completion tokens held by the local sampler at once."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a completion, in evaluations too, such as "\\nQuestion:" for a base model that goes on with a
    question of its own; their tokens belong to it."""
    engine: str = "local"
    """local = in the process that learns; vllm = the servers of ``base_urls`` (``stepalign serve``, docs/scale.md);
    "module:Class" or "file.py:Class" = a sampler of your own."""
    base_urls: tuple[str, ...] = ()
    """vLLM servers of the same model, ``http://host:port/v1``; the least loaded one gets the next prompt."""
    sync: Literal["auto", "lora", "file", "nccl"] = "auto"
    """How weights reach the servers: adapters are loaded while they run (lora), all weights are handed over in a file
    or by NCCL (untried: no GPU with vLLM was at hand). auto = lora or file, by what trains."""
    sync_folder: str = ""
    """Where weights are written for the servers to read; "" is a temporary folder, for servers on this machine."""
    timeout: float = Field(default=300.0, gt=0)
    """Seconds without news from a server until its completions are asked for elsewhere; without news from any of them
    the run stops."""
    check_steps: int = Field(default=10, ge=1)
    """Where completions of older weights train (``rollouts.ahead``): optimizer steps between two comparisons of the
    servers' log-probabilities with the learner's. Without them every step is compared."""

    @field_validator("engine")
    @classmethod
    def _known(cls, value: str) -> str:
        if ":" not in value and value not in ("local", "vllm"):
            raise ValueError("an engine is local, vllm, or module:Class")
        return value

    @model_validator(mode="before")
    @classmethod
    def _whole_distribution(cls, table: Any) -> Any:
        names = {"top_p", "top_k", "min_p", "min_tokens", "typical_p", "logit_bias"}
        given = [key for key in table if key in names or key.endswith("penalty")] if isinstance(table, dict) else []
        if given:
            raise ValueError(
                f"{given[0]} cannot be used in training: the loss compares log-probabilities of the whole distribution "
                "at the sampling temperature, and it draws from another one"
            )
        return table


class RolloutsSection(Section):
    """When the completions of a step are drawn."""

    ahead: int = Field(default=0, ge=0)
    """Optimizer steps that they are drawn early: 0 is strictly on-policy. With k their weights are k steps old, every
    completion names its version, and servers work while the learner does (docs/scale.md). Each side's log-probabilities
    are computed anew; forward KL bears old completions, reverse KL does not."""
    accumulate: bool = False
    """Learn from each group while others are still drawn or judged, and step when all are there: on-policy, for
    servers. The order of arrival decides the rounding, so that a run cannot be repeated to the bit."""


Policy = Literal["use", "mask", "fall_back", "retry"]
UnusablePolicy = Literal["mask", "fall_back", "retry"]


class PoliciesSection(Section):
    """The treatment of a critique that has a finding (``feedback/findings.py`` says what each one means).

    ``use`` it all the same, ``mask`` the rollout, ``fall_back`` to the reference solution (masked where there is none),
    ``retry`` with the finding named, at most ``critic.retries`` times. Of several findings the strictest policy wins.
    Unset: a served critic's usable critiques are masked for the first three findings and used for the rest; those of a
    programmatic critic are used, since they are as faulty as the recipe asks.
    """

    quotes_wrong_step: Policy | None = None
    """States the wrong step, or its result, again. Unset: mask."""
    wrong_answer: Policy | None = None
    """The corrected trace ends in a wrong answer. Unset: mask."""
    misses_error: Policy | None = None
    """Reproduces a wrong attempt as if it were right. Unset: mask."""
    invents_error: Policy | None = None
    """Corrects a step of a right attempt. Unset: use."""
    full_solution: Policy | None = None
    """Keeps nothing of the attempt. Unset: use."""
    not_verbatim: Policy | None = None
    """Rewords steps that are right. Unset: use."""
    missing_steps: Policy | None = None
    """Leaves out steps that are right. Unset: use."""
    truncated: UnusablePolicy | None = None
    """Cut at the token limit. Unset, as for all that follow: mask."""
    no_steps: UnusablePolicy | None = None
    """No step-tagged trace."""
    empty: UnusablePolicy | None = None
    """Empty, or nothing but thinking."""
    malformed: UnusablePolicy | None = None
    """Not in the form asked for in another way."""
    failed: UnusablePolicy | None = None
    """No reply came."""


class QualitySection(Section):
    """How faulty the programmatic critic is: the probability of each fault, drawn for each rollout by itself."""

    misses: float = Field(default=0.0, ge=0, le=1)
    """A wrong step is overlooked: the attempt is reproduced as if it were right."""
    invents: float = Field(default=0.0, ge=0, le=1)
    """A right step is replaced by a wrong one, and the rest follows from it."""
    quotes_wrong: float = Field(default=0.0, ge=0, le=1)
    """The wrong step is quoted before its correction."""
    wrong_style: float = Field(default=0.0, ge=0, le=1)
    """Written in the words of the reference solutions' author."""


class PrepareSection(Section):
    """``stepalign prepare``: a supervised warm-up on a domain's format, until the pass rate is in a band."""

    examples: int = Field(default=1600, ge=1)
    """The most examples to learn from; each is seen once."""
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    """Of all weights, after ten steps that lead up to it."""
    pass_rate_above: float = Field(default=0.15, ge=0, lt=1)
    pass_rate_below: float = Field(default=0.35, gt=0, le=1)
    """The band: the warm-up ends at the first pass rate in it, of the validation problems."""
    measure_steps: int = Field(default=10, ge=1)
    """Optimizer steps between two measurements; fewer where a round has led over the band."""
    num_problems: int = Field(default=48, ge=1)
    num_samples: int = Field(default=4, ge=1)
    """Validation problems of a measurement, and completions per problem."""
    seed: int = Field(default=0, ge=0)
    """Another one draws other completions, and another order of the examples; 0 takes them as they come."""


class SecondCriticSection(Section):
    """A second critic (``critic.second``). A served one takes what is not named here from ``[critic]``."""

    kind: Literal["", "programmatic", "endpoint", "calculation"] = ""
    """"" = there is none."""
    quality: QualitySection = QualitySection()
    base_urls: tuple[str, ...] = ()
    """Empty: those of the first."""
    model: str = ""
    api_key_env: str = ""


class CriticSection(Section):
    """Who writes the feedback."""

    kind: Literal["programmatic", "endpoint", "calculation"] = "programmatic"
    """programmatic = the program of the embedded task, endpoint = a served model, calculation = a program that reads
    the equations of an attempt (word problems, and problems whose reference solution shows its calculations)."""
    quality: QualitySection = QualitySection()
    """Programmatic critic only: {misses = 0.1, invents = 0.0, quotes_wrong = 0.2, wrong_style = 0.0}."""
    writes: Literal["trace", "edits"] = "trace"
    """The whole corrected attempt; or a script of edits, each a step number and its replacement, that a program applies
    to the attempt, so that all other steps stay verbatim (not for "calculation")."""
    second: SecondCriticSection = SecondCriticSection()
    """Another critic that must agree on the first wrong step and on the answer; else there is no critique."""
    remembers: int = Field(default=0, ge=0)
    """Endpoint: its last so many usable critiques of the same problem are shown to it, of earlier steps of the run."""
    solver_weights: Literal["live", "initial"] = "live"
    """Of the solver as its own critic (``self_critique``, ``second_turn``): those of the moment, or a frozen copy."""
    base_urls: tuple[str, ...] = ("http://127.0.0.1:8000/v1",)
    """OpenAI-compatible addresses."""
    model: str = ""
    answers_as: str = ""
    """Name of the model in replies, where a server has another one for it there; a reply by any other is not taken."""
    api_key_env: str = ""
    """Name of the environment variable with the key, where the server needs one; the key is never written anywhere."""
    sees: Literal["nothing", "answer", "solution"] = "answer"
    """The text that the critic is shown besides the problem and the attempt."""
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=4096, ge=1)
    """Of a reply, its thinking included. One that is cut there is asked for once more with twice as many, and paid."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More fields of each request, such as {reasoning_effort = "low"}, or {chat_template_kwargs = {enable_thinking =
    false}}; a field that is named here wins. Keys belong in ``api_key_env``."""
    concurrency: int = Field(default=16, ge=1)
    timeout: float = Field(default=600.0, gt=0)
    """Seconds for a critique with all its attempts."""
    attempt_timeout: float = Field(default=120.0, gt=0)
    """Seconds for one attempt."""
    cache: str = ""
    """sqlite file shared by runs; "" keeps one in the run folder (the comparison folder under ``compare``)."""
    cache_only: bool = False
    """Replay: never call the endpoint."""
    structured: bool = False
    """Ask for JSON through the server's guided decoding instead of tagged text."""
    token_budget: int | None = Field(default=None, ge=1)
    """Prompt and completion tokens, paid for in this run, after which no more critiques are asked for: the run saves
    itself, stops, and says how to go on."""
    cost_budget: float | None = Field(default=None, gt=0)
    """The same for their cost, in the currency of ``prices``."""
    prices: dict[str, float | dict[str, float]] = Field(default_factory=dict)
    """Cost per million tokens, {prompt = ..., completion = ...}; enters the ledger. Where two critics have two prices,
    such a table for each by the name of its model."""
    policies: PoliciesSection = PoliciesSection()
    retries: int = Field(default=1, ge=0)
    """How often a critique is asked for again under the policy ``retry``."""

    @field_validator("extra_body")
    @classmethod
    def _no_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        if ours := value.keys() & {"model", "messages", "stream", "n"}:
            raise ValueError(f"{min(ours)} cannot be set here")
        for name in value.keys() & {"max_tokens", "max_completion_tokens"}:
            if type(value[name]) is not int or value[name] < 1:
                raise ValueError(f"{name} should be a number of tokens")
        if secret := next(filter(names_a_secret, re.findall(r'"([^"]+)": ', json.dumps(value, default=str))), None):
            raise ValueError(f"{secret} would be written to disk: name an environment variable in critic.api_key_env")
        return value

    @property
    def judged(self) -> bool:
        """Whether critiques are looked at: not those of a program, which knows the error, unless policies are named."""
        return self.kind == "endpoint" or any(self.policies.model_dump().values())


GuardPolicy = Literal["warn", "stop", "roll_back"]


class GuardsSection(Section):
    """Breaks that wreck a run within a few steps end it or take it back; slower signs of decay warn with the reason."""

    policy: GuardPolicy = "stop"
    """What follows a break. stop = the run ends and keeps its last healthy checkpoint; roll_back = weights, optimizer
    and self-teacher of the last healthy step, a lower learning rate, and on with other problems; warn = it is said."""
    gradient: GuardPolicy | None = None
    """Instead of ``policy``, for three steps in a row without a finite gradient."""
    scale: GuardPolicy | None = None
    """For a loss or divergence ten times above all of the last window, or at a size that no text has."""
    entropy: GuardPolicy | None = None
    """For an entropy of the student that doubles, or falls to a tenth, within two steps."""
    pass_rate: GuardPolicy | None = None
    """For a pass rate of the rollouts that breaks down within ten steps."""
    answers: GuardPolicy | None = None
    """For completions that have no answer any more within ten steps."""
    cut: GuardPolicy | None = None
    """For completions that are cut at the length limit within ten steps, while no more of them are right."""
    repetition: GuardPolicy | None = None
    """For completions that repeat themselves within ten steps."""
    nothing: GuardPolicy | None = None
    """For a window of steps that trained on nothing, while not every attempt is right."""
    learning_rate_factor: float = Field(default=0.5, gt=0, le=1)
    """The learning rate is multiplied by it at each roll-back."""
    window: int = Field(default=10, ge=2)
    """Steps that are averaged before they are compared with the best window so far."""
    reward_drop: float = Field(default=0.15, gt=0)
    """Fall of the rollout pass rate below its best window; losing half of a low rate counts as well."""
    entropy_factor: float = Field(default=2.5, gt=1)
    """Growth of the student's or the self-teacher's entropy over its first window."""
    entropy_floor: float = Field(default=0.1, ge=0, lt=1)
    """Share of its first window under which the student's entropy may not fall unless the pass rate has risen."""
    masked: float = Field(default=0.5, gt=0, le=1)
    """Share of a window's samples that may be masked."""
    truncated: float = Field(default=0.5, gt=0, le=1)
    """Share of a window's completions that may be cut at the length limit."""
    length_factor: float = Field(default=2.5, gt=1)
    """Growth or shrinking of the mean completion length over its first window, unless the pass rate has risen."""
    repetitive: float = Field(default=0.2, gt=0, le=1)
    """Share of a window's completions that may repeat themselves at their end."""
    hedge_share: float = Field(default=0.3, ge=0, lt=1)
    """Share of its first window under which hedge words per completion may not fall."""
    distinct_share: float = Field(default=0.5, ge=0, lt=1)
    """Share of its first window under which the different answers of a group may not fall unless the pass rate rose."""
    mention_rise: float = Field(default=0.1, gt=0, le=1)
    """Share of completions by which those that mention feedback or a reference may not rise over the first window."""
    stop: bool = False
    """Stop the run, saved, at the first warning of a slower sign, too; --resume goes on all the same."""


class ServerSection(Section):
    """A served model with a part of its own. Timeouts, concurrency, budgets and prices are those of ``[critic]``."""

    base_urls: tuple[str, ...] = ()
    """OpenAI-compatible addresses."""
    model: str = ""
    api_key_env: str = ""
    """Name of the environment variable with the key, where the server needs one."""
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=1024, ge=1)
    """Of a reply, its thinking included."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More fields of each request; see ``critic.extra_body``."""
    cache: str = ""
    """sqlite file that keeps replies; "" keeps those of a user in the run folder, and those of a judge nowhere."""

    def as_critic(self, critic: CriticSection, **changes: Any) -> CriticSection:
        """The keys of a critic's requests with this model in its place."""
        own = {**self.model_dump(), "kind": "endpoint", "answers_as": "", "structured": False, "cache": "", **changes}
        own |= {"writes": "trace", "second": {}, "remembers": 0}
        return CriticSection.model_validate({**critic.model_dump(), **own})


class EnvironmentSection(Section):
    """What follows a completion (docs/environments.md): ``environment = "python_tool"`` is short for
    ``environment.kind``."""

    kind: str = "auto"
    """single = nothing; python_tool = the output of a turn's last ```python block; user = the messages below, or a
    served model; "module:Class" or "file.py:Class" = a class of your own. auto = that of the problems' domain, single
    for nearly all."""
    max_turns: int = Field(default=4, ge=1)
    """Turns of the solver."""
    max_turn_length: int | None = Field(default=None, ge=1)
    """Tokens of one turn, besides ``sampling.max_completion_length`` for all turns and messages together; a turn that
    reaches them is cut, and ends the rollout."""
    max_reply_length: int = Field(default=512, ge=1)
    """Tokens of one message; what is cut from it is counted."""
    messages: tuple[str, ...] = ()
    """user: templates of the messages, the n-th for the n-th turn, with question, answer, reference, attempt (the last
    turn), verdict (of it) and turn; an empty one ends the rollout."""
    served: ServerSection = ServerSection()
    """user: a model that writes the messages, where ``base_urls`` are named."""
    prompt: str = "user"
    """user, served: its prompt."""
    options: dict[str, Any] = Field(default_factory=dict)
    """A class of your own: its arguments."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, table: Any) -> Any:
        return {"kind": table} if isinstance(table, str) else table

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if ":" not in value and value not in ENVIRONMENTS:
            raise ValueError(f"an environment is one of {', '.join(ENVIRONMENTS)}, or module:Class")
        return value


ENVIRONMENTS = ("auto", "single", "python_tool", "user")
