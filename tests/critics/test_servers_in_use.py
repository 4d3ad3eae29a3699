"""Replies and refusals in the manner of the servers in use, over a real socket. Shapes after their documentation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from stepalign.config import Config, CriticSection, changed
from stepalign.critics.endpoint import EndpointCritic
from stepalign.critics.servers import RetryPolicy, is_same_model
from stepalign.domains.math.grade import Grade
from stepalign.errors import ConfigError, EndpointError
from stepalign.feedback import critique as reasons
from stepalign.records import Attempt, Critique, Problem
from stepalign.waiting import wait_for

TRACE = "<step_1> 2 + 3 = 5\n<answer> 5"
MODEL = "my-critic"
QUICK = RetryPolicy(base_seconds=0.001, max_attempts=2)
ATTEMPT = Attempt(
    rollout_id="r",
    problem=Problem(problem_id="p", question="1 + 4", answer="5"),
    text="<step_1> 1 + 4 = 6",
    grade=Grade(score=0.0),
)

Answer = Callable[[dict[str, Any]], Any]
"""Body of a request -> body of the response, or (status, body)."""
Open = Callable[..., EndpointCritic]


@pytest.fixture
def asked() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def open_critic(httpserver: HTTPServer, asked: list[dict[str, Any]]) -> Iterator[Open]:
    """A critic at a server that answers as told; its announcements are ``critic.lines``."""
    critics: list[EndpointCritic] = []

    def build(answer: Answer, *, listed: bool = True, **keys: Any) -> EndpointCritic:
        def chat(request: Request) -> Response:
            asked.append(json.loads(request.data))
            found = answer(asked[-1])
            status, body = found if isinstance(found, tuple) else (200, found)
            text = body if isinstance(body, str) else json.dumps(body)
            return Response(text, status, content_type="application/json")

        httpserver.clear_all_handlers()  # else the first one stays in force
        httpserver.expect_request("/v1/chat/completions", "POST").respond_with_handler(chat)
        models = {"object": "list", "data": [{"id": keys.get("model", MODEL)}]} if listed else {"error": "no"}
        httpserver.expect_request("/v1/models", "GET").respond_with_json(models, 200 if listed else 404)
        usual = {"base_urls": (httpserver.url_for("/v1"),), "model": MODEL, "sees": "nothing", "attempt_timeout": 5.0}
        lines: list[str] = []
        policy = keys.pop("policy", QUICK)
        critic = EndpointCritic(
            CriticSection(**(usual | keys)), prompt="{{ question }}", policy=policy, announce=lines.append
        )
        critic.lines = lines  # type: ignore[attr-defined]
        critics.append(critic)
        return critic

    yield build
    for critic in critics:
        critic.close()


def ask(critic: EndpointCritic) -> Critique:
    return wait_for(critic.critique(ATTEMPT))


def reply(message: dict[str, Any], reason: str | None = "stop", usage: Any = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason, "logprobs": None}
    usage = usage or {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
    return {
        "id": "c-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
        "usage": usage,
    } | more


VLLM = {"prompt_tokens": 12, "total_tokens": 19, "completion_tokens": 7, "prompt_tokens_details": None}
OPENAI = {
    **{"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19},
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 5, "accepted_prediction_tokens": 0},
}
MAGISTRAL = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "<step_1> hm\n<answer> 4"}]},
    {"type": "text", "text": TRACE},
]
REPLIES: dict[str, tuple[dict[str, Any], str]] = {
    "vLLM": (
        reply(
            {"content": TRACE, "reasoning_content": "<answer> 4", "tool_calls": []}, "stop", VLLM, prompt_logprobs=None
        ),
        "",
    ),
    "vLLM, newer": (
        reply({"content": TRACE, "reasoning": "hm", "refusal": None, "annotations": None}, "stop", VLLM),
        "",
    ),
    "vLLM, all of it reasoning": (reply({"content": None, "reasoning": TRACE}), reasons.ONLY_THINKING),
    "vLLM, reasoning cut": (reply({"content": None, "reasoning_content": "so 2"}, "length"), reasons.CUT),
    "TGI": (reply({"content": TRACE}, "eos_token", system_fingerprint="3.0.1-sha-bb9095a"), ""),
    "TGI, stop string": (reply({"content": TRACE}, "stop_sequence"), ""),
    "SGLang": (reply({"content": TRACE, "reasoning_content": None, "tool_calls": None}, "stop", metadata={}), ""),
    "SGLang, aborted": (reply({"content": "<step_1> 2"}, "abort"), reasons.FILTERED),
    "llama.cpp": (reply({"content": TRACE}, model=f"/models/{MODEL}.gguf", timings={"prompt_n": 12}), ""),
    "llama.cpp, thinking in the text": (reply({"content": f"<think>\n<answer> 4</think>\n\n{TRACE}"}), ""),
    "Ollama": (reply({"content": TRACE}, model=f"{MODEL}:latest", system_fingerprint="fp_ollama"), ""),
    "Ollama, thinking used all tokens": (reply({"content": "", "reasoning": "The user"}, "length"), reasons.CUT),
    "OpenAI": (reply({"content": TRACE, "refusal": None}, "stop", OPENAI, model=f"{MODEL}-2025-08-07"), ""),
    "OpenAI, refusal": (reply({"content": None, "refusal": "I'm sorry."}), reasons.FILTERED),
    "OpenAI, filter": (reply({"content": ""}, "content_filter"), reasons.FILTERED),
    "OpenAI, parts": (reply({"content": [{"type": "text", "text": TRACE}]}), ""),
    "OpenAI, tool": (reply({"content": None, "tool_calls": [{"id": "a"}]}, "tool_calls"), reasons.FILTERED),
    "Anthropic": (reply({"content": TRACE}, "end_turn", model=f"{MODEL}-20250514"), ""),
    "Anthropic, refusal": (reply({"content": ""}, "refusal"), reasons.FILTERED),
    "Anthropic, max": (reply({"content": "<step_1> 2"}, "max_tokens"), reasons.CUT),
    "Gemini": (reply({"content": TRACE}, "STOP", model=f"models/{MODEL}"), ""),
    "Gemini, no content": (reply({}, "length"), reasons.CUT),
    "Gemini, safety": (reply({"content": None}, "SAFETY"), reasons.FILTERED),
    "Mistral": (reply({"content": MAGISTRAL, "tool_calls": None, "prefix": False}), ""),
    "Mistral, end of the context": (reply({"content": "<step_1> 2"}, "model_length"), reasons.CUT),
    "no finish reason": (reply({"content": TRACE}, None), ""),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_read_as_its_server_means_it(open_critic: Open, name: str) -> None:
    body, reason = REPLIES[name]
    critique = ask(open_critic(lambda request: body))
    status = "malformed" if reason else "ok"
    assert (critique.status, critique.reason, critique.text) == (status, reason, "" if reason else TRACE)
    per_request = (critique.prompt_tokens / critique.attempts, critique.completion_tokens / critique.attempts)
    assert per_request == (12, 7)


def test_thinking_that_only_the_total_counts_is_paid_for(open_critic: Open) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 412}
    assert ask(open_critic(lambda request: reply({"content": TRACE}, usage=usage))).completion_tokens == 400


def openai_reasoning(request: dict[str, Any]) -> Any:
    """Refuses as OpenAI's reasoning models do."""
    if "max_tokens" in request:
        what = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return 400, {"error": {"message": what, "param": "max_tokens", "code": "unsupported_parameter"}}
    if request.get("temperature", 1) != 1:
        what = "Unsupported value: 'temperature' does not support 0 here. Only the default (1) value is supported."
        return 400, {"error": {"message": what, "param": "temperature", "code": "unsupported_value"}}
    return reply({"content": TRACE, "refusal": None}, usage=OPENAI)


def proxy_before_it(request: dict[str, Any]) -> Any:
    found = openai_reasoning(request)
    if not isinstance(found, tuple):
        return found
    return 400, {"error": {"message": f"litellm.BadRequestError: OpenAIException - {found[1]['error']['message']}"}}


def takes_no_temperature(request: dict[str, Any]) -> Any:
    if "temperature" in request:
        return 400, {"error": {"message": "Unsupported parameter: 'temperature' is not supported with this model."}}
    return reply({"content": TRACE})


def deprecates_temperature(request: dict[str, Any]) -> Any:
    if "temperature" in request:
        return 400, {"type": "error", "error": {"message": "`temperature` is deprecated for this model."}}
    return reply({"content": TRACE})


@pytest.mark.parametrize("server", [openai_reasoning, proxy_before_it, takes_no_temperature, deprecates_temperature])
def test_models_that_take_other_fields_are_critics(open_critic: Open, asked: list[Any], server: Answer) -> None:
    critic = open_critic(server, max_tokens=333)
    critic.check()
    learnt = len(asked)
    assert [ask(critic).text, ask(critic).text] == [TRACE, TRACE]
    assert len(asked) == learnt + 2  # the check has found out
    assert "temperature" not in asked[-1]
    assert asked[-1].get("max_completion_tokens", asked[-1].get("max_tokens")) == 333
    said = [line for line in critic.lines if "does not take temperature" in line]  # type: ignore[attr-defined]
    assert len(said) == 1


def test_a_second_try_has_twice_the_tokens_in_the_field_that_the_server_takes(
    open_critic: Open, asked: list[Any]
) -> None:
    def server(request: dict[str, Any]) -> Any:
        found = openai_reasoning(request)
        enough = request.get("max_completion_tokens", 0) > 100
        return found if isinstance(found, tuple) or enough else reply({"content": ""}, "length")

    critic = open_critic(server, max_tokens=100)
    assert ask(critic).text == TRACE
    assert asked[-1]["max_completion_tokens"] == 200
    assert critic.ledger.as_dict()["asked_again"] == {"cut at max_tokens": 1}


REFUSALS: dict[str, tuple[int, Any, str]] = {
    "TGI": (422, {"error": "Input validation error: `temperature` must be strictly positive"}, "critic.temperature"),
    "vLLM": (
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 2048 tokens. max_tokens is too large",
            "code": 400,
        },
        "critic.max_tokens",
    ),
    "a template": (400, {"error": {"message": "System role not supported"}}, "prompts.critic"),
    "Gemini": (
        400,
        [{"error": {"code": 400, "message": "Invalid JSON payload: response_format"}}],
        "critic.structured",
    ),
    "FastAPI": (422, {"detail": [{"loc": ["body"], "msg": "extra fields not permitted"}]}, "docs/critics.md"),
    "a proxy": (403, "<html>no</html>", "critic.api_key_env"),
}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_found_before_the_run(open_critic: Open, asked: list[Any], name: str, listed: bool) -> None:
    status, body, hint = REFUSALS[name]
    with pytest.raises(EndpointError) as error:
        open_critic(lambda request: (status, body), listed=listed, structured=True).check()
    assert f"HTTP {status}" in error.value.what
    assert not listed or hint in (error.value.hint or "")
    run = {"model": MODEL, "temperature": 0.0, "max_tokens": 4096}
    assert all(asked[0][name] == value for name, value in run.items())
    assert asked[0]["response_format"]["type"] == "json_schema"
    assert "2 + 3" in asked[0]["messages"][-1]["content"]


def test_a_temperature_that_a_server_refuses_is_found_before_the_run(open_critic: Open) -> None:
    def server(request: dict[str, Any]) -> Any:
        if request.get("temperature") == 0:
            return 400, {"error": {"message": "temperature must be greater than 0"}}
        return reply({"content": TRACE})

    with pytest.raises(EndpointError, match="temperature must be greater"):
        open_critic(server).check()
    warm = open_critic(server, temperature=0.6)
    warm.check()
    assert ask(warm).status == "ok"


def test_extra_fields_are_sent_and_win_and_are_part_of_the_key(
    open_critic: Open, asked: list[Any], tmp_path: Path
) -> None:
    extra = {"reasoning_effort": "low", "temperature": 1.0, "chat_template_kwargs": {"enable_thinking": False}}
    assert ask(open_critic(lambda request: reply({"content": TRACE}), extra_body=extra)).status == "ok"
    assert all(asked[0][name] == value for name, value in extra.items())
    open_critic(lambda request: reply({"content": ""}, "length"), extra_body={"max_completion_tokens": 50})
    config = changed(Config(), {"critic.extra_body": extra})
    assert config.critic.extra_body == extra


def test_a_limit_of_tokens_among_the_extra_fields_replaces_ours_and_doubles(
    open_critic: Open, asked: list[Any]
) -> None:
    critic = open_critic(lambda request: reply({"content": ""}, "length"), extra_body={"max_completion_tokens": 50})
    assert ask(critic).reason == reasons.CUT
    assert [body.get("max_completion_tokens") for body in asked] == [50, 100]
    assert not any("max_tokens" in body for body in asked)


@pytest.mark.parametrize("field", ["api_key", "token", "Authorization", "messages", "model", "stream", "max_tokens"])
def test_some_fields_cannot_be_extra(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        changed(Config(), {"critic.extra_body": {field: "x"}})
    with pytest.raises(ConfigError, match="x-api-key"):
        changed(Config(), {"critic.extra_body": {"headers": {"x-api-key": "x"}}})
    kept = {"prompt_cache_key": "a", "stop_token_ids": [1], "skip_special_tokens": True, "max_completion_tokens": 9}
    assert changed(Config(), {"critic.extra_body": kept}).critic.extra_body == kept


SAME = [
    ("gpt-4o", "gpt-4o-2024-08-06"),
    ("org/name", "name"),
    ("m", "models/m"),
    ("llama3", "llama3:latest"),
    ("org/name", "org/name@main"),
    ("a", "A"),
]
SAME += [
    ("claude-sonnet-4", "claude-sonnet-4-20250514"),
    ("q.gguf", "/models/q.gguf"),
    ("gemini-1.5-pro", "gemini-1.5-pro-002"),
]
OTHER = [
    ("gpt-4o", "gpt-4o-mini"),
    ("gpt-4", "gpt-4.1"),
    ("llama-3-8b", "llama-3-70b"),
    ("a", "b"),
    ("qwen3", "qwen3-8b"),
]


def test_names_of_one_model() -> None:
    assert all(is_same_model(*pair) and is_same_model(*pair[::-1]) for pair in SAME)
    assert not any(is_same_model(*pair) or is_same_model(*pair[::-1]) for pair in OTHER)


def test_a_reply_by_another_model_is_not_taken(open_critic: Open, asked: list[Any]) -> None:
    critic = open_critic(lambda request: reply({"content": TRACE}, model="fallback-mini"))
    with pytest.raises(EndpointError, match="by 'fallback-mini'") as error:
        critic.check()
    assert "critic.answers_as" in (error.value.hint or "")
    critique = ask(critic)
    assert (critique.status, critique.text) == ("failed", "")
    assert critic.ledger.faults == {"other_model": 2}
    assert critic.ledger.prompt_tokens == 24  # paid for all the same
    known = open_critic(lambda request: reply({"content": TRACE}, model="fallback-mini"), answers_as="fallback-mini")
    known.check()
    assert ask(known).status == "ok"


def test_a_model_that_changes_during_a_run_is_noticed(open_critic: Open) -> None:
    names = iter([MODEL, MODEL, "another", MODEL])
    critic = open_critic(lambda request: reply({"content": TRACE}, model=next(names)))
    critic.check()
    assert [ask(critic).attempts, ask(critic).attempts] == [1, 2]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_during_a_run_is_announced_once(open_critic: Open, status: int) -> None:
    critic = open_critic(lambda request: (status, {"error": {"message": "the key \x1b[31mhas expired"}}))
    assert [ask(critic).status for _ in range(3)] == ["failed"] * 3
    (line,) = critic.lines  # type: ignore[attr-defined]
    assert f"HTTP {status}: the key ␛[31mhas expired" in line


def test_a_body_is_bounded_while_it_is_read(open_critic: Open) -> None:
    served = []

    def server(request: dict[str, Any]) -> Any:
        served.append("x" * 3_000_000)
        return reply({"content": served[-1]})

    critique = ask(open_critic(server, max_tokens=100))
    assert (critique.status, critique.attempts, critique.raw) == ("failed", 1, "")
    assert "longer than" in critique.reason
    assert ask(open_critic(lambda request: (400, "y" * 3_000_000))).status == "failed"


def test_a_body_of_compressed_nothing_is_bounded(httpserver: HTTPServer, open_critic: Open) -> None:
    import gzip

    bomb = gzip.compress(b'{"choices": "' + b" " * 50_000_000 + b'"}')
    headers: list[str | None] = []

    def server(request: Request) -> Response:
        headers.append(request.headers.get("Accept-Encoding"))
        return Response(bomb, 200, {"Content-Encoding": "gzip"})

    critic = open_critic(lambda request: None)
    httpserver.clear()
    httpserver.expect_request("/v1/chat/completions", "POST").respond_with_handler(server)
    assert "longer than" in ask(critic).reason
    assert headers == ["identity"]


def test_a_budget_needs_a_server_that_counts(open_critic: Open) -> None:
    body = {"choices": [{"message": {"content": TRACE}, "finish_reason": "stop"}]}
    with pytest.raises(EndpointError, match="does not count tokens"):
        open_critic(lambda request: body, token_budget=1000).check()
    open_critic(lambda request: body).check()


def test_an_error_inside_a_reply_is_named(open_critic: Open) -> None:
    failed = {"choices": [{"error": {"message": "Provider returned error", "code": 502}, "finish_reason": "error"}]}
    for body, words in ((failed, "Provider returned error"), ({"error": {"message": "overloaded"}}, "overloaded")):
        critique = ask(open_critic(lambda request, body=body: body))
        assert (critique.status, words in critique.reason) == ("failed", True)


def test_failed_requests_are_counted_in_a_line_at_the_end(open_critic: Open) -> None:
    bodies = iter([(500, "no"), reply({"content": TRACE}), (500, "no"), reply({"content": ""}, "length")])
    critic = open_critic(
        lambda request: next(bodies, reply({"content": TRACE})), policy=RetryPolicy(base_seconds=0.001)
    )
    assert [ask(critic).status for _ in range(2)] == ["ok", "ok"]
    critic.close()
    (line,) = critic.lines  # type: ignore[attr-defined]
    assert line == (
        "critic: 2 of 5 requests failed (2 server); the last: HTTP 500: no; "
        "1 replies cut at max_tokens were asked for again"
    )
