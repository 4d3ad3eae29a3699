"""The page in a real Chromium: what a reader sees, hovers, types and saves."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import report_fixtures as fixtures
from hostile import HOSTILE
from rich.console import Console

from stepalign.report import scale
from stepalign.report.page import write_report, write_token_page
from stepalign.report.terminal import print_rollout
from stepalign.report.text import visible

pytestmark = pytest.mark.browser

READY = ".viewer.ready"


class Visit:
    """One open page with everything it asked for and complained about."""

    def __init__(self, browser: Any, path: Path, fragment: str = "", **options: Any) -> None:
        self.context = browser.new_context(
            **({"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options)
        )
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append("dialog") or dialog.dismiss())
        self.page.goto(path.as_uri() + fragment)
        self.page.wait_for_selector(READY)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def all(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def address(self) -> str:
        """As the page has it: the driver hears of a changed fragment a moment later."""
        return self.page.evaluate("location.href")

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


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, results: dict[str, Any], signal: dict[str, Any]) -> Path:
    """One page for all: a browser only reads it."""
    return write_report(fixtures.fill(tmp_path_factory.mktemp("report"), results, signal))


def first_wrong(signal: dict[str, Any]) -> dict[str, Any]:
    """The rollout the viewer opens with."""
    return next(rollout for rollout in signal["rollouts"] if rollout["case"] == "one_wrong_step")


@pytest.mark.slow
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


@pytest.mark.parametrize("width", [1280, 900, 390])
def test_no_alternative_is_cut_off(visit: Callable[..., Visit], report: Path, width: int) -> None:
    """Beside the values or below them, the lists of alternatives have room in the card."""
    seen = visit(report, "#rollout=r000&t=22&c=1,2", viewport={"width": width, "height": 900})
    box, card = (seen.page.locator(name).bounding_box() for name in (".tops", ".dock"))
    assert box["x"] >= card["x"]
    assert box["x"] + box["width"] <= card["x"] + card["width"]
    if width > 820:  # a phone scrolls the lists sideways
        assert seen.page.evaluate("(tops => tops.scrollWidth - tops.clientWidth)(document.querySelector('.tops'))") <= 0


def test_text_that_the_tokenizer_does_not_know_carries_a_note(
    visit: Callable[..., Visit], signal: dict[str, Any], tmp_path: Path
) -> None:
    rollouts = [
        {**rollout, "unknown_tokens": count} for rollout, count in zip(signal["rollouts"], (40, 1), strict=False)
    ]
    seen = visit(write_token_page({**signal, "rollouts": rollouts}, tmp_path / "unknown.html"), "#rollout=1")
    assert seen.text(".note-unknown").endswith("unknown to this model’s tokenizer: the numbers mean little.")
    seen.press("]")
    seen.page.locator(".place", has_text="2 / 2").wait_for()
    assert seen.text(".note-unknown").startswith("1 of ")
    assert seen.text(".note-unknown").endswith("is unknown to this model’s tokenizer.")


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


@pytest.mark.slow
def test_deep_links_open_what_they_say(visit: Callable[..., Visit], report: Path) -> None:
    seen = visit(report, "#rollout=r003&t=17&c=2,3&d=1")
    assert seen.text(".place") == "4 / 6"
    assert seen.cursor() == [17]
    assert seen.all(".panel-head h3") == ["RefSol − Verdict only"]
    seen = visit(report, "#rollout=2&t=9999")
    assert seen.text(".place") == "2 / 6"
    assert seen.cursor()[0] == 43
    seen.press("ArrowLeft")
    assert "rollout=r001" in seen.address()
    assert "t=42" in seen.address()
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


WALK = """async () => {
  const shown = [];
  for (let place = 1; ; place += 1) {
    const at = () => document.querySelector('.place').textContent;
    while (!at().startsWith(place + ' / ')) await new Promise((tick) => setTimeout(tick, 2));
    shown.push([document.querySelector('.question .raw').textContent, document.querySelector('.panels').textContent]);
    if (place === document.querySelectorAll('.rollouts li').length) return shown;
    document.querySelector('[aria-label="Next rollout"]').click();
  }
}"""


def hostile_signal() -> dict[str, Any]:
    """One rollout per hostile text, in every field that holds text; some in the fields of the whole page too."""
    signals = [fixtures.make_hostile_signal(payload) for payload in HOSTILE]
    whole = signals[0]
    for place, context in enumerate(whole["contexts"]):
        context["label"] = "".join(HOSTILE[place::40])
    whole["unit"] = whole["definition"] = "".join(HOSTILE[5::40])
    whole["rollouts"] = [signal["rollouts"][0] for signal in signals]
    return whole


@pytest.mark.slow
def test_two_hundred_hostile_texts_are_inert(visit: Callable[..., Visit], tmp_path: Path) -> None:
    assert len(HOSTILE) >= 200
    seen = visit(write_token_page(hostile_signal(), tmp_path / "hostile.html"), "#rollout=1")
    shown = seen.page.evaluate(WALK)
    assert [text for text, _ in shown] == [visible(payload) for payload in HOSTILE]
    invisible = set("\x00\x1b\x7f\x9b\u202e\u2028\u200b")
    assert not set("".join(text for pair in shown for text in pair)) & invisible
    seen.page.locator(".t").first.hover()
    seen.press("d", "c", "g")
    assert seen.page.evaluate("window.hit") is None
    assert seen.page.title() != "hit"
    assert len(seen.requests) == 1
    assert seen.complaints == []
    own = "script, style, iframe, a, img, object, embed, base, form:not([method=dialog])"
    found = f"[...document.querySelector('main').querySelectorAll('{own}')].map((node) => node.type || node.tagName)"
    kinds = seen.page.evaluate(found)
    assert set(kinds) == {"application/json"}


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


CODE = {
    "model": "m", "temperature": 1.0, "unit": "nats",
    "contexts": [{"name": name} for name in ("hint", "step_aligned", "other", "reference")],
    "rollouts": [{
        "rollout_id": "r", "question": "Write it.", "verdict": "incorrect", "case": "one_wrong_step",
        "text": "def fizz(i):\n    if i = 3:\n        return internationalization",
        "tokens": [{"text": text, "start": start, "end": start + len(text), "id": 1} for start, text in (
            (0, "def"), (3, " fizz"), (8, "(i):"), (12, "\n   "), (16, " if"), (19, " i = 3"), (25, ":"),
            (26, "\n       "), (34, " return"), (41, " intern"), (48, "ation"), (53, "alization"))],
        "steps": [{"label": "1", "start": 0, "end": 13, "status": "right"},
                  {"label": "2", "start": 13, "end": 27, "status": "wrong"},
                  {"label": "3", "start": 27, "end": 62, "status": "after_error"}],
        "contexts": [{"name": name, "text": "x", "log_ratio": [0.5] * 12}
                     for name in ("hint", "step_aligned", "other", "reference")],
    }],
}  # fmt: skip


def test_tokens_are_in_the_first_screen_and_their_letters_join(tmp_path: Path, chromium: Any) -> None:
    seen = Visit(chromium, write_token_page(CODE, tmp_path / "index.html"))
    first = seen.page.locator(".t").first.bounding_box()
    assert first["y"] + first["height"] < seen.page.locator(".dock").bounding_box()["y"] <= 900
    assert seen.all(".panel-head h3") == ["step_aligned", "reference"]
    panel = seen.page.locator('.cell[data-step="2"]').first
    boxes = [panel.locator(".t").nth(at).bounding_box() for at in (1, 2, 3)]  # one word in three tokens
    for left, right in pairwise(boxes):
        assert right["x"] == pytest.approx(left["x"] + left["width"], abs=0.01)
    # the indentation is shown where its line begins, although it is written by the token before
    assert panel.locator(".run").evaluate("run => run.textContent").startswith("        return intern")
    document = seen.page.evaluate("[...document.querySelectorAll('section')].map(section => section.id)")
    assert document.index("tokens") == 0
    out = StringIO()
    print_rollout(CODE, 0, contexts=["hint"], console=Console(file=out, width=100, no_color=True))
    assert "\n        return" in out.getvalue().replace("(+0.5)", "")


def test_a_long_page_draws_what_is_asked_for_first_and_the_rest_later(
    visit: Callable[..., Visit], tmp_path: Path
) -> None:

    seen = visit(write_token_page(fixtures.long_signal(3, 4096, 2, 0), tmp_path / "long.html"), "#rollout=2&t=4000")
    assert seen.text(".place") == "2 / 3"
    assert seen.cursor() == [4000, 4000]
    assert seen.page.locator(".t").count() == 2 * 4096, "a link to the end of a rollout draws all of it"
    seen.page.locator('.t[data-t="0"]').first.focus()
    seen.press("]")
    seen.page.locator(".place", has_text="3 / 3").wait_for()
    seen.page.locator('.t[data-panel="1"][data-t="4095"]').wait_for(state="attached")
    assert seen.page.locator(".t").count() == 2 * 4096
    seen.press("End")
    assert seen.cursor() == [4095, 4095]
    assert seen.complaints == []


def test_contexts_beyond_the_ninth_are_shown_by_name(visit: Callable[..., Visit], tmp_path: Path) -> None:
    signal = fixtures.make_signal(rollouts=1, contexts=1)
    names = [f"design-{number}" for number in range(12)]
    (rollout,) = signal["rollouts"]
    rollout["contexts"] = [{**rollout["contexts"][0], "name": name} for name in names]
    signal |= {"contexts": [{"name": name, "label": name} for name in names], "localisation": []}
    seen = visit(write_token_page(signal, tmp_path / "many.html"))
    pressed = '.chip.context[aria-pressed="true"] span'
    assert seen.all(pressed) == names[:2]
    seen.page.get_by_label("Show another context").select_option(label="design-10")
    assert seen.all(pressed) == [*names[:2], "design-10"]
    assert seen.all(".panel-head h3") == [*names[:2], "design-10"]
    seen.page.locator(".chip.context", has_text="design-10").click()
    assert seen.all(pressed) == names[:2]
    assert seen.page.get_by_label("Show another context").locator("option").count() == 1 + 3
    assert seen.complaints == []


def test_pins_hold_the_card_and_are_copied_together(
    visit: Callable[..., Visit], report: Path, signal: dict[str, Any]
) -> None:
    seen = visit(report)
    seen.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for token in (22, 30):
        seen.page.locator(f'.t[data-panel="0"][data-t="{token}"]').click()
    seen.page.locator('.t[data-panel="0"][data-t="7"]').hover()
    assert "token 30 of 44" in seen.text(".dock"), "a pinned card does not follow the pointer"
    values = [context["log_ratio"][7] for context in first_wrong(signal)["contexts"][:2]]
    assert seen.shown(".peek p b") == [round(value, 6) for value in values]
    assert seen.page.locator(".pins li").count() == 2
    seen.page.locator(".copy").click()
    seen.page.locator(".copy", has_text="copied").wait_for()
    cards = json.loads(seen.page.evaluate("navigator.clipboard.readText()"))
    assert [card["token"] for card in cards] == [22, 30]
    for card in cards:
        for context in first_wrong(signal)["contexts"]:
            assert card["contexts"][context["name"]]["ratio"] == round(context["log_ratio"][card["token"]], 6)
    seen.page.locator(".unpin").first.click()
    assert "pins=30" in seen.address()
    seen.press("Escape")
    assert seen.page.locator(".pins").count() == 0


def test_the_feedback_is_beside_the_attempt_step_by_step(
    visit: Callable[..., Visit], report: Path, signal: dict[str, Any]
) -> None:
    seen = visit(report)
    seen.page.locator(".panel-head").first.click()
    seen.press("c")
    rollout = first_wrong(signal)
    lines = rollout["reference"].split("\n")
    for at, line in enumerate(lines[:-1]):  # the last step of the attempt goes on into its answer
        row = seen.page.locator(f'.cell[data-step="{at}"]').first
        assert " ".join(row.locator(".feedback-step").inner_text().split()) == line
        own = rollout["text"].split("\n")[at]
        kept = " ".join(own.split()) == line
        assert row.locator(".fate").inner_text() == ("kept" if kept else "rewritten")
        fresh = row.locator("ins").all_inner_texts()
        assert all(word in line.split() for word in fresh)
        assert bool(fresh) == (not kept)
    boxes = [
        seen.page.locator(f'.cell[data-step="2"] {part}').first.bounding_box() for part in (".run", ".feedback-step")
    ]
    assert boxes[1]["y"] > boxes[0]["y"], "two contexts: the feedback stands below the tokens"
    seen.press("2")
    box, beside = [
        seen.page.locator(f'.cell[data-step="2"] {part}').first.bounding_box() for part in (".run", ".feedback-step")
    ]
    assert seen.page.locator(".panel-head").count() == 1
    assert beside["x"] > box["x"] + box["width"] - 1
    assert abs(beside["y"] - box["y"]) < 12, "one context: side by side, on the same row"


def test_search_and_filters(visit: Callable[..., Visit], report: Path, signal: dict[str, Any]) -> None:
    seen = visit(report)
    seen.page.locator(".chip", has_text=re.compile("^correct")).click()
    right = [rollout for rollout in signal["rollouts"] if rollout["verdict"] == "correct"]
    assert seen.page.locator(".rollouts li").count() == len(right)
    seen.page.locator(".chip", has_text=re.compile("^correct")).click()
    seen.page.locator('.t[data-t="0"]').first.focus()
    seen.press("/")
    assert seen.page.evaluate("document.activeElement.type") == "search"
    words = first_wrong(signal)["text"].split("\n")[1][4:]
    seen.page.keyboard.type(words.upper())
    expected = [rollout for rollout in signal["rollouts"] if words in rollout["text"] or words in rollout["question"]]
    seen.page.locator(".found", has_text=re.compile(f"^{len(expected)} rollout")).wait_for()
    assert seen.page.locator(".rollouts li").count() == len(expected)
    hit = "[...document.querySelectorAll('.t.hit[data-panel=\"0\"]')].map((cell) => cell.textContent).join('')"
    assert seen.page.evaluate(hit).replace("·", " ") == first_wrong(signal)["text"].split("\n")[1]
    seen.press("Enter", "Escape")
    assert seen.page.locator(".rollouts li").count() == len(signal["rollouts"])
    assert seen.page.locator(".t.hit").count() == 0
    assert seen.page.evaluate("document.activeElement.className.split(' ')[0]") == "t"


def test_dragging_across_a_strip_looks_closer_in_all_of_them(visit: Callable[..., Visit], report: Path) -> None:
    seen = visit(report)
    strip = seen.page.locator(".strip").first
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 70)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 70, steps=3)
    seen.page.mouse.up()
    names = (
        "[...document.querySelectorAll('.strip')].map((node) => node.getAttribute('aria-label').split(', tokens ')[1])"
    )
    ranges = seen.page.evaluate(names)
    assert len(ranges) == 2
    assert len(set(ranges)) == 1
    start, end = (int(part) for part in ranges[0].split(" to "))
    assert 8 <= start <= 14
    assert 22 <= end <= 28
    assert f"range={start}-{end + 1}" in seen.address()
    bars = "document.querySelector('.strip .bars.plus').getAttribute('d').split('M').length - 1"
    bars += "+ document.querySelector('.strip .bars.minus').getAttribute('d').split('M').length - 1"
    assert seen.page.evaluate(bars) == end + 1 - start
    seen.page.locator('.t[data-t="40"]').first.focus()
    start, end = (int(part) for part in seen.page.evaluate(names)[0].split(" to "))
    assert start <= 40 <= end, "the strips follow the cursor"
    seen.press("0")
    assert seen.page.evaluate(names)[0] == "0 to 43"
    seen.press("+")
    assert seen.page.evaluate(names)[0] == "22 to 43"
    assert seen.complaints == []


def test_a_fixed_limit_is_the_same_for_every_rollout(visit: Callable[..., Visit], report: Path) -> None:
    seen = visit(report)
    seen.page.select_option('select[aria-label="Limit of the colour scale"]', "fixed")
    seen.page.locator(".fixed").fill("2.5")
    seen.page.locator(".fixed").press("Enter")
    assert seen.all(".ticks span")[-1] == "+2.50"
    assert "limit=2.5" in seen.address()
    again = visit(report, "#" + seen.address().split("#")[1])
    assert again.all(".ticks span")[-1] == "+2.50"


def test_the_numbers_file_holds_the_stored_numbers(
    visit: Callable[..., Visit], report: Path, signal: dict[str, Any], tmp_path: Path
) -> None:
    seen = visit(report)
    with seen.page.expect_download() as waiting:
        seen.page.locator(".export-csv").click()
    waiting.value.save_as(tmp_path / "numbers.csv")
    with (tmp_path / "numbers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rollout = first_wrong(signal)
    assert [json.loads(row["text"]) for row in rows] == [token["text"] for token in rollout["tokens"]]
    for context in rollout["contexts"]:
        for key in ("log_ratio", "teacher_log_prob"):
            column = [float(row[f"{context['name']}.{key}"]) for row in rows]
            assert column == pytest.approx([round(value, 6) for value in context[key]], abs=1.1e-6)


def test_page_and_terminal_state_the_same_sums(
    visit: Callable[..., Visit], report: Path, signal: dict[str, Any]
) -> None:
    seen = visit(report, "#rollout=r000&c=1")
    out = StringIO()
    print_rollout(signal, "r000", contexts=["step_aligned"], console=Console(file=out, width=200, color_system=None))
    printed = re.findall(r"sum ([+−]?[\d.]+)\n|sum ([+−]?[\d.]+)  ", out.getvalue().replace(" nats", ""))
    sums = [text.split()[1] for text in seen.all(".step-sum")]
    assert sums == [first or second for first, second in printed][1:]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_accessibility_audit_finds_nothing(visit: Callable[..., Visit], report: Path, scheme: str) -> None:
    """axe-core: roles, names, focus order, and contrast of at least 4.5:1 as Chromium computed it."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    seen = visit(report, "#rollout=r000&t=22&pins=22,30&f=1", color_scheme=scheme)
    for options in ("", "d"):
        seen.press(*options)
        seen.page.evaluate(source)
        found = seen.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert [
            (problem["id"], [(node["html"][:160], node["failureSummary"][:300]) for node in problem["nodes"][:3]])
            for problem in found["violations"]
        ] == []
