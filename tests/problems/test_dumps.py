"""Dumps of other trainers, in the layouts that they write. TRL's Parquet and the logs of inspect_ai were written by
those packages (TRL 1.16.0, inspect_ai 0.3.285); the others follow the sources that problems/dumps.py names."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from stepalign.errors import ConfigError
from stepalign.problems.dumped import Dumped, Unreadable, split_prompt
from stepalign.problems.dumps import open_dump, read_dump

DUMPS = Path(__file__).parents[1] / "data" / "dumps"
SUM, TIME = "Find 3 + 4 * 2.", "How many minutes are 2 hours and 5 minutes?"


def read(name: str) -> tuple[str, list[Dumped], dict[str, int]]:
    dump, skipped = open_dump(DUMPS / name), Counter[str]()
    assert dump is not None
    return dump.layout.name, list(read_dump(dump, skipped)), dict(skipped)


@pytest.mark.parametrize(
    ("name", "layout", "questions", "scores", "answers"),
    [
        ("trl.jsonl", "TRL or ms-swift completions", [SUM, SUM, TIME, TIME], [1, 0, 1, 0], ["11", "11", "125", "125"]),
        (
            "trl.parquet",
            "TRL or ms-swift completions",
            [SUM, SUM, TIME, TIME],
            [0, 1, 0, 1],
            ["11", "11", "125", "125"],
        ),
        ("swift.jsonl", "TRL or ms-swift completions", [SUM, SUM], [1, 0], ["", ""]),
        ("verl.jsonl", "verl rollouts", [SUM, SUM, TIME, TIME], [1, 0, 1, 0], ["11", "11", "125", "125"]),
        ("openrlhf.jsonl", "OpenRLHF samples", [SUM, SUM], [1, 0], ["", ""]),
        ("slime.jsonl", "slime samples", [SUM, SUM], [1, 0], ["11", "11"]),
        ("nemo_train.jsonl", "NeMo-RL data", [SUM, SUM], [1, 0], ["", ""]),
        ("nemo_val.jsonl", "NeMo-RL data", [SUM, TIME], [1, 0], ["", ""]),
        ("prime_rollouts.jsonl", "prime-rl or verifiers rollouts", [SUM, SUM], [1, 0], ["11", "11"]),
        ("verifiers_results.jsonl", "verifiers results", [SUM, SUM], [1, 0], ["11", "11"]),
        ("inspect.json", "inspect_ai log", [SUM, TIME], [1, 0], ["11", "125"]),
        ("inspect.eval", "inspect_ai log", [SUM, TIME], [1, 0], ["11", "125"]),
        ("chat.jsonl", "chat messages", [SUM, TIME], [math.nan] * 2, ["11", "125"]),
        ("sharegpt.jsonl", "chat messages", [SUM], [math.nan], ["11"]),
    ],
)
def test_a_dump_is_known_by_its_columns(
    name: str, layout: str, questions: list[str], scores: list[float], answers: list[str]
) -> None:
    found, dumped, _ = read(name)
    assert found == layout
    assert [one.question for one in dumped] == questions
    assert [one.answer for one in dumped] == answers
    assert [one.score for one in dumped] == pytest.approx(scores, nan_ok=True)
    assert all(one.text and one.attempt().text for one in dumped)
    assert len({one.name for one in dumped}) == len(dumped)


def test_rows_without_an_attempt_are_counted_by_reason() -> None:
    assert read("prime_rollouts.jsonl")[2] == {"an episode or log without attempts": 1}
    assert read("verifiers_results.jsonl")[2] == {"several turns in the completion": 1}
    assert read("chat.jsonl")[2] == {"several turns in the prompt": 1}


def test_numbers_of_tokens_are_those_of_the_completion() -> None:
    _, (first, second), _ = read("prime_tokens.jsonl")
    assert (list(first.prompt_ids), list(first.ids), first.step) == ([5, 6, 7], [21, 22, 23, 2], 12)
    assert first.values["log_ratio"] == [-0.25, 0.0, 0.5, 0.0]
    # Tokens 40 and 41 are an environment's: they have no numbers, and the mask says so.
    assert second.sampled == [True, False, False, True, True]
    assert second.values["mismatch_kl"] == [0.0625, None, None, 0.0, 0.03125]
    _, (first, _), _ = read("nemo_train.jsonl")  # padded to the longest of its batch
    assert list(first.ids) == [21, 22]
    assert first.values == {
        "sampler_log_prob": [-0.5, -0.25],
        "trainer_log_prob": [-0.25, -0.5],
        "log_ratio": [0.25, -0.25],
        "advantage": [0.75, 0.75],
    }
    _, (first, _), _ = read("slime.jsonl")
    assert first.truncated
    assert first.values["teacher_ratio"] == [0.25, -0.25, -2.0]
    _, (first, _), _ = read("prime_rollouts.jsonl")
    assert (list(first.ids), first.values["advantage"]) == ([21, 22, 23], [0.5] * 3)
    for log in ("inspect.json", "inspect.eval"):
        assert read(log)[1][1].values["sampler_log_prob"][3] == -3.0
        assert "".join(read(log)[1][1].pieces) == "2 hours are 100 minutes. ANSWER: 105"


# (prompt as a chat template wrote it, system message, question)
PROMPTS = [
    ("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n<think>\n", "S", "Q?"),
    ("system\nS\nuser\nQ?\nassistant\n", "S", "Q?"),
    ("user\nQ?\nassistant\n<think>\n\n</think>\n\n", "", "Q?"),
    ("system\n\nS\n\nuser\n\nQ?assistant\n\n", "S", "Q?"),  # Llama 3 without its control tokens
    ("user\nQ?\nmodel\n", "", "Q?"),
    ("<bos><start_of_turn>user\nQ?<end_of_turn>\n<start_of_turn>model\n", "", "Q?"),
    ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ? [/INST]", "S", "Q?"),
    ("<s>[INST] Q? [/INST]", "", "Q?"),
    ("<|system|>\nS<|end|>\n<|user|>\nQ?<|end|>\n<|assistant|>\n", "S", "Q?"),
    ("<｜begin▁of▁sentence｜>S<｜User｜>Q?<｜Assistant｜><think>\n", "S", "Q?"),
    ("What does [INST] mean?", "", "What does [INST] mean?"),
    ("Say user\nor assistant\nplease", "", "Say user\nor assistant\nplease"),
]


@pytest.mark.parametrize(("prompt", "system", "question"), PROMPTS)
def test_the_question_is_found_in_a_templated_prompt(prompt: str, system: str, question: str) -> None:
    assert split_prompt(prompt) == (system, question)


@pytest.mark.parametrize(
    "prompt",
    [
        "user\nQ?\nassistant\nA\nuser\nR?\nassistant\n",
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n",
    ],
)
def test_a_prompt_of_several_turns_is_left_out(prompt: str) -> None:
    with pytest.raises(Unreadable, match="several turns"):
        split_prompt(prompt)


def test_a_thought_that_the_prompt_opens_belongs_to_the_graded_text(tmp_path: Path) -> None:
    row = {
        "input": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "output": "cut \\boxed{3}",
        "score": 0,
    }
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    dump = open_dump(tmp_path / "d.jsonl")
    assert dump is not None
    (one,) = read_dump(dump, Counter())
    assert (one.text, one.attempt().answer) == ("cut \\boxed{3}", None)


def test_a_folder_of_dumps_is_one_dump_in_the_order_of_its_steps(tmp_path: Path) -> None:
    for step in (10, 9):
        row = {"input": "Q", "output": f"step {step}", "score": 1.0, "step": step}
        (tmp_path / f"{step}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "metadata.json").write_text('{"env_id": "x"}')
    dump = open_dump(tmp_path)
    assert dump is not None
    assert [one.text for one in read_dump(dump, Counter())] == ["step 9", "step 10"]
    assert "verl rollouts in 2 files, known by the columns input, output, score" in dump.message


@pytest.mark.parametrize(
    "row", [{"question": "Q", "completion": "A"}, {"question": "Q", "completion": "A", "contexts": {}}, {"x": 1}]
)
def test_a_plain_file_is_no_dump(row: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text(json.dumps(row) + "\n")
    assert open_dump(tmp_path / "f.jsonl") is None


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "rollout_0.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(ConfigError, match="run code"):
        open_dump(tmp_path / "rollout_0.pt")


def test_hostile_cells_are_counted_and_never_an_error(tmp_path: Path) -> None:
    rows = [
        *({"input": cell, "output": "A", "score": 1} for cell in (1, None, [], {}, [1], "")),
        *({"input": "Q", "output": cell, "score": 1} for cell in (1, [], {}, [{"role": "tool"}], "")),
        *({"input": "Q", "output": "A", "score": score} for score in ("x", [], {}, 1e400, -7)),
        {"input": "Q", "output": "kept", "score": 1},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn")
    dump, skipped = open_dump(tmp_path / "d.jsonl"), Counter[str]()
    assert dump is not None
    found = list(read_dump(dump, skipped))
    assert len(found) + sum(skipped.values()) == len(rows) + 1
    assert found[-1].text == "kept"
    assert all(math.isnan(one.score) for one in found if one.text == "A" and one.question == "Q")


def test_an_empty_cell_in_the_first_row_changes_neither_the_layout_nor_the_other_rows(tmp_path: Path) -> None:
    rows = [{"input": f"What is 2 + {i}?", "output": f"It is {2 + i}.", "score": 1.0} for i in range(3)]
    file = tmp_path / "rollouts.jsonl"
    for empty in ("score", "output"):
        file.write_text("".join(json.dumps(row) + "\n" for row in [{**rows[0], empty: None}, *rows[1:]]))
        dump, skipped = open_dump(file), Counter[str]()
        assert dump is not None
        assert dump.layout.name == "verl rollouts"
        verdicts = [one.attempt().verdict for one in read_dump(dump, skipped)]
        assert verdicts == ["undecided"] * (empty == "score") + ["correct"] * 2
        assert skipped == ({} if empty == "score" else {"no completion": 1})


def test_a_packed_file_has_the_rows_of_the_plain_one_and_its_torn_end_is_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is 2 + {i}? 日本", "completion": f"It is {2 + i}.", "step": 1} for i in range(400)]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    file, skipped = tmp_path / "completions.jsonl.gz", Counter[str]()
    for data in (packed, packed[:-9], packed[: len(packed) // 2]):
        file.write_bytes(data)
        dump = open_dump(tmp_path)
        assert dump is not None
        texts = [one.text for one in read_dump(dump, skipped)]
        assert texts == [row["completion"] for row in rows[: len(texts)]]
        assert (len(texts) == 400) == (data[-9:] == packed[-9:] or len(data) == len(packed) - 9)
    assert sum(skipped.values()) >= 2
    (tmp_path / "list.json.gz").write_bytes(gzip.compress(json.dumps(rows[:3]).encode()))
    dump = open_dump(tmp_path / "list.json.gz")
    assert dump is not None
    assert len(list(read_dump(dump, skipped))) == 3
