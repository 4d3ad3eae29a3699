"""The lab as people meet it: a real server process, and a real Chromium in front of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal as signals
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from patience import PATIENCE
from warm import python

pytest.importorskip("starlette", reason="the lab's server library is not installed")
pytest.importorskip("uvicorn", reason="the lab's server library is not installed")


@dataclass(frozen=True)
class Lab:
    address: str

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.address).query)["token"][0]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=None if body is None else json.dumps(body), headers=given)
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, text

    def post(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        status, _, text = self.ask("POST", path, {"client": "test", **body}, x_lab_token=self.token)
        return status, json.loads(text)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    process = subprocess.Popen(
        [*python(), "-m", "stepalign", "lab", "embedded:arithmetic"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "http://" in line:
            break
    found = re.search(r"http://\S+", "".join(seen))
    assert found, "".join(seen)
    yield Lab(found.group())
    process.send_signal(signals.SIGINT)
    assert process.wait(20) in (0, 130)
    assert "Traceback" not in process.stdout.read()


REQUEST = {"question": "1 + 2 + 3", "completion": "<step_1> 1 + 2 = 4 ; <step_2> 4 + 3 = 7 ; <answer> 7"}
FEEDBACK = "<step_1> 1 + 2 = 3 ; <step_2> 3 + 3 = 6 ; <answer> 6"


def test_only_who_has_the_token_is_served(lab: Lab) -> None:
    for path in ("/", "/?token=", "/?token=wrong", f"/?token={lab.token[:-1]}", "/?token=%00%ff"):
        status, _, text = lab.ask("GET", path)
        assert status == 403
        assert "<" not in text
    status, headers, html = lab.ask("GET", f"/?token={lab.token}")
    assert status == 200
    assert lab.token not in html
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    for given in ({}, {"x_lab_token": "wrong"}):
        status, _, text = lab.ask("POST", "/score", {"request": REQUEST}, **given)
        assert status == 403
        assert set(json.loads(text)) == {"error"}


def test_other_hosts_and_other_pages_are_refused(lab: Lab) -> None:
    page = f"/?token={lab.token}"
    for host in ("example.invalid", f"example.invalid:{lab.port}", f"127.0.0.1:{lab.port + 1}", "127.0.0.1", ""):
        assert lab.ask("GET", page, host=host)[0] in (400, 403)
    for origin in (
        "https://example.invalid",
        "null",
        f"http://example.invalid:{lab.port}",
        f"https://127.0.0.1:{lab.port}",
    ):
        assert lab.ask("POST", "/score", {}, x_lab_token=lab.token, origin=origin)[0] == 403
    assert lab.ask("GET", page, host=f"localhost:{lab.port}")[0] == 200


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are listed under /proc on Linux only")
def test_the_server_listens_on_the_loopback_address_alone(lab: Lab) -> None:
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{lab.port:04X}")]
    assert listening == [f"0100007F:{lab.port:04X}"]


def test_requests_that_make_no_sense_are_answered_with_an_error(lab: Lab) -> None:
    for body in ([], "x", {"request": {}}, {"request": {**REQUEST, "contexts": {}}}):
        status, _, text = lab.ask("POST", "/score", body, x_lab_token=lab.token)
        assert status == 422
        assert json.loads(text)["error"]
    status, found = lab.post(
        "/score", request={**REQUEST, "completion": "1 + 2 = 3 ; " * 400, "contexts": {"a": "right"}}
    )
    assert status == 422
    assert "positions" in found["error"]
    status, found = lab.post("/score", request={**REQUEST, "contexts": {"long": "1 + 2 = 3 ; " * 400}})
    assert status == 200
    assert found["rollouts"][0]["contexts"][0]["dropped"] > 1000, "what did not fit is counted"
    assert lab.post("/score", request={**REQUEST, "completion": "", "contexts": {"a": "x"}})[1]["error"].startswith(
        "there is no"
    )
    assert lab.post("/fill", request={**REQUEST, "contexts": {"a": ""}}, design="../etc")[0] == 422


def by_hand(request: dict[str, Any], context: str, temperature: float) -> tuple[list[float], list[float]]:
    """log p of every token of the attempt, without and with the feedback: two plain forward passes."""
    import torch

    from stepalign.build import make_prompts
    from stepalign.config import load_config
    from stepalign.models.load import load_solver

    config = load_config("arithmetic")
    solver = load_solver("embedded:arithmetic")
    prompts = make_prompts(config, solver)
    from stepalign.records import Problem

    problem = Problem(problem_id="x", question=request["question"], answer="")
    completion = solver.tokenizer.encode(request["completion"], add_special_tokens=False)
    found = []
    for prompt in (prompts.student(problem), prompts.self_teacher(problem, context).ids):
        with torch.no_grad():
            logits = solver.model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double()
        log_probs = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        found.append([float(log_probs[at, token]) for at, token in enumerate(completion)])
    return found[0], found[1]


def test_scores_equal_two_forward_passes_done_by_hand(lab: Lab) -> None:
    request = {**REQUEST, "contexts": {"fixed": FEEDBACK, "same": FEEDBACK}, "temperature": 1.3}
    status, found = lab.post("/score", request=request)
    assert status == 200
    (rollout,) = found["rollouts"]
    student, teacher = by_hand(request, FEEDBACK, 1.3)
    expected = [after - before for before, after in zip(student, teacher, strict=True)]
    assert rollout["contexts"][0]["a"] == pytest.approx(expected, abs=2e-5)
    assert rollout["contexts"][0]["a"] == rollout["contexts"][1]["a"]
    assert rollout["student"] == pytest.approx(student, abs=2e-5)


def greedy(request: dict[str, Any], start: list[int]) -> str:
    """The likeliest continuation of the start of an attempt, by transformers' own generate."""
    import torch

    from stepalign.build import make_prompts
    from stepalign.config import load_config
    from stepalign.models.load import load_solver
    from stepalign.records import Problem

    solver = load_solver("embedded:arithmetic")
    problem = Problem(problem_id="x", question=request["question"], answer="")
    prompt = make_prompts(load_config("arithmetic"), solver).student(problem)
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": list(solver.end_ids), "pad_token_id": 0}
    generate: Any = solver.model.generate
    ids = generate(torch.tensor([[*prompt, *start]]), **options)
    return str(solver.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True))


def test_what_if_says_how_often_both_tokens_lead_to_the_answer(lab: Lab) -> None:
    """At a temperature of almost 0 every continuation is the likeliest one, which generate writes too."""
    request = {**REQUEST, "contexts": {"fixed": FEEDBACK}, "temperature": 0.001}
    status, found = lab.post("/score", request=request)
    assert status == 200
    (rollout,) = found["rollouts"]
    pieces = [piece.strip() for piece in rollout["pieces"]]
    token = pieces.index("4")  # of 1 + 2 = 4
    assert rollout["contexts"][0]["top"][token][0].strip() == "3"
    ends = [
        greedy(request, [*rollout["ids"][:token], rollout["ids"][pieces.index(one)]]).split()[-1] for one in ("4", "3")
    ]
    assert ends[0] != ends[1]
    status, found = lab.post("/what_if", request={**request, "answer": ends[1]}, token=token, count=8)
    assert status == 200
    shown = found["what_if"][f"lab fixed {token}"]
    assert re.fullmatch(r"0\.0 % \[.*\] as written, 100\.0 % \[.*\] with 3 \(8 each\)", shown), shown


def test_a_what_if_that_makes_no_sense_is_answered_with_an_error(lab: Lab) -> None:
    request = {**REQUEST, "contexts": {"fixed": FEEDBACK}, "answer": "6"}
    for change, message in (
        ({"token": 10_000}, "no token 10000"),
        ({"token": -1}, "position"),
        ({"token": True}, "position"),
        ({"count": 0}, "continuations"),
        ({"count": 1000}, "continuations"),
        ({"request": {**request, "answer": " "}}, "expected answer"),
        ({"request": {**request, "contexts": {"a": " "}}}, "no feedback"),
    ):
        status, found = lab.post("/what_if", **{"request": request, "token": 3, "count": 2, **change})
        assert status == 422
        assert message in found["error"]


# ---------------------------------------------------------------------------------------------------------------------
# In the browser


class LabPage:
    """One open page of the lab with everything it asked for and complained about."""

    def __init__(self, browser: Any, lab: Lab, **options: Any) -> None:
        self.context = browser.new_context(
            **({"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options)
        )
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(lab.address)
        self.page.locator(".viewer.ready").wait_for()
        self.settle()

    def settle(self, text: str = "") -> None:
        """Wait until the page shows the result for the current form, and the status line says so."""
        self.page.locator('#lab[aria-busy="false"]:not([data-waiting])').wait_for()
        self.page.locator(".status", has_text=re.compile(f"^{text}")).wait_for()

    def write(self, name: str, text: str) -> None:
        self.page.get_by_label(name, exact=True).fill(text)
        self.settle()

    def values(self, panel: int = 0) -> list[float]:
        labels = self.page.evaluate(
            f"[...document.querySelectorAll('.t[data-panel=\"{panel}\"]')].map((cell) => cell.ariaLabel)"
        )
        return [float(label.rsplit(" ", 1)[1].replace("−", "-")) for label in labels]


@pytest.fixture
def open_page(chromium: Any, lab: Lab) -> Iterator[Callable[..., LabPage]]:
    pages: list[LabPage] = []

    def open_one(**options: Any) -> LabPage:
        pages.append(LabPage(chromium, lab, **options))
        return pages[-1]

    yield open_one
    for opened in pages:
        opened.context.close()


@pytest.mark.slow
def test_editing_the_feedback_recolours_the_tokens(open_page: Callable[..., LabPage], lab: Lab) -> None:
    opened = open_page()
    assert opened.page.locator(".panel-head h3").all_inner_texts() == ["step_aligned", "reference"]
    opened.write("Question", REQUEST["question"])
    opened.write("Attempt", REQUEST["completion"])
    opened.write("Feedback 1", FEEDBACK)
    before = opened.values()
    student, teacher = by_hand(REQUEST, FEEDBACK, 1.1)
    assert before == pytest.approx([b - a for a, b in zip(student, teacher, strict=True)], abs=6e-4)
    # Typed faster than it can be scored: what counts is the last state.
    box = opened.page.get_by_label("Feedback 1", exact=True)
    for text in ("4", "4 +", "4 + 3", REQUEST["completion"]):
        box.fill(text)
    opened.settle()
    student, teacher = by_hand(REQUEST, REQUEST["completion"], 1.1)
    assert opened.values() == pytest.approx([b - a for a, b in zip(student, teacher, strict=True)], abs=6e-4)
    assert opened.values() != before
    assert opened.complaints == []
    own = f"http://127.0.0.1:{lab.port}/"
    assert all(url.startswith(own) for url in opened.requests)
    assert {urlsplit(url).path for url in opened.requests} <= {"/", "/score", "/cancel"}


def test_what_is_saved_can_be_opened_again(open_page: Callable[..., LabPage], tmp_path: Path) -> None:
    opened = open_page()
    with opened.page.expect_download() as waiting:
        opened.page.locator(".save").click()
    target = tmp_path / "lab.jsonl"
    waiting.value.save_as(target)
    (row,) = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert set(row["contexts"]) == {"step_aligned", "reference"}
    assert row["question"]
    assert row["completion"]
    before = opened.values()
    again = open_page()
    again.write("Feedback 1", "wrong")
    with again.page.expect_response("**/score"):
        again.page.locator("input[type=file]").set_input_files(target)
    again.settle()
    assert again.values() == before
    target.write_text("no json\n")
    again.page.locator("input[type=file]").set_input_files(target)
    again.settle("This file cannot be read")


def test_the_signal_of_a_saved_file_has_the_numbers_of_the_page(
    open_page: Callable[..., LabPage], lab: Lab, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from stepalign.cli import app

    opened = open_page()
    opened.write("Feedback 1", FEEDBACK)
    shown = opened.values()
    with opened.page.expect_download() as waiting:
        opened.page.locator(".save").click()
    waiting.value.save_as(tmp_path / "lab.jsonl")
    words = ["signal", str(tmp_path / "lab.jsonl"), "--model", "embedded:arithmetic", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "signal.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["context"] for row in rows] == ["step_aligned", "reference"]
    assert shown == [round(value, 3) + 0.0 for value in rows[0]["log_ratio"]]
    (saved,) = [json.loads(line) for line in (tmp_path / "lab.jsonl").read_text(encoding="utf-8").splitlines()]
    _, found = lab.post("/score", request=saved)
    assert [context["a"] for context in found["rollouts"][0]["contexts"]] == [row["log_ratio"] for row in rows]


def test_designs_fill_in_and_contexts_come_and_go(open_page: Callable[..., LabPage]) -> None:
    opened = open_page()
    opened.page.get_by_role("button", name="add feedback").click()
    opened.page.select_option('select[aria-label="Fill feedback 3 from a design"]', "verdict")
    expect = pytest.importorskip("playwright.sync_api").expect
    expect(opened.page.get_by_label("Feedback 3", exact=True)).to_have_value("wrong")
    opened.settle()
    assert opened.page.locator(".panel-head h3").all_inner_texts() == ["step_aligned", "reference", "verdict"]
    opened.page.get_by_label("Remove feedback 1").click()
    opened.settle()
    assert opened.page.locator(".panel-head h3").all_inner_texts() == ["reference", "verdict"]
    opened.page.get_by_label("Name of feedback 1").fill("verdict")
    opened.settle("Two feedbacks have the same name")
    assert opened.complaints == []


def test_a_click_on_a_token_shows_what_either_version_leads_to(open_page: Callable[..., LabPage]) -> None:
    opened = open_page()
    assert opened.page.get_by_label("Expected answer", exact=True).input_value()
    opened.page.get_by_label("Continuations of each version").select_option("4")
    opened.page.locator(".what-if-ask").click()
    cells = opened.page.locator(".dock .what-if td")
    pytest.importorskip("playwright.sync_api").expect(cells).to_have_count(2, timeout=60_000)
    form = r"\d+\.\d % \[\d+\.\d, \d+\.\d\] as written,\s\d+\.\d % \[\d+\.\d, \d+\.\d\] with \S+ \(4 each\)"
    assert all(re.fullmatch(form, text) for text in cells.all_inner_texts())
    opened.page.locator(".t").first.click()
    assert opened.page.locator(".what-if-ask").is_visible(), "another token has none yet"
    assert opened.complaints == []
    opened.page.get_by_text("Expected answer and reference").click()
    opened.write("Expected answer", "")
    opened.page.locator(".what-if-ask").click()
    opened.settle("whether a continuation is right is not known")


def test_a_slow_answer_can_be_cancelled_and_an_error_is_said(open_page: Callable[..., LabPage]) -> None:
    opened = open_page()
    before = opened.values()
    held: list[Any] = []
    opened.page.route("**/score", lambda route: held.append(route))
    opened.page.get_by_label("Feedback 1", exact=True).fill("right")
    opened.page.locator('#lab[aria-busy="true"]').wait_for()
    opened.page.locator(".cancel").click()
    opened.settle("Cancelled")
    assert opened.values() == before
    opened.page.unroute("**/score")
    opened.page.get_by_label("Attempt", exact=True).fill("1 + 2 = 3 ; " * 400)
    opened.settle(r"\d+ tokens of prompt and attempt")
    assert "wrong" in (opened.page.locator(".status").get_attribute("class") or "")


HOSTILE = "</script><img src=x onerror=window.hit=1><svg onload=window.hit=1>{{7*7}} \u202egnp.exe"


def test_hostile_text_in_the_form_is_inert(open_page: Callable[..., LabPage]) -> None:
    opened = open_page()
    for name in ("Question", "Attempt", "Feedback 1"):
        opened.write(name, HOSTILE)
    opened.page.get_by_label("Name of feedback 1").fill(HOSTILE[:70])
    opened.settle()
    assert opened.page.evaluate("window.hit") is None
    assert opened.page.locator("main img, main svg[onload]").count() == 0
    assert opened.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("moment", ["at rest", "while scoring"])
def test_an_accessibility_audit_of_the_lab_finds_nothing(
    open_page: Callable[..., LabPage], scheme: str, moment: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    opened = open_page(color_scheme=scheme)
    if moment == "while scoring":
        opened.page.route("**/score", lambda route: None)  # an answer that does not come
        opened.page.get_by_label("Feedback 1", exact=True).fill("4")
        opened.page.locator('#lab[aria-busy="true"]').wait_for()
    opened.page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = opened.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [(problem["id"], [node["html"][:160] for node in problem["nodes"]]) for problem in found["violations"]] == []


def test_the_lab_fits_a_phone(open_page: Callable[..., LabPage]) -> None:
    opened = open_page(viewport={"width": 390, "height": 844})
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
