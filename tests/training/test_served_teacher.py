"""A teacher behind servers: the loss from its likeliest tokens by hand, the requests, what goes wrong on the way."""

from __future__ import annotations

import asyncio
import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_server import VllmServer

from stepalign.build import find_terms, recipe_solver
from stepalign.config import Config, ObjectiveSection, TrainingSection, changed, load_config
from stepalign.errors import ConfigError, EndpointError
from stepalign.events import silent
from stepalign.models.load import Solver
from stepalign.models.served_teacher import ServedTeacher
from stepalign.records import Sample
from stepalign.stopping import StopRequest
from stepalign.training.learner import Learner
from stepalign.training.teacher import Teacher
from stepalign.verbs.train import train_config
from stepalign.waiting import wait_for

PROMPT, COMPLETIONS = (1, 7, 9, 4), ((5, 8, 11, 6, 12), (6, 10, 3))


@pytest.fixture
def serve() -> Iterator[Callable[..., VllmServer]]:
    servers: list[VllmServer] = []

    def start(solver: Solver, **options: Any) -> VllmServer:
        servers.append(VllmServer(solver.model, tokenizer=solver.tokenizer, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def samples(**changes: Any) -> list[Sample]:
    fields: dict[str, Any] = {"advantage": 0.0, "distillation_weight": 1.0, "policy_weight": 0.0}
    return [
        Sample(
            rollout_id=str(at), student_prompt_ids=PROMPT, teacher_prompt_ids=PROMPT, completion_ids=ids,
            sampler_log_probs=(-1.0,) * len(ids), loss_mask=(True,) * (len(ids) - at) + (False,) * at,
            **{**fields, **changes},
        )
        for at, ids in enumerate(COMPLETIONS)
    ]  # fmt: skip


def by_hand(
    student: torch.Tensor, teacher: torch.Tensor, token: int, k: int, divergence: str, tail: bool
) -> torch.Tensor:
    """One token from whole distributions: the teacher's k likeliest, and the rest as one bucket or dropped."""
    best = sorted(range(len(teacher)), key=lambda entry: -float(teacher[entry]))[:k]
    p = [math.exp(float(teacher[entry])) for entry in best]
    q = [student[entry].exp() for entry in best]
    if tail:
        p, q = [*p, 1 - sum(p)], [*q, 1 - sum(q)]
    else:
        p, q = [one / sum(p) for one in p], [one / sum(q) for one in q]
    pairs = list(zip(p, q, strict=True))
    if divergence == "forward_kl":
        return sum(a * (math.log(a) - b.log()) for a, b in pairs)  # type: ignore[return-value]
    if divergence == "reverse_kl":
        return sum(b * (b.log() - math.log(a)) for a, b in pairs)  # type: ignore[return-value]
    if divergence == "sampled_token":
        gap = float(teacher[token]) - student[token]
        return -gap.detach() * student[token]
    middle = [0.9 * b + 0.1 * a for a, b in pairs]
    return sum(  # type: ignore[return-value]
        0.1 * a * (math.log(a) - m.log()) + 0.9 * b * (b.log() - m.log())
        for (a, b), m in zip(pairs, middle, strict=True)
    )


@pytest.mark.parametrize(
    ("divergence", "k", "options"),
    [
        ("forward_kl", 3, {}),
        ("forward_kl", 1, {"loss_type": "grpo"}),
        ("reverse_kl", 5, {}),
        ("jensen_shannon(0.1)", 4, {"top_k_remainder": "renormalise"}),
        ("sampled_token", 2, {"discrepancy_weight": 0.5, "top_k": None}),
    ],
)
def test_the_loss_is_the_divergence_on_the_likeliest_tokens(
    make_solver: Callable[..., Solver],
    serve: Callable[..., VllmServer],
    divergence: str,
    k: int,
    options: dict[str, Any],
) -> None:
    teacher, student = make_solver(3, scale=3.0), make_solver(0, scale=3.0)
    student.model.double()
    twin = copy.deepcopy(student.model)
    section = ObjectiveSection.model_validate({
        "divergence": divergence, "top_k": k, "top_k_support": "teacher", "teacher": {"base_urls": ["x"]}, **options,
    })  # fmt: skip
    url = serve(teacher).url
    scored = wait_for(ServedTeacher([url], k).score(samples()))
    held = Teacher(student.model, section.teacher)
    assert held.state() == {}
    numbers = Learner(student, section, TrainingSection(max_grad_norm=1e9), temperature=1.0).update(scored, held, 0)

    total, counts = torch.zeros((), dtype=torch.float64), [sum(sample.loss_mask) for sample in scored]
    for sample, count in zip(scored, counts, strict=True):
        ids = torch.tensor([[*PROMPT, *sample.completion_ids]])
        with torch.no_grad():
            p = teacher.model(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        q = twin(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        gaps = (p - q).detach()
        sizes = [abs(float(gaps[t, token])) for t, token in enumerate(sample.completion_ids[:count])]
        for t in range(count):
            weight = 1 + section.discrepancy_weight * (1 - sum(sizes[:t]) / sum(sizes))
            value = by_hand(q[t], p[t], sample.completion_ids[t], k, divergence, section.top_k_remainder == "tail")
            share = 1 / sum(counts) if section.loss_type == "dapo" else 1 / (count * len(scored))
            total = total + weight * share * value
    total.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters()))
    assert numbers["grad_norm"] == pytest.approx(norm, rel=1e-4)
    if divergence != "sampled_token":  # whose value is -A_t, not the loss that has its gradient
        assert numbers["loss"] == pytest.approx(float(total.detach()), rel=1e-5)
    assert math.isnan(numbers["teacher_entropy"])  # not known
    assert numbers["student_entropy"] > 0


@pytest.mark.parametrize("options", [{"loss_type": "bnpo"}, {"beta": 0.1}])
def test_a_teacher_that_sizes_nothing_is_no_part_of_a_step(
    tiny_solver: Solver, serve: Callable[..., VllmServer], options: dict[str, Any]
) -> None:
    """Samples whose advantage is 0, which other parts of the loss want all the same."""
    own = samples(distillation_weight=0.0, policy_weight=1.0, magnitude_mixing=0.5)
    scored = wait_for(ServedTeacher([serve(tiny_solver).url], 2).score(own))
    section = ObjectiveSection.model_validate({"teacher": {"base_urls": ["x"]}, **options})
    held = Teacher(tiny_solver.model, section.teacher, keeps_reference=True)
    numbers = Learner(tiny_solver, section, TrainingSection(), temperature=1.0).update(scored, held, 0)
    assert numbers["loss"] == 0.0
    assert math.isnan(numbers["divergence"])


def test_ids_go_to_the_server_and_what_it_says_comes_back(
    tiny_solver: Solver, serve: Callable[..., VllmServer]
) -> None:
    server = serve(tiny_solver)
    free = replace(samples()[0], teacher_prompt_ids=None, distillation_weight=0.0)
    first, second, third = wait_for(ServedTeacher([server.url], 3).score([*samples(), free]))
    assert third == free
    assert sorted(map(tuple, (body["prompt"][0] for body in server.bodies))) == sorted(
        (*PROMPT, *c) for c in COMPLETIONS
    )
    assert {(body["prompt_logprobs"], body["max_tokens"]) for body in server.bodies} == {(3, 1)}
    for sample in (first, second):
        assert sample.served is not None
        ids, log_probs, taken = sample.served
        with torch.no_grad():
            logits = tiny_solver.model(torch.tensor([[*PROMPT, *sample.completion_ids]])).logits
        whole = logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        best = whole.topk(3)
        assert ids == tuple(map(tuple, best.indices.tolist()))
        torch.testing.assert_close(torch.tensor(log_probs), best.values)
        own = whole.gather(1, torch.tensor(sample.completion_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(taken), own)


def test_a_server_that_fails_is_asked_again_or_another_is(
    tiny_solver: Solver, serve: Callable[..., VllmServer]
) -> None:
    ill = serve(tiny_solver, script=lambda asked, body: "status 500" if asked < 2 else "ok")
    (found, _) = wait_for(ServedTeacher([ill.url], 2).score(samples()))
    assert found.served is not None
    gone = serve(tiny_solver)
    url = gone.url
    gone.stop()
    (found, _) = wait_for(ServedTeacher([url, serve(tiny_solver).url], 2).score(samples()))
    assert found.served is not None
    with pytest.raises(EndpointError, match="no server of the teacher answers"):
        wait_for(ServedTeacher([url], 2, timeout=0.2).score(samples()))


def test_requests_that_no_try_can_mend_say_what_does(tiny_solver: Solver, serve: Callable[..., VllmServer]) -> None:
    with pytest.raises(EndpointError, match="greater than max allowed: 4") as raised:
        wait_for(ServedTeacher([serve(tiny_solver, max_logprobs=4).url], 5).score(samples()))
    assert "--max-logprobs 5" in raised.value.hint
    with pytest.raises(ConfigError, match="have 9 tokens, and the teacher's server takes 8"):
        wait_for(ServedTeacher([serve(tiny_solver, context_length=8).url], 2).score(samples()))
    with pytest.raises(ConfigError, match="not a URL") as wrong:
        ServedTeacher(["nowhere"], 2)
    assert wrong.value.where == "objective.teacher.base_urls"


def test_a_recorded_reply_of_vllm_is_read() -> None:
    """tests/data/vllm_prompt_logprobs.json, as vLLM 0.32 sent it for the shipped solver."""
    file = Path(__file__).parents[1] / "data" / "vllm_prompt_logprobs.json"
    recorded = json.loads(file.read_text(encoding="utf-8"))
    prompt, k = recorded["request"]["prompt"][0], recorded["request"]["prompt_logprobs"]
    solver = recipe_solver(load_config("arithmetic"))
    found = recorded["reply"]["choices"][0]["prompt_logprobs"]
    ids, log_probs, taken = ServedTeacher(["http://127.0.0.1:1"], k)._top(found[3:], prompt[3:])
    with torch.no_grad():
        whole = solver.model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)[2:-1]
    assert ids == tuple(map(tuple, whole.topk(k).indices.tolist()))
    torch.testing.assert_close(torch.tensor(log_probs), whole.topk(k).values, atol=1e-3, rtol=1e-3)
    own = whole.gather(1, torch.tensor(prompt[3:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(taken), own, atol=1e-3, rtol=1e-3)
    for token, entries in zip(prompt[3:], found[3:], strict=True):
        assert entries[str(token)]["decoded_token"].strip() == solver.tokenizer.decode([token]).strip()


# ---------------------------------------------------------------------------------------------------------------------
# In a run


def gkd(url: str, **changes: Any) -> Config:
    own = {
        "condition": "gkd", "objective.teacher.base_urls": [url], "objective.teacher.weights": "initial",
        "objective.top_k": 5, "objective.top_k_support": "teacher", "sampling.temperature": 1.0,
    }  # fmt: skip
    return changed(load_config("arithmetic"), {**own, **changes})


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"objective.top_k": None}, "objective.top_k"),
        ({"objective.top_k_support": "student"}, "objective.top_k_support"),
        ({"sampling.temperature": 1.1}, "sampling.temperature"),
        ({"objective.teacher.model": "embedded:arithmetic"}, "objective.teacher.model"),
        ({"objective.teacher.weights": "ema"}, "objective.teacher.weights"),
        ({"objective.hybrid": "srpo", "sampling.num_generations": 2}, "objective.hybrid"),
        ({"objective.hybrid": "cepo", "sampling.num_generations": 2}, "objective.hybrid"),
    ],
)
def test_keys_that_a_served_teacher_cannot_follow_are_refused(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as raised:
        find_terms(gkd("http://127.0.0.1:1/v1", **changes))
    assert raised.value.where == where
    assert raised.value.hint.startswith(f"--set {where}=")


def test_a_run_learns_from_a_served_teacher(serve: Callable[..., VllmServer], tmp_path: Path) -> None:
    other = recipe_solver(load_config("arithmetic"))
    torch.manual_seed(1)
    with torch.no_grad():  # a teacher of the same family that is not the student
        for parameter in other.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    server = serve(other)
    config = gkd(server.url, **{
        "training.max_steps": 2, "training.problems_per_step": 2, "evaluation.at_start": False, "data.max_test": 1,
        "evaluation.num_samples": 1, "data.max_validation": 1,
    })  # fmt: skip
    train_config(config, tmp_path, resume=False, listener=silent, stop=StopRequest())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["divergence"] > 0 for row in rows] == [True, True]
    assert [row["masked"] for row in rows] == [0, 0]
    assert len(server.bodies) == 1 + 2 * 2  # one before the run


def test_a_served_model_of_another_vocabulary_is_refused(serve: Callable[..., VllmServer], tiny_solver: Solver) -> None:
    class Shifted:
        def decode(self, ids: list[int]) -> str:
            return tiny_solver.tokenizer.decode([ids[0] + 1])

    server = serve(Solver(tiny_solver.model, Shifted()))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"another vocabulary than the solver: \d+ is '.*', not '.*'") as raised:
        wait_for(ServedTeacher([server.url], 2).check(tiny_solver.tokenizer))
    assert raised.value.where == "objective.teacher.base_urls"
    good, gone = serve(tiny_solver).url, serve(tiny_solver)
    with pytest.raises(ConfigError, match="another vocabulary"):  # each of several is asked
        wait_for(ServedTeacher([good, server.url], 2).check(tiny_solver.tokenizer))
    gone.stop()
    wait_for(ServedTeacher([gone.url, good], 2).check(tiny_solver.tokenizer))
    with pytest.raises(EndpointError, match="no server of the teacher answers"):  # not after sampling.timeout
        wait_for(asyncio.wait_for(ServedTeacher([gone.url], 2).check(tiny_solver.tokenizer), 60))
