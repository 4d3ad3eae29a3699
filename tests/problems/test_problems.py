"""Loading problems: layouts as they occur in the wild, and every mistake a user can make."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepalign.errors import ConfigError
from stepalign.problems.columns import ColumnMap
from stepalign.problems.loading import load_problems, save_problems
from stepalign.problems.sets import find_overlaps, normalise_question, problem_id, split_problems
from stepalign.records import Problem

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason=f"GSM8K is not at {GSM8K}")


@pytest.fixture(autouse=True)
def frozen_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "problems"


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def problem(question: str, answer: str = "7") -> Problem:
    return Problem(problem_id=problem_id(question), question=question, answer=answer)


# ---------------------------------------------------------------------------------------------------------------------
# Layouts


def test_own_layout_with_and_without_reference(tmp_path: Path) -> None:
    rows = [{"question": "1 + 1 ?", "answer": "2"}, {"question": "1 + 2 ?", "answer": 3}]
    loaded = load_problems(write(tmp_path / "p.jsonl", rows))
    assert [(p.question, p.answer, p.reference) for p in loaded.problems] == [
        ("1 + 1 ?", "2", None),
        ("1 + 2 ?", "3", None),
    ]
    assert (loaded.skipped, loaded.num_rows) == ({}, 2)
    rows = [{"question": "1 + 1 ?", "answer": "2", "reference": "one more than one"}]
    assert load_problems(write(tmp_path / "r.jsonl", rows)).problems[0].reference == "one more than one"


def test_gsm8k_layout(tmp_path: Path) -> None:
    solution = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = <<48+24=72>>72.\n#### 1,072"
    rows = [{"question": "How many clips?", "answer": solution}, {"question": "No mark?", "answer": "It is 24."}]
    loaded = load_problems(write(tmp_path / "p.jsonl", rows), "gsm8k")
    assert loaded.problems[0].answer == "1,072"
    assert loaded.problems[0].reference == ("Natalia sold 48/2 = 24 clips in May.\nAltogether 48+24 = 72.\n#### 1,072")
    assert loaded.skipped == {"no marked answer": 1}


@pytest.mark.slow
@needs_gsm8k
@pytest.mark.parametrize(("name", "rows"), [("train", 7_473), ("test", 1_319)])
def test_gsm8k_as_it_lies_there(name: str, rows: int) -> None:
    loaded = load_problems(GSM8K / f"{name}.jsonl", "gsm8k")
    assert loaded.num_rows == rows
    assert len(loaded.problems) + sum(loaded.skipped.values()) == rows
    assert set(loaded.skipped) <= {"duplicate question", "duplicate question with another answer"}
    assert all(p.reference and "<<" not in p.reference for p in loaded.problems)
    assert all(p.answer.replace(",", "").lstrip("-").isdigit() for p in loaded.problems)
    # The same file through a plain column map.
    assert load_problems(GSM8K / f"{name}.jsonl", {"question": "question", "answer": "answer"}) == loaded


@needs_gsm8k
def test_gsm8k_splits_do_not_overlap() -> None:
    sets = {name: load_problems(GSM8K / f"{name}.jsonl", "gsm8k").problems for name in ("train", "test")}
    assert find_overlaps(sets) == []


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "Find x.", "solution": "So $x = \\boxed{\\frac{1}{2}}$.", "answer": "\\frac{1}{2}"},
        {"problem": "Find x.", "solution": "So $x = \\boxed{\\frac{1}{2}}$.", "level": "Level 5", "type": "Algebra"},
        {"problem": "Find x.", "solution": "So $x = \\boxed{\\frac{1}{2}}$."},
    ],
)
def test_math_layouts(tmp_path: Path, row: dict[str, str]) -> None:
    loaded = load_problems(write(tmp_path / "p.jsonl", [row]), "math").problems[0]
    assert loaded.answer == "\\frac{1}{2}"
    assert loaded.reference == row["solution"]
    assert loaded.metadata.get("level") == row.get("level")


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "Find n.", "answer": 33, "solution": "It is \\boxed{033}."},
        {"ID": "2024-I-1", "Problem": "Find n.", "Solution": "It is 33.", "Answer": 33},
        {"question": "Find n.", "answer": "33"},
        {"Question": "Find n.", "Answer": 33.0, "Year": 2024},
    ],
)
def test_aime_layouts(tmp_path: Path, row: dict[str, Any]) -> None:
    assert load_problems(write(tmp_path / "p.jsonl", [row]), "aime").problems[0].answer == "33"


def open_math_rows() -> list[dict[str, Any]]:
    """The columns of nvidia/OpenMathReasoning (all strings but one), with what is odd about them."""

    def row(question: str, **changes: Any) -> dict[str, Any]:
        return {
            "expected_answer": "42",
            "problem_type": "has_answer_extracted",
            "problem_source": "aops_c6_high_school_olympiads",
            "generation_model": "DeepSeek-R1",
            "pass_rate_72b_tir": "0.65625",
            "problem": question,
            "generated_solution": "<think>\nLet me see: \\boxed{41}?\n</think>\nHence \\boxed{42}.",
            "inference_mode": "cot",
            "used_in_kaggle": True,
        } | changes

    return [
        row("Compute $a$."),
        row("Compute $a$.", generation_model="QwQ-32B", generated_solution="Another way: \\boxed{42}."),
        row("Compute $a$.", expected_answer="43"),
        row("Compute $b$.", pass_rate_72b_tir="n/a", expected_answer="\\frac{1}{2}"),
        row("Prove $c$.", problem_type="converted_proof"),
        row("Compute $d$.", problem_type="no_answer_extracted", expected_answer=""),
        row("Compute $e$.", expected_answer=""),
    ]


def check_open_math(loaded: Any) -> None:
    assert [(p.question, p.answer, p.metadata["pass_rate_72b_tir"]) for p in loaded.problems] == [
        ("Compute $a$.", "42", 0.65625),
        ("Compute $b$.", "\\frac{1}{2}", None),
    ]
    assert loaded.problems[0].metadata["generation_model"] == "DeepSeek-R1"
    assert loaded.problems[0].reference.startswith("<think>")
    assert loaded.skipped == {
        "duplicate question": 1,
        "duplicate question with another answer": 1,
        "problem_type is converted_proof": 1,
        "problem_type is no_answer_extracted": 1,
        "no answer": 1,
    }


def test_open_math_reasoning_jsonl(tmp_path: Path) -> None:
    check_open_math(load_problems(write(tmp_path / "p.jsonl", open_math_rows()), "openmathreasoning"))


def test_open_math_reasoning_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason='Parquet needs the extra "data"')
    import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]

    path = tmp_path / "cot-00000-of-00001.parquet"
    parquet.write_table(arrow.Table.from_pylist(open_math_rows()), path)
    check_open_math(load_problems(path, "openmathreasoning"))


def test_broken_parquet_is_one_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason='Parquet needs the extra "data"')
    path = tmp_path / "p.parquet"
    path.write_bytes(b"PAR1 no such thing")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        load_problems(path)


def test_chat_messages(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 3 + 4?"},
        {"role": "assistant", "content": "It is \\boxed{7}."},
    ]
    rows = [{"messages": chat}, {"messages": chat[:1]}, {"messages": "?"}, {"messages": chat[:2]}]
    loaded = load_problems(write(tmp_path / "p.jsonl", rows), "messages")
    assert (loaded.problems[0].question, loaded.problems[0].answer) == ("What is 3 + 4?", "7")
    assert loaded.skipped == {"no user message": 1, "no list of messages": 1, "no answer": 1}
    loaded = load_problems(write(tmp_path / "a.jsonl", [{"messages": chat[:2], "answer": "7"}]), "messages")
    assert (loaded.problems[0].answer, loaded.problems[0].reference) == ("7", None)


def test_json_array_and_json_lines_under_either_name(tmp_path: Path) -> None:
    rows = [{"question": "1 + 1 ?", "answer": "2"}, {"question": "1 + 2 ?", "answer": "3"}]
    array = tmp_path / "array.json"
    array.write_text(json.dumps(rows))
    assert len(load_problems(array).problems) == 2
    assert len(load_problems(write(tmp_path / "lines.json", rows)).problems) == 2


def test_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "1 + 1 ?", "answer": "2"}\n\n  \n{"question": "x", "answer": "3"}')
    assert len(load_problems(path).problems) == 2


def test_column_map_and_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"q": f"{i} + 1 ?", "a": i + 1, "level": i} for i in range(9)])
    columns = {"question": "q", "answer": "a", "metadata": ["level"]}
    loaded = load_problems(path, columns, limit=4)
    assert [p.metadata["level"] for p in loaded.problems] == [0, 1, 2, 3]
    assert load_problems(path, ColumnMap(question="q", answer="a", metadata=("level",)), limit=4) == loaded


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


def message(path: Path, columns: Any = "stepalign") -> str:
    with pytest.raises(ConfigError) as caught:
        load_problems(path, columns)
    return str(caught.value)


def test_missing_file_names_the_one_meant(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [])
    text = message(tmp_path / "trian.jsonl")
    assert "no such file" in text
    assert str(tmp_path / "trian.jsonl") in text
    assert f'Did you mean "{tmp_path / "train.jsonl"}"' in text
    assert "folder" in message(tmp_path)


def test_a_missing_file_is_no_matter_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.jsonl", [])
    (tmp_path / "empty").mkdir()
    for path, help_given in {
        "data/train.jsonl": f"The folder {tmp_path / 'data'} does not exist either",
        "./other": "it holds mine.jsonl",
        "empty/other": "it holds no .jsonl, .json or .parquet file",
        "~/no-such-folder/x.parquet": "does not exist either",
    }.items():
        assert help_given in message(Path(path))
        assert "Hub" not in message(Path(path))
    # What can only be a name on the Hub is answered as one, with the place where a file was looked for.
    text = message(Path("openai/gsm8k"))
    assert "hub:openai/gsm8k" in text
    assert str(tmp_path) in text
    assert f"hub:{tmp_path / 'empty'}" in message(Path("empty"))


def test_wrong_column_lists_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"problem": "1 + 1 ?", "Answer": "2"}])
    text = message(path, {"question": "problem"})
    assert 'no column "answer"' in text
    assert 'Did you mean "Answer"?' in text
    assert "problem, Answer" in text
    assert 'no column "question"' in message(path)
    assert 'no column "problem"' in message(write(tmp_path / "q.jsonl", [{"question": "?", "answer": "2"}]), "math")


def test_unknown_preset_and_unknown_key(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"question": "1 + 1 ?", "answer": "2"}])
    assert 'Did you mean "gsm8k"?' in message(path, "gsm8")
    assert 'Did you mean "question"?' in message(path, {"questoin": "q"})


def test_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "1 + 1 ?", "answer": "2"}\n{"question": \n')
    text = message(path)
    assert f"{path}, line 2" in text
    assert "not JSON" in text
    path.write_text('{"question": "1 + 1 ?", "answer": "2"}\n[1, 2]\n')
    assert f"{path}, line 2" in message(path)
    path.write_bytes(b'{"question": "\xff"}\n')
    assert f"{path}, line 1" in message(path)
    path.write_text("[" * 100_000 + "\n")
    assert f"{path}, line 1" in message(path)


def test_empty_set(tmp_path: Path) -> None:
    assert "no rows" in message(write(tmp_path / "p.jsonl", []))
    rows = [{"question": "", "answer": "2"}, {"question": "How?", "answer": None}, {"question": "Why?", "answer": " "}]
    text = message(write(tmp_path / "q.jsonl", rows))
    assert "None of the 3 rows can be used: 2 x no answer, 1 x no question" in text
    assert "line 1: no question" in text


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows = [
        {"question": "1 + 1 ?", "answer": "2"},
        {"question": "1 + 1  ?", "answer": "2"},
        {"question": "1 + 1 ?", "answer": "3"},
        {"question": "2 + 2 ?"},
        {"question": "3 + 3 ?", "answer": float("nan")},
        {"question": "4 + 4 ?", "answer": "because " * 100},
    ]
    loaded = load_problems(write(tmp_path / "p.jsonl", rows))
    assert len(loaded.problems) == 1
    assert loaded.skipped == {
        "no answer": 2,
        "duplicate question": 1,
        "duplicate question with another answer": 1,
        "answer too long to be one": 1,
    }


@pytest.mark.parametrize(("source", "module"), [("p.parquet", "pyarrow.parquet"), ("hub:openai/gsm8k", "datasets")])
def test_missing_extra_gives_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"stepalign\[data\]"):
        load_problems(source if source.startswith("hub:") else tmp_path / source)


def hub_folder(folder: Path) -> Path:
    """A data set as it lies on the Hub: Parquet shards below folders, configurations and splits in the card."""
    arrow = pytest.importorskip("pyarrow", reason='Parquet needs the extra "data"')
    pytest.importorskip("datasets", reason='Hub data sets need the extra "data"')
    import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]

    (folder / "data").mkdir(parents=True)
    rows = open_math_rows()
    for split, shards in {"cot": (rows[:3], rows[3:]), "tir": (rows[:1],)}.items():
        for index, shard in enumerate(shards):
            name = f"{split}-{index:05d}-of-{len(shards):05d}.parquet"
            parquet.write_table(arrow.Table.from_pylist(shard), folder / "data" / name)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: cot\n    path: data/cot-*\n"
        "  - split: tir\n    path: data/tir-*\n- config_name: small\n  data_files:\n  - split: train\n"
        "    path: data/tir-*\n---\n"
    )
    return folder


def test_hub_data_set_through_the_real_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = hub_folder(tmp_path / "nvidia" / "OpenMathReasoning")
    check_open_math(load_problems("hub:nvidia/OpenMathReasoning@cot", "openmathreasoning"))
    check_open_math(load_problems(f"hub:{folder}:default@cot", "openmathreasoning"))
    assert len(load_problems("hub:./nvidia/OpenMathReasoning:small", "openmathreasoning").problems) == 1
    assert len(load_problems("hub:nvidia/OpenMathReasoning/small@train", "openmathreasoning").problems) == 1
    with pytest.raises(ConfigError, match="cannot be read: ValueError: Bad split: test"):
        load_problems("hub:nvidia/OpenMathReasoning@test", "openmathreasoning")
    with pytest.raises(ConfigError, match="no such folder"):
        load_problems("hub:./elsewhere")


def test_hub_data_set_is_read_once_and_then_from_its_frozen_copy(tmp_path: Path, frozen_copies: Path) -> None:
    folder = hub_folder(tmp_path / "set")
    first = load_problems(f"hub:{folder}@cot", "openmathreasoning")
    (copy,) = frozen_copies.glob("*.jsonl")
    manifest = json.loads(copy.with_suffix(".json").read_bytes())
    assert manifest["sha256"] == hashlib.sha256(copy.read_bytes()).hexdigest()
    assert manifest["rows"]["num_rows"] == 7
    shutil.rmtree(folder / "data")  # the network is gone
    assert load_problems(f"hub:{folder}@cot", "openmathreasoning") == first
    with pytest.raises(ConfigError, match="cannot be read"):
        load_problems(f"hub:{folder}@cot", "openmathreasoning", limit=1)  # another question, never answered before
    copy.write_text(copy.read_text().replace('"42"', '"41"'))
    with pytest.raises(ConfigError, match="was changed since"):
        load_problems(f"hub:{folder}@cot", "openmathreasoning")


def test_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class FakeDatasets:
        @staticmethod
        def load_dataset(*arguments: Any, **options: Any) -> list[dict[str, str]]:
            calls.append((*arguments, options["split"]))
            if arguments[0] == "nobody/nothing":
                raise FileNotFoundError("no such data set")
            return [{"question": "1 + 1 ?", "answer": "#### 2"}]

    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets)
    assert load_problems("hub:openai/gsm8k/main@test", "gsm8k").problems[0].answer == "2"
    load_problems("hub:openai/gsm8k", "gsm8k")
    assert calls == [("openai/gsm8k", "main", "test"), ("openai/gsm8k", None, "train")]
    with pytest.raises(ConfigError, match="FileNotFoundError: no such data set"):
        load_problems("hub:nobody/nothing")
    with pytest.raises(ConfigError, match="no name of a Hub data set"):
        load_problems("hub:gsm8k")


# ---------------------------------------------------------------------------------------------------------------------
# Identity, splits, contamination, freezing


def test_identity_ignores_layout_and_keeps_operators() -> None:
    assert problem_id("What is  $2 + 3$ ?") == problem_id("what is 2+3?")
    assert problem_id("What is 2 + 3?") != problem_id("What is 2 - 3?")
    assert problem_id("x^2") != problem_id("x2")
    assert len(problem_id("")) == 16


def test_split_is_stable_when_problems_come_and_go() -> None:
    problems = [problem(f"What is {i} + 1?") for i in range(3_000)]
    shares = {"train": 0.8, "validation": 0.1, "test": 0.1}
    splits = split_problems(problems, shares)
    assert sum(map(len, splits.values())) == 3_000
    assert 2_300 < len(splits["train"]) < 2_500
    fewer = split_problems(reversed(problems[::2]), shares)
    assert {p.problem_id for p in fewer["test"]} <= {p.problem_id for p in splits["test"]}
    assert split_problems(problems, shares, salt="1")["test"] != splits["test"]
    with pytest.raises(ValueError, match="sum to 1"):
        split_problems(problems, {"train": 0.5})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Find $\\dfrac{1}{2}$ of 6.", "find $\\frac{1}{2}$ of 6", True),
        ("Solve \\(x\\,=\\,3\\)", "Solve $x=3$.", True),
        ("Solve \\left(x\\right)^{2}", "Solve (x)^2", True),
        ("It’s “a−b”", 'It\'s "a-b"', True),
        ("What is 1.5 x?", "What is 15 x?", False),
        ("What is 2+3?", "What is 2-3?", False),
        ("n! is even", "n is even", False),
    ],
)
def test_typesetting_hides_no_overlap(one: str, other: str, same: bool) -> None:
    sets = {name: [Problem(problem_id=name, question=text, answer="1")] for name, text in (("a", one), ("b", other))}
    assert [overlap.kind for overlap in find_overlaps(sets)] == (["normalised"] if same else [])


def test_overlaps_between_sets() -> None:
    sets = {
        "train": [problem("What is 2 + 3?"), problem("What is 2 - 3?")],
        "validation": [problem("Other?")],
        "test": [problem("What is 2 + 3?"), problem("what is $2+3$")],
    }
    overlaps = find_overlaps(sets)
    assert [(o.first, o.second, o.kind) for o in overlaps] == [
        ("train", "test", "exact"),
        ("train", "test", "normalised"),
    ]
    assert find_overlaps({"train": sets["train"], "validation": sets["validation"]}) == []


def test_frozen_problems_load_again(tmp_path: Path) -> None:
    rows = write(tmp_path / "p.jsonl", open_math_rows())
    loaded = load_problems(rows, "openmathreasoning")
    frozen = tmp_path / "deep" / "frozen.jsonl"
    checksum = save_problems(loaded.problems, frozen)
    assert checksum == hashlib.sha256(frozen.read_bytes()).hexdigest()
    assert load_problems(frozen).problems == loaded.problems
    assert [path.name for path in frozen.parent.iterdir()] == ["frozen.jsonl"]


@given(st.text())
def test_identity_of_any_text_ignores_surrounding_space(text: str) -> None:
    once = normalise_question(text)
    assert not any(character.isspace() or character == "$" for character in once)
    assert problem_id(text) == problem_id(f" {text}\n")


def test_shipped_sets_go_by_name() -> None:
    assert len(load_problems("embedded:python", "python").problems) == 8
    with pytest.raises(ConfigError, match="no shipped set embedded:pyton"):
        load_problems("embedded:pyton", "python")


@pytest.mark.parametrize("answer", [["4"], [], ["4", "5"], {"value": "4"}, [4]])
def test_an_answer_that_is_no_text_is_a_skipped_row(tmp_path: Path, answer: object) -> None:
    rows = [{"question": "a?", "answer": answer}, {"question": "b?", "answer": 33.0}, {"question": ["c?"], "answer": 1}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_problems(file)
    assert [problem.answer for problem in loaded.problems] == ["33"]
    assert loaded.skipped == {
        "the answer is a list or an object, not a text": 1,
        "the question is a list or an object, not a text": 1,
    }


USER, ANSWER = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "So \\boxed{4}."}
PARTS = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "answer": "4"},
        {"prompt": [{"role": "system", "content": "Be brief."}, USER], "answer": "4"},
        {"prompt": [PARTS], "solution": "4"},
        {"prompt": [USER], "ground_truth": 4},
        {"prompt": "What is 2 + 2?", "final_answer": "4"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER], "completion": [ANSWER], "answer": "4", "extra": 1},
        {"prompt": "What is 2 + 2?", "completion": "So \\boxed{4}."},
        {"prompt": [USER], "solution": [ANSWER]},
    ],
)
def test_prompts_of_trl_text_or_chat(tmp_path: Path, row: dict[str, Any]) -> None:
    (problem,) = load_problems(write(tmp_path / "p.jsonl", [row]), "trl").problems
    assert (problem.question, problem.answer) == ("What is 2 + 2?", "4")
    assert problem.reference == ("So \\boxed{4}." if "boxed" in json.dumps(row) else None)
    question, answer = "prompt", next(name for name in row if name not in ("prompt", "extra"))
    mapped = load_problems(write(tmp_path / "p.jsonl", [row]), {"question": question, "answer": answer}).problems[0]
    assert (mapped.question, mapped.answer) == ("What is 2 + 2?", "4")
    with pytest.raises(ConfigError) as raised:
        load_problems(write(tmp_path / "p.jsonl", [row]), "stepalign")
    assert "--set data.columns=trl" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("row", "preset"),
    [
        ({"messages": [USER, ANSWER]}, "messages"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "What is 2 + 2?"},
                    {"from": "gpt", "value": "So \\boxed{4}."},
                ]
            },
            "messages",
        ),
        ({"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "4"}}, "trl"),
        ({"text": "Write f.", "test_list": ["assert f() == 4"], "code": "def f(): return 4"}, "python"),
    ],
)
def test_the_hint_names_the_preset_that_reads_such_rows(tmp_path: Path, row: dict[str, Any], preset: str) -> None:
    path = write(tmp_path / "p.jsonl", [row])
    with pytest.raises(ConfigError) as raised:
        load_problems(path, "stepalign")
    assert f"--set data.columns={preset}" in str(raised.value.hint)
    (problem,) = load_problems(path, preset).problems
    assert problem.question in ("What is 2 + 2?", "Write f.")
    assert problem.answer in ("4", "assert f() == 4")


def test_a_chat_of_several_turns_is_a_skipped_row(tmp_path: Path) -> None:
    long = {"prompt": [USER, ANSWER, {"role": "user", "content": "And 3 + 3?"}], "answer": "6"}
    found = load_problems(write(tmp_path / "p.jsonl", [{"prompt": [USER], "answer": "4"}, long]), "trl")
    assert len(found.problems) == 1
    assert found.skipped == {"several turns in prompt": 1}
