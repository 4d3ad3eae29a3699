"""One optimizer step against a plain autograd loss over full logits, written here from the formulas."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from stepalign.config import ObjectiveSection, TeacherSection, TrainingSection, find_recipe, load_config
from stepalign.models.load import Solver
from stepalign.objectives.tokens import restrict_to_top_k, sampled_token_loss
from stepalign.records import Sample
from stepalign.training.learner import Learner
from stepalign.training.teacher import Teacher

TEMPERATURE = 1.3
VOCABULARY = 48
LONGEST = 11
"""The sampling budget, tokens."""


def make_sample(rng: random.Random, name: str, **changes: Any) -> Sample:
    length = rng.randint(2, 9)
    student = (3, *(rng.randrange(9, VOCABULARY) for _ in range(rng.randint(1, 6))), 4)
    teacher = (*student[:-1], *(rng.randrange(9, VOCABULARY) for _ in range(rng.randint(1, 9))), 4)
    fields: dict[str, Any] = {
        "rollout_id": name,
        "student_prompt_ids": student,
        "teacher_prompt_ids": teacher,
        "completion_ids": tuple(rng.randrange(5, VOCABULARY) for _ in range(length)),
        "sampler_log_probs": tuple(rng.uniform(-6, -0.1) for _ in range(length)),
        "loss_mask": (*(rng.random() < 0.8 for _ in range(length - 1)), True),
        "advantage": 0.0,
        "distillation_weight": 1.0,
        "policy_weight": 0.0,
    }
    return Sample(**{**fields, **changes})


@pytest.fixture
def samples() -> list[Sample]:
    """Distilled, rewarded, both, neither: what any condition could make."""
    rng = random.Random(0)
    return [
        make_sample(rng, "distilled"),
        make_sample(rng, "weighted", distillation_weight=0.4),
        make_sample(
            rng, "rewarded", teacher_prompt_ids=None, distillation_weight=0.0, policy_weight=1.0, advantage=0.9
        ),
        make_sample(
            rng, "punished", teacher_prompt_ids=None, distillation_weight=0.0, policy_weight=0.5, advantage=-1.1
        ),
        make_sample(rng, "both", policy_weight=0.7, advantage=0.6),
        make_sample(rng, "magnified", distillation_weight=0.0, policy_weight=0.8, advantage=-0.8, magnitude_mixing=0.6),
        make_sample(rng, "damped", distillation_weight=0.9, entropy_damping=1.7),
        make_sample(rng, "idle", teacher_prompt_ids=None, distillation_weight=0.0, policy_weight=1.0, advantage=0.0),
        make_sample(rng, "masked", teacher_prompt_ids=None, distillation_weight=0.0),
        make_sample(
            rng,
            "contrasted",
            distillation_weight=0.2,
            policy_weight=0.8,
            advantage=-0.7,
            magnitude_mixing=0.7,
            contrast_prompt_ids=(3, 8, 13, 6),
        ),
    ]


class Setting:
    """A solver in float64 with its learner, and an untouched twin for the reference."""

    def __init__(self, make_solver: Callable[..., Solver], objective: dict[str, Any], **training: Any) -> None:
        self.solver = make_solver(0, scale=3.0)
        self.solver.model.double()
        self.twin = copy.deepcopy(self.solver.model)
        self.objective = ObjectiveSection(**objective)
        self.training = TrainingSection(**{"max_grad_norm": 1e9, "warmup_steps": 0, "learning_rate": 1e-3, **training})
        self.learner = Learner(
            self.solver, self.objective, self.training, temperature=TEMPERATURE, max_completion_length=LONGEST
        )
        self.teacher = Teacher(self.solver.model, self.objective.teacher, keeps_reference=self.objective.beta > 0)
        # Teacher and reference that differ from the student in their weights too, not only in their prompts.
        self.teacher_twin = self._moved(self.teacher.values, seed=1)
        moves = self.teacher.reference is not self.teacher.values
        self.reference_twin = self._moved(self.teacher.reference, seed=2) if moves else self.teacher_twin

    def _moved(self, values: dict[str, torch.Tensor], seed: int) -> torch.nn.Module:
        """A twin with noise on its weights, and ``values`` set to the same."""
        twin = copy.deepcopy(self.twin)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in twin.named_parameters() if values else ():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
                values[name].copy_(parameter)
        return twin

    def reference_loss(self, samples: Sequence[Sample]) -> torch.Tensor:
        return reference_loss(self.twin, self.teacher_twin, self.reference_twin, samples, self.objective)

    def gradients(self) -> dict[str, torch.Tensor]:
        return {n: p.grad.clone() for n, p in self.solver.model.named_parameters() if p.grad is not None}


def logits(model: torch.nn.Module, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """[T, V] from the whole model on one sequence."""
    return model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE


def log_probs(model: torch.nn.Module, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    return logits(model, prompt, completion).log_softmax(-1)


@torch.no_grad()
def taught_log_probs(
    model: torch.nn.Module, teacher: torch.nn.Module, sample: Sample, objective: ObjectiveSection
) -> torch.Tensor:
    sequence = sample.teacher_prompt_ids or (), sample.completion_ids
    taught = logits(teacher, *sequence)
    if objective.teacher.weights == "trust_region":
        share = objective.teacher.live_share
        taught = (1 - share) * taught + share * logits(model, *sequence)
    return taught.log_softmax(-1)


def by_hand_weights(gaps: Sequence[float], mask: Sequence[bool], objective: ObjectiveSection) -> torch.Tensor:
    """The weights by position, and by discrepancy: 1 + gamma (1 - sum before t of |a| / sum of |a|), trained tokens."""
    sizes = [abs(gap) * kept for gap, kept in zip(gaps, mask, strict=True)]
    last, weights = max(1, sum(mask) - 1), []
    for t in range(len(gaps)):
        place = max(0, sum(mask[: t + 1]) - 1) / last
        before = sum(sizes[:t]) / sum(sizes) if sum(sizes) else 0.0
        weights.append((1 + objective.position_weight * place) * (1 + objective.discrepancy_weight * (1 - before)))
    return torch.tensor(weights, dtype=torch.float64)


def reference_loss(
    model: torch.nn.Module,
    teacher: torch.nn.Module,
    reference: torch.nn.Module,
    samples: Sequence[Sample],
    objective: ObjectiveSection,
) -> torch.Tensor:
    sums, lengths = [], []
    for s in samples:
        mask = torch.tensor(s.loss_mask)
        student = log_probs(model, s.student_prompt_ids, s.completion_ids)
        taken = student.gather(1, torch.tensor(s.completion_ids)[:, None])[:, 0]
        row = torch.zeros(len(mask), dtype=torch.float64)
        advantage = torch.full_like(row, s.advantage)
        if s.teacher_prompt_ids is not None:
            taught = taught_log_probs(model, teacher, s, objective)
            whole = taught
            if objective.top_k is not None:
                taught, student = restrict_to_top_k(
                    taught,
                    student,
                    k=objective.top_k,
                    support=objective.top_k_support,
                    remainder=objective.top_k_remainder,
                )
            p, q = taught.exp(), student.exp()
            if objective.divergence == "forward_kl":
                terms = p * (taught - student)
            elif objective.divergence == "reverse_kl":
                terms = q * (student - taught)
            elif objective.divergence == "sampled_token":
                token_ids = torch.tensor(s.completion_ids)[:, None]
                terms = sampled_token_loss(taught.gather(1, token_ids), student.gather(1, token_ids))
            else:
                w = objective.jensen_shannon_weight
                middle = ((1 - w) * q + w * p).log()
                terms = w * p * (taught - middle) + (1 - w) * q * (student - middle)
            if objective.entry_clip is not None:
                terms = terms.clamp(max=objective.entry_clip)
            divergence = terms.sum(-1)
            if objective.token_clip is not None:
                divergence = divergence.clamp(max=objective.token_clip)
            damped = (-s.entropy_damping * -(whole.exp() * whole).sum(-1)).exp()
            stale = (taken - torch.tensor(s.sampler_log_probs, dtype=torch.float64)).detach().exp()
            trusted = stale.clamp(max=objective.importance_clip) if objective.importance_clip is not None else 1.0
            gap = (whole.gather(1, torch.tensor(s.completion_ids)[:, None])[:, 0] - taken).detach()
            weight = s.distillation_weight * damped * trusted * by_hand_weights(gap.tolist(), s.loss_mask, objective)
            row = row + weight * divergence
            if s.contrast_prompt_ids is not None:  # log p_T(y_t | context) - log p_T(y_t | contrast)
                other = taught_log_probs(
                    model, teacher, replace(s, teacher_prompt_ids=s.contrast_prompt_ids), objective
                )
                other = other.gather(1, torch.tensor(s.completion_ids)[:, None])[:, 0]
                gap = whole.gather(1, torch.tensor(s.completion_ids)[:, None])[:, 0] - other
            magnitude = (math.copysign(1, s.advantage) * gap).exp()
            magnitude = magnitude.clamp(1 - objective.rlsd_clip, 1 + objective.rlsd_clip)
            advantage = advantage * (1 - s.magnitude_mixing + s.magnitude_mixing * magnitude)
        if s.policy_weight:
            ratio = (taken - torch.tensor(s.sampler_log_probs, dtype=torch.float64)).exp()
            high = objective.epsilon if objective.epsilon_high is None else objective.epsilon_high
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - objective.epsilon, 1 + high) * advantage)
            row = row - s.policy_weight * surrogate
        if objective.beta:
            with torch.no_grad():
                other = log_probs(reference, s.student_prompt_ids, s.completion_ids)
                other = other.gather(1, torch.tensor(s.completion_ids)[:, None])[:, 0]
            row = row + objective.beta * ((other - taken).exp() - (other - taken) - 1)
        sums.append((row * mask).sum())
        lengths.append(int(mask.sum()))
    if objective.loss_type == "grpo":
        return sum(total / length for total, length in zip(sums, lengths, strict=True)) / len(samples)
    if objective.loss_type == "dr_grpo":
        return sum(sums) / (len(samples) * LONGEST)
    return sum(sums) / sum(lengths)  # dapo; bnpo as well while there is one micro-batch


OBJECTIVES = {
    "forward": {"divergence": "forward_kl"},
    "reverse": {"divergence": "reverse_kl"},
    "jensen-shannon": {"divergence": "jensen_shannon", "jensen_shannon_weight": 0.3},
    "clipped entries": {"divergence": "forward_kl", "entry_clip": 0.02},
    "ema teacher": {"divergence": "reverse_kl", "teacher": {"weights": "ema", "ema_decay": 0.9}},
    "live teacher": {"divergence": "forward_kl", "teacher": {"weights": "live"}},
    "higher clip": {"divergence": "forward_kl", "epsilon": 0.1, "epsilon_high": 3.0},
    "clipped tokens": {"divergence": "forward_kl", "token_clip": 4.0},
    "trust region": {"divergence": "reverse_kl", "teacher": {"weights": "trust_region", "live_share": 0.3}},
    "stale completions": {"importance_clip": 1.5, "divergence": "reverse_kl"},
    "top-k of the student": {"top_k": 5},
    "top-k of the teacher": {"top_k": 3, "top_k_support": "teacher", "top_k_remainder": "renormalise"},
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "epsilon_high": 0.28},
    "later tokens weigh more": {"position_weight": 0.8},
    "earlier tokens weigh more": {"position_weight": -0.6, "loss_type": "grpo", "divergence": "reverse_kl"},
    "weights by discrepancy": {"discrepancy_weight": 0.5},
    "all weights": {"discrepancy_weight": 1.5, "position_weight": 0.5, "importance_clip": 1.5},
    "reference": {"beta": 0.3},
    "reference beside ema": {"beta": 0.3, "loss_type": "grpo", "teacher": {"weights": "ema"}},
    "reference beside live": {"beta": 0.3, "loss_type": "bnpo", "teacher": {"weights": "live"}},
    "reference and trust region": {"beta": 0.3, "loss_type": "dr_grpo", "teacher": {"weights": "trust_region"}},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_are_those_of_plain_autograd(name: str, make_solver, samples: list[Sample]) -> None:
    setting = Setting(make_solver, OBJECTIVES[name])
    numbers = setting.learner.update(samples, setting.teacher, 0)
    loss = setting.reference_loss(samples)
    loss.backward()
    assert numbers["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    found = setting.gradients()
    assert found.keys() == {n for n, _ in setting.twin.named_parameters()}
    for parameter_name, parameter in setting.twin.named_parameters():
        torch.testing.assert_close(found[parameter_name], parameter.grad, rtol=1e-5, atol=1e-8)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in setting.twin.parameters()))
    assert numbers["grad_norm"] == pytest.approx(norm, rel=1e-5)


def objectives_of_the_methods() -> dict[str, dict[str, Any]]:
    """Arm -> its objective where no earlier arm has the same loss. The solver here has fewer words than 32."""
    found: dict[str, dict[str, Any]] = {}
    for arm in load_config(find_recipe("methods")).compare.arms:
        own = {key.removeprefix("objective."): value for key, value in arm.set.items() if key.startswith("objective.")}
        read = {key: value for key, value in own.items() if not key.startswith(("hybrid", "scale_rewards", "rlsd_"))}
        if "teacher.model" not in read:
            read |= {"top_k": 5} if "top_k" in read else {}
            teacher = {key.removeprefix("teacher."): read.pop(key) for key in [*read] if key.startswith("teacher.")}
            read |= {"teacher": teacher} if teacher else {}
            found |= {arm.name: read} if read not in found.values() else {}
    return found


@pytest.mark.parametrize("objective", objectives_of_the_methods().values(), ids=objectives_of_the_methods())
def test_the_loss_of_each_method_is_its_formula(objective, make_solver, samples: list[Sample]) -> None:
    """The samples have the weights of every way of assigning credit."""
    setting = Setting(make_solver, objective)
    numbers = setting.learner.update(samples, setting.teacher, 0)
    loss = setting.reference_loss(samples)
    loss.backward()
    if objective.get("divergence") != "sampled_token":  # whose value is another one than that of its loss
        assert numbers["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, parameter in setting.twin.named_parameters():
        torch.testing.assert_close(setting.gradients()[name], parameter.grad, rtol=1e-5, atol=1e-8)


def test_the_sampled_token_has_the_gradient_of_its_one_sample_loss_and_the_value_of_its_log_ratio(
    make_solver, samples: list[Sample]
) -> None:
    setting = Setting(make_solver, {"divergence": "sampled_token"})
    numbers = setting.learner.update(samples, setting.teacher, 0)
    setting.reference_loss(samples).backward()
    found = setting.gradients()
    for name, parameter in setting.twin.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-8)
    assert numbers["divergence"] == pytest.approx(-numbers["log_ratio"])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_policy_gradient_vanishes_outside_the_clip_range(make_solver, advantage: float) -> None:
    setting = Setting(make_solver, {"epsilon": 0.2})
    sample = make_sample(random.Random(3), "x", teacher_prompt_ids=None, distillation_weight=0.0)
    with torch.no_grad():
        now = log_probs(setting.twin, sample.student_prompt_ids, sample.completion_ids)
        now = now.gather(1, torch.tensor(sample.completion_ids)[:, None])[:, 0]
    # Ratios of 2 for a positive advantage, of 1/2 for a negative one: both beyond the clip.
    old = tuple((now - advantage * math.log(2)).tolist())
    sample = replace(sample, sampler_log_probs=old, policy_weight=1.0, advantage=advantage)
    numbers = setting.learner.update([sample], setting.teacher, 0)
    assert numbers["clip_ratio"] == 1.0
    assert numbers["grad_norm"] < 1e-9
    assert numbers["loss"] == pytest.approx(-(1.2 if advantage > 0 else -0.8), rel=1e-5)


def test_the_step_is_that_of_adamw_on_the_clipped_gradient(make_solver, samples: list[Sample]) -> None:
    """Three updates on two batches against torch's own AdamW and gradient clipping."""
    options = {"max_grad_norm": 0.05, "learning_rate": 1e-2, "weight_decay": 0.1, "updates_per_batch": 1}
    setting = Setting(make_solver, {}, **options)
    optimizer = torch.optim.AdamW(setting.twin.parameters(), lr=1e-2, weight_decay=0.1)
    for step, batch in enumerate((samples, samples[2:], samples[:3])):
        setting.learner.update(batch, setting.teacher, step)
        optimizer.zero_grad()
        setting.reference_loss(batch).backward()
        assert torch.nn.utils.clip_grad_norm_(setting.twin.parameters(), 0.05) > 0.05
        optimizer.step()
    for mine, other in zip(setting.solver.model.parameters(), setting.twin.parameters(), strict=True):
        # Adam's first steps have the size of the rate however small the gradient: a float32 rounding of the weights
        # of the loss shows where the gradient nearly vanishes.
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-5)


def test_several_updates_on_a_batch_are_several_steps(make_solver, samples: list[Sample]) -> None:
    once, thrice = Setting(make_solver, {}), Setting(make_solver, {}, updates_per_batch=3)
    for _ in range(3):
        once.learner.update(samples, once.teacher, 0)
    thrice.learner.update(samples, thrice.teacher, 0)
    for one, other in zip(once.solver.model.parameters(), thrice.solver.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("budget", [1, 40, 100, 10**6])
def test_the_cut_into_micro_batches_changes_nothing(make_solver, samples: list[Sample], budget: int) -> None:
    whole, cut = Setting(make_solver, {}), Setting(make_solver, {}, max_micro_batch_tokens=budget)
    numbers, other = (s.learner.update(samples, s.teacher, 0) for s in (whole, cut))
    assert numbers.keys() == other.keys()
    for name, value in numbers.items():
        assert other[name] == pytest.approx(value, rel=1e-6, nan_ok=True), name
    gradients = cut.gradients()
    for name, gradient in whole.gradients().items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# Zero is zero


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("weights", ["initial", "ema", "live", "trust_region"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_identical_context_teaches_exactly_nothing(make_solver, divergence: str, weights: str, dtype) -> None:
    solver = make_solver(1)
    solver.model.to(dtype)
    rng = random.Random(1)
    same = [make_sample(rng, str(i)) for i in range(3)]
    same = [replace(s, teacher_prompt_ids=s.student_prompt_ids) for s in same]
    before = {n: p.clone() for n, p in solver.model.named_parameters()}
    objective = ObjectiveSection(divergence=divergence, teacher=TeacherSection(weights=weights))
    learner = Learner(solver, objective, TrainingSection(max_micro_batch_tokens=60), temperature=1.1)
    numbers = learner.update(same, Teacher(solver.model, objective.teacher), 0)
    assert numbers["loss"] == 0.0
    assert numbers["grad_norm"] == 0.0
    assert numbers["divergence"] == 0.0
    assert (numbers["log_ratio"], numbers["abs_log_ratio"]) == (0.0, 0.0)
    assert all(torch.equal(p, before[n]) for n, p in solver.model.named_parameters())


def test_dropout_does_not_come_between_student_and_self_teacher(word_tokenizer) -> None:
    """Both sides are scored without it: else identical contexts would teach noise."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.5,
    )
    solver = Solver(LlamaForCausalLM(config), word_tokenizer)
    sample = make_sample(random.Random(0), "x")
    sample = replace(sample, teacher_prompt_ids=sample.student_prompt_ids)
    for checkpointing in (False, True):
        if checkpointing:
            solver.model.activation_checkpointing_enable()
        learner = Learner(solver, ObjectiveSection(), TrainingSection(), temperature=1.0)
        numbers = learner.update([sample], Teacher(solver.model, TeacherSection()), 0)
        assert numbers["loss"] == 0.0
        assert numbers["grad_norm"] == 0.0


def test_gradient_checkpointing_changes_no_gradient(make_solver, samples: list[Sample]) -> None:
    plain, saving = Setting(make_solver, {}), Setting(make_solver, {})
    saving.solver.model.activation_checkpointing_enable()
    one, other = (s.learner.update(samples, s.teacher, 0) for s in (plain, saving))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
    gradients = saving.gradients()
    for name, gradient in plain.gradients().items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12)


def test_a_batch_without_any_signal_changes_nothing(make_solver, samples: list[Sample]) -> None:
    setting = Setting(make_solver, {}, weight_decay=0.5)
    numbers = setting.learner.update(samples[7:9], setting.teacher, 0)
    assert (numbers["loss"], numbers["grad_norm"], numbers["active_samples"]) == (0.0, 0.0, 0.0)
    assert math.isnan(numbers["divergence"])
    for mine, other in zip(setting.solver.model.parameters(), setting.twin.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_batch_with_every_token_masked_changes_nothing(make_solver) -> None:
    setting = Setting(make_solver, {})
    sample = make_sample(random.Random(0), "x")
    sample = replace(sample, loss_mask=(False,) * len(sample.completion_ids))
    numbers = setting.learner.update([sample], setting.teacher, 0)
    assert numbers["loss"] == 0.0
    assert math.isfinite(numbers["grad_norm"])
    assert numbers["trained_tokens"] == 0.0


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_a_masked_token_that_no_policy_would_draw_spoils_nothing(make_solver, beta: float) -> None:
    """Its ratio to the sampler overflows, and infinity at the weight 0 is not 0."""
    sample = make_sample(random.Random(1), "x", distillation_weight=0.0, policy_weight=1.0, advantage=0.7)
    numbers, gradients = [], []
    for at_masked in (-1.0, -1e4):
        setting = Setting(make_solver, {"beta": beta})
        log_probs = tuple(
            p if kept else at_masked for p, kept in zip(sample.sampler_log_probs, sample.loss_mask, strict=True)
        )
        assert at_masked in log_probs
        numbers.append(setting.learner.update([replace(sample, sampler_log_probs=log_probs)], setting.teacher, 0))
        gradients.append([p.detach().clone() for p in setting.solver.model.parameters()])
    assert numbers[0]["loss"] == numbers[1]["loss"]
    assert numbers[1]["grad_norm"] > 0
    assert all(map(torch.equal, *gradients))


def test_masked_tokens_carry_no_gradient_and_idle_samples_still_count(make_solver, samples: list[Sample]) -> None:
    """Loss = sum over unmasked tokens / unmasked tokens of the whole batch: check both halves of the fraction."""
    one, other = Setting(make_solver, {}), Setting(make_solver, {})
    alone = one.learner.update(samples[:1], one.teacher, 0)
    with_idle = other.learner.update([samples[0], samples[7], samples[8]], other.teacher, 0)
    counts = [sum(samples[i].loss_mask) for i in (0, 7, 8)]
    assert alone["trained_tokens"] == counts[0]
    assert with_idle["trained_tokens"] == sum(counts)
    assert with_idle["loss"] == pytest.approx(alone["loss"] * counts[0] / sum(counts), rel=1e-6)
    assert with_idle["divergence"] == pytest.approx(alone["divergence"], rel=1e-6)  # a mean over scored tokens
    assert with_idle["active_samples"] == 1.0


# ---------------------------------------------------------------------------------------------------------------------
# What is watched


def test_the_watched_numbers_are_means_over_unmasked_scored_tokens(make_solver, samples: list[Sample]) -> None:
    setting = Setting(make_solver, {"divergence": "reverse_kl"})
    numbers = setting.learner.update(samples, setting.teacher, 0)
    rows: dict[str, list[float]] = {
        name: [] for name in ("divergence", "log_ratio", "student_entropy", "teacher_entropy")
    }
    with torch.no_grad():
        for s in samples:
            kept = torch.tensor(s.loss_mask)
            student = log_probs(setting.twin, s.student_prompt_ids, s.completion_ids)
            if s.distillation_weight or s.policy_weight * s.advantage:
                rows["student_entropy"] += (-(student.exp() * student).sum(-1))[kept].tolist()
            if s.teacher_prompt_ids is not None:
                taught = log_probs(setting.teacher_twin, s.teacher_prompt_ids, s.completion_ids)
                ids = torch.tensor(s.completion_ids)[:, None]
                rows["divergence"] += (student.exp() * (student - taught)).sum(-1)[kept].tolist()
                rows["log_ratio"] += (taught - student).gather(1, ids)[:, 0][kept].tolist()
                rows["teacher_entropy"] += (-(taught.exp() * taught).sum(-1))[kept].tolist()
    for name in rows:
        assert numbers[name] == pytest.approx(sum(rows[name]) / len(rows[name]), rel=1e-5), name
    mean_abs = sum(map(abs, rows["log_ratio"])) / len(rows["log_ratio"])
    assert numbers["abs_log_ratio"] == pytest.approx(mean_abs, rel=1e-5)


def test_the_probe_reads_the_right_value_on_both_sides(make_solver) -> None:
    setting = Setting(make_solver, {})
    rng = random.Random(5)
    plain, first, second = (make_sample(rng, name) for name in "abc")
    probes = {"b": (1, 33), "c": (0, 12)}
    probed = [
        plain,
        *(replace(s, probe=probes[s.rollout_id]) for s in (first, second)),
    ]
    numbers = setting.learner.update(probed, setting.teacher, 0)
    expected = {"right_value_probability": [], "student_right_value_probability": []}
    with torch.no_grad():
        for s in probed[1:]:
            place, token = s.probe or (0, 0)
            taught = log_probs(setting.teacher_twin, s.teacher_prompt_ids or (), s.completion_ids)
            student = log_probs(setting.twin, s.student_prompt_ids, s.completion_ids)
            expected["right_value_probability"].append(float(taught[place, token].exp()))
            expected["student_right_value_probability"].append(float(student[place, token].exp()))
    for name, values in expected.items():
        assert numbers[name] == pytest.approx(sum(values) / 2, rel=1e-5)


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_weights(make_solver, samples: list[Sample], broken: float) -> None:
    setting = Setting(make_solver, {})
    setting.learner.update(samples, setting.teacher, 0)
    before = [p.clone() for p in setting.solver.model.parameters()]
    moments = copy.deepcopy(setting.learner.optimizer.state_dict()["state"])
    bad = make_sample(
        random.Random(0), "bad", teacher_prompt_ids=None, distillation_weight=0.0, policy_weight=1.0, advantage=-1.0
    )
    bad = replace(bad, sampler_log_probs=(broken,) * len(bad.completion_ids))
    numbers = setting.learner.update([*samples, bad], setting.teacher, 1)
    assert not math.isfinite(numbers["grad_norm"])
    assert all(torch.equal(p, b) for p, b in zip(setting.solver.model.parameters(), before, strict=True))
    for index, state in setting.learner.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[index][name]) for name, value in state.items())
    assert math.isfinite(setting.learner.update(samples, setting.teacher, 2)["grad_norm"])


def test_the_learning_rate_follows_its_schedule(make_solver) -> None:
    def rates(scheduler: str) -> list[float]:
        section = TrainingSection(max_steps=10, warmup_steps=4, learning_rate=2.0, lr_scheduler=scheduler)
        learner = Learner(make_solver(), ObjectiveSection(), section, temperature=1.0)
        return [learner.learning_rate(step) for step in range(10)]

    warm = [0.5, 1.0, 1.5, 2.0]
    assert rates("constant") == [*warm, *[2.0] * 6]
    assert rates("linear") == pytest.approx([*warm, *(2.0 * (1 - i / 6) for i in range(6))])
    assert rates("cosine") == pytest.approx([*warm, *(1 + math.cos(math.pi * i / 6) for i in range(6))])


def test_the_rate_of_the_step_is_the_one_in_force(make_solver, samples: list[Sample]) -> None:
    setting = Setting(make_solver, {}, warmup_steps=10, learning_rate=1.0)
    assert setting.learner.update(samples, setting.teacher, 2)["learning_rate"] == pytest.approx(0.3)
    assert [group["lr"] for group in setting.learner.optimizer.param_groups] == [pytest.approx(0.3)]
