from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, Script
from patience import PATIENCE, wait_until

from stepalign.build import check_critic
from stepalign.config import Config, CriticSection, changed, load_config, to_toml
from stepalign.critics.budget import Ledger
from stepalign.critics.cache import ReplyCache
from stepalign.critics.endpoint import EndpointCritic
from stepalign.critics.servers import RetryPolicy
from stepalign.domains.math.grade import Grade
from stepalign.errors import ConfigError, EndpointError
from stepalign.feedback import critique as reasons
from stepalign.records import Attempt, Critique, Problem
from stepalign.waiting import wait_for

SPAWN = multiprocessing.get_context("spawn")
QUICK = RetryPolicy(base_seconds=0.01, cap_seconds=0.05, jitter=lambda low, high: high)
FAULTS = ["retry_after 0.05", "status 500", "status 503", "status 408", "cut_body", "cut_json", "html"]
FAULTS += ["empty_choices", "null", "error_in_200", "hang", "close"]
ELEVEN = ["retry_after 0.05", "retry_after_date", "status 500", "status 408", "cut_body", "cut_json", "html"]
ELEVEN += ["empty_choices", "null", "hang", "close"]
"""429 with seconds and with a date, 500, 408, cut body, truncated JSON, HTML, no choices, null, a hang, a hang-up."""
CANARY = "sk-canary-0123456789"

Serve = Callable[..., FaultServer]
Make = Callable[..., EndpointCritic]


def request(number: int, **attempt: Any) -> Attempt:
    problem = Problem(problem_id=f"p{number}", question=f"q{number}", answer=f"ans{number}", reference=f"ref{number}")
    fields: dict[str, Any] = {"rollout_id": f"r{number}", "text": f"<step_1> attempt {number}"}
    return Attempt(problem=problem, grade=Grade(score=0.0), **(fields | attempt))


def requests(count: int) -> list[Attempt]:
    return [request(number) for number in range(count)]


def ask(critic: EndpointCritic, attempts: Sequence[Attempt]) -> list[Critique]:
    async def all_at_once() -> list[Critique]:
        return await asyncio.gather(*(critic.critique(attempt) for attempt in attempts))

    return wait_for(all_at_once())


def belongs(critique: Critique, number: int) -> bool:
    """Whether a usable critique is the one that the server wrote for this rollout."""
    return critique.rollout_id == f"r{number}" and f"about q{number}\n" in critique.text


def critic_at(urls: list[str], **options: Any) -> EndpointCritic:
    """A critic at some servers; options are keys of its section or arguments of its class."""
    usual = {"base_urls": urls, "model": "critic", "sees": "nothing", "temperature": 0.6, "concurrency": 32}
    options = {"prompt": "{{ question }}"} | usual | options
    section = {key: options.pop(key) for key in CriticSection.model_fields.keys() & options.keys()}
    return EndpointCritic(CriticSection(**section), **options)


@pytest.fixture
def make() -> Iterator[Make]:
    critics: list[EndpointCritic] = []

    def build(server: FaultServer | list[str], **options: Any) -> EndpointCritic:
        urls = [server.url] if isinstance(server, FaultServer) else server
        critics.append(critic_at(urls, **({"attempt_timeout": 0.6, "policy": QUICK} | options)))
        return critics[-1]

    yield build
    for critic in critics:
        critic.close()


def once(behaviour: str) -> Script:
    return lambda text, asked: "ok" if asked else behaviour


# --- faults ---


@pytest.mark.slow
def test_thirty_percent_faults_lose_and_swap_nothing(serve: Serve, make: Make, tmp_path: Path) -> None:
    rng = random.Random(0)
    assert len(ELEVEN) == 11
    server = serve(lambda text, asked: rng.choice(ELEVEN) if rng.random() < 0.3 else "ok")
    critic = make(server, cache_path=tmp_path / "cache.db", concurrency=32, attempt_timeout=6.0)
    critiques = ask(critic, requests(400))
    assert all(critique.status == "ok" and belongs(critique, n) for n, critique in enumerate(critiques))
    assert len({critique.rollout_id for critique in critiques}) == 400
    calls = sum(server.behaviours.values())
    assert sum(critique.attempts for critique in critiques) == calls == critic.ledger.attempts
    assert 0.2 * calls < calls - server.behaviours["ok"] < 0.4 * calls
    assert calls <= 1.6 * 400
    assert (critic.ledger.calls, critic.ledger.ok) == (400, 400)
    assert critic.cache is not None
    assert len(critic.cache) == 400


@pytest.mark.parametrize("behaviour", FAULTS)
def test_one_fault_costs_one_more_attempt(serve: Serve, make: Make, behaviour: str) -> None:
    critic = make(serve(once(behaviour)))
    (critique,) = ask(critic, [request(7)])
    assert (critique.status, critique.attempts, critique.reason) == ("ok", 2, "")
    assert critique.text == "<step_1> about q7\n<answer> q7"
    assert critique.case == "D"
    assert sum(critic.ledger.faults.values()) == 1


@pytest.mark.parametrize("behaviour", ["status 400", "status 401", "status 404", "refuse_key"])
def test_faults_that_stay_are_not_retried(serve: Serve, make: Make, behaviour: str) -> None:
    server = serve(lambda text, asked: behaviour)
    (critique,) = ask(make(server), [request(0)])
    assert (critique.status, critique.attempts, critique.text) == ("failed", 1, "")
    assert critique.reason.startswith("HTTP 40")
    assert sum(server.behaviours.values()) == 1


@pytest.mark.parametrize("behaviour", [fault for fault in FAULTS if fault not in ("hang", "null")])
def test_faults_that_never_end_fail_with_a_reason(serve: Serve, make: Make, behaviour: str) -> None:
    critic = make(serve(lambda text, asked: behaviour), policy=RetryPolicy(base_seconds=0.001, max_attempts=3))
    (critique,) = ask(critic, [request(0)])
    assert (critique.status, critique.attempts) == ("failed", 3)
    assert "attempt 3, the last" in critique.reason
    assert critic.ledger.failed == 1
    assert critic.ledger.malformed == 0


def test_a_hanging_server_costs_no_more_than_the_calls_deadline(serve: Serve, make: Make) -> None:
    server = serve(lambda text, asked: "hang_until_released")
    critic = make(server, attempt_timeout=0.2, timeout=0.5)
    (critique,) = ask(critic, [request(0)])
    # The server has answered nothing yet: what ended the call is its own deadline.
    assert not server.released.is_set()
    assert critique.status == "failed"
    assert "no reply within" in critique.reason
    assert sum(server.behaviours.values()) <= 3


def test_an_empty_message_that_comes_always_is_malformed_not_paid_for_ever(serve: Serve, make: Make) -> None:
    server = serve(lambda text, asked: "null")
    (critique,) = ask(make(server, temperature=0.0), [request(0)])
    assert (critique.status, critique.reason) == ("malformed", reasons.EMPTY)
    assert critique.attempts == sum(server.behaviours.values()) == 4


def test_a_cut_reply_is_asked_once_more_with_twice_the_tokens(serve: Serve, make: Make) -> None:
    server = serve(once("length"))
    (critique,) = ask(make(server, max_tokens=100, temperature=0.0), [request(0)])
    assert critique.status == "ok"
    assert [body["max_tokens"] for body in server.bodies] == [100, 200]
    assert critique.completion_tokens == 10  # both were paid for

    server = serve(lambda text, asked: "length")
    (critique,) = ask(make(server, max_tokens=100), [request(0)])
    assert (critique.status, critique.reason, critique.attempts) == ("malformed", reasons.CUT, 2)
    assert critique.raw.startswith("<step_1> cut")


def test_a_malformed_reply_is_asked_again_unless_it_would_be_the_same(serve: Serve, make: Make) -> None:
    for temperature, attempts in ((0.6, 2), (0.0, 1)):
        server = serve(lambda text, asked: "say The attempt is wrong.")
        (critique,) = ask(make(server, temperature=temperature), [request(0)])
        assert (critique.status, critique.reason) == ("malformed", reasons.NO_TRACE)
        assert (critique.text, critique.attempts) == ("", attempts)
    assert ask(make(serve(once("say nonsense"))), [request(0)])[0].status == "ok"


def test_a_fault_after_a_malformed_reply_keeps_the_reply(serve: Serve, make: Make) -> None:
    server = serve(lambda text, asked: "status 400" if asked else "length")
    (critique,) = ask(make(server), [request(0)])
    assert (critique.status, critique.reason) == ("malformed", reasons.CUT)


# --- load ---


def test_retry_after_is_honoured_by_every_call(serve: Serve, make: Make) -> None:
    server = serve(lambda text, asked: "retry_after 0.4" if not asked and text == "q0" else "ok")
    critic = make(server, concurrency=1)
    critiques = ask(critic, requests(5))
    assert all(critique.status == "ok" for critique in critiques)
    refused = next(at for at, body in zip(server.times, server.bodies, strict=True) if "q0" in str(body))
    assert all(at == refused or at < refused or at >= refused + 0.4 for at in server.times)


def test_a_server_that_asks_for_too_much_patience_fails_the_call_and_is_not_hurried(serve: Serve, make: Make) -> None:
    server = serve(lambda text, asked: "retry_after 3600")
    critic = make(server, timeout=30)
    critiques = ask(critic, requests(3))
    assert all(critique.status == "failed" for critique in critiques)
    assert all(server.asked[f"q{number}"] <= 1 for number in range(3))


def test_concurrency_is_bounded_and_falls_on_429(serve: Serve, make: Make) -> None:
    server = serve(latency=0.02)
    critic = make(server, concurrency=8)
    ask(critic, requests(60))
    assert 4 <= server.most_under_way <= 8
    assert critic.concurrency_now == 8

    server = serve(lambda text, asked: "ok" if asked else "status 429")
    critic = make(server, concurrency=8)
    assert all(critique.status == "ok" for critique in ask(critic, requests(8)))
    assert critic.concurrency_now < 8
    ask(critic, [request(number) for number in range(100, 104)])


def test_several_servers_share_the_load_and_one_may_be_down(serve: Serve, make: Make) -> None:
    first, second = serve(latency=0.01), serve(latency=0.01)
    gone = FaultServer()
    gone.stop()
    critic = make([first.url, gone.url, second.url], concurrency=8)
    critic.check()
    assert [len(server.checks) for server in (first, second)] == [1, 1]
    assert all(belongs(critique, n) for n, critique in enumerate(ask(critic, requests(80))))
    counts = [sum(server.behaviours.values()) for server in (first, second)]
    assert sum(counts) == 80
    assert min(counts) > 20


def test_another_server_takes_over_while_one_asks_for_patience(serve: Serve, make: Make) -> None:
    busy, free = serve(lambda text, asked: "retry_after 3600"), serve()
    critiques = ask(make([busy.url, free.url], concurrency=4), requests(20))
    assert all(critique.status == "ok" for critique in critiques)
    assert sum(busy.behaviours.values()) <= 4


def test_an_outage_pauses_the_calls_with_one_line_and_loses_nothing(serve: Serve, make: Make) -> None:
    """An outage of a minute, scaled down 1 : 40: 1.5 s, and the pauses of the breaker likewise."""
    first = serve()
    port = first.server_port
    lines: list[str] = []
    policy = replace(QUICK, outage_threshold=5, pause_seconds=0.1, cap_seconds=0.2)
    critic = make(first, policy=policy, announce=lines.append, concurrency=8)
    ask(critic, requests(5))
    first.stop()
    futures = [critic.submit(request(number)) for number in range(100, 160)]
    wait_until(lambda: lines)
    time.sleep(1.5)
    assert not any(future.done() for future in futures)
    assert len(lines) == 1
    attempts_while_down = critic.ledger.attempts
    back = serve(port=port)
    critiques = [future.result(timeout=PATIENCE) for future in futures]
    assert all(belongs(critique, n) for n, critique in enumerate(critiques, 100))
    assert [line.split()[1] for line in lines] == ["does", "answers"]
    assert attempts_while_down < 40  # the pause is a pause
    assert back.most_under_way <= 8


def test_critiques_start_when_they_are_submitted(serve: Serve, make: Make) -> None:
    critic = make(serve())
    future: Future[Critique] = critic.submit(request(3))
    assert belongs(future.result(timeout=PATIENCE), 3)


# --- cache ---


def test_the_cache_is_shared_by_runs_and_replayed_offline(serve: Serve, make: Make, tmp_path: Path) -> None:
    server = serve(lambda text, asked: "say no trace" if text == "q3" else "ok")
    path = tmp_path / "cache.db"
    first = ask(make(server, cache_path=path), requests(10))
    calls = sum(server.behaviours.values())
    again = make(server, cache_path=path)
    assert strip(ask(again, requests(10))) == strip(first)
    assert again.ledger.cached == 10
    assert again.ledger.attempts == again.ledger.prompt_tokens == 0
    assert again.ledger.cached_completion_tokens == 50
    server.stop()
    offline = make([], cache_path=path, cache_only=True)
    offline.check()
    replayed = ask(offline, requests(11))
    assert strip(replayed[:10]) == strip(first)
    assert first[3].status == "malformed"  # a malformed reply is replayed as it was, not asked again
    assert (replayed[10].status, replayed[10].reason) == ("failed", "not in the cache")
    assert sum(server.behaviours.values()) == calls


def test_a_replay_is_checked_without_its_server() -> None:
    keys = {"kind": "endpoint", "base_urls": ["http://127.0.0.1:9/v1"], "model": "m", "cache_only": True}
    config = changed(Config(), {f"critic.{key}": value for key, value in keys.items()}, "test")
    check_critic(config, ["step_aligned"])
    with pytest.raises(EndpointError):
        check_critic(changed(config, {"critic.cache_only": False}, "test"), ["step_aligned"])


def strip(critiques: list[Critique]) -> list[tuple[str, str, str, str]]:
    return [(critique.rollout_id, critique.status, critique.text, critique.reason) for critique in critiques]


def test_the_key_is_all_the_reply_depends_on(serve: Serve, make: Make, tmp_path: Path) -> None:
    server = serve()
    variants: list[dict[str, Any]] = [{}, {"temperature": 0.1}, {"max_tokens": 5}]
    variants += [{"prompt": "{{ question }}!"}, {"model": "another"}]
    for options in variants * 2:
        ask(make(server, cache_path=tmp_path / "cache.db", **options), [request(0)])
    assert sum(server.behaviours.values()) == len(variants)


def test_failures_are_not_cached(serve: Serve, make: Make, tmp_path: Path) -> None:
    server = serve(once("status 400"))
    critic = make(server, cache_path=tmp_path / "cache.db")
    assert [ask(critic, [request(0)])[0].status for _ in range(2)] == ["failed", "ok"]


def test_equal_requests_under_way_share_one_call(serve: Serve, make: Make) -> None:
    server = serve(latency=0.1)
    critic = make(server)
    same = [request(0, rollout_id=f"twin{number}") for number in range(20)]
    critiques = ask(critic, same)
    assert sum(server.behaviours.values()) == 1
    assert [critique.rollout_id for critique in critiques] == [f"twin{number}" for number in range(20)]
    assert sorted(critique.attempts for critique in critiques) == [0] * 19 + [1]
    assert critic.ledger.prompt_tokens == 10


def _ask(url: str, cache: Path, seed: int, results: multiprocessing.Queue[Any]) -> None:
    numbers = list(range(200))
    random.Random(seed).shuffle(numbers)
    with closing(critic_at([url], cache_path=cache, concurrency=16)) as critic:
        critiques = ask(critic, [request(number) for number in numbers])
        right = sum(belongs(critique, number) for critique, number in zip(critiques, numbers, strict=True))
        results.put((right, critic.ledger.attempts))


@pytest.mark.slow
def test_processes_that_ask_the_same_pay_once(serve: Serve, tmp_path: Path) -> None:
    server = serve(latency=0.002)
    results: multiprocessing.Queue[Any] = SPAWN.Queue()
    arguments = [(server.url, tmp_path / "cache.db", seed, results) for seed in range(4)]
    processes = [SPAWN.Process(target=_ask, args=each) for each in arguments]
    for process in processes:
        process.start()
    answers = [results.get(timeout=PATIENCE) for _ in processes]
    for process in processes:
        process.join()
    assert [right for right, _ in answers] == [200] * 4
    assert sum(attempts for _, attempts in answers) == sum(server.behaviours.values()) == 200
    assert max(server.asked.values()) == 1


# --- money, secrets, set-up ---


def test_ledger_and_budget(serve: Serve, make: Make) -> None:
    critic = make(serve(), prices={"prompt": 2.0, "completion": 8.0}, token_budget=45, concurrency=1)
    critiques = ask(critic, requests(6))
    assert [critique.status for critique in critiques] == ["ok"] * 3 + ["failed"] * 3
    assert critic.ledger.spent
    assert [critique.unpaid for critique in critiques] == [False] * 3 + [True] * 3
    assert critiques[-1].reason == "the budget is spent: 45 of 45 tokens"
    ledger = critic.ledger.as_dict()
    assert (ledger["calls"], ledger["ok"], ledger["failed"], ledger["attempts"]) == (6, 3, 3, 3)
    assert (ledger["prompt_tokens"], ledger["completion_tokens"]) == (30, 15)
    assert ledger["cost"] == pytest.approx((30 * 2 + 15 * 8) / 1e6)
    assert make(serve()).ledger.cost is None


def test_two_critics_pay_the_prices_of_their_own_models(serve: Serve, make: Make, tmp_path: Path) -> None:
    large = "org/large.v2"
    prices = {large: {"prompt": 2.0, "completion": 8.0}, "small": {"prompt": 0.5, "completion": 1}}
    file = tmp_path / "ledger.jsonl"
    first = make(serve(), model=large, prices=prices, ledger_path=file)
    second = make(serve(), model="small", prices=prices, ledger_path=first.ledger)
    ask(first, requests(2))
    ask(second, requests(3))
    paid = (2 * (10 * 2.0 + 5 * 8.0) + 3 * (10 * 0.5 + 5 * 1.0)) / 1e6
    assert first.ledger.cost == second.ledger.cost == pytest.approx(paid)
    assert [json.loads(line)["model"] for line in file.read_text().splitlines()] == [large] * 2 + ["small"] * 3
    assert Ledger(prices=prices, model=large, path=file).cost == pytest.approx(paid)  # when the run goes on
    flat = {"prompt": 1.0, "completion": 1.0}
    assert Ledger(prices=flat, path=file).cost == pytest.approx(75e-6)
    rows = [{k: v for k, v in json.loads(line).items() if k != "model"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))  # as older versions wrote them
    assert Ledger(prices=flat, path=file).cost == pytest.approx(75e-6)
    with pytest.raises(ConfigError, match="no prices of other") as raised:
        make(serve(), model="other", prices=prices)
    assert raised.value.where == "critic.prices"
    config = changed(Config(), {"critic.prices": prices})
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(str(tmp_path / "config.toml")).critic.prices == prices


def test_the_key_is_sent_and_never_kept(
    serve: Serve, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    server = serve(lambda text, asked: {"q0": "echo_key", "q1": "refuse_key"}.get(text, "ok"))
    path = tmp_path / "cache.db"
    critic = make(server, api_key_env="MY_KEY", cache_path=path)
    critiques = ask(critic, requests(4))
    critic.check()
    assert all(headers["authorization"] == f"Bearer {CANARY}" for headers in server.headers)
    critic.close()
    assert "[redacted]" in critiques[0].text
    assert "[redacted]" in critiques[1].reason
    kept = [repr(critiques), repr(critic), str(critic.ledger.as_dict()), caplog.text]
    kept += [file.read_bytes().decode("latin-1") for file in tmp_path.iterdir()]
    assert not any(CANARY in text for text in kept)


def test_no_other_key_of_the_environment_is_sent(serve: Serve, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, CANARY)
    server = serve()
    ask(make(server), [request(0)])
    assert CANARY not in str(server.headers)


def test_passwords_in_urls_stay_out_of_messages(serve: Serve, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="stepalign")
    server = serve(lambda text, asked: "close")
    url = server.url.replace("//", f"//user:{CANARY}@")
    critic = make([url], policy=RetryPolicy(max_attempts=1))
    (critique,) = ask(critic, [request(0)])
    assert critique.status == "failed"
    assert CANARY not in repr(critic) + critique.reason + caplog.text
    server.stop()
    with pytest.raises(EndpointError) as error:
        critic.check()
    assert CANARY not in str(error.value)


def test_check_names_what_is_wrong_and_how_to_mend_it(serve: Serve, make: Make) -> None:
    server = serve()
    make(server).check()
    gone = FaultServer()
    gone.stop()
    with pytest.raises(EndpointError, match="does not answer") as error:
        make(gone).check()
    assert error.value.exit_code == 3
    assert error.value.hint
    assert error.value.where == gone.url
    unknown = serve(lambda text, asked: "status 404")
    with (
        closing(critic_at([unknown.url], model="other")) as critic,
        pytest.raises(EndpointError, match="does not serve 'other'") as error,
    ):
        critic.check()
    assert "critic" in str(error.value.hint)


def test_what_the_critic_may_see(serve: Serve, make: Make) -> None:
    server = serve()
    for sees, shown in (("nothing", ""), ("answer", "ans0"), ("solution", "ans0 ref0")):
        critic = make(server, prompt="scribe", sees=sees)
        text = str(critic.messages(request(0)))
        assert [part for part in ("ans0", "ref0") if part in text] == shown.split()
    with pytest.raises(ConfigError, match="'answer'"):
        make(server, prompt="{{ answer }}").submit(request(0))


def test_the_structured_variant_asks_for_the_schema(serve: Serve, make: Make) -> None:
    server = serve(lambda text, asked: 'say {"case": "D", "steps": ["a", "b"], "answer": "5"}')
    (critique,) = ask(make(server, structured=True), [request(0)])
    assert (critique.text, critique.case) == ("<step_1> a\n<step_2> b\n<answer> 5", "D")
    assert server.bodies[0]["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    "options",
    [
        {"base_urls": []},
        {"base_urls": ["localhost:8000"]},
        {"sees": "all"},
        {"cache_only": True},
        {"concurrency": 0},
        {"prices": {"prompt": 1.0}},
        {"prices": {"critic": {"prompt": 1.0}}},
        {"prices": {"critic": {"prompt": 1.0, "completion": 1.0}, "prompt": 1.0}, "model": "prompt"},
        {"cost_budget": 1.0},
        {"api_key_env": "NO_SUCH_VARIABLE"},
        {"prompt": "no_such_template"},
    ],
)
def test_wrong_arguments(options: dict[str, Any]) -> None:
    prompt = options.get("prompt", "scribe")
    keys = {f"critic.{key}": value for key, value in options.items() if key != "prompt"}
    with pytest.raises(ConfigError):
        EndpointCritic(changed(Config(), keys).critic, prompt=prompt)


def test_closing_cancels_and_drops_claims(serve: Serve, make: Make, tmp_path: Path) -> None:
    server = serve(lambda text, asked: "ok" if asked else "hang")
    critic = make(server, cache_path=tmp_path / "cache.db", attempt_timeout=30)
    future = critic.submit(request(0))
    while not server.bodies:
        time.sleep(0.01)
    claimed = list(critic._in_flight)
    assert all(ReplyCache(tmp_path / "cache.db").is_claimed(key) for key in claimed)
    critic.close()
    critic.close()
    with pytest.raises(CancelledError):
        future.result(timeout=PATIENCE)
    with pytest.raises(RuntimeError, match="closed"):
        critic.submit(request(1))
    cache = ReplyCache(tmp_path / "cache.db")  # the next one need not wait for a lease: there is none
    (key,) = claimed
    assert not cache.is_claimed(key)
    assert ask(make(server, cache_path=tmp_path / "cache.db"), [request(0)])[0].status == "ok"


def test_text_that_cannot_be_sent_fails_alone(serve: Serve, make: Make) -> None:
    critic = make(serve(), prompt="{{ attempt }}")
    bad, good = ask(critic, [request(0, text="\ud800"), request(1, text="q1")])
    assert (bad.status, good.status) == ("failed", "ok")
