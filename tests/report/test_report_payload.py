from __future__ import annotations

import base64
import copy
import json
import zlib
from typing import Any

import pytest
import report_fixtures as fixtures

from stepalign.report.page import token_html
from stepalign.report.payload import index_of, page_elements, viewer_data


def stored(signal: dict[str, Any]) -> dict[str, Any]:
    """The data as a page holds them: index and rollouts, unpacked."""
    index, rollouts, _ = page_elements(signal)
    opened = [json.loads(text) for text in rollouts]
    opened = [json.loads(zlib.decompress(base64.b64decode(r))) if isinstance(r, str) else r for r in opened]
    return json.loads(index) | {"opened": opened}


def test_six_digits_survive_the_packing(signal: dict[str, Any]) -> None:
    data = stored(signal)
    for rollout, shown in zip(signal["rollouts"], data["opened"], strict=True):
        for context, packed in zip(rollout["contexts"], shown["contexts"], strict=True):
            student = packed.get("student") or shown["student"]
            for token, value in enumerate(context["log_ratio"]):
                assert packed["a"][token] == round(value, 6)
                assert student[token] == round(context["student_log_prob"][token], 6)
                teacher = (student[token] + packed["a"][token]) * 1e6 + packed["rest"][token]
                assert round(teacher) == round(context["teacher_log_prob"][token] * 1e6)


def test_the_index_says_what_the_list_shows(signal: dict[str, Any]) -> None:
    lines = stored(signal)["rollouts"]
    for line, rollout in zip(lines, signal["rollouts"], strict=True):
        series = [context["log_ratio"] for context in rollout["contexts"]]
        assert line["tokens"] == len(rollout["tokens"])
        assert line["strongest"] == pytest.approx(max(abs(value) for values in series for value in values), abs=1e-6)
        for bars, values in zip(line["bars"], series, strict=True):
            assert len(bars) == len(values)  # fewer tokens than bars: one each
            assert bars == pytest.approx(values, abs=5.1e-4)


def test_long_rollouts_show_the_strongest_of_each_stretch() -> None:
    signal = fixtures.long_signal(1, 1000, 1, 0)
    values = signal["rollouts"][0]["contexts"][0]["log_ratio"]
    (bars,) = index_of(viewer_data(signal))["rollouts"][0]["bars"]
    assert len(bars) == 48
    assert max(map(abs, bars)) == pytest.approx(max(map(abs, values)), abs=5.1e-4)
    assert bars[0] == pytest.approx(max(values[:20], key=abs), abs=5.1e-4)


ATTEMPT = "<step_1> 1 + 1 = 2 <step_2> 2 + 2 = 5 <step_3> 5 + 1 = 6 <answer> 6"
FEEDBACK = "<step_1> 1 + 1 = 2 <step_2> 2 + 2 = 4 <step_3> 4 + 1 = 5 <step_4> so 5 <answer> 5"


def _words_signal(attempt: str, feedback: str) -> dict[str, Any]:
    tokens, at = [], 0
    for word in attempt.split(" "):
        tokens.append({"text": word, "start": at, "end": at + len(word), "id": 1})
        at += len(word) + 1
    starts = [at for at in range(len(attempt)) if attempt[at] == "<"] or [0]
    steps = [{"label": str(i + 1), "start": start} for i, start in enumerate(starts)]
    context = {"name": "c", "text": feedback, "log_ratio": [0.0] * len(tokens)}
    return {"rollouts": [{"text": attempt, "tokens": tokens, "steps": steps, "contexts": [context]}]}


def test_feedback_is_beside_its_steps() -> None:
    (context,) = viewer_data(_words_signal(ATTEMPT, FEEDBACK))["rollouts"][0]["contexts"]
    shown = [(step, fate, FEEDBACK[start:end].strip()) for step, fate, _, start, end in context["rows"]]
    assert shown == [
        (0, "copied", "<step_1> 1 + 1 = 2"),
        (1, "edited", "<step_2> 2 + 2 = 4"),
        (2, "edited", "<step_3> 4 + 1 = 5"),
        (2, "added", "<step_4> so 5"),
        (3, "edited", "<answer> 5"),
    ]
    assert context["alignment"]["copied"] == 1
    assert context["alignment"]["verbatim_share"] == 1.0


@pytest.mark.parametrize("feedback", ["", "wrong", "The second sum is off by one.\n\nLook again."])
def test_feedback_without_steps_has_no_rows(feedback: str) -> None:
    (context,) = viewer_data(_words_signal(ATTEMPT, feedback))["rollouts"][0]["contexts"]
    assert context["rows"] == []
    assert context["alignment"] is None


def test_the_students_side_is_stored_once_when_all_contexts_agree(signal: dict[str, Any]) -> None:
    shown = viewer_data(signal)["rollouts"][0]
    assert "student" in shown
    assert all("student" not in context for context in shown["contexts"])
    other = copy.deepcopy(signal)
    other["rollouts"][0]["contexts"][1]["student_log_prob"][3] -= 1
    shown = viewer_data(other)["rollouts"][0]
    assert "student" not in shown
    assert shown["contexts"][0]["student"] != shown["contexts"][1]["student"]


def test_pieces_and_gaps_join_to_the_text(signal: dict[str, Any]) -> None:
    data = copy.deepcopy(signal)
    del data["rollouts"][0]["tokens"][5:8]
    for context in data["rollouts"][0]["contexts"]:
        for key, values in context.items():
            if isinstance(values, list):
                del context[key][5:8]
    for rollout, shown in zip(data["rollouts"], viewer_data(data)["rollouts"], strict=True):
        pieces = [piece for index, piece in enumerate(shown["pieces"]) if index not in shown["special"]]
        joined = "".join(shown["gaps"].get(index, "") + piece for index, piece in enumerate(pieces))
        assert joined + shown["gaps"].get(len(shown["pieces"]), "") == rollout["text"]


def test_pieces_of_one_character_are_joined() -> None:
    """An emoji in three tokens: two styles of offsets, none of which may show a broken character."""
    for spans in (((0, 1), (1, 1), (1, 1)), ((0, 1), (0, 1), (0, 1))):
        tokens = [{"text": "\ufffd", "start": start, "end": end, "id": 1, "special": False} for start, end in spans]
        tokens.append({"text": "x", "start": 1, "end": 2, "id": 2, "special": False})
        rollout = {"rollout_id": "a", "text": "😀x", "tokens": tokens, "steps": [], "contexts": []}
        shown = viewer_data({"rollouts": [rollout]})["rollouts"][0]
        assert shown["pieces"][0] == "😀"
        assert shown["joined"] == [1, 2]
        assert shown["pieces"][3] == "x"


def test_steps_cover_every_token_once(signal: dict[str, Any]) -> None:
    for rollout, shown in zip(signal["rollouts"], viewer_data(signal)["rollouts"], strict=True):
        covered = [token for step in shown["steps"] for token in range(step[2], step[3])]
        assert covered == list(range(len(rollout["tokens"])))
        assert [step[0] for step in shown["steps"]] == [step["label"] for step in rollout["steps"]]
        for step, span in zip(shown["steps"], rollout["steps"], strict=True):
            assert rollout["tokens"][step[2]]["start"] == span["start"]


def test_a_word_with_a_blank_in_front_belongs_to_the_step_it_names() -> None:
    """Steps are cut at the tag, words are tokens with the blank before them: the tag must open its own step."""
    text = "<step_1> 6 . <step_2> 7"
    pieces = ["<step_1>", " 6", " .", " <step_2>", " 7"]
    at, tokens = 0, []
    for piece in pieces:
        tokens.append({"text": piece, "start": at, "end": at + len(piece), "id": 1, "special": False})
        at += len(piece)
    steps = [{"label": "1", "start": 0, "end": 13}, {"label": "2", "start": 13, "end": len(text)}]
    shown = viewer_data({"rollouts": [{"text": text, "tokens": tokens, "steps": steps, "contexts": []}]})["rollouts"][0]
    assert [step[2:] for step in shown["steps"]] == [[0, 3], [3, 5]]


def test_a_rollout_without_steps_is_one_stretch(signal: dict[str, Any]) -> None:
    bare = copy.deepcopy(signal)
    bare["rollouts"][0]["steps"] = []
    assert viewer_data(bare)["rollouts"][0]["steps"] == [["", "unknown", 0, 44]]


def test_missing_series_and_nan_are_null(signal: dict[str, Any]) -> None:
    holed = copy.deepcopy(signal)
    context = holed["rollouts"][0]["contexts"][0]
    del context["forward_kl"], context["top_teacher"]
    context["log_ratio"][2] = float("nan")
    shown = viewer_data(holed)["rollouts"][0]["contexts"][0]
    assert set(shown["kl"]) == {None}
    assert shown["top"] is None
    assert shown["a"][2] is None
    assert shown["rest"][2] is None


@pytest.mark.slow
@pytest.mark.parametrize("top", [0, 5])
def test_ten_long_rollouts_fit_one_megabyte(top: int) -> None:
    html = token_html(fixtures.long_signal(10, 2048, 2, top))
    assert len(html.encode()) <= 1_000_000
