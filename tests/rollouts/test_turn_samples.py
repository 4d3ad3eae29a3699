"""What trains of a rollout of several turns: each turn under its own context, and nothing of a message."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stepalign.config import TeacherSection, TrainingSection, changed, load_config
from stepalign.config.schema import ObjectiveSection
from stepalign.events import silent
from stepalign.feedback import designs
from stepalign.feedback.prompts import load_template
from stepalign.models.load import Solver
from stepalign.models.prompts import PromptBuilder, decode
from stepalign.models.scoring import completion_hidden
from stepalign.objectives.policy_gradient import StepCounts
from stepalign.records import Attempt, Completion, Grade, Problem, Rollout, Sample, Turn
from stepalign.rollouts.early import JudgedGroup
from stepalign.rollouts.samples import SampleMaker
from stepalign.stopping import StopRequest
from stepalign.token_signal.analyse import analyse_attempts, attempts_under
from stepalign.training.learner import Learner
from stepalign.training.loss import Objective, Side, batch_loss
from stepalign.training.teacher import Teacher
from stepalign.verbs.train import train_config

PROBLEM = Problem(problem_id="p", question="1 + 2", answer="3", reference="<step_1> 1 + 2 = 3 ; <answer> 3")
TURNS = (
    ("solver", "<step_1> 1 + 2 = 4 ; <answer> 4 <|end|>"),
    ("user", "<|user|> <step_1> wrong <|assistant|>"),
    ("solver", "<step_1> 1 + 2 = 5 ; <answer> 5 <|end|>"),
    ("user", "<|user|> Feedback : wrong <|assistant|>"),
    ("solver", "<step_1> 1 + 2 = 3 ; <answer> 3 <|end|>"),
)


@pytest.fixture
def episode(tiny_solver: Solver) -> Rollout:
    tokenizer, ids, mask, turns = tiny_solver.tokenizer, [], [], []
    for role, text in TURNS:
        own = tokenizer.encode(text, add_special_tokens=False)
        said = decode(tokenizer, own)
        turns.append(Turn(role=role, text=said, start=len(ids), end=len(ids) + len(own)))  # type: ignore[arg-type]
        ids += own
        mask += [role == "solver"] * len(own)
    log_probs = tuple(-0.1 * (i + 1) if own else float("nan") for i, own in enumerate(mask))
    completion = Completion(
        ids=tuple(ids),
        log_probs=log_probs,
        finish_reason="stop",
        policy_version=0,
        sampled_mask=tuple(mask),
        turns=tuple(turns),
    )
    text = decode(tokenizer, ids)
    attempt = Attempt(rollout_id="r", problem=PROBLEM, text=text, grade=Grade(1.0), turns=tuple(turns))
    return Rollout(attempt=attempt, completion=completion, step=0, group_index=0)


def make(solver: Solver, rollout: Rollout, design: str) -> tuple[list[Sample], PromptBuilder]:
    prompts = PromptBuilder(
        solver.tokenizer,
        student=load_template("{{ question }}"),
        self_teacher=load_template("{{ question }} Feedback : {{ feedback }}"),
    )
    maker = SampleMaker(tokenizer=solver.tokenizer, prompts=prompts, condition=designs.find_condition(design))
    ids = prompts.student(PROBLEM)
    group = JudgedGroup(problem=PROBLEM, prompt_ids=ids, rollouts=[rollout], critiques=[None])
    return maker.make([group], 0).samples, prompts


def test_each_turn_is_taught_by_what_was_said_about_it(tiny_solver: Solver, episode: Rollout) -> None:
    samples, prompts = make(tiny_solver, episode, "hindsight")
    ids, turns = episode.completion.ids, episode.attempt.turns
    solver_turns = [turns[0], turns[2], turns[4]]
    assert len(samples) == 3
    student = prompts.student(PROBLEM)
    for sample, turn, message in zip(samples, solver_turns, (turns[1], turns[3], None), strict=True):
        assert sample.completion_ids == ids[turn.start : turn.end]
        assert sample.student_prompt_ids == (*student, *ids[: turn.start])
        assert all(sample.loss_mask)
        if message is None:
            assert sample.teacher_prompt_ids is None
            assert sample.distillation_weight == 0.0
        else:
            own = prompts.self_teacher(PROBLEM, message.text).ids
            assert sample.teacher_prompt_ids == (*own, *ids[: turn.start])


def _loss(solver: Solver, samples: list[Sample], students: torch.Tensor) -> torch.Tensor:
    teachers = completion_hidden(solver, [(s.teacher_prompt_ids or (), s.completion_ids) for s in samples]).detach()
    counts = StepCounts(completions=len(samples), tokens=sum(sum(s.loss_mask) for s in samples))
    objective = Objective(beta=0.1)
    side = Side(students, solver.head_VH.detach())
    return batch_loss(samples, counts, side, Side(teachers, solver.head_VH.detach()), side, objective=objective)[0]


def test_no_gradient_reaches_the_token_of_a_message(tiny_solver: Solver, episode: Rollout) -> None:
    """By the derivative, and by moving the student's states at those places: the loss does not change by a bit."""
    samples, _ = make(tiny_solver, episode, "reference")
    samples = [replace(s, policy_weight=0.5, advantage=1.0) for s in samples]
    hidden = completion_hidden(tiny_solver, [(s.student_prompt_ids, s.completion_ids) for s in samples]).detach()
    student = hidden.clone().requires_grad_()
    loss = _loss(tiny_solver, samples, student)
    loss.backward()
    assert student.grad is not None
    sampled = torch.tensor(episode.completion.sampled_mask)
    assert (student.grad[~sampled] == 0).all()
    assert (student.grad[sampled].abs().sum(1) > 0).all()
    moved = hidden.clone()
    moved[~sampled] += torch.randn_like(moved[~sampled])
    assert float(_loss(tiny_solver, samples, moved)) == float(loss.detach())


def test_turns_in_one_packed_batch_learn_as_one_by_one(tiny_solver: Solver, episode: Rollout) -> None:
    samples = [sample for name in ("hindsight", "reference") for sample in make(tiny_solver, episode, name)[0]]
    gradients = []
    for tokens in (4096, 1):
        learner = Learner(
            tiny_solver,
            ObjectiveSection(),
            TrainingSection(max_micro_batch_tokens=tokens, learning_rate=1e-9, max_grad_norm=1e9),
            temperature=1.1,
        )
        learner.update(samples, Teacher(tiny_solver.model, TeacherSection(weights="live")), 0)
        gradients.append(torch.cat([p.grad.flatten() for p in tiny_solver.model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().max() > 1e-4


def test_the_signal_of_a_turn_is_that_of_its_own_context_and_messages_have_none(
    tiny_solver: Solver, episode: Rollout
) -> None:
    """The oracle scores each turn by itself, behind the prompts that train it."""
    samples, prompts = make(tiny_solver, episode, "hindsight")
    subjects, left_out = attempts_under([(episode, None)], ["hindsight", "reference"])
    assert left_out["hindsight"] == {"no user replied to the turn": 1}
    (found,) = analyse_attempts(tiny_solver, prompts, subjects, temperature=1.1, top_k=2)
    table = found.scored.tables["hindsight"]
    for sample, turn in zip(samples[:2], (episode.attempt.turns[0], episode.attempt.turns[2]), strict=True):
        assert sample.teacher_prompt_ids is not None
        sides = [
            completion_hidden(tiny_solver, [(prompt, sample.completion_ids)]) @ tiny_solver.head_VH.T / 1.1
            for prompt in (sample.teacher_prompt_ids, sample.student_prompt_ids)
        ]
        ids = torch.tensor(sample.completion_ids)[:, None]
        teacher, student = (side.log_softmax(-1).gather(1, ids)[:, 0] for side in sides)
        expected = (teacher - student).detach().numpy()
        np.testing.assert_allclose(table.log_ratio[turn.start : turn.end], expected, atol=2e-5)
    for at in (1, 3, 4):  # messages, and a turn without a reply
        turn = episode.attempt.turns[at]
        assert (table.log_ratio[turn.start : turn.end] == 0).all()
    assert (found.scored.tables["reference"].log_ratio[~np.array(episode.completion.sampled_mask)] == 0).all()
    steps = found.scored.steps
    assert [s.label for s in steps] == ["1.1", "1.answer", "user", "2.1", "2.answer", "user", "3.1", "3.answer"]
    assert "".join(found.scored.text[s.start : s.end] for s in steps) == found.scored.text


OWN = '''
from pathlib import Path
class Dies:
    """Replies once to each rollout; dies in the middle of an episode where the file says so."""
    def __init__(self, fuse):
        self.fuse = Path(fuse)
    def reply(self, problem, turns):
        if len(turns) > 1:
            return None
        if self.fuse.exists():
            left = int(self.fuse.read_text()) - 1
            self.fuse.write_text(str(left))
            if left == 0:
                self.fuse.unlink()
                raise RuntimeError("power cut")
        return "wrong"
'''


def test_a_run_that_died_within_an_episode_goes_on_to_the_same_bits(write_recipe, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(OWN, encoding="utf-8")
    fuse = tmp_path / "fuse"
    recipe = write_recipe(
        environment__kind=f"{tmp_path / 'dies.py'}:Dies",
        environment__options={"fuse": str(fuse)},
        sampling__max_completion_length=80,
        sampling__num_generations=2,
        training__save_steps=1,
        training__max_steps=2,
    )
    config = changed(load_config(str(recipe)), {"evaluation.at_start": False, "data.test": None}, "test")

    def run(name: str, *, resume: bool = False) -> Path:
        train_config(config, tmp_path / name, resume=resume, listener=silent, stop=StopRequest())
        return tmp_path / name

    whole = run("whole")
    lines = (whole / "rollouts.jsonl").read_text().splitlines()
    replies = sum('"turns"' in line for line in lines)
    assert replies > 2
    fuse.write_text(str(replies - 1), encoding="utf-8")
    with pytest.raises(Exception, match="power cut"):
        run("cut")
    resumed = run("cut", resume=True)
    assert (resumed / "rollouts.jsonl").read_text().splitlines() == lines
    weights = [(folder / "final" / "model.safetensors").read_bytes() for folder in (resumed, whole)]
    assert weights[0] == weights[1]
