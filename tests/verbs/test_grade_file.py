"""``stepalign grade``: one verdict for every row, whatever the row holds and whenever the command is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import wait_until

from stepalign.domains.math.grading import Grader, GraderConfig
from stepalign.errors import ConfigError
from stepalign.verbs import grade as module
from stepalign.verbs.grade import grade_file

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
GOOD = {"text": "so \\boxed{\\frac{1}{2}}", "gold": "0.5"}


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(GraderConfig(seconds=20)) as shared:
        yield shared


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def run(source: Path, out: Path, grader: Grader) -> list[dict[str, Any]]:
    counts = grade_file(str(source), out, completion="text", answer="gold", grader=grader)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(counts["verdicts"].values()) == sum(counts["reasons"].values()) == len(lines)
    return lines


def test_every_row_gets_its_line(tmp_path: Path, grader: Grader) -> None:
    rows = [
        (GOOD, "correct", "\\frac{1}{2}", "equal number"),
        ({"text": "A: 18", "gold": "9 + 9 = 18\n#### 18"}, "correct", "18", "equal number"),
        ({"text": "A: 18", "gold": 18.0}, "correct", "18", "equal number"),
        ({"text": "\\boxed{8}", "gold": 18}, "incorrect", "8", "different number"),
        ({"text": "I do not know", "gold": "1"}, "incorrect", None, "no answer"),
        ({"text": "\\boxed{2}", "gold": ""}, "undecided", "2", "no expected answer"),
        ({"gold": "1"}, "undecided", None, 'malformed row: no "text"'),
        ({"text": "\\boxed{1}"}, "undecided", None, 'malformed row: no "gold"'),
        ({"text": ["\\boxed{1}"], "gold": "1"}, "undecided", None, 'malformed row: "text" is no text'),
        ({"text": "\\boxed{1}", "gold": {"a": 1}}, "undecided", None, 'malformed row: "gold" is no text'),
        ({"text": "True", "gold": True}, "undecided", None, 'malformed row: "gold" is no text'),
        ("{no json", "undecided", None, "malformed row: not JSON"),
        ("[1, 2]", "undecided", None, "malformed row: not an object with named columns"),
        ({"text": "\\boxed{" + "7" * 2_000 + "}", "gold": "7"}, "incorrect", "7" * 512 + "...", "answer too long"),
    ]
    lines = run(write(tmp_path / "in.jsonl", *(row for row, *_ in rows)), tmp_path / "deep" / "out.jsonl", grader)
    assert [line["row"] for line in lines] == list(range(1, len(rows) + 1))
    for line, (_, verdict, extracted, reason) in zip(lines, rows, strict=True):
        assert (line["verdict"], line["extracted"]) == (verdict, extracted), line
        assert line["reason"].startswith(reason)
    assert os.listdir(tmp_path / "deep") == ["out.jsonl"]


def test_a_prompt_that_is_not_known_leaves_open_what_it_may_have_opened(tmp_path: Path, grader: Grader) -> None:
    opens, chat = "2 + 2?<|assistant|><think>\n", [{"role": "user", "content": "2 + 2?"}]
    rows = [
        (opens, "Maybe \\boxed{4}, but", "incorrect"),
        ("2 + 2?<|assistant|>", "\\boxed{4}", "correct"),
        (None, "\\boxed{4}", "undecided"),
        (None, "Hm.</think>\\boxed{4}", "correct"),
        (chat, "\\boxed{4}", "undecided"),
        ([*chat, {"role": "assistant", "content": "<think>"}], "Maybe \\boxed{4}, but", "incorrect"),
        ([*chat, {"role": "assistant", "content": "So"}], "\\boxed{4}", "correct"),
    ]
    written = [{"prompt": prompt, "text": text, "gold": "4"} for prompt, text, _ in rows]
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", *written)
    grade_file(str(source), out, completion="text", answer="gold", prompt="prompt", grader=grader)
    verdicts = [json.loads(line)["verdict"] for line in out.read_text().splitlines()]
    assert verdicts == [verdict for _, _, verdict in rows]


def test_parquet_gives_what_json_lines_give(tmp_path: Path, grader: Grader) -> None:
    arrow = pytest.importorskip("pyarrow", reason='Parquet needs the extra "data"')
    import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]

    rows = [GOOD, {"text": "A: 3", "gold": "4"}, {"text": None, "gold": "4"}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    expected = run(write(tmp_path / "in.jsonl", *rows), tmp_path / "a.jsonl", grader)
    assert run(tmp_path / "in.parquet", tmp_path / "b.jsonl", grader) == expected


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"GSM8K is not at {GSM8K}")
def test_labelled_attempts_from_the_shell(tmp_path: Path) -> None:
    source, out = GSM8K / "model_solutions.jsonl", tmp_path / "verdicts.jsonl"
    words = ("grade", source, "--completion", "solution", "--answer", "reference", "--out", out)
    done = subprocess.run([sys.executable, "-m", "stepalign", *words], capture_output=True, text=True, check=True)
    assert "801 correct, 1837 incorrect, 0 undecided" in done.stdout
    labels = [json.loads(line)["is_correct"] for line in source.read_text().splitlines()]
    verdicts = [json.loads(line)["verdict"] == "correct" for line in out.read_text().splitlines()]
    assert verdicts == labels


def test_a_killed_command_goes_on_and_grades_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 5)
    source = write(tmp_path / "in.jsonl", *({"text": f"A: {i}", "gold": str(i // 2 * 2)} for i in range(60)))
    out, counter = tmp_path / "out.jsonl", tmp_path / "graded"
    (tmp_path / "slow_grader.py").write_text(
        "import time\n"
        "def grade(completion, expected):\n"
        f"    with open({str(counter)!r}, 'a') as file: file.write(completion + '\\n')\n"
        "    time.sleep(0.02)\n"
        "    return completion == 'A: ' + expected\n"
    )
    script = (
        "from pathlib import Path\nfrom stepalign.verbs import grade as m\n"
        "from stepalign.domains.math.grading import *\n"
        "m.BATCH = 5\n"
        "g = Grader(GraderConfig(function='slow_grader:grade', seconds=20, num_workers=1))\n"
        f"m.grade_file({str(source)!r}, Path({str(out)!r}), completion='text', answer='gold', grader=g)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    wait_until(lambda: counter.exists() and counter.stat().st_size >= 150, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (partial,) = tmp_path.glob(".out.jsonl.*.partial")
    with partial.open("ab") as file:
        file.write(b'{"row": 6, "verd')  # a torn line
    before = len(counter.read_text().splitlines())
    monkeypatch.chdir(tmp_path)  # the grader lies where the user stands, not on the path of the package
    with Grader(GraderConfig(function="slow_grader:grade", seconds=20, num_workers=1)) as own:
        lines = run(source, out, own)
    assert [line["verdict"] for line in lines] == ["correct", "incorrect"] * 30
    assert [line["row"] for line in lines] == list(range(1, 61))
    graded = counter.read_text().splitlines()
    assert len(graded) <= 60 + 6  # at most the batch that was not written, and the one in the making
    assert len(graded) < 60 + before


def test_another_grader_or_another_file_starts_anew(tmp_path: Path, grader: Grader) -> None:
    source, out = write(tmp_path / "in.jsonl", GOOD, GOOD), tmp_path / "out.jsonl"
    stale = tmp_path / ".out.jsonl.0123456789ab.partial"
    stale.write_text('{"row": 1, "verdict": "incorrect", "extracted": null, "reason": "of another job"}\n')
    assert [line["verdict"] for line in run(source, out, grader)] == ["correct", "correct"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"Text": "A: 1", "gold": "1"}], 'no column "text"'),
        ([{"text": "A: 1", "answer": "1"}], 'no column "gold"'),
    ],
)
def test_what_a_user_gets_wrong(tmp_path: Path, grader: Grader, rows: list[Any], message: str) -> None:
    source = write(tmp_path / "in.jsonl", *rows)
    with pytest.raises(ConfigError, match=message):
        run(source, tmp_path / "out.jsonl", grader)
    with pytest.raises(ConfigError, match="would replace the input"):
        run(source, source, grader)
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_a_dot_names_a_column_inside_of_another(tmp_path: Path, grader: Grader) -> None:
    rows = [
        {"response": {"text": "\\boxed{7}"}, "meta": {"gold": 7}},
        {"response": None, "meta": {"gold": 7}},
        {"response": {"text": ""}, "meta": {"gold": 7}},
        {"response.text": "\\boxed{7}", "response": {"text": "\\boxed{8}"}, "meta": {"gold": 7}},
    ]
    out = tmp_path / "out.jsonl"
    source = str(write(tmp_path / "rows.jsonl", *rows))
    grade_file(source, out, completion="response.text", answer="meta.gold", grader=grader)
    verdicts = [json.loads(line)["verdict"] for line in out.read_text().splitlines()]
    assert verdicts == ["correct", "undecided", "incorrect", "correct"]
    with pytest.raises(ConfigError, match=r'no column "response\.words"'):
        grade_file(source, out, completion="response.words", answer="meta.gold", grader=grader)
