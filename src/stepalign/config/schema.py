"""The parts of a run: every section and key, with its meaning, unit and default.

Sections are frozen and refuse unknown keys. A check that concerns one key is at the key, one that concerns several
at the section that holds them all.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from stepalign.config.sections import (
    CriticSection,
    EnvironmentSection,
    GuardsSection,
    PrepareSection,
    RolloutsSection,
    SamplingSection,
    Section,
    ServerSection,
    TeacherSection,
)
from stepalign.objectives.divergences import DIVERGENCES, Remainder, Support, find_divergence
from stepalign.objectives.policy_gradient import AdvantageScale, LossType

Hybrid = Literal["none", "weighted_sum", "rlsd", "srpo", "rosd", "rebellious", "cliff", "cepo", "calibrated"]
Budget = Literal["optimizer_steps", "rollouts", "completion_tokens", "training_seconds"]
CheckpointRule = Literal["last", "best_on_validation", "best_per_metric_on_test"]


class LoraSection(Section):
    """Low-rank adapters through peft (extra ``lora``)."""

    r: int = Field(default=64, ge=1)
    alpha: int | None = Field(default=None, ge=1)
    """None is twice ``r``."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ModelSection(Section):
    """The solver."""

    path: str = "embedded:arithmetic"
    """``embedded:arithmetic``, a folder in Hugging Face layout, a Hub name, or a GGUF file (extra ``gguf``), which is
    de-quantised."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto = bfloat16 on a GPU that has it, else float32."""
    device: str = "auto"
    """A torch device, such as "cuda:0"; auto = a GPU where there is one, else the CPU."""
    lora: LoraSection | None = None
    """None trains all weights."""
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    plain_prompts: bool = False
    """Ask a model whose tokenizer has no chat template (a base model) in plain text; without this it is refused."""


class DataSection(Section):
    """Problems: a JSONL, JSON or Parquet file, ``hub:OWNER/NAME[/CONFIG][@SPLIT]``, ``verifiers:TASKSET[?KEY=VALUE]``,
    or a folder that ``stepalign select`` has written; ``embedded:arithmetic`` names the shipped sets, and
    ``embedded:words[?KEY=VALUE]`` draws word problems."""

    train: str = "embedded:arithmetic"
    validation: str | None = None
    test: str | None = None
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Without a validation file: set this share of the training problems aside, chosen by a hash of the question."""
    columns: str | dict[str, str] = "stepalign"
    """A preset ("stepalign", "gsm8k", "openmathreasoning", ...) or a map from our names to the file's columns. Problems
    of the preset "python" have tests for an answer, and completions are run against them in a sandbox; those of "text"
    have a rubric."""
    grader: str = ""
    """Import path ``module:function`` of a grader of your own, called as ``function(completion, expected_answer)`` in a
    limited child process; the module may lie in the current folder. ``verifiers:TASKSET`` grades with the rewards of
    an environment. "" takes the environment that ``train`` names, else the built-in grader."""
    grader_seconds: float = Field(default=1.0, gt=0)
    """CPU time of one comparison; longer ones are undecided."""
    judge: ServerSection = ServerSection()
    """Columns "text": a served model that judges rubrics in prose; a rubric that is a list is read by a program."""
    second_judge: ServerSection = ServerSection()
    """Another one that reads the same texts: the score is the mean of both, and how they agree is measured."""
    max_train: int | None = Field(default=None, ge=1)
    max_validation: int | None = Field(default=None, ge=1)
    max_test: int | None = Field(default=None, ge=1)
    """Use only so many problems of a set, from its beginning."""
    rho: float = Field(default=0.5, ge=0, le=1)
    """Embedded tasks only: share of reference solutions in the order of operands that the solver rarely takes, or, of
    word problems, on another route."""
    reworded: float = Field(default=1.0, ge=0, le=1)
    """Word problems only: share of reference solutions in other words than the solver's."""

    @property
    def grader_function(self) -> str | None:
        """The grader that is named or comes with the problems; None for one of ours."""
        return self.grader or (self.train if self.train.startswith("verifiers:") else None)


class PromptsSection(Section):
    """The prompts of the models. Jinja templates: a packaged name, a file, or the text itself."""

    student: str = "student"
    self_teacher: str = "self_teacher"
    critic: str = "scribe"
    """The prompt of the critic. Designs that ask it for something else than a corrected trace bring their own
    (paraphrase, hint, free_critique), which a template named here replaces."""
    system: str = ""
    """System message of student and self-teacher; "" for none."""
    student_chat_options: dict[str, Any] = Field(default_factory=dict)
    teacher_chat_options: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the chat template, such as {enable_thinking = false}."""
    allow_different_suffix: bool = False
    """Accept that student and self-teacher begin their completion after different tokens."""
    max_teacher_prompt_length: int = Field(default=8192, ge=16)
    """Tokens. A longer self-teacher prompt has its context cut, never the question; what was cut is counted."""


class ObjectiveSection(Section):
    """The objective of the optimizer. Both sides' logits are divided by ``sampling.temperature``."""

    divergence: str = Field(default="forward_kl", examples=list(DIVERGENCES))
    """forward_kl = KL(self-teacher || student), reverse_kl = KL(student || self-teacher), jensen_shannon between them;
    sampled_token = reverse_kl estimated at the token taken, cheaper nowhere and noisier. A parameter follows in
    parentheses: "jensen_shannon(0.3)"."""
    jensen_shannon_weight: float = Field(default=0.5, gt=0, lt=1)
    """The self-teacher's share of the mixture where ``divergence`` names none."""
    teacher: TeacherSection = TeacherSection()
    entry_clip: float | None = Field(default=None, gt=0)
    """Upper bound of each vocabulary entry's contribution, nats."""
    token_clip: float | None = Field(default=None, gt=0)
    """Upper bound of each token's divergence, nats; clipped tokens have no gradient."""
    top_k: int | None = Field(default=None, ge=1)
    """Compare on the likeliest tokens only; None compares whole distributions, which costs less."""
    top_k_support: Support = "student"
    """Whose likeliest tokens."""
    top_k_remainder: Remainder = "tail"
    """The other tokens become one more bucket with their mass, or are left out and the rest is renormalised."""
    importance_clip: float | None = Field(default=None, gt=0)
    """The self-teacher's term of a token is multiplied by min(importance ratio, this), as in SDPO (2.0): for
    completions that older weights or another engine drew. None trusts them; a number costs two head products."""
    position_weight: float = Field(default=0.0, gt=-1)
    """The self-teacher's term of a token is multiplied by 1 + this * its place in the completion, from 0 to 1."""
    discrepancy_weight: float = Field(default=0.0, gt=-1)
    """The same with 1 + this * (1 - the part of the completion's sum of |A_t| before the token), as in IW-OPD (0.5)."""
    loss_type: LossType = "dapo"
    """Weight of a token in both terms of the loss: dapo = 1 / tokens of the step, grpo = 1 / (tokens of its completion
    * completions), dr_grpo = 1 / (completions * ``sampling.max_completion_length``), bnpo = a token mean per
    micro-batch."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference, the initial weights, at every trained token; its estimate is metric ``kl``."""
    fast_logits: bool = False
    """Keep the student's logits in the model's dtype: faster in bfloat16, with 2 % instead of 0.5 % gradient error."""
    compiled: bool | None = None
    """Compile the walk over the logits (10 s, once); None where the vocabulary is large and a compiler is there."""
    epsilon: float = Field(default=0.2, ge=0)
    epsilon_high: float | None = Field(default=None, ge=0)
    """Clip range of the importance ratio; ``epsilon_high`` defaults to ``epsilon``."""
    scale_rewards: AdvantageScale = "group"
    """Rewards less their group's mean are divided by a standard deviation: of the group, of the batch, or not."""
    hybrid: Hybrid = "none"
    """How verdict and self-teacher work together (docs/objective.md): none = as the condition says, weighted_sum = both
    terms, rlsd = the verdict's direction with the self-teacher's magnitude, srpo = correct completions by the verdict
    and wrong ones by the self-teacher, rosd = the self-teacher from the first error on, rebellious = the verdict, most
    where the self-teacher expected otherwise, cliff = the self-teacher only where none of the group is right, cepo and
    calibrated = rlsd against the self-teacher that is shown a wrong sibling's answer, or words without content."""
    distillation_weight: float = Field(default=0.5, ge=0, le=1)
    """weighted_sum: weight of the self-teacher's term; the policy term gets the rest."""
    rlsd_mixing: float = Field(default=0.5, ge=0, le=1)
    """rlsd, cepo, calibrated: the self-teacher's share in the magnitude at the first step."""
    rlsd_decay_steps: int = Field(default=50, ge=0)
    """The same: optimizer steps over which this share falls to 0, linearly; 0 keeps it."""
    rlsd_clip: float = Field(default=0.2, ge=0, le=1)
    """The same, and rebellious: half-width of the allowed magnitudes around 1."""
    srpo_entropy_damping: float = Field(default=1.0, ge=0)
    """srpo: a token's distillation weight is multiplied by exp(-damping * the self-teacher's entropy in nats)."""

    @field_validator("divergence")
    @classmethod
    def _known(cls, value: str) -> str:
        find_divergence(value)
        return value

    @model_validator(mode="after")
    def _one_support(self) -> ObjectiveSection:
        if self.top_k is not None and find_divergence(self.divergence).formula is None:
            raise ValueError(f"objective.top_k has no meaning for the divergence {self.divergence}")
        return self


class TrainingSection(Section):
    """The loop."""

    max_steps: int = Field(default=62, ge=0)
    """Optimizer steps; also what the learning-rate schedule runs over."""
    token_budget: int | None = Field(default=None, ge=1)
    """Completion tokens after which the run ends, if max_steps has not ended it before."""
    time_budget: float | None = Field(default=None, gt=0)
    """Seconds of sampling, feedback and learning after which the run ends, if max_steps has not ended it before."""
    problems_per_step: int = Field(default=32, ge=1)
    seed: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=5e-6, gt=0)
    """The paper's, for a pretrained model. The embedded solver learns at 1e-3, as its recipe says."""
    warmup_steps: int = Field(default=5, ge=0)
    lr_scheduler: Literal["constant", "cosine", "linear"] = "constant"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimizer updates on one batch of rollouts, each over the whole batch."""
    max_micro_batch_tokens: int = Field(default=16384, ge=1)
    """Tokens of one forward pass, of the longer context; a prompt that several completions share counts once."""
    rank_timeout: float = Field(default=600.0, gt=0)
    """Seconds that a rank (a process of torchrun) waits for another one's part of a step."""
    save_steps: int = Field(default=0, ge=0)
    """Checkpoint every so many steps; 0 only at the end."""
    report_to: tuple[Literal["none", "trackio", "wandb", "tensorboard"], ...] = ("none",)
    """Trackers that receive every number while the run goes on (extra ``track``). The JSON lines of the run folder
    hold them all in any case."""
    project: str = "stepalign"
    """Project of the trackers."""
    run_name: str = ""
    """Name of the run there; "" takes that of the run folder."""
    save_total_limit: int | None = Field(default=None, ge=1)
    """Keep only so many of the latest checkpoints."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class EvaluationSection(Section):
    """Numbers with intervals."""

    num_samples: int = Field(default=12, ge=1)
    """Completions per problem (n)."""
    ks: tuple[int, ...] = ()
    """The k of pass@k, maj@k and avg@k, n besides; empty means 1 and n."""
    temperature: float = Field(default=1.0, ge=0)
    max_completion_length: int | None = Field(default=None, ge=1)
    """Tokens; None takes ``sampling.max_completion_length``."""
    eval_steps: int = Field(default=0, ge=0)
    """Evaluate every so many optimizer steps besides the first and the last; 0 only there."""
    at_start: bool = True
    """Evaluate before the first step as well."""
    seed: int = 1000
    confidence: float = Field(default=0.95, gt=0, lt=1)
    bootstrap_samples: int = Field(default=2000, ge=100)
    checkpoint_rule: CheckpointRule = "last"


class SelectionSection(Section):
    """``stepalign select``: which problems of ``data.train`` are worth training on."""

    pass_rate_above: float | None = Field(default=None, ge=0, le=1)
    """For OpenMathReasoning: lower bound of a 72B model's pass rate (``pass_rate_72b_tir``); 0.85 in the paper. None is
    no gate."""
    num_samples: int = Field(default=16, ge=0)
    """Completions of the solver per problem (n), with the temperature and length of ``sampling``."""
    average_above: float = Field(default=0.0, ge=-1, lt=1)
    average_below: float = Field(default=0.3125, gt=0, le=2)
    """Open bounds of the solver's Avg@n; the paper's upper one is 5/16. Below 0 and above 1 they bind nothing."""
    formatted_above: float = Field(default=0.5, ge=-1, lt=1)
    """Share of completions that end by themselves, mark an answer and keep to ``form``. Below 0 it binds nothing."""
    form: Literal["steps", "answer"] = "steps"
    """"steps" asks for numbered step tags as well, "answer" for a marked answer only."""
    critic_solves: bool = False
    """Keep only what the critic solves by itself, shown the question and nothing else."""
    test_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the selected problems that becomes the test set, chosen by a hash of the question."""
    seed: int = 2000


class SignalSection(Section):
    """Per-token analysis."""

    contexts: tuple[str, ...] = ("step_aligned", "reference")
    num_rollouts: int = Field(default=282, ge=0)
    """Rollouts behind the localisation numbers, one a training problem at most."""
    num_shown: int = Field(default=12, ge=0)
    """Rollouts drawn token by token on the page."""
    top_k: int = Field(default=5, ge=0)
    """Alternatives kept per token on the page."""


class ArmSection(Section):
    """One arm of a comparison: the shared configuration with a few keys changed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    label: str = ""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys and their values; ``condition`` is the usual one. Where the arms start and how they are evaluated
    (``model.path``, the student's prompt, held-out problems, ``evaluation``, seeds) is the same for all."""

    @field_validator("set")
    @classmethod
    def _dotted(cls, table: dict[str, Any]) -> dict[str, Any]:
        return _keys_of_sections(table)


class CompareSection(Section):
    """The grid arms x seeds."""

    arms: tuple[ArmSection, ...] = ()
    seeds: tuple[int, ...] = (0,)
    processes: int = Field(default=2, ge=1)
    """Runs at the same time, one torch thread each."""
    launcher: tuple[str, ...] = ()
    """Words before the command of each training run, such as "nice", "srun --gpus 1", or
    "torchrun --no-python --nproc-per-node 8"; a text is cut into words as a shell does."""
    budget: Budget = "optimizer_steps"
    """The quantity of which every arm may spend equally much. Rollouts set each arm's ``training.max_steps``; tokens
    and seconds end a run after the step in which they are reached, so give ``training.max_steps`` room."""
    budget_size: float | None = Field(default=None, gt=0)
    """How much of it. None leaves every arm the ``training.max_steps`` of the recipe (optimizer_steps only)."""

    @field_validator("launcher", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return shlex.split(value) if isinstance(value, str) else value


class Config(Section):
    """The whole run."""

    condition: str = "stepalign"
    """"grpo", "refsol", "stepalign", the name of any context design, or a design of your own
    ("package.module:function", "file.py:function" or "designs/mine.jinja"; see docs/designs.md)."""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    prompts: PromptsSection = PromptsSection()
    critic: CriticSection = CriticSection()
    sampling: SamplingSection = SamplingSection()
    environment: EnvironmentSection = EnvironmentSection()
    rollouts: RolloutsSection = RolloutsSection()
    objective: ObjectiveSection = ObjectiveSection()
    training: TrainingSection = TrainingSection()
    guards: GuardsSection = GuardsSection()
    prepare: PrepareSection = PrepareSection()
    evaluation: EvaluationSection = EvaluationSection()
    selection: SelectionSection = SelectionSection()
    signal: SignalSection = SignalSection()
    compare: CompareSection = CompareSection()

    @model_validator(mode="after")
    def _ks_within_n(self) -> Config:
        too_large = [k for k in self.evaluation.ks if not 1 <= k <= self.evaluation.num_samples]
        if too_large:
            raise ValueError(f"evaluation.ks {too_large} must lie between 1 and evaluation.num_samples")
        names = [arm.name for arm in self.compare.arms]
        if len(names) != len(set(names)):
            raise ValueError("compare.arms must have different names")
        return self

    @property
    def ks(self) -> tuple[int, ...]:
        """The k in force."""
        return tuple(sorted({*(self.evaluation.ks or (1,)), self.evaluation.num_samples}))

    @property
    def evaluation_length(self) -> int:
        """Tokens per completion at evaluation."""
        return self.evaluation.max_completion_length or self.sampling.max_completion_length


def all_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterable[str]:
    """Every dotted key of the tree."""
    for name, field in model.model_fields.items():
        yield prefix + name
        kind = field.annotation
        candidates = [kind, *getattr(kind, "__args__", ())]
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, Section):
                yield from all_keys(candidate, f"{prefix}{name}.")


def _keys_of_sections(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A table in which tables that stand for sections are spelled out, so that a section is never replaced whole."""
    sections = {known.rpartition(".")[0] for known in all_keys()}
    flat: dict[str, Any] = {}
    for name, value in table.items():
        key = prefix + name
        flat |= _keys_of_sections(value, f"{key}.") if key in sections and isinstance(value, dict) else {key: value}
    return flat
