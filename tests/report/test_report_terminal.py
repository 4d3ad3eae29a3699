from __future__ import annotations

import io
import re
from typing import Any

import pytest
import report_fixtures as fixtures
from rich.console import Console

from stepalign.errors import ConfigError
from stepalign.report.table import results_markdown, results_table
from stepalign.report.terminal import print_rollout

ESCAPES = re.compile(r"\x1b\[[0-9;:]*m")


def console(*, colour: bool, width: int = 140) -> Console:
    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        no_color=not colour,
    )


def printed(at: Console) -> str:
    assert isinstance(at.file, io.StringIO)
    return at.file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_table_has_the_numbers_of_the_file(results: dict[str, Any], width: int) -> None:
    """Pass, Maj, Avg, length and costs fit a terminal of 80 columns; the page and the Markdown table hold the rest."""
    out = console(colour=False, width=width)
    out.print(results_table(results))
    shown = printed(out)
    for metric in results["metrics"]:
        if metric["seed"] is None and metric["metric"] in {"pass@12", "maj@12", "avg@12", "mean_length"}:
            factor, unit = (1, "") if metric["metric"] == "mean_length" else (100, " %")
            assert f"{factor * metric['value']:.1f}{unit}" in shown
            assert f"{factor * metric['low']:.1f}–{factor * metric['high']:.1f}" in shown
    words = " ".join(shown.split())
    assert "the last checkpoint of every run" in words
    assert "order of arms depends on the axis" in words


def test_markdown_table_parses_and_names_its_rule(results: dict[str, Any]) -> None:
    lines = results_markdown(results).splitlines()
    assert "checkpoint: the last checkpoint of every run" in lines[0]
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 5
    assert len({line.count("|") for line in table}) == 1
    (row,) = [line for line in table if line.startswith("| StepAlignFB")]
    metric = next(
        row
        for row in results["metrics"]
        if row["arm"] == "stepalign" and row["seed"] is None and row["metric"] == "avg@12"
    )
    assert f"{100 * metric['value']:.1f} % ({100 * metric['low']:.1f} to {100 * metric['high']:.1f})" in row
    assert f"{metric['numerator']:,} of {metric['denominator']:,}" in "\n".join(lines)


@pytest.mark.parametrize("payload", fixtures.HOSTILE)
def test_hostile_labels_are_inert_in_tables(payload: str) -> None:
    results = fixtures.make_hostile_results(payload)
    out = console(colour=False, width=300)
    out.print(results_table(results))
    assert not set(printed(out)) & set("\x00\x07\x1b\x9b\u202e\u2028")
    for line in results_markdown(results).splitlines():
        assert "<script" not in line
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 11


@pytest.mark.parametrize("colour", [True, False])
def test_rollout_text_is_complete(signal: dict[str, Any], colour: bool) -> None:
    out = console(colour=colour)
    print_rollout(signal, 0, contexts=["step_aligned"], console=out)
    plain = ESCAPES.sub("", printed(out))
    for line in signal["rollouts"][0]["text"].splitlines():
        assert re.sub(r"\([−+][\d.]+\)", "", plain).find(line) >= 0
    assert "first wrong step" in plain
    assert "⟨<|im_end|>⟩" in plain


def test_messages_and_answers_of_several_turns_have_names(signal: dict[str, Any]) -> None:
    rollout = signal["rollouts"][0]
    for step, label in zip(rollout["steps"], ("1.answer", "tool", "2.1"), strict=False):
        step["label"] = label
    out = console(colour=False)
    print_rollout(signal, 0, contexts=["step_aligned"], console=out)
    names = [line.partition("  sum ")[0] for line in printed(out).splitlines() if "  sum " in line]
    assert names[1:4] == ["answer 1", "the tool", "step 2.1"]


def test_colours_come_only_when_wanted(signal: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    out = console(colour=True)
    print_rollout(signal, 0, console=out)
    assert re.search(r"\x1b\[[\d;:]*48;2", printed(out))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    quiet = Console(file=io.StringIO(), width=140, force_terminal=True)
    print_rollout(signal, 0, console=quiet)
    assert not re.search(r"[34]8;[25]", printed(quiet))
    # Without colours the strongest tokens carry their value.
    rollout = signal["rollouts"][0]["contexts"][0]["log_ratio"]
    assert f"({min(rollout):.1f})".replace("-", "−") in ESCAPES.sub("", printed(quiet))


@pytest.mark.parametrize("payload", fixtures.HOSTILE)
def test_no_control_character_of_a_model_reaches_the_terminal(payload: str) -> None:
    out = console(colour=True)
    print_rollout(fixtures.make_hostile_signal(payload), 0, console=out)
    assert not set(ESCAPES.sub("", printed(out))) & set("\x00\x07\x08\x1b\x7f\x9b\u202e\u2028\u2029\u200b\ufeff")


def test_unknown_rollout_or_context_is_a_user_error(signal: dict[str, Any]) -> None:
    for wrong in (99, "nothing", -1):
        with pytest.raises(ConfigError, match="no rollout"):
            print_rollout(signal, wrong, console=console(colour=False))
    with pytest.raises(ConfigError, match="no context"):
        print_rollout(signal, "r001", contexts=["x"], console=console(colour=False))


@pytest.mark.parametrize(("width", "beside"), [(60, False), (100, False), (160, True)])
def test_contexts_are_beside_each_other_where_there_is_room(signal: dict[str, Any], width: int, beside: bool) -> None:
    out = console(colour=False, width=width)
    print_rollout(signal, 0, contexts=["step_aligned", "reference"], console=out)
    lines = printed(out).splitlines()
    assert max(map(len, lines)) <= width
    assert any("StepAlignFB" in line and "RefSol" in line for line in lines) == beside
