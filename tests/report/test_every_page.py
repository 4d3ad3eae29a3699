"""Pages in Chromium on a wide screen, a dark phone and paper: an accessibility audit, and nothing beyond an edge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import make_signal

from stepalign.evaluation.evaluate import EvaluatedProblem
from stepalign.report.completions import write_completions_page
from stepalign.report.page import write_token_page
from stepalign.report.preflight import NUMBERS, SHARES, SOLVER, write_preflight_page

DESIGNS = 8
"""Of a preflight: more columns than a sheet of paper has room for at the usual size."""


def preflight(folder: Path) -> Path:
    number = {"value": -0.123456, "low": -0.4, "high": 0.2}
    words = ("go", "doubtful", "no")
    places = [name for place, _ in SHARES for name in (place, f"{place}_tokens", f"gradient_{place}")]
    rates = {"spikes": 12, "change": number, "correlation": {"value": 0.3, "low": None, "high": None}, "rows": []}
    rows = {
        f"design_{at}": {
            "label": f"a design with a long name, the {at}th",
            "verdict": words[at % 3],
            "details": [{"text": "a reason", "mend": "a mend", "severity": words[at % 3], "loud": at % 3 == 2}] * 2,
            "masked": {"no correct sibling": at},
            "numbers": dict.fromkeys([*NUMBERS, *places], number),
            "counterfactual": rates,
        }
        for at in range(DESIGNS)
    }
    signal = make_signal(contexts=2)
    for entry, name in zip(signal["localisation"], rows, strict=False):
        entry["context"] = name
    expected = {"sampled_tokens": 9e5, "rollouts": 4096, "critic_tokens": 1e6, "cost": 12.5, "hours": 3.2}
    found = {
        **{"condition": "design_0", "verdict": "go", "model": "m", "temperature": 1.0, "num_rollouts": 48},
        **{
            "num_problems": 48,
            "num_tries": 4,
            "seconds": 250.0,
            "designs": rows,
            "solver": dict.fromkeys(SOLVER, number),
        },
        "expected": {**expected, "sampling_hours": 1.0, "feedback_hours": 1.0, "learning_hours": 1.2},
    }
    return write_preflight_page(found, signal, folder / "index.html")


def tokens(folder: Path) -> Path:
    signal = make_signal()
    for rollout in signal["rollouts"]:
        rollout["question"] = "A question that is longer than its box is high. " * 12
    return write_token_page(signal, folder / "index.html")


def dump(folder: Path) -> Path:
    signal = make_signal()
    signal |= {"kind": "numbers", "unit": "as in the dump", "localisation": [], "source": {"name": "d.jsonl"}}
    for rollout in signal["rollouts"]:
        rollout |= {"question": "", "case": "unknown", "verdict": "undecided"}
    return write_token_page(signal, folder / "index.html")


def completions(folder: Path) -> Path:
    problem = EvaluatedProblem(
        problem_id="p1",
        question="How many? " * 20,
        answer="4",
        texts=("It is 4. " * 60, "no idea", "", "5"),
        verdicts=("correct", "incorrect", "undecided", "incorrect"),
        answers=("4", None, None, "5"),
        lengths=(240, 3, 1, 2),
        finish_reasons=("length", "stop", "stop", "stop"),
    )
    return write_completions_page([problem], "samples.jsonl", folder / "index.html")


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("write", [preflight, tokens, dump, completions])
def test_a_page_is_clean_on_screen_phone_and_paper(
    chromium: Any, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    context = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark", reduced_motion="reduce")
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(write(tmp_path).as_uri())
    if page.locator("#viewer").count():
        page.wait_for_selector(".viewer.ready")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    for width, scheme in ((390, "dark"), (1280, "light")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        assert [(one["id"], one["nodes"][0]["html"][:160]) for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.set_viewport_size({"width": 720, "height": 1000})  # A4 without its margins
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert complaints == []
    context.close()
