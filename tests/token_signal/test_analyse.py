"""The analysis of embedded rollouts against the truth that the task's generator knows."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from stepalign.build import find_truth, open_session
from stepalign.config import load_config
from stepalign.domains.arithmetic import task as arithmetic
from stepalign.domains.table import load_sets
from stepalign.token_signal import score as score_module
from stepalign.token_signal.analyse import analyse, analyse_attempts, attempts_under
from stepalign.token_signal.localisation import known_tokens
from stepalign.token_signal.score import ScoringJob, score
from stepalign.verbs.signal.collect import collect_for_signal


@pytest.fixture(scope="module")
def collected():
    config = load_config("arithmetic")
    session = open_session(config)
    return session, collect_for_signal(session, load_sets(config.data)["train"].problems[:40], Path("unused"), seed=3)


def test_every_token_has_one_place(collected) -> None:
    session, rollouts = collected
    probe = find_truth(session.config, session.solver)
    wrong = 0
    attempts, _ = attempts_under(rollouts, ["step_aligned"])
    assert len(attempts) == len(rollouts)
    for one in analyse_attempts(session.solver, session.prompts, attempts, temperature=1.0, top_k=0, truth=probe):
        attempt = one.subject.attempt
        truth = known_tokens(one.scored)
        assert truth.right or truth.wrong_step
        found = arithmetic.diagnose(attempt.problem.question, attempt.text)
        if found.correction is None:
            continue
        assert not truth.right & truth.wrong_step
        if found.first_error.isdigit() and len(found.attempt.steps) >= int(found.first_error):
            first = 7 * found.num_right  # one id a word, seven words a step
            assert truth.right == frozenset(range(first))
            assert truth.wrong_step == frozenset(range(first, first + 7))
            if truth.wrong_result:
                assert truth.wrong_result == {first + 5}
                assert truth.results == frozenset(range(5, first, 7)) | {first + 5}
                wrong += 1
    assert wrong > 15


def test_the_step_aligned_signal_is_on_the_wrong_result(collected) -> None:
    """The picture of the paper, on the embedded solver: right tokens reinforced, a dip at the wrong result."""
    session, rollouts = collected
    found = analyse(
        session.solver,
        session.prompts,
        rollouts,
        ["step_aligned", "reference", "verdict"],
        temperature=1.1,
        num_shown=6,
        top_k=2,
        model_name="embedded",
        truth=find_truth(session.config, session.solver),
    )
    numbers = {e["context"]: {n["name"]: n["value"] for n in e["numbers"]} for e in found["localisation"]}
    aligned, reference, verdict = (numbers[name] for name in ("step_aligned", "reference", "verdict"))
    assert aligned["auroc_wrong_result"] > 0.95 > reference["auroc_wrong_result"]
    assert aligned["mean_log_ratio_wrong_result"] < -2 < 0 < aligned["mean_log_ratio_right_tokens"]
    assert aligned["mean_abs_log_ratio_right_tokens"] < reference["mean_abs_log_ratio_right_tokens"]
    assert aligned["share_of_first_wrong_steps_found"] > 0.9 > reference["share_of_first_wrong_steps_found"]
    assert aligned["auroc_first_wrong_step"] > 0.9 > reference["auroc_first_wrong_step"]
    assert abs(verdict["mean_log_ratio_wrong_result"]) < 0.2  # a bare verdict names no place
    cases = [rollout["case"] for rollout in found["rollouts"]]
    assert {"correct", "one_wrong_step"} <= set(cases)
    assert len(cases) == 6
    for rollout in found["rollouts"]:
        for one, other in itertools.pairwise(rollout["steps"]):
            assert one["end"] == other["start"]


def test_an_edit_of_one_context_scores_that_one_again(collected, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept numbers equal those that are scored anew; unchanged contexts take no forward pass."""
    session, rollouts = collected
    (subject,) = attempts_under(rollouts[:1], ["step_aligned", "reference", "none"])[0]
    prompts, problem, ids = session.prompts, subject.attempt.problem, tuple(subject.ids)
    texts = {name: shown.text for name, shown in subject.contexts.items()}
    passes: list[int] = []
    forward = score_module.completion_hidden
    monkeypatch.setattr(
        score_module, "completion_hidden", lambda solver, batch: (passes.append(len(batch)), forward(solver, batch))[1]
    )

    def scored(kept, **changed: str):
        teachers = {name: prompts.self_teacher(problem, text).ids for name, text in (texts | changed).items()}
        job = ScoringJob(completion_ids=ids, student_prompt_ids=prompts.student(problem), teacher_prompt_ids=teachers)
        (found,) = score(session.solver, [job], temperature=1.0, top_k=3, kept=kept)
        return found

    kept: dict = {}
    scored(kept)
    passes.clear()
    again = scored(kept, reference="<step_1> 1 + 1 = 2 ; <answer> 2")
    assert sum(passes) == 2  # the student and the edited context
    fresh = scored(None, reference="<step_1> 1 + 1 = 2 ; <answer> 2")
    assert again.contexts.keys() == fresh.contexts.keys()
    for name, found in fresh.contexts.items():
        assert np.allclose(again.contexts[name].log_ratio, found.log_ratio, atol=1e-5)
        assert np.allclose(again.contexts[name].forward_kl, found.forward_kl, atol=1e-5)
    passes.clear()
    scored(kept, reference="<step_1> 1 + 1 = 2 ; <answer> 2")
    assert passes == []
    assert len(kept) == len(set(kept)) <= 3
