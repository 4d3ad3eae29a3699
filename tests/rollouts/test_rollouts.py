"""From problems to Samples: the order of problems by counting, the rest with a sampler and a critic of our own."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.build import find_terms
from stepalign.config import Config, ObjectiveSection, SamplingSection, changed
from stepalign.domains.arithmetic.critic import ArithmeticCritic
from stepalign.domains.arithmetic.domain import find_truth
from stepalign.domains.arithmetic.task import make_problem, parse_question
from stepalign.domains.math.grading import Grader
from stepalign.errors import ConfigError
from stepalign.feedback import designs
from stepalign.feedback.prompts import load_template
from stepalign.models.load import Solver
from stepalign.models.prompts import PromptBuilder
from stepalign.records import Attempt, Completion, Critique, Grade, Problem, Sample
from stepalign.rollouts.collect import RolloutCollector, RolloutMaker
from stepalign.rollouts.environment import SingleTurn
from stepalign.rollouts.metrics import rollout_numbers
from stepalign.rollouts.order import derive_seed, problems_of_step
from stepalign.rollouts.samples import SampleMaker
from stepalign.rollouts.stream import Batch, Stream
from stepalign.stopping import PROCESS, Interrupted
from stepalign.waiting import wait_for

# ---------------------------------------------------------------------------------------------------------------------
# Which problems, and which seeds


@given(size=st.integers(1, 20), count=st.integers(1, 25), steps=st.integers(1, 12), seed=st.integers(0, 5))
def test_every_epoch_holds_every_problem_once(size: int, count: int, steps: int, seed: int) -> None:
    problems = [Problem(problem_id=str(i), question=str(i), answer="") for i in range(size)]
    stream = [p for step in range(steps) for p in problems_of_step(problems, step, count, seed)]
    assert len(stream) == steps * count
    for start in range(0, len(stream), size):
        epoch = stream[start : start + size]
        if len(epoch) == size:
            assert {p.problem_id for p in epoch} == {p.problem_id for p in problems}
        assert len({p.problem_id for p in epoch}) == len(epoch)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    problems = [Problem(problem_id=str(i), question=str(i), answer="") for i in range(50)]
    orders = {
        (epoch, seed): tuple(p.problem_id for p in problems_of_step(problems, epoch, 50, seed))
        for epoch in range(3)
        for seed in range(3)
    }
    assert len(set(orders.values())) == 9
    assert orders[1, 2] == tuple(p.problem_id for p in problems_of_step(problems, 1, 50, 2))


def test_the_order_depends_on_nothing_but_its_arguments() -> None:
    problems = [Problem(problem_id=str(i), question=str(i), answer="") for i in range(30)]
    random.seed(1)
    before = [problems_of_step(problems, step, 7, 0) for step in range(9)]
    random.seed(2)
    assert [problems_of_step(problems, step, 7, 0) for step in reversed(range(9))] == before[::-1]


def test_seeds_for_different_purposes_differ_and_stay() -> None:
    parts = [(seed, name, step) for seed in range(20) for name in ("rollouts", "problem order") for step in range(50)]
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive_seed(1, "2") != derive_seed("1", 2) != derive_seed(1, 2)
    # Written down: another version must resume with the same draws.
    assert derive_seed(0, "rollouts", 0) == 8314421453851258707


# ---------------------------------------------------------------------------------------------------------------------
# One step, with attempts that we write ourselves

PROBLEMS = [make_problem(parse_question(q), rho=0.0) for q in ("1 + 2 + 3", "4 - 1 - 1", "9 + 9 - 9")]
RIGHT = "<step_1> 1 + 2 = 3 ; <step_2> 3 + 3 = 6 ; <answer> 6"
WRONG = "<step_1> 1 + 2 = 4 ; <step_2> 4 + 3 = 7 ; <answer> 7"
CUT = "<step_1> 4 - 1 = 3 ; <step_2>"
OTHER_RIGHT = "<step_1> 4 - 1 = 3 ; <step_2> 3 - 1 = 2 ; <answer> 2"
ATTEMPTS = [[RIGHT, WRONG], [CUT, OTHER_RIGHT], ["<answer> 9", "<answer> 8"]]


class Script:
    """A sampler that recites attempts, the last ones first."""

    def __init__(self, solver: Solver, attempts: Sequence[Sequence[str]], limit: int = 64) -> None:
        self._solver, self._attempts, self._limit = solver, attempts, limit
        self.calls: list[dict] = []

    async def publish(self, weights, version): ...

    def close(self): ...

    async def sample(self, prompts, *, num_samples, temperature, max_tokens, seed, on_finished=None):
        self.calls.append({"prompts": prompts, "temperature": temperature, "max_tokens": max_tokens, "seed": seed})
        done = [[self._completion(text) for text in row[:num_samples]] for row in self._attempts]
        for prompt, sample in reversed([(p, s) for p in range(len(prompts)) for s in range(num_samples)]):
            on_finished(prompt, sample, done[prompt][sample])
        return done

    def _completion(self, text: str) -> Completion:
        ids = self._solver.tokenizer.encode(text, add_special_tokens=False)
        ended = "<answer>" in text
        ids = [*ids, self._solver.tokenizer.eos_token_id] if ended else ids
        log_probs = tuple(-0.1 * (i + 1) for i in range(len(ids)))
        return Completion(
            ids=tuple(ids), log_probs=log_probs, finish_reason="stop" if ended else "length", policy_version=3
        )


class Moody:
    """A critic that fails, mumbles, or writes, by the rollout's place in its group. Replies come late."""

    name = "moody"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        name = attempt.rollout_id
        self.asked.append(name)
        kind = ("failed", "malformed", "ok")[len(self.asked) % 3]
        text = f"<step_1> critique of {name}" if kind == "ok" else ""
        await asyncio.sleep(0)
        return Critique(
            rollout_id=name,
            critic="programmatic:moody",
            status=kind,
            text=text,
            reason="" if kind == "ok" else "bad day",
        )

    def close(self) -> None: ...


def make_stream(solver: Solver, sampler, grader: Grader, condition: str, critic=None, **options) -> Stream:
    """The stream of a run at seed 42. ``options`` are keys of the sampling section and fields of a SampleMaker."""
    prompts = PromptBuilder(
        solver.tokenizer,
        student=load_template("{{ question }}"),
        self_teacher=load_template("{{ question }} Feedback : {{ feedback }}"),
        **options.pop("prompts", {}),
    )
    environment = options.pop("environment", SingleTurn(prompts))
    sampling: dict = {"temperature": 1.1, "max_completion_length": 21, "num_generations": 2}
    sampling |= {name: options.pop(name) for name in sampling if name in options}
    maker = RolloutMaker(tokenizer=solver.tokenizer, sampler=sampler, environment=environment, grader=grader)
    return Stream(
        collector=RolloutCollector(
            maker=maker,
            critic=critic,
            sampling=SamplingSection(**sampling),
        ),
        samples=SampleMaker(
            tokenizer=solver.tokenizer, prompts=prompts, condition=designs.find_condition(condition), **options
        ),
        problems=PROBLEMS,
        problems_per_step=len(PROBLEMS),
        seed=42,
    )


@pytest.fixture
def collect(tiny_solver: Solver) -> Callable[..., tuple[Batch, Script]]:
    def run(condition: str, *, attempts=ATTEMPTS, problems=PROBLEMS, **options):
        sampler = Script(tiny_solver, attempts)
        with Grader() as grader:
            return make_stream(tiny_solver, sampler, grader, condition, **options).batch(problems, 5), sampler

    return run


def words(solver: Solver, ids: Sequence[int]) -> str:
    return " ".join(solver.tokenizer.convert_ids_to_tokens(list(ids)))


def test_rollouts_are_graded_and_named_by_their_place(collect, tiny_solver: Solver) -> None:
    batch, sampler = collect("grpo")
    assert [r.rollout_id for r in batch.rollouts] == [f"s00005-p{p:04d}-g{g:02d}" for p in range(3) for g in range(2)]
    assert [r.text for r in batch.rollouts] == [text for row in ATTEMPTS for text in row]
    assert [r.reward for r in batch.rollouts] == [1, 0, 0, 1, 1, 0]
    assert [r.answer for r in batch.rollouts] == ["6", "7", None, "2", "9", "8"]
    assert {r.step for r in batch.rollouts} == {5}
    (call,) = sampler.calls
    assert (call["temperature"], call["max_tokens"], call["seed"]) == (1.1, 21, derive_seed(42, "rollouts", 5))
    assert [words(tiny_solver, p) for p in call["prompts"]] == [
        f"<|user|> {p.question} <|assistant|>" for p in PROBLEMS
    ]


def test_grpo_samples_carry_the_advantage_and_no_teacher(collect) -> None:
    batch, _ = collect("grpo")
    for row in range(3):
        rewards = [r.reward for r in batch.rollouts[2 * row : 2 * row + 2]]
        mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
        for sample, reward in zip(batch.samples[2 * row : 2 * row + 2], rewards, strict=True):
            assert sample.advantage == pytest.approx((reward - mean) / (deviation + 1e-4), rel=1e-6)
            assert (sample.policy_weight, sample.distillation_weight) == (1.0, 0.0)
            assert sample.teacher_prompt_ids is None
    assert batch.masked == Counter()
    assert all(c.text is None and c.masked == "" for c in batch.contexts)
    assert batch.critiques == []


def test_stepalign_samples_show_the_critique_of_their_own_rollout(collect, tiny_solver: Solver) -> None:
    batch, _ = collect("stepalign", critic=ArithmeticCritic())
    shown = [words(tiny_solver, s.teacher_prompt_ids or ()) for s in batch.samples]
    right = "<step_1> 4 - 1 = 3 ; <step_2> 3 - 1 = 2 ; <answer> 2"
    expected = [RIGHT, RIGHT, right, right, PROBLEMS[2].reference, PROBLEMS[2].reference]
    questions = [p.question for p in PROBLEMS for _ in range(2)]
    assert shown == [
        f"<|user|> {q} Feedback : {text} <|assistant|>" for q, text in zip(questions, expected, strict=True)
    ]
    for sample, rollout, context in zip(batch.samples, batch.rollouts, batch.contexts, strict=True):
        assert sample.rollout_id == rollout.rollout_id == context.rollout_id
        assert sample.completion_ids == rollout.completion.ids
        assert sample.sampler_log_probs == rollout.completion.log_probs
        assert sample.loss_mask == (True,) * len(rollout.completion.ids)
        assert (sample.distillation_weight, sample.policy_weight) == (1.0, 0.0)
    assert [c.rollout_id for c in batch.critiques] == [r.rollout_id for r in batch.rollouts]


def test_arms_differ_in_what_is_shown_and_in_the_weights_alone(collect) -> None:
    """The trainer is blind: everything else of a Sample is the same under every condition."""
    batches = {
        name: collect(name, critic=ArithmeticCritic())[0].samples
        for name in ("grpo", "refsol", "stepalign", "answer", "verdict", "full_repeat", "shuffled", "none")
    }
    free = {"teacher_prompt_ids": None, "distillation_weight": 0.0, "policy_weight": 0.0}
    blind = {name: [replace(s, **free) for s in samples] for name, samples in batches.items()}
    assert all(samples == blind["grpo"] for samples in blind.values())
    assert len({tuple(s.teacher_prompt_ids for s in samples) for samples in batches.values()}) == 7  # grpo and none


def test_bad_critiques_mask_their_sample_and_are_counted(collect) -> None:
    critic = Moody()
    batch, _ = collect("stepalign", critic=critic)
    status = {c.rollout_id: c.status for c in batch.critiques}
    assert Counter(status.values()) == {"ok": 2, "failed": 2, "malformed": 2}
    for sample in batch.samples:
        usable = status[sample.rollout_id] == "ok"
        assert (sample.distillation_weight == 1.0) == usable
        assert (sample.teacher_prompt_ids is not None) == usable
    assert batch.masked == {"critique failed: bad day": 2, "critique malformed: bad day": 2}
    assert len(batch.samples) == 6  # masked ones still count in the mean over tokens
    # asked in the order in which completions ended, not after the batch
    assert critic.asked == [r.rollout_id for r in reversed(batch.rollouts)]


def test_a_problem_without_reference_is_masked_under_refsol(collect) -> None:
    batch, _ = collect("refsol", problems=[replace(PROBLEMS[0], reference=None), *PROBLEMS[1:]])
    assert batch.masked == {"the problem has no reference solution": 2}
    assert [s.distillation_weight for s in batch.samples] == [0, 0, 1, 1, 1, 1]


def test_the_shuffled_control_shows_critiques_of_other_problems(collect, tiny_solver: Solver) -> None:
    batch, _ = collect("shuffled", critic=ArithmeticCritic())
    by_id = {c.rollout_id: c.text for c in batch.critiques}
    for row, context in enumerate(batch.contexts):
        group = {r.rollout_id for r in batch.rollouts[row // 2 * 2 : row // 2 * 2 + 2]}
        assert context.text in {text for name, text in by_id.items() if name not in group}
    again, _ = collect("shuffled", critic=ArithmeticCritic())
    assert again.contexts == batch.contexts


def test_cut_contexts_are_counted(collect) -> None:
    whole, _ = collect("refsol")
    assert whole.numbers["context_dropped_tokens"] == 0
    length = max(len(s.teacher_prompt_ids or ()) for s in whole.samples)
    cut, _ = collect("refsol", prompts={"max_teacher_prompt_length": length - 3})
    expected = sum(max(0, len(s.teacher_prompt_ids or ()) - length + 3) for s in whole.samples)
    assert cut.numbers["context_dropped_tokens"] == expected
    longer = sum(len(s.teacher_prompt_ids or ()) > length - 3 for s in whole.samples)
    assert (whole.numbers["contexts_cut"], cut.numbers["contexts_cut"]) == (0, longer)
    # The question and what stands behind the context are where they were.
    for one, other in zip(whole.samples, cut.samples, strict=True):
        assert (one.teacher_prompt_ids or ())[:3] == (other.teacher_prompt_ids or ())[:3]
        assert (one.teacher_prompt_ids or ())[-1] == (other.teacher_prompt_ids or ())[-1]
    assert expected > 0


def test_the_numbers_of_a_step(collect) -> None:
    numbers = collect("grpo")[0].numbers
    lengths = [len(a.split()) + ("<answer>" in a) for row in ATTEMPTS for a in row]
    assert numbers["reward"] == pytest.approx(3 / 6)
    assert numbers["frac_reward_zero_std"] == 0.0
    assert numbers["completions/mean_length"] == pytest.approx(sum(lengths) / 6)
    assert numbers["completions/max_length"] == max(lengths)
    assert numbers["completions/clipped_ratio"] == pytest.approx(1 / 6)
    assert (numbers["num_rollouts"], numbers["num_tokens"], numbers["undecided"]) == (6, sum(lengths), 0)
    alone = collect("grpo", num_generations=1)[0]
    assert math.isnan(alone.numbers["frac_reward_zero_std"])
    assert {s.advantage for s in alone.samples} == {0.0}  # nothing to compare with
    same = collect("grpo", attempts=[[RIGHT, RIGHT], ATTEMPTS[1], ["<answer> 1"] * 2])[0]
    assert same.numbers["frac_reward_zero_std"] == pytest.approx(2 / 3)
    first, *others = same.rollouts
    open_ = replace(first, attempt=replace(first.attempt, grade=Grade(math.nan)))  # says nothing about the others
    pairs = [[open_, others[0]], others[1:3], others[3:5]]
    assert rollout_numbers(pairs)["frac_reward_zero_std"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("condition", ["grpo", "refsol"])
def test_groups_without_signal_are_left_out_when_asked(collect, condition: str) -> None:
    cut = "<step_1> 4 - 1 = 3 ; <step_2>"
    attempts = [[RIGHT, RIGHT], ATTEMPTS[1], ["<answer> 1", cut]]  # all right, mixed, all wrong
    usual, _ = collect(condition, attempts=attempts)
    chosen, _ = collect(condition, attempts=attempts, skip_zero_std_groups=True)
    assert (usual.numbers["skipped_groups"], chosen.numbers["skipped_groups"]) == (0, 2)
    assert chosen.rollouts == usual.rollouts  # they are kept and counted
    for index, (sample, before) in enumerate(zip(chosen.samples, usual.samples, strict=True)):
        if index in (2, 3):
            assert sample == before
        else:
            assert not any(sample.loss_mask)
            assert sample.teacher_prompt_ids is None
            assert (sample.distillation_weight, sample.policy_weight) == (0.0, 0.0)


def test_groups_of_one_cannot_be_compared() -> None:
    settings = {"condition": "refsol", "sampling.num_generations": 1, "sampling.skip_zero_std_groups": True}
    with pytest.raises(ConfigError, match="every group would be skipped"):
        find_terms(changed(Config(), settings))


def test_an_undecided_sibling_is_no_signal(collect) -> None:
    unknown = replace(PROBLEMS[0], answer="")
    batch, _ = collect("grpo", problems=[unknown, *PROBLEMS[1:]], skip_zero_std_groups=True)
    assert batch.numbers["undecided"] == 2
    assert batch.numbers["skipped_groups"] == 1
    assert [any(s.loss_mask) for s in batch.samples] == [False, False, True, True, True, True]


def test_skipping_gives_the_gradient_of_the_other_groups_alone(collect, tiny_solver: Solver) -> None:
    """A group that is left out neither trains nor counts in the mean: the step is that of the mixed group alone."""
    from stepalign.config import ObjectiveSection, TeacherSection, TrainingSection
    from stepalign.training.learner import Learner
    from stepalign.training.teacher import Teacher

    def numbers(batch: Batch) -> dict[str, float]:
        before = {k: v.clone() for k, v in tiny_solver.model.state_dict().items()}
        learner = Learner(tiny_solver, ObjectiveSection(), TrainingSection(), temperature=1.1)
        told = learner.update(batch.samples, Teacher(tiny_solver.model, TeacherSection()), 0)
        tiny_solver.model.load_state_dict(before)
        return told

    attempts = [[RIGHT, RIGHT], ATTEMPTS[1], ["<answer> 1", "<answer> 2"]]
    alone, _ = collect("grpo", attempts=attempts[1:2], problems=PROBLEMS[1:2])
    skipping, _ = collect("grpo", attempts=attempts, skip_zero_std_groups=True)
    usual, _ = collect("grpo", attempts=attempts)
    for name in ("loss", "grad_norm", "trained_tokens"):
        assert numbers(skipping)[name] == pytest.approx(numbers(alone)[name], rel=1e-5)
    assert numbers(usual)["grad_norm"] < 0.7 * numbers(alone)["grad_norm"]
    nothing, _ = collect("grpo", attempts=[[RIGHT, RIGHT]], problems=PROBLEMS[:1], skip_zero_std_groups=True)
    told = numbers(nothing)
    assert (told["loss"], told["grad_norm"], told["trained_tokens"], told["active_samples"]) == (0, 0, 0, 0)


def test_progress_is_told_for_every_completion(tiny_solver: Solver) -> None:
    told: list[tuple[int, int]] = []
    with Grader() as grader:
        stream = make_stream(tiny_solver, Script(tiny_solver, ATTEMPTS), grader, "grpo")
        stream.batch(PROBLEMS, 0, lambda event: told.append((event.done, event.total)))
    assert told == [(i, 6) for i in range(1, 7)]


def test_the_probe_points_at_the_first_wrong_result(collect, tiny_solver: Solver) -> None:

    samples: list[Sample] = collect("grpo", truth=find_truth(tiny_solver.tokenizer))[0].samples
    assert [s.probe is not None for s in samples] == [False, True, False, False, False, False]
    place, right = samples[1].probe or (0, 0)
    name = tiny_solver.tokenizer.convert_ids_to_tokens
    assert (name(samples[1].completion_ids[place]), name(right)) == ("4", "3")


# ---------------------------------------------------------------------------------------------------------------------
# Verdict and self-teacher together


def hybrid(name: str, **options: float) -> dict[str, ObjectiveSection]:
    return {"objective": ObjectiveSection.model_validate({"hybrid": name, **options})}


def test_a_weighted_sum_trains_every_rollout_on_both(collect) -> None:
    batch, _ = collect("stepalign", critic=Moody(), **hybrid("weighted_sum", distillation_weight=0.3))
    for sample, context in zip(batch.samples, batch.contexts, strict=True):
        assert sample.policy_weight == pytest.approx(0.7)
        assert sample.distillation_weight == (0.3 if context.text else 0.0)
        assert sample.advantage != 0
    assert batch.masked == {"critique failed: bad day": 2, "critique malformed: bad day": 2}


@pytest.mark.parametrize(("decay_steps", "mixing"), [(50, 0.8 * 45 / 50), (0, 0.8), (5, 0.0)])
def test_rlsd_keeps_the_advantage_and_lets_the_teacher_size_it_ever_less(collect, decay_steps, mixing) -> None:
    options = hybrid("rlsd", rlsd_mixing=0.8, rlsd_decay_steps=decay_steps)
    batch, _ = collect("refsol", **options)  # at step 5
    plain, _ = collect("grpo")
    for sample, before in zip(batch.samples, plain.samples, strict=True):
        assert (sample.distillation_weight, sample.policy_weight) == (0.0, 1.0)
        assert sample.magnitude_mixing == pytest.approx(mixing)
        assert sample.advantage == before.advantage
        assert (sample.teacher_prompt_ids is not None) == (mixing > 0)


def test_cepo_and_a_calibrated_signal_have_a_second_prompt_in_the_same_words(collect, tiny_solver: Solver) -> None:
    def last_words(name: str, condition: str) -> list[str | None]:
        batch, _ = collect(condition, **hybrid(name))  # at step 5
        for sample in batch.samples:
            assert sample.teacher_prompt_ids is not None
            assert (sample.policy_weight, sample.magnitude_mixing) == (1.0, pytest.approx(0.5 * 45 / 50))
        prompts = [s.contrast_prompt_ids for s in batch.samples]
        for prompt, sample in zip(prompts, batch.samples, strict=True):
            assert prompt is None or prompt[:3] == (sample.teacher_prompt_ids or ())[:3]
        shown = [None if p is None else words(tiny_solver, p) for p in prompts]
        return [text and text.partition(" Feedback : ")[2].partition(" <|assistant|>")[0] for text in shown]

    # 6 is right and 7 wrong, a cut attempt has no answer, 9 is right and 8 wrong: nothing is contrasted with itself.
    assert last_words("cepo", "answer") == ["<answer> 7", None, None, None, "<answer> 8", None]
    assert last_words("cepo", "refsol") == [WRONG, None, None, None, "<answer> 8", None]
    for text, problem in zip(last_words("calibrated", "answer"), PROBLEMS, strict=False):
        assert problem.answer not in (text or "").split()
        assert text == "<answer> ;"


def test_srpo_sends_wrong_rollouts_to_the_teacher_and_the_others_to_the_verdict(collect) -> None:
    missing = replace(PROBLEMS[2], reference=None)
    batch, _ = collect("refsol", problems=[*PROBLEMS[:2], missing], **hybrid("srpo", srpo_entropy_damping=0.6))
    rewards = [r.reward for r in batch.rollouts]
    assert rewards == [1, 0, 0, 1, 1, 0]
    assert [s.distillation_weight for s in batch.samples] == [0, 1, 1, 0, 0, 0]  # nothing to read for the last two
    assert [s.policy_weight for s in batch.samples] == [1, 0, 0, 1, 1, 1]
    assert [s.entropy_damping for s in batch.samples] == [0, 0.6, 0.6, 0, 0, 0]


def test_rosd_trains_from_the_first_wrong_step_on(collect, tiny_solver: Solver) -> None:
    second = "<step_1> 1 + 2 = 3 ; <step_2> 3 + 3 = 7 ; <answer> 7"
    attempts = [[RIGHT, second], [WRONG.replace("1 + 2 = 4", "4 - 1 = 4"), OTHER_RIGHT], ["<answer> 9", "<answer> 8"]]
    batch, _ = collect("stepalign", critic=ArithmeticCritic(), attempts=attempts, **hybrid("rosd"))
    plain, _ = collect("stepalign", critic=ArithmeticCritic(), attempts=attempts)
    assert batch.samples[0].loss_mask == plain.samples[0].loss_mask  # all right: all of it
    trained = [i for i, m in zip(batch.samples[1].completion_ids, batch.samples[1].loss_mask, strict=True) if m]
    assert words(tiny_solver, trained) == "<step_2> 3 + 3 = 7 ; <answer> 7 <|end|>"
    assert all(batch.samples[2].loss_mask)  # wrong from the first token on
    labels = {c.rollout_id: c.first_error for c in batch.critiques}
    wrong = [r for r in batch.rollouts if r.reward == 0]
    assert batch.numbers["unlocated_errors"] == sum(not labels[r.rollout_id] for r in wrong)
    reference, _ = collect("refsol", attempts=attempts, **hybrid("rosd"))
    assert reference.numbers["unlocated_errors"] == len(wrong)  # nobody said where
    assert all(all(s.loss_mask) for s in reference.samples)
    assert "unlocated_errors" not in plain.numbers


@pytest.mark.parametrize("name", ["weighted_sum", "rlsd", "srpo", "rosd"])
def test_skipped_groups_carry_no_term_of_any_hybrid(collect, name: str) -> None:
    attempts = [[RIGHT, RIGHT], ATTEMPTS[1], ["<answer> 1", "<answer> 2"]]
    batch, _ = collect("refsol", attempts=attempts, skip_zero_std_groups=True, **hybrid(name))
    for sample in (*batch.samples[:2], *batch.samples[4:]):
        assert not any(sample.loss_mask)
        assert (sample.distillation_weight, sample.policy_weight, sample.magnitude_mixing) == (0, 0, 0)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"condition": "grpo", "objective.hybrid": "rlsd", "sampling.num_generations": 4}, "objective.hybrid"),
        (
            {
                **{"condition": "gkd", "objective.hybrid": "cepo", "objective.teacher.model": "other"},
                "sampling.num_generations": 4,
            },
            "objective.hybrid",
        ),
        ({"condition": "grpo"}, "sampling.num_generations = 1"),
        ({"condition": "refsol", "objective.hybrid": "srpo"}, "sampling.num_generations = 1"),
        ({"condition": "refsol", "objective.hybrid": "weighted_sum"}, "sampling.num_generations = 1"),
    ],
)
def test_a_loss_that_cannot_have_a_signal_is_refused(settings, where: str) -> None:
    with pytest.raises(ConfigError) as raised:
        find_terms(changed(Config(), settings))
    assert raised.value.where == where
    assert raised.value.hint


@pytest.mark.parametrize(
    "settings",
    [
        {"condition": "refsol", "objective.hybrid": "rosd"},
        {"condition": "refsol", "objective.hybrid": "weighted_sum", "objective.distillation_weight": 1.0},
        {"condition": "grpo", "training.max_steps": 0},
    ],
)
def test_a_group_of_one_is_enough_without_a_policy_term(settings) -> None:
    assert find_terms(changed(Config(), settings)) == designs.find_condition(settings["condition"])


def test_an_evaluation_that_is_asked_to_stop_waits_for_no_grade(tiny_solver: Solver, monkeypatch) -> None:
    """All completions end at once, with one token: the first problem is graded when the request comes."""
    monkeypatch.setattr(PROCESS, "asked", False)
    graded: list[int] = []

    def heard(row: int, _: object) -> None:
        graded.append(row)
        PROCESS.asked = True

    with Grader() as grader:
        maker = make_stream(tiny_solver, Script(tiny_solver, ATTEMPTS), grader, "grpo").collector.maker
        work = maker.attempt(PROBLEMS, num_samples=2, temperature=1.0, max_tokens=21, seed=0, on_graded=heard)
        with pytest.raises(Interrupted):
            wait_for(work)
    assert graded == [2]
