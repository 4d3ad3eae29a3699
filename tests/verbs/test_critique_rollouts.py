"""``stepalign critique`` as a person runs it, with a critic on a real socket."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fault_server import CHECK, FaultServer

from stepalign.cli import main
from stepalign.domains.math.grading import Grader
from stepalign.errors import ConfigError
from stepalign.feedback.findings import FINDINGS
from stepalign.verbs.attempts import graded, read_attempts

CANARY = "sk-canary-9876543210"
ATTEMPT = "<step_1> {n} + 1 = {m} <step_2> {m} * 2 = 3 <answer> 3"
RIGHT = "<step_1> {n} + 1 = {m} <step_2> {m} * 2 = {a} <answer> {a}"
QUOTING = "<step_1> {n} + 1 = {m} <step_2> {m} * 2 = 3 <step_3> rather {m} * 2 = {a} <answer> {a}"


def numbers(n: int) -> dict[str, int]:
    return {"n": n, "m": n + 1, "a": 2 * n + 2}


def attempts(count: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Add 1 to {n} and double it.",
            "completion": ATTEMPT.format(**numbers(n)),
            "answer": str(2 * n + 2),
            "reference": f"Twice {n + 1}.",
        }
        for n in range(10, 10 + count)
    ]


def scribe(text: str, asked: int) -> str:
    """Every fourth critique quotes the wrong step, until a complaint says so."""
    n = int("".join(c for c in text.partition(" to ")[2] if c.isdigit()) or 0)
    return "say " + (QUOTING if n % 4 == 0 else RIGHT).format(**numbers(n))


@pytest.fixture
def serve(serve: Callable[..., FaultServer]) -> Callable[..., FaultServer]:
    return lambda script=scribe, **options: serve(script, **options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "attempts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in attempts(16)), encoding="utf-8")
    return path


def words(source: Path, out: Path, url: str = "", *more: str) -> list[str]:
    critic = ["--critic", url, "--model", "critic", "--set", "prompts.critic={{ question }}"] if url else []
    return [sys.executable, "-m", "stepalign", "critique", str(source), "--out", str(out), *critic, *more]


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """The command in this process, with its exit code and what it says."""
    said, complained = StringIO(), StringIO()
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(complained):
        patch.setattr(sys, "argv", words(*arguments)[2:])
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(list(arguments), code, said.getvalue(), complained.getvalue())


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "critiques.jsonl").read_text(encoding="utf-8").splitlines()]


def findings(out: Path) -> dict[str, Any]:
    return json.loads((out / "findings.json").read_text(encoding="utf-8"))


def test_every_attempt_is_accounted_for_and_the_findings_are_said(
    serve: Callable[..., FaultServer], file: Path, tmp_path: Path
) -> None:
    server, out = serve(), tmp_path / "out"
    done = run(file, out, server.url, "--set", "critic.prices={prompt = 1.0, completion = 2.0}")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "4 of 16 critiques quote the wrong step: the self-teacher will copy it" in said
    assert "[mask]" in said
    rows = lines(out)
    assert sorted(row["rollout_id"] for row in rows) == [f"line-{n:06d}" for n in range(1, 17)]
    assert {row["verdict"] for row in rows} == {"incorrect"}
    assert {tuple(row["findings"]): row["policy"] for row in rows} == {("quotes_wrong_step",): "mask", (): "use"}
    summary = findings(out)
    assert (summary["usable"], summary["without_finding"], summary["masked"]) == (16, 12, {"quotes_wrong_step": 4})
    counted = {finding["name"]: finding["count"] for finding in summary["findings"]}
    assert counted == dict.fromkeys(FINDINGS, 0) | {"quotes_wrong_step": 4}
    assert summary["paid"]["cost"] == pytest.approx((16 * 10 * 1.0 + 16 * 5 * 2.0) / 1e6)
    ledger = [json.loads(line) for line in (out / "critic-ledger.jsonl").read_text().splitlines()]
    assert [row["prompt_tokens"] for row in ledger] == [10] * 16
    # an example shows both texts, step by step
    (pair,) = [s for s in summary["findings"][0]["examples"][0]["steps"] if s["first_error"]]
    assert pair["solver"] == pair["critique"]
    assert (out / "index.html").read_text(encoding="utf-8").count("quote the wrong step")


def test_a_critic_asked_again_with_the_finding_named_mends_its_critique(
    serve: Callable[..., FaultServer], file: Path, tmp_path: Path
) -> None:
    def mends(text: str, asked: int) -> str:
        if "cannot be used" not in text:
            return scribe(text, asked)
        return "say " + RIGHT.format(**numbers(int(complaints.pop())))

    complaints = ["12", "16", "20", "24"][::-1]
    server, out = serve(mends), tmp_path / "out"
    settings = ("--set", "critic.policies.quotes_wrong_step=retry", "--set", "critic.concurrency=1")
    done = run(file, out, server.url, *settings)
    assert done.returncode == 0, done.stderr
    again = [body["messages"] for body in server.bodies if len(body["messages"]) == 3]
    assert len(again) == 4
    assert all(FINDINGS["quotes_wrong_step"].request in chat[-1]["content"] for chat in again)
    assert all(chat[1]["role"] == "assistant" and "rather" in chat[1]["content"] for chat in again)
    assert sum(row["retries"] for row in lines(out)) == 4
    assert findings(out)["retries"] == 4


@pytest.mark.slow
def test_killed_at_any_instant_it_goes_on_and_pays_only_for_what_was_under_way(
    serve: Callable[..., FaultServer], tmp_path: Path
) -> None:
    source, out = tmp_path / "many.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(row) + "\n" for row in attempts(60)), encoding="utf-8")
    server = serve(latency=0.05)
    for waited_for in (1, 20, 45):
        process = subprocess.Popen(
            [*words(source, out, server.url, "--set", "critic.concurrency=4"), *(["--resume"] if out.exists() else [])],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while sum(server.asked.values()) < waited_for:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with (out / "critiques.jsonl").open("ab") as torn:
        torn.write('{"rollout_id": "line-0000é'.encode()[:-1])
    done = run(source, out, server.url, "--set", "critic.concurrency=4", "--resume")
    assert done.returncode == 0, done.stderr
    assert sorted(row["rollout_id"] for row in lines(out)) == [f"line-{n:06d}" for n in range(1, 61)]
    assert all(row["status"] == "ok" for row in lines(out))
    assert sum(server.asked.values()) <= 60 + 3 * 4  # at most the calls under way at each kill
    before = sum(server.asked.values())
    assert run(source, out, server.url, "--set", "critic.concurrency=4", "--resume").returncode == 0
    assert sum(server.asked.values()) == before


def test_a_budget_stops_cleanly_and_the_command_it_names_goes_on(
    serve: Callable[..., FaultServer], file: Path, tmp_path: Path
) -> None:
    server, out = serve(), tmp_path / "out"
    first = run(file, out, server.url, "--set", "critic.concurrency=1", "--set", "critic.token_budget=75")
    assert first.returncode == 5
    assert "75 of 75 tokens" in first.stderr
    assert "everything so far is saved" in first.stderr
    assert "--resume" in first.stderr
    assert len(lines(out)) == findings(out)["critiques"] == 5
    assert sum(server.asked.values()) == 5
    # the budget is that of the folder, not of the process
    again = run(file, out, server.url, "--set", "critic.concurrency=1", "--set", "critic.token_budget=75", "--resume")
    assert again.returncode == 5
    assert sum(server.asked.values()) == 5
    last = run(file, out, server.url, "--set", "critic.concurrency=1", "--set", "critic.token_budget=9000", "--resume")
    assert last.returncode == 0, last.stderr
    assert sum(server.asked.values()) == len(lines(out)) == 16


def test_a_replay_needs_no_server_and_masks_what_it_does_not_know(
    serve: Callable[..., FaultServer], file: Path, tmp_path: Path
) -> None:
    server = serve(lambda text, asked: "status 400" if "to 25" in text else scribe(text, asked))
    cache = f"critic.cache={tmp_path / 'shared.sqlite'}"
    assert run(file, tmp_path / "first", server.url, "--set", cache).returncode == 0
    server.stop()
    done = run(file, tmp_path / "second", server.url, "--set", cache, "--critic-cache-only")
    assert done.returncode == 0, done.stderr
    replayed = {row["rollout_id"]: (row["status"], row["text"]) for row in lines(tmp_path / "second")}
    assert replayed == {row["rollout_id"]: (row["status"], row["text"]) for row in lines(tmp_path / "first")}
    assert findings(tmp_path / "second")["masked"]["failed"] == 1


def test_a_failed_critique_is_asked_for_again_when_the_work_goes_on(
    serve: Callable[..., FaultServer], file: Path, tmp_path: Path
) -> None:
    server = serve(lambda text, asked: "status 400" if "to 25" in text and not asked else scribe(text, asked))
    out = tmp_path / "out"
    assert run(file, out, server.url).returncode == 0
    assert [row["status"] for row in lines(out)].count("failed") == 1
    assert run(file, out, server.url, "--resume").returncode == 0
    assert [row["status"] for row in lines(out)] == ["ok"] * 16
    assert "HTTP 400" in (out / "superseded" / "critiques.jsonl").read_text()
    assert sum(server.asked.values()) == 17


def test_the_key_is_nowhere_in_the_folder(
    serve: Callable[..., FaultServer], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", CANARY)

    def echoes(text: str, asked: int) -> str:
        return {0: "echo_key", 1: "refuse_key"}.get(sum(map(ord, text)) % 3, "") or scribe(text, asked)

    server, out = serve(echoes), tmp_path / "out"
    done = run(file, out, server.url, "--set", "critic.api_key_env=MY_KEY")
    assert done.returncode == 0, done.stderr
    assert all(headers["authorization"] == f"Bearer {CANARY}" for headers in server.headers)
    assert {"echo_key", "refuse_key"} <= server.behaviours.keys()
    written = [path for path in out.rglob("*") if path.is_file()]
    assert {"config.toml", "critiques.jsonl", "critiques.sqlite", "critic-ledger.jsonl", "index.html"} <= {
        path.name for path in written
    }
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]
    assert CANARY not in done.stdout + done.stderr


# --- what can be read ---


def test_columns_are_found_by_their_usual_names_or_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"problem": "1 + 1?", "generated_solution": "It is 2.\\n#### 2", "expected_answer": 2}\n'
        '{"problem": "1 + 2?", "generated_solution": "It is 4.\\n#### 4", "expected_answer": 3}\n'
        '{"problem": "", "generated_solution": "x"}\n'
        "no json\n"
    )
    found = read_attempts(file)
    with Grader() as grader:
        first, second = (graded(attempt, grader) for attempt in found.attempts)
    assert (first.rollout_id, first.verdict, first.problem.answer) == ("line-000001", "correct", "2")
    assert (second.rollout_id, second.verdict) == ("line-000002", "incorrect")
    assert sum(found.skipped.values()) == 2
    named = read_attempts(file, {"question": "generated_solution", "completion": "problem"})
    assert named.attempts[0].text == "1 + 1?"
    with pytest.raises(ConfigError, match="no column nowhere") as error:
        read_attempts(file, {"completion": "nowhere"})
    assert "generated_solution" in str(error.value.hint)
    with pytest.raises(ConfigError, match="unknown column name"):
        read_attempts(file, {"attempt": "problem"})


def test_a_worked_answer_is_answer_and_reference(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "1 + 1?", "completion": "2", "answer": "One and one.\\n#### 2"}\n')
    (attempt,) = read_attempts(file).attempts
    assert (attempt.problem.answer, attempt.problem.reference) == ("2", "One and one.\n#### 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("", "holds no attempts"), ('{"question": "q", "text": "x"}\n', "no column completion")],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "a.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_attempts(file)


def test_nothing_is_made_for_a_critic_that_nobody_named(file: Path, tmp_path: Path) -> None:
    done = run(file, tmp_path / "out")
    assert done.returncode == 2
    assert "who is the critic?" in done.stderr
    gone = run(file, tmp_path / "out", "http://127.0.0.1:9/v1")
    assert gone.returncode == 3
    assert "does not answer" in gone.stderr
    foreign = run(file, tmp_path / "out", "", "--critic", "programmatic")
    assert foreign.returncode == 2
    assert "embedded task only" in foreign.stderr
    assert not (tmp_path / "out").exists()


def test_other_attempts_do_not_go_into_the_same_folder(
    serve: Callable[..., FaultServer], file: Path, tmp_path: Path
) -> None:
    server, out = serve(), tmp_path / "out"
    assert run(file, out, server.url).returncode == 0
    file.write_text(file.read_text() + json.dumps(attempts(17)[-1]) + "\n")
    done = run(file, out, server.url, "--resume")
    assert done.returncode == 4
    assert "other attempts" in done.stderr


def test_the_one_model_of_a_server_needs_no_name_and_a_host_no_path(
    serve: Callable[..., FaultServer], file: Path, tmp_path: Path
) -> None:
    server, out, prompt = serve(), tmp_path / "out", "prompts.critic={{ question }}"
    done = run(file, out, "", "--critic", server.url.removesuffix("/v1"), "--set", prompt)
    assert done.returncode == 0, done.stderr
    assert findings(out)["critic"] == "critic"
    assert {body["model"] for body in server.bodies} == {"critic"}
    assert 'model = "critic"' in (out / "config.toml").read_text()
    bare = run(file, tmp_path / "bare", "", "--critic", f"127.0.0.1:{server.server_port}")
    assert (bare.returncode, f"--critic http://127.0.0.1:{server.server_port}" in bare.stderr) == (2, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["prompts.critic={{ quesiton }}"], "did you mean question?"),
        (["prompts.critic={{ question }} {{ answer }}", "critic.sees=nothing"], "asks for 'answer'"),
    ],
)
def test_a_prompt_that_cannot_be_written_is_refused_before_anything_is_asked(
    serve: Callable[..., FaultServer], file: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    server = serve()
    more = [word for setting in settings for word in ("--set", setting)]
    done = run(file, tmp_path / "out", server.url, *more)
    assert done.returncode == 2
    assert message in done.stderr
    assert not server.bodies
    assert not (tmp_path / "out").exists()


def test_a_password_in_the_address_is_nowhere_in_the_folder_and_work_goes_on_without_it(
    serve: Callable[..., FaultServer], file: Path, tmp_path: Path
) -> None:
    server, out = serve(), tmp_path / "out"
    done = run(file, out, server.url.replace("//", f"//user:{CANARY}@"))
    assert done.returncode == 0, done.stderr
    assert {header["authorization"].split()[0] for header in server.headers} == {"Basic"}
    assert not [path for path in out.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert run(file, out, server.url, "--resume").returncode == 0


@pytest.mark.parametrize(("behaviour", "code"), [("status 401", 3), ("say nothing of use", 1)])
def test_a_critic_without_any_usable_critique_is_no_success(
    serve: Callable[..., FaultServer], file: Path, tmp_path: Path, behaviour: str, code: int
) -> None:
    server = serve(lambda text, asked: "ok" if text == CHECK else behaviour)
    done = run(file, tmp_path / "out", server.url)
    assert done.returncode == code
    assert "none of the 16 critiques is usable" in done.stderr
    assert findings(tmp_path / "out")["usable"] == 0
    assert (tmp_path / "out" / "index.html").exists()
    assert ("critic refuses a request" in done.stdout) == (code == 3)


def test_the_calculation_critic_reads_a_plain_file_and_says_what_it_does_not_understand(tmp_path: Path) -> None:
    notes = "Two dozen are 2*12=<<2*12=24>>24.\nSo 24-5=<<24-5=19>>19 are left.\n#### 19"
    question = "Lea has 2 dozen eggs. 5 break. How many are left?"
    texts = [
        "2*12=<<2*12=24>>24 eggs.\n24-5=<<24-5=19>>19 are left.\n#### 19",
        "2*12=<<2*12=24>>24 eggs.\n24+5=<<24+5=29>>29 are left.\n#### 29",
        "She has 2 and loses 5.\n#### 3",
        "7*7=49 eggs.\n49/7=7 are left.\n#### 7",
    ]
    rows = [{"question": question, "completion": text, "answer": notes} for text in texts]
    file = tmp_path / "attempts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    printed = StringIO()
    with redirect_stdout(printed):
        sys.argv = ["stepalign", "critique", str(file), "--critic", "calculation", "--out", str(tmp_path / "out")]
        main()
    assert "2 of 4 critiques by calculation are usable" in printed.getvalue()
    lines = [json.loads(line) for line in (tmp_path / "out" / "critiques.jsonl").read_text("utf-8").splitlines()]
    found = {line["rollout_id"]: line for line in lines}
    first, second, third, last = (found[f"line-{number:06d}"] for number in (1, 2, 3, 4))
    assert (first["text"], first["case"], first["verdict"]) == (texts[0], "A", "correct")
    assert second["text"] == texts[0]
    assert (second["first_error"], second["case"], second["verdict"]) == ("2", "D", "incorrect")
    assert third["reason"] == "the attempt has no equation"
    assert last["reason"] == "the program does not understand where the attempt goes wrong"
    assert third["status"] == last["status"] == "failed"
