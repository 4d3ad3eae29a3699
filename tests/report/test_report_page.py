from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import report_fixtures as fixtures
from report_html import Node, read_html

from stepalign.config import CheckpointRule
from stepalign.errors import ConfigError
from stepalign.report import page, template
from stepalign.report.curves import equal_budgets
from stepalign.report.localisation import localisation_rows
from stepalign.report.page import report_html, token_html, write_report, write_token_page
from stepalign.report.results_schema import CHECKPOINT_RULES, read_results

SHARES = {"pass@12": "Pass@12", "maj@12": "Maj@12", "avg@12": "Avg@12", "truncated_share": "Truncated"}


def table_rows(document: Node, selector: str, index: int = 0) -> dict[str, dict[str, Node]]:
    """Row name -> column heading -> cell of the index-th table of a class."""
    table = document.classed(selector)[index]
    heads = [head.words for head in table.all("thead")[0].all("th")]
    rows = {}
    for row in table.all("tbody")[0].all("tr"):
        cells = [child for child in row.children if isinstance(child, Node)]
        rows[cells[0].words] = dict(zip(heads[1:], cells[1:], strict=True))
    return rows


def test_write_report_writes_one_file(folder: Path) -> None:
    target = write_report(folder)
    assert target == folder / "report.html"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "results.json", "signal.json"]
    read_html(target.read_text(encoding="utf-8"))


def test_every_number_of_the_results_table_equals_the_file(results: dict[str, Any]) -> None:
    document = read_html(report_html(results))
    shown = table_rows(document, "results")
    labels = {arm["name"]: arm["label"] for arm in results["arms"]} | {"base": "Untrained solver"}
    checked = 0
    for metric in results["metrics"]:
        if metric["seed"] is not None or metric["metric"] == "pass@1":
            continue
        share = metric["metric"] in SHARES
        cell = shown[labels[metric["arm"]]][SHARES.get(metric["metric"], "Length")]
        factor = 100 if share else 1
        assert cell.classed("point")[0].words == f"{factor * metric['value']:.1f}" + (" %" if share else "")
        expected = f"interval {factor * metric['low']:.1f} to {factor * metric['high']:.1f}"
        assert cell.classed("interval")[0].words == expected
        tip = cell.classed("tip")[0].words
        assert f"{metric['numerator']:,}" in tip
        assert f"{metric['denominator']:,}" in tip
        assert "n = 12" in tip
        assert "200 problems" in tip
        checked += 1
    assert checked == 5 * 5


def test_costs_are_means_over_the_runs(results: dict[str, Any]) -> None:
    shown = table_rows(read_html(report_html(results)), "results")
    for arm in results["arms"]:
        runs, row = arm["runs"], shown[arm["label"]]
        for head, key in (("Rollouts", "rollouts"), ("Tokens", "completion_tokens")):
            assert row[head].classed("point")[0].words == f"{sum(run[key] for run in runs) / len(runs):,.0f}"
        assert row["Train s"].classed("point")[0].words == f"{sum(run['seconds'] for run in runs) / len(runs):.1f}"
        assert row["Critic calls"].classed("point")[0].words == f"{runs[0]['critic']['calls']:,}"


def test_critiques_without_a_look_for_findings_are_not_called_clean(results: dict[str, Any]) -> None:
    results = copy.deepcopy(results)
    runs = [run for arm in results["arms"] for run in arm["runs"] if run["critic"]["calls"]]
    for found, said in ((None, "without looking for findings"), ({}, "No critique had a finding"), ({"cut": 2}, "cut")):
        for run in runs:
            run["critic"]["findings"] = found
        words = read_html(report_html(results)).all("main")[0].words
        assert said in words
        assert ("No critique had a finding" in words) == (found == {})


def test_per_seed_rows_equal_the_file(results: dict[str, Any]) -> None:
    shown = table_rows(read_html(report_html(results)), "results", index=1)
    for metric in results["metrics"]:
        if metric["metric"] == "avg@12" and metric["seed"] is not None:
            label = next(arm["label"] for arm in results["arms"] if arm["name"] == metric["arm"])
            assert (
                shown[f"{label}, seed {metric['seed']}"]["Avg@12"].classed("point")[0].words
                == f"{100 * metric['value']:.1f} %"
            )


def test_every_stored_metric_is_listed_unrounded(results: dict[str, Any]) -> None:
    document = read_html(report_html(results))
    rows = document.classed("dense")[0].all("tbody")[0].all("tr")
    assert len(rows) == len(results["metrics"])
    for row, metric in zip(rows, results["metrics"], strict=True):
        texts = [cell.words for cell in row.all("td")]
        assert [float(text) for text in texts[7:12]] == [
            metric[key] for key in ("value", "low", "high", "numerator", "denominator")
        ]


def test_paired_differences_equal_the_file(results: dict[str, Any]) -> None:
    section = read_html(report_html(results)).by_id("differences")
    rows = section.all("tbody")[0].all("tr")
    assert len(rows) == len(results["paired"])
    for row, pair in zip(rows, results["paired"], strict=True):
        difference, interval, p_value, problems, seeds = (cell.words.replace("−", "-") for cell in row.all("td"))
        assert difference == f"{100 * pair['difference']:+.1f} pts"
        assert interval == f"{100 * pair['low']:+.1f} to {100 * pair['high']:+.1f}"
        assert p_value == ("< 0.001" if pair["p_value"] < 0.001 else f"{pair['p_value']:.3f}")
        assert problems == "200"
        assert seeds == "seeds 0 and 1"


def test_localisation_equals_the_file(results: dict[str, Any], signal: dict[str, Any]) -> None:
    document = read_html(report_html(results, signal))
    shown = {row.all("th")[0].words: row for row in document.classed("localisation")[0].all("tbody")[0].all("tr")}
    (row,) = [row for name, row in shown.items() if name.startswith("Share of |A|")]
    points = [cell.words for cell in row.classed("point")]
    assert points == [f"{100 * entry['numbers'][0]['value']:.1f} %" for entry in signal["localisation"]]
    assert "15.4 %" in row.words
    assert "38.0 % to 44.0 %" in row.words
    assert "that step's share of tokens" in row.words


def test_no_winner_and_both_axes(results: dict[str, Any]) -> None:
    text = read_html(report_html(results)).by_id("learning").words
    whole = read_html(report_html(results)).all("body")[0].words
    assert "winner" not in whole.lower()
    assert "order of arms depends on the axis" in whole
    assert "optimizer steps" in text
    assert "solver rollouts" in text


def test_readings_at_equal_budgets(results: dict[str, Any]) -> None:
    """By hand: 1,984 rollouts lie between GRPO's evaluations at step 6 and step 12, with 256 rollouts a step."""
    section = read_html(report_html(results)).by_id("learning")
    rows = {row.all("th")[0].words: [cell.words for cell in row.all("td")] for row in section.all("tbody")[0].all("tr")}
    points = [curve["points"] for curve in results["curves"] if curve["arm"] == "grpo"]
    at = {s: sum(p["value"] for curve in points for p in curve if p["step"] == s) / 2 for s in (6, 12)}
    at_end = sum(curve[-1]["value"] for curve in points) / 2
    between = at[6] + (at[12] - at[6]) * (1984 - 1536) / (3072 - 1536)
    assert rows["GRPO"] == [f"{100 * at_end:.1f} %", f"≈ {100 * between:.1f} % (between 1,536 and 3,072 rollouts)"]
    assert rows["RefSol"][0] == rows["RefSol"][1]


def test_a_reading_before_the_first_measurement_is_none() -> None:
    curves = [
        {"arm": arm, "seed": 0, "set": "test", "metric": "avg@4", "points": points}
        for arm, points in {
            "early": [{"step": 1, "rollouts": 10, "value": 0.2}, {"step": 2, "rollouts": 20, "value": 0.4}],
            "late": [{"step": 1, "rollouts": 100, "value": 0.5}, {"step": 2, "rollouts": 200, "value": 0.6}],
        }.items()
    ]
    results = read_results({"arms": [{"name": "early"}, {"name": "late"}], "curves": curves})
    _, _, readings = equal_budgets(results, "test", "avg@4")
    assert [reading.at_rollouts for reading in readings] == ["40.0 %", "–, first measured at 100 rollouts"]


@pytest.mark.parametrize(("problems", "noted"), [(30, True), (200, False)])
def test_small_test_sets_are_noted(problems: int, noted: bool) -> None:
    text = read_html(report_html(fixtures.make_results(test_problems=problems))).all("main")[0].words
    assert ("Only 30 test problems" in text) is noted


@pytest.mark.parametrize(
    ("rule", "noted"), [("best_per_metric_on_test", True), ("last", False), ("best_on_validation", False)]
)
def test_selection_on_the_test_set_is_noted(rule: str, noted: bool) -> None:
    document = read_html(report_html(fixtures.make_results(rule=rule)))
    assert ("selects on the test set" in document.all("main")[0].words) is noted
    for table in document.classed("results"):
        assert CHECKPOINT_RULES[rule] in table.all("caption")[0].words


def test_every_checkpoint_rule_of_a_recipe_has_its_words() -> None:
    assert tuple(CHECKPOINT_RULES) == get_args(CheckpointRule)


def test_unfinished_comparison_is_shown_as_far_as_it_goes(results: dict[str, Any]) -> None:
    unfinished = copy.deepcopy(results)
    unfinished["arms"][3]["runs"] = []
    unfinished["metrics"] = [row for row in unfinished["metrics"] if row["arm"] not in {"stepalign", "refsol"}]
    unfinished["paired"] = []
    unfinished["curves"] = [curve for curve in unfinished["curves"] if curve["arm"] == "grpo"]
    document = read_html(report_html(unfinished))
    assert "StepAlignFB has not run yet; " not in document.by_id("results").words
    text = document.all("main")[0].words
    assert "not complete: RefSol has no test result yet; StepAlignFB has not run yet" in text
    shown = table_rows(document, "results")
    assert shown["StepAlignFB"]["Avg@12"].classed("point")[0].words == "–"
    assert "not measured yet" in shown["StepAlignFB"]["Avg@12"].words


def test_the_untrained_solver_joins_the_table_of_the_rule_in_force(results: dict[str, Any]) -> None:
    mixed = copy.deepcopy(results) | {"checkpoint_rule": "best_on_validation"}
    for row in mixed["metrics"]:
        if row["arm"] != "base":
            row["checkpoint_rule"] = "best_on_validation"
    tables = page.results_tables(read_results(mixed))
    assert [(table.set, table.checkpoint_rule) for table in tables] == [("test", "best_on_validation")]
    assert tables[0].rows[0].arm.name == "base"


def test_other_rules_and_sets_get_their_own_tables(results: dict[str, Any]) -> None:
    more = copy.deepcopy(results)
    more["metrics"] += [row | {"set": "validation"} for row in results["metrics"]]
    more["metrics"] += [row | {"checkpoint_rule": "best_per_metric_on_test"} for row in results["metrics"]]
    tables = page.results_tables(read_results(more))
    assert [(table.set, table.checkpoint_rule) for table in tables] == [
        ("test", "last"),
        ("validation", "last"),
        ("test", "best_per_metric_on_test"),
    ]
    assert [len(table.rows) for table in tables] == [5, 5, 5]


def test_seeds_without_a_pooled_value_have_rows_of_their_own(results: dict[str, Any]) -> None:
    bare = copy.deepcopy(results)
    bare["metrics"] = [row for row in bare["metrics"] if row["seed"] is not None]
    shown = table_rows(read_html(report_html(bare)), "results")
    assert "StepAlignFB, seed 1" in shown
    assert "not yet pooled" in read_html(report_html(bare)).all("header")[0].words


def test_the_confidence_level_is_the_files(results: dict[str, Any]) -> None:
    words = read_html(report_html(results | {"confidence": 0.9})).all("body")[0].words
    assert "90% intervals" in words
    assert "95%" not in words


def test_a_value_of_some_seeds_says_so(results: dict[str, Any]) -> None:
    partial = copy.deepcopy(results)
    for row in partial["metrics"]:
        row["seeds"] = 1
    cell = table_rows(read_html(report_html(partial)), "results")["RefSol"]["Avg@12"]
    assert "1 of 2 seeds pooled" in cell.words


@pytest.mark.parametrize("keep", [(), ("arms",), ("metrics",), ("arms", "curves"), ("arms", "training", "paired")])
def test_any_part_may_be_missing(results: dict[str, Any], keep: tuple[str, ...]) -> None:
    read_html(report_html({"format": 1} | {key: results[key] for key in keep}))


def test_nulls_are_missing_never_zero(results: dict[str, Any]) -> None:
    holed = copy.deepcopy(results)
    for row in holed["metrics"]:
        row |= dict.fromkeys(("value", "low", "high", "numerator", "denominator"))
    shown = table_rows(read_html(report_html(holed)), "results")
    assert {cell.classed("point")[0].words for row in shown.values() for head, cell in row.items() if "@" in head} == {
        "–"
    }


def test_policy_allows_exactly_our_two_blocks(results: dict[str, Any], signal: dict[str, Any]) -> None:
    for html in (report_html(results, signal), token_html(signal), report_html(results)):
        document = read_html(html)
        (policy,) = [
            meta.attributes["content"]
            for meta in document.all("meta")
            if meta.attributes.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert "http" not in policy
        blocks = document.all("style") + [node for node in document.all("script") if not node.attributes.get("type")]
        hashes = [base64.b64encode(hashlib.sha256(block.text.encode()).digest()).decode() for block in blocks]
        assert len(re.findall("sha256-", policy)) == 2
        assert all(f"'sha256-{digest}'" in policy for digest in hashes)


def test_nothing_in_the_page_points_outside(results: dict[str, Any], signal: dict[str, Any]) -> None:
    document = read_html(report_html(results, signal))
    for node in document.everything():
        assert node.tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        for name, value in node.attributes.items():
            assert name not in {"src", "srcset", "action", "style"}
            assert not name.startswith("on")
            assert name != "href" or value.startswith("#")
    viewer_parts = [f"viewer/{name}.js" for name in template.VIEWER_PARTS]
    for asset in (*viewer_parts, "page.css", "viewer.css"):
        text = template.asset(asset)
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "fetch(",
            "XMLHttpRequest",
            "url(",
            "@import",
        ):
            assert word not in text, f"{word} in {asset}"


def test_every_source_file_of_the_viewer_is_in_the_page() -> None:
    folder = Path(template.__file__).parent / "assets" / "viewer"
    assert {path.stem for path in folder.iterdir()} == set(template.VIEWER_PARTS)


def test_internal_links_lead_somewhere(results: dict[str, Any], signal: dict[str, Any]) -> None:
    document = read_html(report_html(results, signal))
    names = [node.attributes["id"] for node in document.everything() if "id" in node.attributes]
    assert len(names) == len(set(names))
    assert {link.attributes["href"][1:] for link in document.all("a")} <= set(names)


@pytest.mark.parametrize("payload", fixtures.HOSTILE)
def test_hostile_text_stays_text(payload: str) -> None:
    harmless = read_html(report_html(fixtures.make_hostile_results("x"), fixtures.make_hostile_signal("x")))
    html = report_html(fixtures.make_hostile_results(payload), fixtures.make_hostile_signal(payload))
    document = read_html(html)
    # Same elements with and without the payload: it opened none and closed none.
    assert [node.tag for node in document.everything()] == [node.tag for node in harmless.everything()]
    assert not set(html) & set("\x00\x07\x08\x1b\x7f\x9b\u202e\u202c\u2028\u2029\u200b\ufeff")
    data = [node.text for node in document.all("script") if node.attributes.get("type") == "application/json"]
    assert not set("".join(data)) & set("<>&\u2028\u2029")
    assert json.loads(data[0])["rollouts"][0]["question"] == json.loads(data[1])["question"] == payload
    html.encode("utf-8")


def test_template_syntax_in_data_is_not_evaluated() -> None:
    text = read_html(report_html(fixtures.make_hostile_results("{{ 7 * 7 }}"))).all("body")[0].words
    assert "{{ 7 * 7 }}" in text


def test_token_page_has_viewer_and_localisation_only(tmp_path: Path, signal: dict[str, Any]) -> None:
    target = write_token_page(signal, tmp_path / "deep" / "tokens.html")
    document = read_html(target.read_text(encoding="utf-8"))
    document.by_id("viewer")
    document.by_id("localisation")
    assert not [node for node in document.everything() if node.attributes.get("id") == "learning"]


def test_the_same_input_gives_the_same_bytes(results: dict[str, Any], signal: dict[str, Any]) -> None:
    assert report_html(results, signal) == report_html(results, signal)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no results.json"),
        ("{", "not valid JSON"),
        ("[]", "should hold one JSON object"),
        ('{"format": 2}', "format 2"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_broken_files_are_user_errors(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        write_report(tmp_path)
    assert caught.value.hint
    assert caught.value.where
    assert not (tmp_path / "report.html").exists()


def test_misaligned_signal_is_an_error_not_a_picture(folder: Path, signal: dict[str, Any]) -> None:
    broken = copy.deepcopy(signal)
    broken["rollouts"][1]["contexts"][0]["log_ratio"].pop()
    (folder / "signal.json").write_text(json.dumps(broken))
    with pytest.raises(ConfigError, match="rollout r001: context 'step_aligned' has 43 log_ratio values for 44 tokens"):
        write_report(folder)


def test_nan_literals_in_a_file_become_gaps(folder: Path, results: dict[str, Any]) -> None:
    holed = copy.deepcopy(results)
    holed["metrics"][0]["value"] = float("nan")
    holed["curves"][0]["points"][2]["value"] = float("nan")
    (folder / "results.json").write_text(json.dumps(holed))
    body = read_html(write_report(folder).read_text(encoding="utf-8")).all("main")[0]
    assert "nan" not in body.words.lower().replace("nanosecond", "")


def test_the_footer_says_where_the_numbers_come_from(signal: dict[str, Any]) -> None:
    student = "{{ question }}\n\nThink."
    stated = signal | {
        "weights": "ab" * 32,
        "source": {"name": "attempts.jsonl", "sha256": "cd" * 32},
        "prompts": {
            "from": "gsm8k",
            "student": student,
            "self_teacher": "{{ question }} {{ feedback }}",
            "system": "Be brief.",
            "student_chat_options": {"enable_thinking": False},
            "teacher_chat_options": {"enable_thinking": False},
            "example": {"student": "<|user|> 1 + 1", "self_teacher": "<|user|> 1 + 1 <b>"},
        },
    }
    footer = read_html(token_html(stated)).by_id("provenance")
    facts = dict(zip([n.words for n in footer.all("dt")], [n.words for n in footer.all("dd")], strict=True))
    assert facts["Weights"] == "ab" * 32
    assert facts["Source"] == f"attempts.jsonl · {'cd' * 32}"
    assert facts["Student prompt"] == hashlib.sha256(student.encode()).hexdigest()[:12]
    assert facts["Self-teacher prompt"].endswith("{{ question }} {{ feedback }}")
    assert facts["Chat options"] == '{"enable_thinking": false}'
    assert [node.text for node in footer.all("pre")] == ["<|user|> 1 + 1", "<|user|> 1 + 1 <b>"]
    bare = read_html(token_html(signal)).by_id("provenance").words
    assert "Weights" not in bare


def test_rows_that_hold_by_construction_are_left_out(signal: dict[str, Any]) -> None:
    """The only step of an attempt has all of the signal, whatever the signal is."""
    only, rest = signal["localisation"][0]["numbers"][0], signal["localisation"][0]["numbers"][1:]
    sure = {**only, "name": "share_of_kl_in_wrong_step", "value": 1.0, "baseline": 1.0, "low": None, "high": None}
    chance = {**only, "name": "sign_agreement", "value": 0.5, "baseline": 0.5}
    entries = [{**entry, "numbers": [only, sure, chance, *rest]} for entry in signal["localisation"]]
    shown = [row.label for row in localisation_rows({**signal, "localisation": entries})[1]]
    assert "Share of KL in the first wrong step" not in shown
    assert "Sign agreement" in shown
    assert len(shown) == len(signal["localisation"][0]["numbers"]) + 1
