"""``stepalign signal DUMP`` and ``stepalign critique DUMP``: with a model, without one, and the two together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from stepalign.cli import app
from stepalign.config import changed, load_config
from stepalign.errors import ConfigError
from stepalign.problems.dumps import Dump, open_dump
from stepalign.token_signal.files import read_completions
from stepalign.verbs.attempts import read_attempts
from stepalign.verbs.configs import PLAIN_PROMPTS
from stepalign.verbs.signal.from_dump import analyse_dump, show_dump

DUMPS = Path(__file__).parents[1] / "data" / "dumps"


def dump_of(name: str) -> Dump:
    dump = open_dump(DUMPS / name)
    assert dump is not None
    return dump


def test_the_numbers_of_a_dump_are_shown_without_a_model(tmp_path: Path) -> None:
    said: list[str] = []
    page = show_dump(
        dump_of("prime_tokens.jsonl"), tmp_path / "out", load_config(None), listener=lambda e: said.append(str(e.text))
    )
    first, second = read_completions(tmp_path / "out")
    assert list(first.tables) == ["log_ratio", "advantage", "mismatch_kl", "entropy"]
    assert first.tables["log_ratio"].log_ratio.tolist() == [-0.25, 0.0, 0.5, 0.0]
    assert first.tables["advantage"].student_log_prob.tolist() == [-0.75, -0.25, -0.5, -0.125]
    assert np.isnan(second.tables["entropy"].log_ratio).tolist() == [False, True, True, False, False]
    signal = json.loads((tmp_path / "out" / "signal.json").read_text())
    limits = {context["name"]: context["limit"] for context in signal["contexts"]}
    assert limits == {"log_ratio": 0.5, "advantage": 1.0, "mismatch_kl": 0.125, "entropy": 2.0}
    assert "prime-rl token export, known by the columns token_ids" in said[0]
    assert "--tokenizer" in said[1]
    assert page.stat().st_size > 10_000


def test_a_dump_without_numbers_says_that_it_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no numbers of its tokens"):
        show_dump(dump_of("verl.jsonl"), tmp_path / "out", load_config(None))


def scored(name: str, model: Path, out: Path, **more: object) -> list[str]:
    said: list[str] = []
    config = changed(load_config(None), {**PLAIN_PROMPTS, "model.path": str(model)}, "test")
    analyse_dump(dump_of(name), out, config, listener=lambda event: said.append(str(event.text)), **more)  # type: ignore[arg-type]
    return said


def test_a_dump_is_scored_under_designs_that_need_no_critic(model_folder: Path, tmp_path: Path) -> None:
    said = scored("verl.jsonl", model_folder, tmp_path / "out")
    first, wrong, *_ = read_completions(tmp_path / "out")
    assert (first.verdict, first.expected_answer, first.case) == ("correct", "11", "unknown")
    assert list(first.tables) == ["answer"]  # no other sibling is right
    assert list(wrong.tables) == ["peer_demonstration", "answer"]
    assert "4 * 2 = 8, and 3 + 8 = 11" in wrong.tables["peer_demonstration"].text
    assert any("2 of 4 rollouts have none: no correct sibling" in line for line in said)


def test_ids_of_a_dump_are_scored_verbatim_and_other_prompts_are_said(model_folder: Path, tmp_path: Path) -> None:
    said = scored("slime.jsonl", model_folder, tmp_path / "out", contexts=("answer",))
    first, second = read_completions(tmp_path / "out")
    assert (list(first.token_ids), list(second.token_ids)) == ([21, 22, 23], [31, 32])
    assert any("prompts of 2 of 2 attempts are not those of the dump" in line for line in said)


def test_a_dump_without_answers_is_scored_under_its_verdicts_or_shown_as_it_is(
    model_folder: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "What is 3 * 4?", "completion": "It is 12.", "accuracy_reward": 1.0, "step": 1}]
    (tmp_path / "d.jsonl").write_text(json.dumps(rows[0]) + "\n")
    scored(str(tmp_path / "d.jsonl"), model_folder, tmp_path / "out")
    (one,) = read_completions(tmp_path / "out")
    assert list(one.tables) == ["verdict"]
    said = scored("prime_tokens.jsonl", model_folder, tmp_path / "numbers")
    assert "log_ratio" in next(iter(read_completions(tmp_path / "numbers"))).tables
    assert any("the numbers of the dump itself" in line for line in said)
    (tmp_path / "d.jsonl").write_text(json.dumps({**rows[0], "accuracy_reward": None}) + "\n")
    with pytest.raises(ConfigError, match="no context has anything to say"):
        scored(str(tmp_path / "d.jsonl"), model_folder, tmp_path / "none")


def test_critiques_of_a_dump_are_shown_to_the_self_teacher(model_folder: Path, tmp_path: Path) -> None:
    dump = tmp_path / "d.jsonl"
    rows = [{"input": "Tom has 3 bags of 4 apples. How many apples?", "gts": "12", "score": 0.0, "step": 1}]
    texts = ["3 * 4 = 13. The answer is 13.", "3 * 4 = 12. The answer is 12."]
    dump.write_text("".join(json.dumps({**rows[0], "output": text}) + "\n" for text in texts))
    critiques = tmp_path / "critiques"
    critiques.mkdir()
    trace = "<step_1>3 * 4 = 12.</step_1><answer>12</answer>"
    line = {
        **{"rollout_id": "line-000001", "critic": "given", "status": "ok", "text": trace, "form": "trace"},
        **{"findings": [], "problem_id": "x", "verdict": "incorrect", "details": {}, "alignment": None},
    }
    (critiques / "critiques.jsonl").write_text(json.dumps(line) + "\n")
    found = open_dump(dump)
    assert found is not None
    config = changed(load_config(None), {**PLAIN_PROMPTS, "model.path": str(model_folder)}, "test")
    with pytest.raises(ConfigError, match="shows a critique"):
        analyse_dump(found, tmp_path / "a", config, contexts=("step_aligned",))
    analyse_dump(found, tmp_path / "b", config, contexts=("step_aligned",), critiques=critiques)
    (one,) = read_completions(tmp_path / "b")
    assert one.tables["step_aligned"].text == trace


def test_a_dump_is_criticised_with_its_own_verdicts() -> None:
    attempts = read_attempts(DUMPS / "verl.jsonl")
    assert [one.verdict for one in attempts.attempts] == ["correct", "incorrect"] * 2
    assert "verl rollouts" in attempts.about
    with pytest.raises(ConfigError, match="token ids without their text"):
        read_attempts(DUMPS / "prime_tokens.jsonl")


def test_the_commands_name_the_layout(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["signal", str(DUMPS / "inspect.eval"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "".join((tmp_path / "out" / "signal.jsonl").read_text().splitlines()[:1]).count("sampler_log_prob") == 1
