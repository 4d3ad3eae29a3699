"""The viewer on a dropped signal.jsonl, on a link written by hand, and over the checkpoints of a run, in Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import make_signal

from stepalign.report.page import write_token_page
from stepalign.token_signal.table import read_page, to_rows

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
