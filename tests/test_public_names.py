"""The face of the library: what ``import stepalign`` gives, and the page that shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer

import stepalign
from stepalign.waiting import wait_for

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    assert (tmp_path / "runs" / "a" / "final").is_dir()
    assert (tmp_path / "runs" / "a" / "test.json").is_file()
    server = FaultServer()
    try:  # wait_for and not asyncio.run: the browser tests of the same process keep a loop running on this thread
        found = wait_for(names["ask"](server.url))
    finally:
        server.stop()
    assert (found.status, found.critic, found.rollout_id) == ("ok", "my-critic", "r1")


def test_every_public_name_loads_and_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in stepalign.__all__:
        assert getattr(stepalign, name) is not None
        assert re.search(rf"`(?:sa\.)?{name}\b", text), f"{name} is not on the page"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = stepalign.nothing  # type: ignore[attr-defined]


def test_the_import_loads_no_engine() -> None:
    code = (
        "import sys, stepalign; assert not {'torch', 'transformers', 'numpy', 'openai', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("first", ["stepalign.verbs.compare", "stepalign.token_signal.table"])
def test_no_module_hides_a_public_name(first: str) -> None:
    """A package called like a public name would replace it in the namespace when something imports it."""
    code = (
        f"import {first}, stepalign, types; names = stepalign.__all__; "
        "assert not [n for n in names if isinstance(getattr(stepalign, n), types.ModuleType)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_number_is_an_expected_answer_and_nothing_is_not() -> None:
    assert stepalign.grade("\\boxed{5}", 5).verdict == "correct"
    assert stepalign.grade("\\boxed{0.25}", 0.25).verdict == "correct"
    for text, expected in (("\\boxed{5}", ["5"]), (None, "5"), ("\\boxed{5}", True)):
        with pytest.raises(TypeError, match="must be a str"):
            stepalign.grade(text, expected)  # type: ignore[arg-type]


def test_a_solver_is_shown_in_one_line() -> None:
    shown = repr(stepalign.load_solver("embedded:arithmetic"))
    assert shown.startswith("Solver(Qwen3ForCausalLM, 3")
    assert "\n" not in shown


def test_a_condition_is_no_design_but_the_table_says_which_is_meant() -> None:
    with pytest.raises(KeyError) as raised:
        _ = stepalign.DESIGNS["stepalign"]
    assert isinstance(raised.value, stepalign.UserError)
    assert "did you mean step_aligned?" in str(raised.value)
    assert "stepalign" not in stepalign.DESIGNS
    assert stepalign.DESIGNS.get("stepalign") is None


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        ("continue it with --resume, or give another --out", "continue it with resume=True, or give another out="),
        ("--set data.test=null", 'overrides={"data.test": None}'),
        ("--set 'compare.seeds=[0, 1]'", 'overrides={"compare.seeds": [0, 1]}'),
        ("drop them, or --set a.b=3, or so", 'drop them, or overrides={"a.b": 3}, or so'),
        ("--model FOLDER or a Hub name", "model=FOLDER or a Hub name"),
    ],
)
def test_hints_name_the_arguments_of_python(hint: str, words: str) -> None:
    from stepalign.verbs.progress import in_python

    assert in_python(hint) == words


def test_a_verb_prints_its_progress_unless_a_listener_hears_it(tmp_path: Path, capsys) -> None:
    few = {"evaluation.num_samples": 1, "evaluation.max_completion_length": 2}
    problems = tmp_path / "p.jsonl"
    problems.write_text('{"question": "1 + 2", "answer": "3"}\n', encoding="utf-8")
    for number, listener in enumerate((stepalign.silent, None)):
        out = tmp_path / f"{number}.json"
        stepalign.evaluate("embedded:arithmetic", problems=problems, out=out, overrides=few, listener=listener)
        assert ("evaluation: 1 of 1" in capsys.readouterr().out) == (listener is None)
    with pytest.raises(stepalign.UserError) as raised:
        stepalign.train("arithmetic", {"condition": "grpo"}, out=tmp_path / "run", listener=stepalign.silent)
    assert raised.value.hint == 'overrides={"sampling.num_generations": 8}, or drop the policy term'
