"""The callback for TRL's SDPO, with a trainer that keeps what it is given; tests/real_trl has the real one."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from stepalign.errors import ConfigError, UserError
from stepalign.records import Attempt, Critique, Problem

torch = pytest.importorskip("torch")
END = 2


class Words:
    """A tokenizer for single letters; 0 pads, END ends."""

    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012
    all_special_ids = (0, END)

    def __len__(self) -> int:
        return 200

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(i) for i in ids if i not in self.all_special_ids)


class Builder:
    """In the place of TRL's: keeps the feedbacks, and makes prompts of given lengths."""

    def __init__(self, lengths: tuple[int, ...] = (3, 3, 3, 3)) -> None:
        self.given: list[list[str | None]] = []
        self.last_metrics = {"self_distillation/feedback_used_fraction": 0.5}
        width = max(lengths)
        self.prompt_mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])

    def build(self, output: Any, prompts: Any, rewards: Any, feedbacks: Any) -> dict[str, Any]:
        self.given.append(feedbacks)
        return {"teacher_attention_mask": torch.cat([self.prompt_mask, output["completion_mask"]], dim=1)}


class Trainer:
    """The parts of SDPOTrainer that the callback uses."""

    def __init__(self, completions: list[str], rewards: list[float], builder: Builder | None = None) -> None:
        ids = [[*map(ord, text.rstrip(".")), *[END] * text.endswith(".")] for text in completions]
        width = max(map(len, ids))
        self.batch = {
            "completion_ids": torch.tensor([row + [0] * (width - len(row)) for row in ids]),
            "completion_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        }
        self.rewards, self.eos_token_ids, self._tokenizer = torch.tensor(rewards), [END], Words()
        self.teacher_context_builder: Any = builder or Builder()
        self.accelerator, self.state = SimpleNamespace(process_index=0), SimpleNamespace(global_step=7)
        self.args = SimpleNamespace(
            include_environment_feedback=True, success_reward_threshold=1.0, max_reprompt_len=10
        )

    def _prepare_training_batch(self, inputs: list[dict[str, Any]]) -> Any:
        prompts = [row["prompt"] for row in inputs]
        return self.teacher_context_builder.build(self.batch, prompts, self.rewards, feedbacks=[None] * len(inputs))


class Echo:
    """A critic that repeats the attempt; it fails at "x"."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[Attempt] = []

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        self.asked.append(attempt)
        known = {"rollout_id": attempt.rollout_id, "critic": self.name}
        if attempt.text == "x":
            return Critique(**known, status="failed", text="", reason="no route")
        return Critique(**known, status="ok", text=f"<step_1> {attempt.text} <answer> {attempt.problem.answer}")

    def close(self) -> None: ...


def rows(*questions: str) -> list[dict[str, Any]]:
    return [
        {"prompt": [{"role": "user", "content": text}], "solution": f"{text}!", "reference": None} for text in questions
    ]


def attached(trainer: Trainer, critic: Any = None, **options: Any) -> Any:
    from stepalign import StepAlignCallback

    return StepAlignCallback(trainer, critic, **options)


def test_each_rollout_is_shown_its_own_critique_in_its_place() -> None:
    trainer, critic = Trainer(["a.", "bb", "x.", "c."], [1.0, 0.0, 0.0, 0.5]), Echo()
    builder = trainer.teacher_context_builder
    callback = attached(trainer, critic)
    trainer._prepare_training_batch(rows("p", "p", "q", "q"))
    assert builder.given == [["<step_1> a <answer> p!", "<step_1> bb <answer> p!", None, "<step_1> c <answer> q!"]]
    assert callback.masked == Counter({"critique failed: no route": 1})
    assert callback.last_metrics == {
        "self_distillation/feedback_used_fraction": 0.5,
        "stepalign/context_fraction": 0.75,
    }
    assert [(one.text, one.verdict, one.truncated, one.problem.answer) for one in critic.asked] == [
        ("a", "correct", False, "p!"),
        ("bb", "incorrect", True, "p!"),
        ("x", "incorrect", False, "q!"),
        ("c", "incorrect", False, "q!"),
    ]
    assert len({one.rollout_id for one in critic.asked}) == 4


def test_an_answer_of_zero_is_one() -> None:
    from stepalign.verbs.trl import problem_of

    assert problem_of({"prompt": "1 - 1", "solution": 0}).answer == "0"
    assert problem_of({"prompt": "1 - 1", "solution": "", "answer": 0.0}).answer == "0.0"
    assert problem_of({"prompt": "1 - 1", "solution": None}).answer == ""


def test_rows_that_a_batch_mixes_keep_their_order_and_their_groups() -> None:
    """A sibling's attempt is one of the same problem, wherever it is in the batch."""
    trainer = Trainer(["a.", "b.", "c.", "d."], [1.0, 1.0, 0.0, 0.0])
    builder = trainer.teacher_context_builder
    callback = attached(trainer, design="peer_demonstration")
    trainer._prepare_training_batch(rows("p", "q", "q", "p"))
    assert builder.given == [[None, None, "b", "a"]]
    assert callback.masked == Counter({"no correct sibling": 2})


def test_a_policy_masks_a_critique_and_an_empty_completion_asks_for_none() -> None:
    trainer, critic = Trainer(["a.", ".", "b.", "c."], [0.0] * 4), Echo()
    callback = attached(
        trainer,
        critic,
        policies={"wrong_answer": "mask"},
        problem=lambda row: Problem(problem_id="1", question="q", answer="5"),
    )
    critic.critique = wrong(critic.critique)
    trainer._prepare_training_batch(rows("p", "p", "p", "p"))
    assert callback.masked == Counter({"critique with the finding wrong_answer": 3, "no critique": 1})
    assert [one.text for one in critic.asked] == ["a", "b", "c"]


def wrong(ask: Any) -> Any:
    async def asked(attempt: Attempt, **more: Any) -> Critique:
        found = await ask(attempt, **more)
        return Critique(rollout_id=found.rollout_id, critic="echo", status="ok", text="<step_1> 2 + 2 = 4 <answer> 4")

    return asked


def test_prompts_that_trl_cuts_are_counted() -> None:
    trainer = Trainer(["a.", "b."], [0.0, 0.0], Builder((4, 10)))
    callback = attached(trainer, Echo())
    built = trainer._prepare_training_batch(rows("p", "p"))
    event = {**built, "completion_mask": trainer.batch["completion_mask"]}
    with pytest.warns(UserWarning, match="max_reprompt_len"):
        callback.on_teacher_context_built(trainer.args, None, None, **event, model=None, processing_class=None)
    assert callback.cut_prompts == 1


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        (lambda trainer: None, {}, "needs a critic"),
        (lambda trainer: None, {"design": "step_algned"}, "unknown context design"),
        (lambda trainer: None, {"design": "none"}, "no context"),
        (lambda trainer: delattr(trainer, "teacher_context_builder"), {"critic": Echo()}, "no teacher contexts"),
        (lambda trainer: setattr(trainer.args, "include_environment_feedback", False), {"critic": Echo()}, "ignore"),
    ],
)
def test_settings_under_which_no_context_is_shown_are_refused(change: Any, options: Any, told: str) -> None:
    trainer = Trainer(["a."], [0.0])
    change(trainer)
    with pytest.raises(ConfigError, match=told) as refused:
        attached(trainer, **options)
    assert isinstance(refused.value, UserError)
    assert refused.value.hint
    assert "_prepare_training_batch" not in vars(trainer)
