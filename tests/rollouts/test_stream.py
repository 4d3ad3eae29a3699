"""The stream of batches: several turns, steps collected ahead, and a sampler of a user's own."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace

import pytest

from stepalign.config import ObjectiveSection, SamplingSection, TeacherSection, TrainingSection
from stepalign.domains.arithmetic.task import make_problem, parse_question
from stepalign.domains.math.grade import Grade
from stepalign.domains.math.grading import Grader
from stepalign.evaluation.evaluate import sample_and_grade
from stepalign.events import Event
from stepalign.feedback import designs
from stepalign.feedback.prompts import load_template
from stepalign.models.load import Solver
from stepalign.models.prompts import PromptBuilder
from stepalign.models.sampling import Sampler
from stepalign.models.sampling.local import LocalSampler
from stepalign.records import Attempt, Completion, Problem, Rollout, Turn, rollout_from_json, to_json
from stepalign.rollouts.collect import RolloutCollector, RolloutMaker
from stepalign.rollouts.early import JudgedGroup
from stepalign.rollouts.environment import Environment, Reply, SingleTurn
from stepalign.rollouts.samples import SampleMaker
from stepalign.rollouts.stream import Batch, Stream
from stepalign.stopping import PROCESS, Interrupted
from stepalign.storage.files import finite
from stepalign.training.learner import Learner
from stepalign.training.teacher import Teacher
from stepalign.waiting import result_of, wait_for

PROBLEMS = [make_problem(parse_question(q), rho=0.0) for q in ("1 + 2 + 3", "4 - 1 - 1", "9 + 9 - 9", "8 - 5 + 2")]


class Counting:
    """A whole sampler: every completion is the end-of-text id behind as many words as were asked for before."""

    def __init__(self, solver: Solver) -> None:
        self.end, self.word = solver.end_ids[0], solver.tokenizer.get_vocab()["7"]
        self.version = 0
        self.asked: list[tuple[tuple[int, ...], int, int]] = []

    async def publish(self, weights, version: int) -> None:
        self.version = version

    def close(self) -> None: ...

    async def sample(self, prompts, *, num_samples, temperature, max_tokens, seed, on_finished=None):
        found = []
        for row, prompt in enumerate(prompts):
            self.asked.append((tuple(prompt), max_tokens, seed))
            ids = (*(self.word,) * (len(self.asked) % 3), self.end)
            completion = Completion(
                ids=ids, log_probs=(-0.5,) * len(ids), finish_reason="stop", policy_version=self.version
            )
            found.append([completion] * num_samples)
            if on_finished is not None:
                for index in range(num_samples):
                    on_finished(row, index, completion)
        return found


class Tool:
    """Replies to the first turn of every completion with the same tokens, then lets it end."""

    def __init__(self, prompts: PromptBuilder, reply: Sequence[int]) -> None:
        self.single, self.tokens = SingleTurn(prompts), tuple(reply)

    def start(self, problem: Problem) -> Sequence[int]:
        return self.single.start(problem)

    async def reply(self, problem: Problem, turns: Sequence[Turn], completion: Completion) -> Reply | None:
        return None if not all(completion.sampled_mask) else Reply(ids=self.tokens)

    async def grade(self, problem: Problem, turns: Sequence[Turn]) -> None:
        return None


def prompts_of(solver: Solver) -> PromptBuilder:
    return PromptBuilder(
        solver.tokenizer,
        student=load_template("{{ question }}"),
        self_teacher=load_template("{{ question }} Feedback : {{ feedback }}"),
    )


def make_stream(
    solver: Solver,
    sampler: Sampler,
    grader: Grader,
    *,
    condition: str = "grpo",
    environment: Environment | None = None,
    ahead: int = 0,
) -> Stream:
    prompts = prompts_of(solver)
    return Stream(
        collector=RolloutCollector(
            maker=RolloutMaker(
                tokenizer=solver.tokenizer,
                sampler=sampler,
                environment=environment or SingleTurn(prompts),
                grader=grader,
            ),
            sampling=SamplingSection(num_generations=2, max_completion_length=16),
        ),
        samples=SampleMaker(tokenizer=solver.tokenizer, prompts=prompts, condition=designs.find_condition(condition)),
        problems=PROBLEMS,
        problems_per_step=2,
        seed=3,
        ahead=ahead,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Several turns


@pytest.fixture
def two_turns(tiny_solver: Solver) -> tuple[Batch, Counting, tuple[int, ...]]:
    reply = tuple(tiny_solver.tokenizer.encode("= 6 ;", add_special_tokens=False))
    sampler = Counting(tiny_solver)
    environment = Tool(prompts_of(tiny_solver), reply)
    with Grader() as grader:
        stream = make_stream(tiny_solver, sampler, grader, condition="refsol", environment=environment)
        return stream.batch(PROBLEMS[:2], 0), sampler, reply


def test_the_tokens_of_a_tool_are_marked_and_never_trained_on(two_turns) -> None:
    batch, sampler, reply = two_turns
    assert len(batch.samples) == 4
    for rollout, sample in zip(batch.rollouts, batch.samples, strict=True):
        completion = rollout.completion
        written = [place for place, sampled in enumerate(completion.sampled_mask) if not sampled]
        assert tuple(completion.ids[place] for place in written) == reply
        assert written == list(range(written[0], written[0] + len(reply)))
        assert completion.ids[written[0] - 1] == completion.ids[-1] == sampler.end
        assert sample.loss_mask == completion.sampled_mask
        assert sample.completion_ids == completion.ids
        assert [math.isnan(p) for p in completion.log_probs] == [not sampled for sampled in completion.sampled_mask]
        assert sample.distillation_weight == 1.0
    assert batch.numbers["num_tokens"] == sum(sum(s.loss_mask) for s in batch.samples)


def test_an_evaluation_counts_the_tokens_of_the_solver_only(two_turns) -> None:
    batch, _, reply = two_turns
    (problem,) = sample_and_grade(
        PROBLEMS[:1], num_samples=2, seed=0, attempt=lambda *_: [list(batch.rollouts[:2])], canonical=str
    )
    assert problem.lengths == tuple(len(r.completion.ids) - len(reply) for r in batch.rollouts[:2])


def test_a_turn_goes_on_behind_the_very_ids_so_far(two_turns, tiny_solver: Solver) -> None:
    batch, sampler, reply = two_turns
    later = sampler.asked[2:]  # after the first turn of both problems
    assert len(later) == 4
    for rollout, (prompt, room, _) in zip(batch.rollouts, later, strict=True):
        start = prompts_of(tiny_solver).student(rollout.problem)
        before = prompt[len(start) :]
        assert prompt[: len(start)] == start
        assert before == rollout.completion.ids[: len(before)]
        assert before[-len(reply) :] == reply
        assert room == 16 - len(before)
    assert len({seed for _, _, seed in sampler.asked[2:]}) == 4  # draws of their own


def test_a_completion_without_room_for_another_turn_is_truncated(tiny_solver: Solver) -> None:
    sampler = Counting(tiny_solver)
    environment = Tool(prompts_of(tiny_solver), [5] * 14)
    with Grader() as grader:
        batch = make_stream(tiny_solver, sampler, grader, environment=environment).batch(PROBLEMS[:1], 0)
    assert [r.completion.finish_reason for r in batch.rollouts] == ["length"] * 2
    assert all(r.attempt.truncated and all(r.completion.sampled_mask) for r in batch.rollouts)
    assert batch.numbers["completions/clipped_ratio"] == 1.0


@pytest.mark.parametrize("importance_clip", [None, 2.0])
def test_the_learner_takes_nothing_from_the_tokens_of_a_tool(
    tiny_solver: Solver, two_turns, importance_clip: float | None
) -> None:
    """Their log-probabilities are undefined; a step is the same with any others in their place."""
    batch, _, _ = two_turns
    mixed = [replace(s, policy_weight=0.5, advantage=1.0) for s in batch.samples]
    other = [
        replace(s, sampler_log_probs=tuple(-9.0 if math.isnan(p) else p for p in s.sampler_log_probs)) for s in mixed
    ]

    def numbers(samples) -> dict[str, float]:
        before = {k: v.clone() for k, v in tiny_solver.model.state_dict().items()}
        objective = ObjectiveSection(importance_clip=importance_clip)
        learner = Learner(tiny_solver, objective, TrainingSection(), temperature=1.0)
        found = learner.update(samples, Teacher(tiny_solver.model, TeacherSection()), 0)
        tiny_solver.model.load_state_dict(before)
        return found

    first, second = numbers(mixed), numbers(other)
    assert first["trained_tokens"] == sum(sum(s.loss_mask) for s in mixed)
    assert math.isfinite(first["loss"])
    assert math.isfinite(first["grad_norm"])
    assert (first["loss"], first["grad_norm"]) == (second["loss"], second["grad_norm"])


def test_a_rollout_of_two_turns_is_read_again_as_it_was(two_turns) -> None:
    batch, _, _ = two_turns
    for rollout in batch.rollouts:
        row = json.loads(json.dumps(finite(to_json(rollout)), allow_nan=False))
        again = rollout_from_json(row, rollout.problem)
        assert repr(again.completion) == repr(rollout.completion)  # NaN is not equal to itself
        without_reason = replace(rollout.attempt, grade=replace(rollout.attempt.grade, reason=""))
        assert replace(rollout, attempt=without_reason, completion=again.completion) == again


def test_a_failure_behind_one_completion_ends_the_sampling_of_the_others(make_solver) -> None:
    solver = make_solver(0, scale=3.0)
    solver.model.generation_config.eos_token_id = list(range(1, 20))  # many completions end early, at different places
    finished: list[int] = []

    def listener(event: Event) -> None:
        finished.append(event.done)
        raise RuntimeError("the display is gone")

    with Grader() as grader, pytest.raises(RuntimeError, match="the display is gone"):
        make_stream(solver, LocalSampler(solver), grader).batch(PROBLEMS, 0, listener)
    assert len(finished) < 2 * len(PROBLEMS)


# ---------------------------------------------------------------------------------------------------------------------
# Steps collected ahead


def versions(stream: Stream, sampler, steps: int) -> list[tuple[int, set[int]]]:
    """(step, versions in its completions) of a run whose weights move once a step."""
    seen = []
    wait_for(sampler.publish({}, 0))
    for step, batch in enumerate(stream.batches(0, steps)):
        seen.append((step, {r.completion.policy_version for r in batch.rollouts}))
        assert {r.step for r in batch.rollouts} == {step}
        wait_for(sampler.publish({}, step + 1))
    return seen


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_batch_is_collected_so_many_steps_early(tiny_solver: Solver, ahead: int) -> None:
    sampler = Counting(tiny_solver)
    with Grader() as grader:
        found = versions(make_stream(tiny_solver, sampler, grader, ahead=ahead), sampler, 5)
    assert found == [(step, {max(0, step - ahead)}) for step in range(5)]  # every step once, none beyond the last


def test_steps_ahead_take_the_same_problems_from_the_same_seeds(tiny_solver: Solver) -> None:
    """Weights that do not move give the same batches, however early they are collected."""
    with Grader() as grader:
        straight, early = (
            [
                ([to_json(r) for r in batch.rollouts], batch.samples, batch.numbers)
                for batch in make_stream(tiny_solver, LocalSampler(tiny_solver), grader, ahead=ahead).batches(1, 4)
            ]
            for ahead in (0, 2)
        )
    assert repr(straight) == repr(early)
    assert len(straight) == 3


def test_a_run_that_starts_late_takes_the_steps_of_one_that_did_not(tiny_solver: Solver) -> None:
    with Grader() as grader:
        stream = make_stream(tiny_solver, LocalSampler(tiny_solver), grader)
        whole = [batch.samples for batch in stream.batches(0, 4)]
        assert [batch.samples for batch in stream.batches(2, 4)] == whole[2:]


def test_the_bridge_works_inside_a_running_event_loop() -> None:
    """As in a notebook."""

    async def inner() -> int:
        return 3

    async def cell() -> int:
        return wait_for(inner())

    assert wait_for(cell()) == 3


def test_the_graded_text_is_the_solvers_own_and_begins_in_the_thought_that_was_opened(byte_tokenizer) -> None:
    maker = RolloutMaker(
        tokenizer=byte_tokenizer,
        sampler=None,  # type: ignore[arg-type]
        environment=None,  # type: ignore[arg-type]
        grader=Grader(),
    )

    def turns(*parts: tuple[str, bool]) -> Completion:
        pieces = [(byte_tokenizer.encode(text, add_special_tokens=False), own) for text, own in parts]
        ids = tuple(token for piece, _ in pieces for token in piece)
        mask = tuple(own for piece, own in pieces for _ in piece)
        return Completion(
            ids=ids, log_probs=(0.0,) * len(ids), finish_reason="stop", policy_version=0, sampled_mask=mask
        )

    plain, opened = (byte_tokenizer.encode(f"user: Think.\nassistant:{end}") for end in ("", "\n<think>\n"))
    cut = turns(("Maybe \\boxed{4}? Wait", True))
    assert maker.written(plain, cut) == "Maybe \\boxed{4}? Wait"
    assert maker.written(opened, cut) == "<think>\nMaybe \\boxed{4}? Wait"
    told = turns(("Let me ask.<|im_end|>", True), ("tool: \\boxed{4}\nassistant:<think>", False), ("Is it", True))
    assert maker.text(told) == "Let me ask.tool: \\boxed{4}\nassistant:<think>Is it"
    assert maker.written(plain, told) == "Let me ask.\n<think>Is it"
    assert maker.grader.grade(maker.written(plain, told), "4").reason == "no answer"


def test_the_fixed_negative_control_punishes_unlikely_tokens_of_wrong_rollouts_and_nothing_else(tiny_solver) -> None:
    prompts = prompts_of(tiny_solver)
    chances = (0.9, 0.4, float("nan"), 0.1, 0.6)  # the third was written by an environment
    completion = Completion(
        ids=(1, 2, 3, 4, 5),
        log_probs=tuple(map(math.log, chances)),
        finish_reason="stop",
        policy_version=0,
        sampled_mask=(True, True, False, True, True),
    )

    numbers = itertools.count()

    def rollout(score: float, completion: Completion = completion) -> Rollout:
        name = f"r{next(numbers)}"
        attempt = Attempt(rollout_id=name, problem=PROBLEMS[0], text="x", grade=Grade(score=score, answer=None))
        return Rollout(attempt=attempt, completion=completion, step=0, group_index=0)

    sure = replace(completion, log_probs=(0.0,) * 5)
    rollouts = [rollout(0.0), rollout(1.0), rollout(float("nan")), rollout(0.0, sure)]
    group = JudgedGroup(problem=PROBLEMS[0], prompt_ids=(7,), rollouts=rollouts, critiques=[None] * 4)
    maker = SampleMaker(
        tokenizer=tiny_solver.tokenizer, prompts=prompts, condition=designs.find_condition("fixed_negative")
    )
    found = maker.make([group], 0)
    assert not found.masked
    assert [s.loss_mask for s in found.samples] == [(False, True, False, True, False), *((False,) * 5,) * 3]
    assert [s.advantage for s in found.samples] == [-1.0, 0.0, 0.0, 0.0]
    assert all((s.policy_weight, s.distillation_weight, s.teacher_prompt_ids) == (1, 0, None) for s in found.samples)


def test_sampling_that_has_seen_the_request_to_stop_first_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: Future[None] = Future()
    ended.cancel()
    ended.set_running_or_notify_cancel()  # as a loop in a thread does
    with pytest.raises(CancelledError):
        result_of(ended)
    monkeypatch.setattr(PROCESS, "asked", True)
    with pytest.raises(Interrupted):
        result_of(ended)
