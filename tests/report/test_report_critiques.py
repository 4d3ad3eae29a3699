"""The page of ``stepalign critique``: a linter's page that no text of a model or critic can break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE
from rich.console import Console

from stepalign.report.critiques import critique_html, critique_lines, write_critique_page
from stepalign.report.text import visible


def example(text: str = "12 - 5 = 6", **more: Any) -> dict[str, Any]:
    steps = [
        {"status": "copied", "first_error": False, "solver": "8 + 4 = 12", "critique": "8 + 4 = 12"},
        {"status": "edited", "first_error": True, "solver": text, "critique": "12 - 5 = 7"},
        {"status": "added", "first_error": False, "solver": None, "critique": "so 7"},
    ]
    return {
        "rollout_id": "line-000001",
        "verdict": "incorrect",
        "case": "D",
        "policy": "mask",
        "decided_by": "quotes_wrong_step",
        "detail": "step 2",
        "question": "What is 8 + 4 - 5?",
        "expected_answer": "7",
        "attempt": "",
        "reply": "",
        "steps": steps,
        **more,
    }


def summary(examples: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    findings = [
        {
            "name": "quotes_wrong_step",
            "count": 38,
            "summary": "quote the wrong step",
            "teaches": "The self-teacher will copy it.",
            "policy": "mask",
            "examples": [example()] if examples is None else examples,
        },
        {
            "name": "not_verbatim",
            "count": 0,
            "summary": "reword right steps",
            "teaches": "The self-teacher loses its anchor.",
            "policy": "use",
            "examples": [],
        },
    ]
    return {
        "format": 1,
        "critic": "critic-7b",
        "sees": "answer",
        "prompt_hash": "abc",
        "source": "attempts.jsonl",
        "attempts": 512,
        "skipped": {},
        "critiques": 512,
        "usable": 500,
        "without_finding": 400,
        "verdicts": {"incorrect": 512},
        "cases": {"D": 500, "unknown": 12},
        "policies": {"quotes_wrong_step": "mask", "not_verbatim": "use"},
        "outcomes": {"use": 474, "mask": 38},
        "masked": {"quotes_wrong_step": 38},
        "retries": 0,
        "mean_verbatim_share": None,
        "paid": {"attempts": 512, "prompt_tokens": 5120, "completion_tokens": 2560, "cost": 1.5, "faults": {}},
        "cached": 0,
        "findings": findings,
        "clean_examples": [],
        **more,
    }


def printed(data: dict[str, Any]) -> str:
    console = Console(width=400, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for line in critique_lines(data):
        console.print(line)
    return console.export_text()


def test_the_terminal_says_what_the_issue_is_and_what_it_teaches() -> None:
    said = printed(summary())
    assert "38 of 512 critiques quote the wrong step: the self-teacher will copy it. [mask]" in said
    assert "reword" not in said
    assert "paid: 512 calls, 5,120 prompt and 2,560 completion tokens, cost 1.5000" in said


def test_no_text_reaches_the_terminal_or_the_page_as_markup() -> None:
    nasty = "\x1b[31m<script>hit()</script>\u202e"
    assert "\x1b" not in printed(summary(critic=nasty))
    html = critique_html(summary([example(nasty, question=nasty, detail=nasty)], critic=nasty, source=nasty))
    assert html.count("<script") == 0
    assert "\x1b" not in html
    assert "\u202e" not in html


@pytest.mark.browser
def test_the_page_is_one_file_that_asks_for_nothing_and_runs_nothing(chromium: Any, tmp_path: Path) -> None:
    examples = [example(text, question=text, detail=text, rollout_id=text) for text in HOSTILE]
    replies = [example(steps=[], attempt=text, reply=text) for text in HOSTILE]
    path = write_critique_page(summary(examples + replies, critic=HOSTILE[0]), tmp_path / "index.html")
    context = chromium.new_context()
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append("dialog") or dialog.dismiss())
    page.goto(path.as_uri())
    assert requests == [path.as_uri()]
    assert complaints == []
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.scripts.length") == 0
    shown = page.locator(".example h3").all_text_contents()
    assert all(visible(text) in " ".join(shown) for text in HOSTILE)
    assert "38 of 512" in page.locator("#quotes_wrong_step h2").inner_text()
    rows = page.locator(".example").first.locator("tbody tr")
    assert rows.nth(1).get_attribute("class") == "edited error"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    path = write_critique_page(summary([examples[0], replies[0]]), tmp_path / "short.html")
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    page.goto(path.as_uri())
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:160]) for one in found] == []
    context.close()
