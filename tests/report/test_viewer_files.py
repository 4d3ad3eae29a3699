"""The viewer on a dropped signal.jsonl, on a link written by hand, and over the checkpoints of a run, in Chromium."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import make_signal

from stepalign.report.page import write_token_page
from stepalign.token_signal.table import from_page, from_rows, read_page, to_rows

DROP = """(text) => {
  const carried = new DataTransfer();
  carried.items.add(new File([text], "signal.jsonl"));
  window.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, cancelable: true }));
}"""


def over_steps(signal: dict[str, Any]) -> dict[str, Any]:
    names = [context["name"] for context in signal["contexts"]]
    scales = [
        {"name": f"{n}@{step}", "label": f"{n}, step {step}", "of": n, "step": step} for step in (0, 10) for n in names
    ]
    rollouts = [
        {**one, "contexts": [{**c, "name": f"{c['name']}@{step}"} for step in (0, 10) for c in one["contexts"]]}
        for one in signal["rollouts"]
    ]
    line = {"label": "step_aligned", "x": [0, 10], "y": [0.2, 0.4]}
    curves = [{"number": "mentions_feedback", "lines": [line]}]
    return {**signal, "contexts": scales, "rollouts": rollouts, "localisation": [], "over_training": curves}


def test_a_context_is_calibrated_by_its_null(chromium: Any, tmp_path: Path) -> None:
    """On page, dropped file and in Python: A less that of "NAME / null" where there is one, else of "null"."""
    signal = json.loads(json.dumps(make_signal(contexts=3)))
    names = ["step_aligned", "null", "step_aligned / null"]
    signal["contexts"] = [{"name": name} for name in names]
    for rollout in signal["rollouts"]:
        for name, context in zip(names, rollout["contexts"], strict=True):
            context["name"] = name
    first = next(one for one in signal["rollouts"] if one["case"] == "one_wrong_step")
    ratio = {one["name"]: one["log_ratio"] for one in first["contexts"]}
    own = [a - b for a, b in zip(ratio["step_aligned"], ratio["step_aligned / null"], strict=True)]
    shared = [a - b for a, b in zip(ratio["step_aligned"], ratio["null"], strict=True)]
    without = {**first, "contexts": first["contexts"][:2]}
    for one, expected in ((first, own), (without, shared)):
        scored = from_page(one)
        assert scored.tables["step_aligned"].calibrated == pytest.approx(expected, abs=1.1e-6)
        assert scored.tables["null"].calibrated is None
        rows = to_rows(scored)
        assert rows[0]["calibrated"] == pytest.approx(expected, abs=1.1e-6)
        assert "calibrated" not in rows[1]
        assert from_rows(rows).tables["step_aligned"].calibrated == pytest.approx(expected, abs=1.1e-6)
    page = chromium.new_page(viewport={"width": 1280, "height": 900})

    def values() -> list[float]:
        labels = page.evaluate("[...document.querySelectorAll('.t[data-panel=\"0\"]')].map((cell) => cell.ariaLabel)")
        return [float(label.rsplit(" ", 1)[1].replace("−", "-")) for label in labels]

    page.goto(write_token_page(signal, tmp_path / "page.html").as_uri() + f"#{first['rollout_id']}&0")
    page.wait_for_selector(".ready")
    assert values() == pytest.approx(ratio["step_aligned"], abs=6e-4)
    page.locator(".chip", has_text="less the null").click()
    assert page.locator(".panel-head h3").all_inner_texts() == ["step_aligned − null", "null"]
    assert values() == pytest.approx(own, abs=6e-4)
    assert float(page.inner_text(".value-calibrated >> nth=0").replace("−", "-")) == pytest.approx(own[0], abs=1.1e-6)
    page.keyboard.press("z")
    page.evaluate(DROP, "".join(json.dumps(row) + "\n" for row in to_rows(from_page(without))))
    page.wait_for_selector(".dropped")
    page.locator(".chip", has_text="less the null").click()
    assert values() == pytest.approx(shared, abs=6e-4)
    assert "z=1" in page.evaluate("location.href")
    page.close()


def test_the_losses_of_a_token_hold_what_one_side_does_not_keep(chromium: Any, tmp_path: Path) -> None:
    signal = json.loads(json.dumps(make_signal()))
    first, token = signal["rollouts"][0], 22
    context, written = first["contexts"][0], first["tokens"][token]["text"].strip()
    before, after = (math.exp(context[side][token]) for side in ("student_log_prob", "teacher_log_prob"))
    assert before - after > 0.9
    context["top_teacher"][token] = [one for one in context["top_teacher"][token] if one[0].strip() != written]
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(write_token_page(signal, tmp_path / "page.html").as_uri() + f"#{first['rollout_id']}&{token}")
    page.wait_for_selector(".ready")
    loss = page.locator(".exchange >> nth=0").locator("li").first.inner_text()
    assert loss.split() == [
        written,
        f"{100 * before:.1f}",
        "→",
        f"{100 * after:.1f}",
        "%",
        f"−{100 * (before - after):.1f}",
    ]
    page.close()


def test_files_links_and_checkpoints(chromium: Any, tmp_path: Path) -> None:
    signal = json.loads(json.dumps(make_signal()))
    write_token_page(signal, tmp_path / "page.html")
    write_token_page(over_steps(signal), tmp_path / "steps.html")
    completions = read_page(signal)
    lines = "".join(json.dumps(row) + "\n" for one in completions[1:2] for row in to_rows(one))
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    # A link that one writes by hand opens at its token.
    second = completions[1]
    page.goto(f"file://{tmp_path}/page.html#{second.rollout_id}&3")
    page.wait_for_selector(".ready")
    assert f"token 3 of {len(second.tokens)}" in page.inner_text(".dock")
    shown = page.inner_text(".panels")
    # A dropped file takes the page's place, with the same numbers and text.
    page.evaluate(DROP, lines + '{"torn')
    page.wait_for_selector(".dropped")
    assert page.inner_text(".dropped") == "signal.jsonl: 1 rollout"
    assert page.inner_text(".run >> nth=0") in shown
    # One that is no signal is named, and changes nothing.
    page.evaluate(DROP, '{"a": 1}\n')
    page.locator(".dropped", has_text="not shown").wait_for()
    assert "line 1 is no record of a signal" in page.inner_text(".dropped")
    # The slider moves all panels to another checkpoint and keeps the designs.
    page.goto(f"file://{tmp_path}/steps.html")
    page.wait_for_selector(".ready")
    before = page.locator(".panel-head h3").all_inner_texts()
    assert all(title.endswith("step 0") for title in before)
    page.locator(".checkpoint input").fill("1")
    after = page.locator(".panel-head h3").all_inner_texts()
    assert after == [title.replace("step 0", "step 10") for title in before]
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert not found, [(one["id"], one["nodes"][0]["html"][:120]) for one in found]
    assert not faults
    page.close()
