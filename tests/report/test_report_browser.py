"""The page in a real Chromium: what a reader sees, hovers, types and saves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import report_fixtures as fixtures

from stepalign.report import scale
from stepalign.report.page import write_report, write_token_page

pytestmark = pytest.mark.browser

READY = ".viewer.ready"


class Visit:
    """One open page with everything it asked for and complained about."""

    def __init__(self, browser: Any, path: Path, fragment: str = "", **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append("dialog") or dialog.dismiss())
        self.page.goto(path.as_uri() + fragment)
        self.page.wait_for_selector(READY, timeout=20_000)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def all(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def cursor(self) -> list[int]:
        return self.page.evaluate("[...document.querySelectorAll('.t.cur')].map((cell) => Number(cell.dataset.t))")

    def shown(self, selector: str) -> list[float]:
        return [float(text.replace("−", "-").split()[0]) for text in self.all(selector)]


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def open_page(*arguments: Any, **options: Any) -> Visit:
        visits.append(Visit(chromium, *arguments, **options))
        return visits[-1]

    yield open_page
    for opened in visits:
        opened.context.close()


@pytest.fixture
def report(folder: Path) -> Path:
    return write_report(folder)


def first_wrong(signal: dict[str, Any]) -> dict[str, Any]:
    """The rollout the viewer opens with."""
    return next(rollout for rollout in signal["rollouts"] if rollout["case"] == "one_wrong_step")


def test_one_file_no_requests_no_complaints(visit: Callable[..., Visit], report: Path) -> None:
    for options in ({}, {"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}}, {"offline": True}):
        seen = visit(report, **options)
        seen.page.locator("#tokens").scroll_into_view_if_needed()
        seen.press("ArrowRight", "d", "g", "]", "2")
        assert seen.requests == [report.as_uri()]
        assert seen.complaints == []
        width = seen.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width[0] <= width[1]


def test_hover_shows_the_stored_numbers_to_six_digits(
    visit: Callable[..., Visit], report: Path, signal: dict[str, Any]
) -> None:
    seen = visit(report)
    rollout = first_wrong(signal)
    for token in (0, 5, 22, 30, 43):
        seen.page.locator(f'.t[data-panel="1"][data-t="{token}"]').hover()
        for context, shown in zip(rollout["contexts"], seen.shown(".dock .value-a"), strict=False):
            assert shown == round(context["log_ratio"][token], 6)
        rows = {row.split("\t")[0]: row for row in seen.all(".dock tbody tr")}
        for index, context in enumerate(rollout["contexts"][:2]):
            for name, key in (("log p, student", "student_log_prob"), ("log p, self-teacher", "teacher_log_prob")):
                value = float(rows[name].split("\t")[index + 1].split()[0].replace("−", "-"))
                assert value == round(context[key][token], 6)
            kl = float(rows["forward KL"].split("\t")[index + 1])
            assert kl == pytest.approx(context["forward_kl"][token], abs=5.1e-5)
        assert f"token {token} of 44" in seen.text(".dock")


def test_alternatives_of_both_sides_are_listed(
    visit: Callable[..., Visit], report: Path, signal: dict[str, Any]
) -> None:
    seen = visit(report)
    seen.page.locator('.t[data-panel="0"][data-t="22"]').hover()
    stored = first_wrong(signal)["contexts"][0]["top_teacher"][22]
    shown = seen.page.locator(".tops > div").nth(1).locator("li code").all_inner_texts()
    assert [text.strip() for text in shown] == [text.strip() for text, value in stored if value >= -9.2]


def test_panels_follow_each_other(visit: Callable[..., Visit], report: Path) -> None:
    seen = visit(report)
    seen.page.locator('.t[data-panel="0"][data-t="7"]').hover()
    assert seen.cursor() == [7, 7]
    seen.page.locator('.t[data-panel="1"][data-t="13"]').hover()
    assert seen.cursor() == [13, 13]
    lines = seen.page.evaluate(
        "[...document.querySelectorAll('.strip .cursor')].map((line) => line.getAttribute('x1'))"
    )
    assert len(lines) == 2
    assert len(set(lines)) == 1
    tops = seen.page.evaluate(
        "[...document.querySelectorAll('.t.cur')].map((cell) => Math.round(cell.getBoundingClientRect().top))"
    )
    assert tops[0] == tops[1], "the same token stands on the same line in both panels"


def test_keyboard_walk(visit: Callable[..., Visit], report: Path, signal: dict[str, Any]) -> None:
    seen = visit(report)
    seen.page.locator('.t[data-panel="0"][data-t="0"]').click()
    assert "pin" in seen.page.locator('.t[data-panel="0"][data-t="0"]').get_attribute("class")
    seen.press("Escape", "ArrowRight", "ArrowRight")
    assert seen.cursor() == [2, 2]
    assert seen.page.evaluate("document.activeElement.dataset.t") == "2"
    seen.press("ArrowLeft")
    assert seen.cursor() == [1, 1]
    seen.press("n")
    assert seen.cursor() == [8, 8]
    seen.press("n", "p", "p")
    assert seen.cursor() == [0, 0]
    seen.press("End")
    assert seen.cursor() == [43, 43]
    seen.press("Home", "ArrowDown")
    assert seen.cursor()[0] == 8
    seen.press("g")
    values = [[abs(value) for value in context["log_ratio"]] for context in first_wrong(signal)["contexts"][:2]]
    best = max(values, key=max)
    assert seen.cursor()[0] == best.index(max(best))
    seen.press("]")
    assert seen.text(".place") == "2 / 6"
    seen.press("[", "[")
    assert seen.text(".place") == "6 / 6"
    seen.press("2")
    assert seen.page.locator(".panel-head").count() == 1
    seen.press("3", "2")
    assert seen.all(".panel-head h3") == ["StepAlignFB", "RefSol", "Verdict only"]
    seen.press("?")
    assert seen.page.locator("dialog.help").is_visible()
    seen.press("Escape")
    assert not seen.page.locator("dialog.help").is_visible()
    assert seen.complaints == []


def test_difference_mode(visit: Callable[..., Visit], report: Path, signal: dict[str, Any]) -> None:
    seen = visit(report)
    seen.page.locator('.t[data-panel="0"][data-t="22"]').click()
    seen.press("d")
    assert seen.all(".panel-head h3") == ["StepAlignFB − RefSol"]
    first, second = (context["log_ratio"] for context in first_wrong(signal)["contexts"][:2])
    (shown,) = seen.shown(".dock .value-difference")
    assert shown == pytest.approx(round(first[22], 6) - round(second[22], 6), abs=1.1e-6)
    labels = seen.page.evaluate("[...document.querySelectorAll('.t')].map((cell) => cell.getAttribute('aria-label'))")
    for token, label in enumerate(labels):
        value = float(re.findall(r"A ([+−][\d.]+)$", label)[0].replace("−", "-"))
        assert value == pytest.approx(first[token] - second[token], abs=6e-4)
    seen.page.select_option('select[aria-label="Subtrahend"]', label="Verdict only")
    assert seen.all(".panel-head h3") == ["StepAlignFB − Verdict only"]
    seen.page.locator(".panel-head").click()
    seen.press("d")
    assert seen.page.locator(".panel-head").count() > 1


def test_colours_are_the_scale_and_readable(visit: Callable[..., Visit], report: Path, signal: dict[str, Any]) -> None:
    """Every cell has the background the Python scale gives its value, and contrast in what Chromium computed."""
    values = [
        value for rollout in signal["rollouts"] for context in rollout["contexts"] for value in context["log_ratio"]
    ]
    limit = scale.shared_limit(values)
    for scheme in ("light", "dark"):
        seen = visit(report, color_scheme=scheme)
        cells = seen.page.evaluate(
            "[...document.querySelectorAll('.t')].map((cell) => { const style = getComputedStyle(cell);"
            " return [Number(cell.dataset.panel), Number(cell.dataset.t), style.backgroundColor, style.color,"
            " cell.className]; })"
        )
        assert len(cells) == 88
        paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        for panel, token, background, colour, name in cells:
            value = first_wrong(signal)["contexts"][panel]["log_ratio"][token]
            at = scale.level(value, limit)
            seen_background = paper if background == "rgba(0, 0, 0, 0)" else background
            if at:
                assert _hex(background) == scale.background(at, scheme)
            assert scale.contrast(_hex(seen_background), _hex(colour)) >= 4.5
            assert ("clip" in name.split()) == (abs(value) > limit)
            if abs(value) > 0.05 * limit:
                assert ("up" if value > 0 else "down") in name.split()


def _hex(colour: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def test_export_files_open_and_match(visit: Callable[..., Visit], report: Path, tmp_path: Path) -> None:
    seen = visit(report)
    with seen.page.expect_download() as waiting:
        seen.page.locator(".export-svg").click()
    target = tmp_path / "view.svg"
    waiting.value.save_as(target)
    assert waiting.value.suggested_filename == "rollout-r000.svg"
    root = ElementTree.parse(target).getroot()
    texts = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]
    joined = "".join(texts)
    for part in ("StepAlignFB", "RefSol", "<step_3>", "first wrong step", "<|im_end|>", "rollout r000"):
        assert part in joined
    fills = {node.get("fill") for node in root.iter("{http://www.w3.org/2000/svg}rect")}
    on_screen = set(seen.page.evaluate(
        "[...document.querySelectorAll('.t')].map((cell) => getComputedStyle(cell).backgroundColor)"
    )) - {"rgba(0, 0, 0, 0)"}  # fmt: skip
    assert on_screen <= fills
    with seen.page.expect_download() as waiting:
        seen.page.locator(".export-png").click()
    waiting.value.save_as(tmp_path / "view.png")
    assert (tmp_path / "view.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    width = int.from_bytes((tmp_path / "view.png").read_bytes()[16:20], "big")
    assert width == 2 * float(root.get("width", "0"))
    with seen.page.expect_download():
        seen.page.locator('.t[data-panel="0"][data-t="3"]').click()
        seen.press("e")
    assert seen.complaints == []
    # The exported drawing itself renders without a request.
    assert seen.requests[0] == report.as_uri()
    assert all(url.startswith("blob:") for url in seen.requests[1:])


def test_deep_links_open_what_they_say(visit: Callable[..., Visit], report: Path) -> None:
    seen = visit(report, "#rollout=r003&t=17&c=2,3&d=1")
    assert seen.text(".place") == "4 / 6"
    assert seen.cursor() == [17]
    assert seen.all(".panel-head h3") == ["RefSol − Verdict only"]
    seen = visit(report, "#rollout=2&t=9999")
    assert seen.text(".place") == "2 / 6"
    assert seen.cursor()[0] == 43
    seen.press("ArrowLeft")
    assert "rollout=r001" in seen.page.url
    assert "t=42" in seen.page.url
    for broken in ("#rollout=nothing&t=x", "#rollout=&t=-3&c=9,0,x", "#rollout=%00"):
        assert visit(report, broken).complaints == []


def test_filter_fold_and_scale_switches(visit: Callable[..., Visit], report: Path) -> None:
    seen = visit(report)
    seen.page.locator(".chip", has_text="Fully correct").click()
    assert seen.page.locator(".rollouts li").count() == 2
    before = seen.page.locator(".t").count()
    seen.page.locator(".step-head button").first.click()
    assert seen.page.locator(".t").count() == before - 16
    assert seen.page.locator(".step-head button").first.get_attribute("aria-expanded") == "false"
    seen.page.locator(".step-head button").first.press("Enter")
    assert seen.page.locator(".t").count() == before
    classes = "[...document.querySelectorAll('.t')].map((cell) => cell.className).join()"
    linear = seen.page.evaluate(classes)
    seen.page.locator(".chip", has_text="log scale").click()
    assert seen.page.evaluate(classes) != linear
    assert seen.page.locator(".ticks span").all_inner_texts()[2] == "0"


@pytest.mark.parametrize("payload", fixtures.HOSTILE)
def test_hostile_text_is_inert(visit: Callable[..., Visit], tmp_path: Path, payload: str) -> None:
    (tmp_path / "results.json").write_text(json.dumps(fixtures.make_hostile_results(payload)))
    (tmp_path / "signal.json").write_text(json.dumps(fixtures.make_hostile_signal(payload)))
    seen = visit(write_report(tmp_path))
    seen.press("d", "g", "]")
    seen.page.locator(".t").first.hover()
    assert seen.page.evaluate("window.hit") is None
    assert len(seen.requests) == 1
    assert seen.complaints == []
    assert seen.page.locator("main img, main iframe, main a[href^=javascript]").count() == 0
    assert not set(seen.page.locator("body").inner_text()) & set("\x00\x1b\x7f\x9b\u202e\u2028\u200b")


def test_special_and_whitespace_tokens_are_visible(visit: Callable[..., Visit], report: Path) -> None:
    seen = visit(report)
    assert seen.page.locator(".t.special").first.inner_text() == "<|im_end|>"
    assert seen.page.locator('.t[data-panel="0"][data-t="7"]').inner_text() == "⏎"
    assert seen.page.locator('.t[data-panel="0"][data-t="1"]').inner_text() == "·"
    seen.page.locator(".chip", has_text="blanks").click()
    assert seen.page.locator('.t[data-panel="0"][data-t="3"]').inner_text().startswith("·")


def test_everything_has_a_name(visit: Callable[..., Visit], report: Path) -> None:
    """Names and roles a screen reader needs; a small stand-in for a full audit."""
    seen = visit(report)
    nameless = seen.page.evaluate(
        "[...document.querySelectorAll('button, select, [role=img], [role=region], [role=list],"
        " svg:not([aria-hidden])')].filter((node) => !node.textContent.trim() && !node.getAttribute('aria-label'))"
        ".map((node) => node.outerHTML.slice(0, 90))"
    )
    assert nameless == []
    assert seen.page.evaluate("document.querySelectorAll('.t:not([aria-label])').length") == 0
    assert seen.page.evaluate("document.querySelectorAll('.panels .t[tabindex=\"0\"]').length") == 1
    orphans = seen.page.evaluate(
        "[...document.querySelectorAll('[role=listitem]')].filter((node) => !node.closest('[role=list]')).length"
    )
    assert orphans == 0


def test_a_page_of_fifty_long_rollouts_opens_quickly(visit: Callable[..., Visit], tmp_path: Path) -> None:
    from test_report_payload import long_signal

    signal = long_signal(4, 4096, 2, 0)
    signal["rollouts"] = [
        rollout | {"rollout_id": f"r{index}"} for index, rollout in enumerate(signal["rollouts"] * 12)
    ]
    page = write_token_page(signal, tmp_path / "long.html")
    seen = visit(page)
    assert seen.page.locator(".t").count() == 2 * 4096
    assert seen.page.locator(".rollouts li").count() == 48
    seen.page.locator('.t[data-t="0"]').first.focus()
    seen.press("]")
    assert seen.text(".place") == "2 / 48"
    assert seen.complaints == []
