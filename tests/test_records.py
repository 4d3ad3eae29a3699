"""Records on disk: the lines of a run keep their fields, whatever a record learns besides."""

from __future__ import annotations

from stepalign.records import Attempt, Completion, Context, Critique, Grade, Problem, Rollout, to_json

PROBLEM = Problem(problem_id="p", question="1 + 1", answer="2")


def rollout(detail: str = "", mask: tuple[bool, ...] = ()) -> Rollout:
    completion = Completion(
        ids=(5, 6), log_probs=(-0.5, -0.25), finish_reason="stop", policy_version=3, sampled_mask=mask
    )
    grade = Grade(score=0.0, answer="3", detail=detail, reason="different number")
    attempt = Attempt(rollout_id="r", problem=PROBLEM, text="It is 3", grade=grade)
    return Rollout(attempt=attempt, completion=completion, step=2, group_index=1)


def test_a_line_of_rollouts_names_its_problem_and_nothing_twice() -> None:
    assert to_json(rollout()) == {
        "rollout_id": "r",
        "problem_id": "p",
        "step": 2,
        "group_index": 1,
        "completion": {"ids": (5, 6), "log_probs": (-0.5, -0.25), "finish_reason": "stop", "policy_version": 3},
        "text": "It is 3",
        "answer": "3",
        "verdict": "incorrect",
        "reward": 0.0,
    }
    told = to_json(rollout("a test failed", (True, False)))
    assert (told["detail"], told["completion"]["sampled_mask"]) == ("a test failed", (True, False))


def test_lines_of_critiques_and_contexts_keep_their_fields() -> None:
    critique = Critique(rollout_id="r", critic="m", status="ok", text="t")
    assert list(to_json(critique)) == [
        *("rollout_id", "critic", "status", "text", "raw", "reason", "case", "first_error", "prompt_tokens"),
        *("completion_tokens", "seconds", "attempts", "cached", "prompt_hash", "retries", "findings", "policy"),
        *("decided_by", "form"),
    ]
    context = Context(rollout_id="r", design="reference", text="t")
    assert list(to_json(context)) == ["rollout_id", "design", "text", "masked", "introduction"]
