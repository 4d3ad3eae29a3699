"""Rollouts from servers, over real sockets: what is delivered, what is asked again, and whose weights drew it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_server import SPOILED, VllmServer

from stepalign.errors import ConfigError, EndpointError
from stepalign.models.load import Solver, load_solver
from stepalign.models.sampling import vllm
from stepalign.models.sampling.vllm import VllmSampler
from stepalign.models.scoring import completion_hidden
from stepalign.records import Completion
from stepalign.waiting import wait_for

PROMPTS = [[1, 5, 9, 4], [2, 7], [3, 3, 8, 1, 6], [11, 4, 2]]
NUM = 4


@pytest.fixture
def serve(make_solver: Callable[..., Solver]) -> Iterator[Callable[..., VllmServer]]:
    servers: list[VllmServer] = []

    def start(model: Any = None, **options: Any) -> VllmServer:
        servers.append(VllmServer(model if model is not None else make_solver(0, scale=4.0).model, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def solver(make_solver: Callable[..., Solver]) -> Solver:
    found = make_solver(0, scale=4.0)
    found.model.generation_config.eos_token_id = list(range(1, 12))  # completions end early, at different places
    return found


def sampler_of(solver: Solver, *servers: VllmServer, **options: Any) -> VllmSampler:
    urls = [server.url for server in servers]
    return VllmSampler(urls, solver.model, solver.end_ids, **{"timeout": 600.0, **options})


def draw(sampler: VllmSampler, **options: Any) -> list[list[Completion]]:
    settings = {"num_samples": NUM, "temperature": 1.1, "max_tokens": 12, "seed": 7}
    return wait_for(sampler.sample(options.pop("prompts", PROMPTS), **{**settings, **options}))


@torch.no_grad()
def scored(solver: Solver, prompt: list[int], completion: Completion, temperature: float) -> torch.Tensor:
    """Log-probabilities by the scorer that the learner uses."""
    hidden_NH = completion_hidden(solver, [(tuple(prompt), completion.ids)])
    log_probs_NV = torch.log_softmax(solver.logits(hidden_NH) / temperature, -1)
    return log_probs_NV.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]


def assert_scores_agree(solver: Solver, drawn: list[list[Completion]], temperature: float = 1.1) -> None:
    for prompt, completions in zip(PROMPTS, drawn, strict=True):
        for completion in completions:
            difference = scored(solver, prompt, completion, temperature) - torch.tensor(completion.log_probs)
            assert difference.abs().max() < 2e-4


def assert_same(found: list[list[Completion]], expected: list[list[Completion]]) -> None:
    """The same ids; log-probabilities up to the rounding of other batches."""
    pairs = [pair for groups in zip(found, expected, strict=True) for pair in zip(*groups, strict=True)]
    for one, other in pairs:
        assert (one.ids, one.finish_reason, one.policy_version) == (
            other.ids,
            other.finish_reason,
            other.policy_version,
        )
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def trainable(solver: Solver) -> dict[str, torch.Tensor]:
    return {name: p for name, p in solver.model.named_parameters() if p.requires_grad}


def with_adapter(solver: Solver, seed: int) -> Solver:
    """An adapter that changes the distribution."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(solver.model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    move(model, seed)
    return Solver(model, solver.tokenizer)


@torch.no_grad()
def move(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


# ---------------------------------------------------------------------------------------------------------------------
# One request a prompt


def test_completions_carry_the_log_probabilities_that_the_scorer_finds(serve, solver: Solver) -> None:
    server = serve()
    drawn = draw(sampler_of(solver, server))
    assert [len(group) for group in drawn] == [NUM] * len(PROMPTS)
    assert_scores_agree(solver, drawn)
    assert len(server.bodies) == len(PROMPTS)
    assert {c.finish_reason for group in drawn for c in group} <= {"stop", "length"}
    for completion in (c for group in drawn for c in group):
        assert (completion.finish_reason == "stop") == (completion.ids[-1] in solver.end_ids)
        assert not set(completion.ids[:-1]) & set(solver.end_ids)


def test_prompts_share_no_noise_and_the_whole_distribution_is_asked_for(serve, solver: Solver) -> None:
    server = serve()
    draw(sampler_of(solver, server))
    seeds = sorted(body["seed"] for body in server.bodies)
    assert all(b - a >= NUM for a, b in itertools.pairwise(seeds))
    for body in server.bodies:
        assert (body["n"], body["stream"], body["return_token_ids"], body["logprobs"]) == (NUM, True, True, 0)
        assert (body["top_p"], body["top_k"], body["min_p"], body["min_tokens"]) == (1.0, 0, 0.0, 0)
        assert body["repetition_penalty"] == 1.0
        assert body["cache_salt"]


def test_texts_that_end_a_completion_are_handed_on(serve, solver: Solver) -> None:
    server = serve()
    draw(sampler_of(solver, server, stop=("\nQuestion:",)))
    draw(sampler_of(solver, server))
    with_text, without = server.bodies[0], server.bodies[-1]
    assert with_text["stop"] == ["\nQuestion:"]
    assert with_text["include_stop_str_in_output"]
    assert "stop" not in without


def test_the_same_seed_gives_the_same_completions_and_another_gives_others(serve, solver: Solver) -> None:
    sampler = sampler_of(solver, serve())
    assert_same(draw(sampler), draw(sampler))
    assert draw(sampler) != draw(sampler, seed=8)


def test_greedy_completions_are_those_of_generate(serve, solver: Solver) -> None:
    drawn = draw(sampler_of(solver, serve()), temperature=0.0, num_samples=1)
    for prompt, (completion,) in zip(PROMPTS, drawn, strict=True):
        ids = torch.tensor([prompt])
        expected = solver.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=list(solver.end_ids),
        )
        assert list(completion.ids) == expected[0, len(prompt) :].tolist()
        assert set(completion.log_probs) == {0.0}


def test_a_completion_is_delivered_when_it_ends(serve, solver: Solver) -> None:
    """Before the others of its request: the server is still at work on them."""
    server, seen = serve(token_seconds=0.01), []
    wait_for(
        sampler_of(solver, server).sample(
            PROMPTS[:1],
            num_samples=16,
            temperature=1.5,
            max_tokens=40,
            seed=3,
            on_finished=lambda row, index, completion: seen.append((time.monotonic(), len(completion.ids))),
        )
    )
    first, last = min(seen), max(seen)
    assert first[1] < last[1]
    assert last[0] - first[0] > 0.008 * (last[1] - first[1])
    assert [length for _, length in seen] == sorted(length for _, length in seen)


def test_the_least_loaded_server_gets_the_next_prompt(serve, solver: Solver) -> None:
    one, two = serve(), serve()
    draw(sampler_of(solver, one, two))
    assert (len(one.bodies), len(two.bodies)) == (2, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Faults


FAULTS = {
    "cut at once": "cut 0",
    "cut in the middle": "cut 9",
    "cut before the end mark": "cut 1000000000",
    "an engine that died": "status 500",
    "overloaded": "status 503",
    "too many requests": "status 429",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_or_doubled_when_replies_break_off(serve, solver: Solver, fault: str) -> None:
    expected = draw(sampler_of(solver, serve()))
    server = serve(script=lambda asked, body: FAULTS[fault] if asked in (0, 2, 3, 5) else "ok")
    delivered: Counter[tuple[int, int]] = Counter()
    found = draw(
        sampler_of(solver, server), on_finished=lambda row, index, completion: delivered.update([(row, index)])
    )
    assert_same(found, expected)  # a seed gives the same completions however often it is asked
    assert set(delivered.values()) == {1}
    assert len(delivered) == NUM * len(PROMPTS)
    if fault == "cut in the middle":
        assert any(body["n"] < NUM for body in server.bodies), "what had come is not asked for again"


def test_replies_that_no_server_should_give_are_asked_for_again(serve, solver: Solver, monkeypatch) -> None:
    """Each kind once: nothing of it is delivered, and nothing else is lost."""
    monkeypatch.setattr(vllm, "LONGEST_REST", 0.03)
    monkeypatch.setattr(vllm, "FRUITLESS", 99)
    expected = draw(sampler_of(solver, serve()))
    kinds = [f"spoiled {name}" for name in SPOILED]
    server = serve(script=lambda asked, body: kinds[asked] if asked < len(kinds) else "ok")
    delivered: list[tuple[int, int]] = []
    found = draw(sampler_of(solver, server), on_finished=lambda row, index, _: delivered.append((row, index)))
    assert_same(found, expected)
    assert sorted(delivered) == [(row, index) for row in range(len(PROMPTS)) for index in range(NUM)]
    assert len(server.bodies) > len(kinds)


def test_a_completion_that_comes_twice_is_delivered_once(serve, solver: Solver, monkeypatch) -> None:
    server = serve(script=lambda asked, body: "twice" if asked < 6 else "ok")
    delivered: list[tuple[int, int]] = []
    found = draw(sampler_of(solver, server), on_finished=lambda row, index, _: delivered.append((row, index)))
    assert_same(found, draw(sampler_of(solver, serve())))
    assert sorted(delivered) == [(row, index) for row in range(len(PROMPTS)) for index in range(NUM)]


def test_a_server_whose_replies_are_never_of_use_ends_the_sampling_with_the_reason(serve, solver, monkeypatch) -> None:
    monkeypatch.setattr(vllm, "LONGEST_REST", 0.03)
    server = serve(script=lambda asked, body: "spoiled NaN")
    with pytest.raises(EndpointError, match=r"nothing of use; .*log-probabilities that no drawn token has: \[nan\]"):
        draw(sampler_of(solver, server), prompts=PROMPTS[:1], num_samples=16, max_tokens=40)


def test_a_server_that_only_says_that_it_is_there_ends_the_sampling(serve, solver: Solver) -> None:
    with pytest.raises(EndpointError, match=r"has answered.* no event within"):
        draw(sampler_of(solver, serve(script=lambda asked, body: "silent"), timeout=0.4))


@pytest.mark.parametrize("said", ["[]", "{}", "no JSON", '{"weight_version": '])
def test_a_server_that_does_not_say_which_weights_it_holds_is_not_used(solver: Solver, httpserver: Any, said) -> None:
    models = {"data": [{"id": "solver", "max_model_len": "long"}]}
    httpserver.expect_request("/v1/models").respond_with_json(models)
    httpserver.expect_request("/weight_info").respond_with_data(said)
    sampler = VllmSampler([httpserver.url_for("/v1")], solver.model, solver.end_ids, timeout=0.3)
    wait_for(sampler.publish(trainable(solver), 1))
    with pytest.raises(EndpointError, match="does not say which weights it holds"):
        draw(sampler)


def test_a_server_killed_in_mid_batch_and_started_again_loses_nothing(serve, solver: Solver) -> None:
    adapted = with_adapter(solver, 3)
    expected_sampler = sampler_of(adapted, serve())
    wait_for(expected_sampler.publish(trainable(adapted), 5))
    expected = draw(expected_sampler)
    server = serve(token_seconds=0.02)
    sampler = sampler_of(adapted, server)
    wait_for(sampler.publish(trainable(adapted), 5))
    delivered: Counter[tuple[int, int]] = Counter()

    def kill_and_start_again() -> None:
        while not server.bodies:
            time.sleep(0.005)
        time.sleep(0.1)
        server.stop()
        time.sleep(0.2)
        serve(port=server.server_port)

    thread = threading.Thread(target=kill_and_start_again)
    thread.start()
    found = draw(sampler, on_finished=lambda row, index, completion: delivered.update([(row, index)]))
    thread.join()
    assert_same(found, expected)
    assert set(delivered.values()) == {1}
    assert {c.policy_version for group in found for c in group} == {5}


def test_when_one_of_two_servers_dies_the_other_draws_all(serve, solver: Solver) -> None:
    expected = draw(sampler_of(solver, serve()))
    alive, dead = serve(), serve(token_seconds=0.05)
    sampler = sampler_of(solver, alive, dead)
    threading.Timer(0.1, dead.stop).start()
    assert_same(draw(sampler), expected)


def test_servers_that_never_answer_end_the_sampling_with_their_address(serve, solver: Solver) -> None:
    server = serve()
    server.stop()
    with pytest.raises(EndpointError, match="no rollout server has answered") as raised:
        draw(sampler_of(solver, server, timeout=0.3))
    assert str(server.server_port) in str(raised.value)
    assert "stepalign serve" in str(raised.value)


def test_a_prompt_that_leaves_no_room_is_an_error_with_the_option_that_mends_it(serve, solver: Solver) -> None:
    server = serve(context_length=14)
    with pytest.raises(ConfigError, match="leaves no room"):
        draw(sampler_of(solver, server))
    assert all(len(body["prompt"][0]) + 12 <= 14 for body in server.bodies)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/v1", "", "http://"])
def test_an_address_that_is_none_is_refused(solver: Solver, url: str) -> None:
    with pytest.raises(ConfigError, match="not a URL"):
        VllmSampler([url], solver.model, solver.end_ids)


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def test_an_adapter_is_loaded_under_a_new_name_for_each_version_and_let_go(serve, solver: Solver, tmp_path) -> None:
    server = serve()
    adapted = with_adapter(solver, 1)
    sampler = sampler_of(adapted, server, folder=str(tmp_path))
    for version in range(4):
        wait_for(sampler.publish(trainable(adapted), version))
        drawn = draw(sampler)
        assert_scores_agree(adapted, drawn)
        assert {c.policy_version for group in drawn for c in group} == {version}
        assert len(server.adapters) == 1
        move(adapted.model, 20 + version)
    assert server.most_adapters == 2
    assert len({body["model"] for body in server.bodies}) == 4
    assert len({body["cache_salt"] for body in server.bodies}) == 4
    assert server.calls["/v1/load_lora_adapter"] == 4
    sampler.close()
    assert not any(tmp_path.iterdir())


def test_all_weights_go_through_the_transfer_routes(serve, solver: Solver) -> None:
    servers = serve(), serve()
    sampler = sampler_of(solver, *servers)
    for version in range(3):
        move(solver.model, version)
        wait_for(sampler.publish(trainable(solver), version))
        drawn = draw(sampler)
        assert_scores_agree(solver, drawn)
        assert {c.policy_version for group in drawn for c in group} == {version}
    for server in servers:
        assert server.calls["/finish_weight_update"] == 3
        assert not server.paused
        assert "/collective_rpc" not in server.calls  # stock reload_weights is wrong for tied heads
    assert len({body["cache_salt"] for body in servers[0].bodies}) == 3


def test_a_restarted_server_gets_all_weights_again_before_it_is_asked(serve, solver: Solver) -> None:
    server = serve()
    move(solver.model, 2)
    sampler = sampler_of(solver, server)
    wait_for(sampler.publish(trainable(solver), 1))
    draw(sampler)
    server.stop()
    again = serve(port=server.server_port)
    assert_scores_agree(solver, draw(sampler))
    assert again.calls["/finish_weight_update"] == 1


def test_a_server_that_is_down_at_publication_gets_the_weights_when_it_answers(serve, solver: Solver) -> None:
    server = serve()
    adapted = with_adapter(solver, 1)
    server.stop()
    sampler = sampler_of(adapted, server)
    wait_for(sampler.publish(trainable(adapted), 1))
    serve(port=server.server_port)
    assert_scores_agree(adapted, draw(sampler))


def test_a_server_with_another_base_is_refused_an_adapter(serve, solver: Solver) -> None:
    server = serve()
    full = sampler_of(solver, server)
    wait_for(full.publish(trainable(solver), 1))
    adapted = with_adapter(solver, 1)
    with pytest.raises(EndpointError, match="other base weights"):
        wait_for(sampler_of(adapted, server).publish(trainable(adapted), 0))


def test_two_runs_that_hand_all_their_weights_to_one_server_are_noticed(serve, solver: Solver, make_solver) -> None:
    server, other = serve(), make_solver(5, scale=4.0)
    one, two = sampler_of(solver, server), sampler_of(other, server)
    wait_for(one.publish(trainable(solver), 0))
    draw(one)
    wait_for(two.publish(trainable(other), 0))
    draw(two)
    with pytest.raises(EndpointError, match="another run hands its weights"):
        draw(one)


def test_weights_change_when_a_call_has_what_it_asks_for_again(
    serve, solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a broken request and the next one nothing is in flight."""
    monkeypatch.setattr(random, "uniform", lambda least, most: 0.3)
    server = serve(script=lambda asked, body: "status 500" if asked == 0 else "ok")
    sampler = sampler_of(solver, server)

    async def overlap() -> list[list[Completion]]:
        await sampler.publish(trainable(solver), 1)
        drawing = asyncio.ensure_future(
            sampler.sample(PROMPTS[:1], num_samples=NUM, temperature=1.1, max_tokens=12, seed=7)
        )
        while not sampler._servers[0].failures or sampler._servers[0].in_flight:
            await asyncio.sleep(0.01)
        await sampler.publish(trainable(solver), 2)
        return await drawing

    (drawn,) = wait_for(overlap())
    assert {completion.policy_version for completion in drawn} == {1}
    assert {completion.policy_version for group in draw(sampler) for completion in group} == {2}
    assert server.calls["/finish_weight_update"] == 2


def test_another_runs_weights_are_never_taken_for_ours(serve, solver: Solver, make_solver) -> None:
    server, other = serve(), make_solver(5, scale=4.0)
    wait_for(sampler_of(other, server).publish(trainable(other), 3))
    sampler = sampler_of(solver, server)
    wait_for(sampler.publish(trainable(solver), 3))
    assert_scores_agree(solver, draw(sampler))


@pytest.mark.parametrize("routes", [("lora",), ("transfer",), ()])
def test_a_server_without_the_routes_is_refused_with_the_command_that_has_them(serve, solver: Solver, routes) -> None:
    server = serve(routes=routes)
    adapted = with_adapter(solver, 1) if "lora" not in routes else solver
    with pytest.raises(EndpointError, match="while it runs") as raised:
        wait_for(sampler_of(adapted, server).publish(trainable(adapted), 0))
    assert "stepalign serve" in str(raised.value)


# ---------------------------------------------------------------------------------------------------------------------
# Recorded from vLLM 0.32 with the embedded solver

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "vllm.json").read_text(encoding="utf-8"))


@pytest.fixture
def recorded(httpserver: Any) -> VllmSampler:
    """A sampler whose server says what a real one said."""
    for path, name in (("/v1/models", "models"), ("/v1/completions", "stream")):
        reply = RECORDED["replies"][name]
        httpserver.expect_request(path).respond_with_data(reply["body"], status=reply["status"])
    solver = load_solver("embedded:arithmetic")
    return VllmSampler([httpserver.url_for("/v1")], solver.model, solver.end_ids, timeout=2.0)


def recorded_prompt() -> tuple[list[list[int]], dict[str, Any]]:
    request = RECORDED["request"]
    return request["prompt"], {"num_samples": request["n"], "temperature": request["temperature"]}


def test_a_recorded_reply_of_a_real_server_agrees_with_the_scorer(recorded: VllmSampler, httpserver: Any) -> None:
    prompts, settings = recorded_prompt()
    drawn = wait_for(recorded.sample(prompts, **settings, max_tokens=40, seed=RECORDED["request"]["seed"]))
    solver = load_solver("embedded:arithmetic")
    for completion in drawn[0]:
        difference = scored(solver, prompts[0], completion, 1.1) - torch.tensor(completion.log_probs)
        assert len(completion.ids) > 10
        assert difference.abs().max() < 2e-4
        assert difference.abs().mean() < 2e-5
    sent = json.loads(httpserver.log[-1][0].data)
    assert sent.items() >= {**RECORDED["request"], "cache_salt": sent["cache_salt"]}.items()


@pytest.mark.parametrize(
    ("name", "error"),
    [("too long", "cannot be greater than max_model_len"), ("unknown model", "has answered.*does not exist")],
)
def test_recorded_refusals_become_errors_of_ours(recorded: VllmSampler, httpserver: Any, name: str, error: str) -> None:
    reply, (prompts, settings) = RECORDED["replies"][name], recorded_prompt()
    httpserver.clear_all_handlers()
    listing = RECORDED["replies"]["models"]["body"].replace('"max_model_len":512', '"max_model_len":null')
    httpserver.expect_request("/v1/models").respond_with_data(listing)
    httpserver.expect_request("/v1/completions").respond_with_data(reply["body"], status=reply["status"])
    recorded._timeout = 0.3
    with pytest.raises(EndpointError, match=error):
        wait_for(recorded.sample(prompts, **settings, max_tokens=40, seed=5))
