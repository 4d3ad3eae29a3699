"""An environment of the real package verifiers as a source of problems and their grader.

The package excludes openai 3, so it may be absent where the other tests run; the refusal then is what is tested.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepalign.cli import app
from stepalign.config import load_config
from stepalign.domains.domain import open_grader
from stepalign.domains.table import load_set
from stepalign.errors import ConfigError
from stepalign.problems.loading import ProblemSet


def load_problems(source: str, limit: int | None = None) -> ProblemSet:
    return load_set(load_config(None, [f"data.train={source}", f"data.max_train={limit or 'null'}"]).data, "train")


INSTALLED = importlib.util.find_spec("verifiers") is not None
needs_verifiers = pytest.mark.skipif(not INSTALLED, reason='needs pip install "stepalign[verifiers]" beside openai 2')

SUMS = """
import asyncio
import verifiers.v1 as vf

class SumData(vf.TaskData):
    answer: str
    note: str | None = None

class SumTask(vf.Task[SumData]):
    @vf.reward(weight=0.75)
    async def value(self, trace: vf.Trace) -> float:
        await asyncio.sleep(0.01)
        if trace.last_reply == "raise":
            raise ZeroDivisionError("no such sum")
        while trace.last_reply == "spin":
            pass
        if trace.last_reply == "wait":
            await asyncio.sleep(60)
        return float(trace.last_reply.split()[-1:] == [self.data.answer])

    @vf.reward(weight=0.25)
    async def brief(self, trace: vf.Trace) -> float:
        assert trace.messages[-2].content == self.data.prompt
        return float(len(trace.last_reply) < 20)

class SumConfig(vf.TasksetConfig):
    split: str = "train"
    count: int = 3

class Sums(vf.Taskset[SumTask, SumConfig]):
    def load(self):
        start = 100 if self.config.split == "eval" else 0
        for n in range(start, start + self.config.count):
            texts = {"prompt": f"What is {n} plus {n}?", "answer": str(2 * n), "system_prompt": "Be brief."}
            yield SumTask(SumData(name=f"sum-{n}", **texts), self.config.task)
        begun = [vf.UserMessage(content="Hi"), vf.AssistantMessage(content="Hello")]
        yield SumTask(SumData(prompt=begun, answer="0"), self.config.task)
        yield SumTask(SumData(answer="0"), self.config.task)

__all__ = ["Sums"]
"""


GUESSES = """
import random
import verifiers.v1 as vf

class GuessData(vf.TaskData):
    secret: int

class GuessTask(vf.Task[GuessData]):
    @vf.reward(weight=1.0)
    async def found(self, trace: vf.Trace) -> float:
        said = [m.content for m in trace.messages if m.role == "user"]
        assert len(said) == trace.num_turns, said
        return float(trace.last_reply == str(self.data.secret)) * (1.0 if trace.num_turns < 3 else 0.5)

class GuessConfig(vf.TasksetConfig):
    opens: bool = True

class Guesses(vf.Taskset[GuessTask, GuessConfig]):
    def load(self):
        for n in range(4):
            prompt = f"Guess my number, {n}." if self.config.opens else None
            yield GuessTask(GuessData(name=f"guess-{n}", prompt=prompt, secret=3 + n), self.config.task)

class GuessEnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()

class GuessEnv(vf.Env[GuessEnvConfig]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as talk:
            said = await (talk.turn() if task.data.prompt else talk.turn(f"Game {task.data.secret}: {random.random()}"))
            while not said.terminated and said.last_reply != str(task.data.secret):
                word = said.last_reply
                if word == "spin":
                    while True: pass
                told = ("higher" if int(word) < task.data.secret else "lower") if word.isdigit() else "a number, please"
                said = await talk.turn([{"role": "user", "content": told}] if told == "lower" else told)

    async def finalize(self, task, episode):
        (trace,) = episode.traces
        assert trace.agent.name == "player"
        trace.record_reward("brief", float(len(trace.messages) < 4), 0.5)

__all__ = ["GuessEnv", "Guesses"]
"""


@pytest.fixture
def guesses(tmp_path: Path) -> str:
    file = tmp_path / "guesses_taskset.py"
    file.write_text(GUESSES, encoding="utf-8")
    return f"verifiers:{file}"


@pytest.fixture
def sums(tmp_path: Path) -> str:
    file = tmp_path / "sums_taskset.py"
    file.write_text(SUMS, encoding="utf-8")
    return f"verifiers:{file}"


@pytest.mark.skipif(INSTALLED, reason="verifiers is installed")
def test_without_the_package_the_error_names_the_extra() -> None:
    with pytest.raises(ConfigError, match=r'pip install "stepalign\[verifiers\]"'):
        load_problems("verifiers:anything")
    with pytest.raises(ConfigError, match=r"stepalign\[verifiers\]"):
        open_grader("verifiers:anything")


@needs_verifiers
def test_tasks_become_problems(sums: str) -> None:
    train = load_problems(sums)
    assert [problem.question for problem in train.problems] == [f"Be brief.\n\nWhat is {n} plus {n}?" for n in range(3)]
    assert json.loads(train.problems[2].answer)["answer"] == "4"
    assert train.problems[2].metadata == {"task_name": "sum-2", "task_index": 2}
    assert train.skipped == {"a conversation that has begun": 1, "no prompt": 1}
    assert train.num_rows == 5
    evaluation = load_problems(f"{sums}?split=eval&count=7", limit=6)
    assert [json.loads(problem.answer)["answer"] for problem in evaluation.problems] == [
        str(2 * n) for n in range(100, 106)
    ]


@needs_verifiers
def test_the_rewards_are_the_verdict(sums: str) -> None:
    expected = load_problems(sums).problems[2].answer
    texts = ("4", "<think>5? raise</think>\n4", "It is, I am rather sure, 4", "5", "", "raise", " 4 ")
    with open_grader(sums, seconds=60.0, num_workers=1) as grader:  # the machine may be busy
        grades = {text: grader.grade(text, expected) for text in texts}
    with open_grader(sums, seconds=0.5, num_workers=1) as grader:
        grades |= {text: grader.grade(text, expected) for text in ("spin", "wait")}
    assert {text: grade.verdict for text, grade in grades.items()} == {
        "4": "correct",
        "<think>5? raise</think>\n4": "correct",
        "It is, I am rather sure, 4": "incorrect",
        "5": "incorrect",
        "": "incorrect",
        "raise": "undecided",
        "spin": "undecided",
        "wait": "undecided",
        " 4 ": "correct",
    }
    assert grades["It is, I am rather sure, 4"].reason == "reward 0.75"
    assert "no such sum" in grades["raise"].reason
    assert grades["spin"].reason == grades["wait"].reason == "timed out"


@needs_verifiers
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "    @vf.reward(weight=0.25)",
            "    async def setup(self, trace, runtime): pass\n    @vf.reward",
            "setup step",
        ),
        (
            "class SumTask(vf.Task[SumData]):",
            "class SumTask(vf.Task[SumData]):\n    NEEDS_CONTAINER = True",
            "container",
        ),
        ("brief(self, trace: vf.Trace)", "brief(self, trace: vf.Trace, runtime: vf.Runtime)", "needs a runtime"),
        ("@vf.reward", "#", "no reward function"),
        ("    def load(self):", "    INFINITE = True\n    def load(self):", "never ends"),
        (
            '__all__ = ["Sums"]',
            "class Two(vf.EnvConfig):\n    one: vf.AgentConfig = vf.AgentConfig()\n"
            "    two: vf.AgentConfig = vf.AgentConfig()\n"
            "class Duel(vf.Env[Two]):\n    async def run(self, task, agents): pass\n__all__ = ['Sums', 'Duel']",
            "several agents",
        ),
        ("start = 100 if", "start = 1 / 0 if True or", "ZeroDivisionError"),
        ("import asyncio", "import asyncio, no_such_module_here", "no_such_module_here"),
    ],
)
def test_what_one_reply_cannot_answer_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SUMS
    file = tmp_path / f"refused_{abs(hash((old, new)))}.py"  # a module is imported once under a name
    file.write_text(SUMS.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_problems(f"verifiers:{file}")


@needs_verifiers
def test_wrong_names_and_settings(sums: str, tmp_path: Path) -> None:
    for source in ("verifiers:no_such_taskset_here", f"{sums}?splitt=eval", f"{sums}?count=many"):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            load_problems(source)
    with pytest.raises(ConfigError, match="no such file"):
        load_problems(f"verifiers:{tmp_path}/nothing.py")


@needs_verifiers
@pytest.mark.slow
def test_grade_and_train_with_an_environment(sums: str, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    from stepalign.domains.table import make_grader
    from stepalign.stopping import StopRequest
    from stepalign.storage.jsonl import read_json_lines
    from stepalign.verbs.progress import Display
    from stepalign.verbs.train import train_config

    expected = load_problems(sums).problems[1].answer
    attempts = tmp_path / "attempts.jsonl"
    attempts.write_text("".join(json.dumps({"text": text, "task": expected}) + "\n" for text in ("2", "3")))
    out = tmp_path / "verdicts.jsonl"
    options = ["--completion", "text", "--answer", "task", "--out", str(out), "--grader", sums, "--workers", "1"]
    result = CliRunner().invoke(app, ["grade", str(attempts), *options])
    assert result.exit_code == 0, result.output
    assert [row["verdict"] for row in read_json_lines(out)] == ["correct", "incorrect"]

    recipe = write_recipe(
        condition="grpo",
        data={"train": sums, "test": f"{sums}?split=eval"},
        training={"max_steps": 1, "problems_per_step": 2},
        sampling={"num_generations": 2, "max_completion_length": 24},
        evaluation={"num_samples": 1, "at_start": False},
    )
    with pytest.raises(ConfigError, match="grades its own tasks only"):
        make_grader(load_config(str(recipe), ["data.test=embedded:arithmetic"]).data)
    display = Display("run")
    train_config(load_config(str(recipe)), tmp_path / "run", resume=False, listener=display, stop=StopRequest())
    rollouts = list(read_json_lines(tmp_path / "run" / "rollouts.jsonl"))
    assert rollouts
    assert {row["verdict"] for row in rollouts} <= {"correct", "incorrect"}


@needs_verifiers
def test_an_environment_of_several_turns_replies_and_grades(guesses: str) -> None:
    expected = load_problems(guesses).problems[0].answer
    with open_grader(guesses, seconds=60.0, num_workers=1) as play:

        def found(*replies: str | None) -> tuple[str, str]:
            grade = play.grade(json.dumps(replies), expected)
            return grade.reason, grade.detail

        assert found("9") == ("", "lower")
        assert found("9", "1") == ("", "higher")
        assert found("9", "<think>or 4?</think>no idea") == ("", "a number, please")
        assert found("9", "3") == ("the end", "")
        assert play.grade(json.dumps(["3", None]), expected).score == 1.0  # 1 and 0.5 for the brief one, at most 1
        assert play.grade(json.dumps(["9", "3", None]), expected).score == 1.0
        assert play.grade(json.dumps(["9", "1", "3", None]), expected).score == 0.5
        assert play.grade(json.dumps(["9", "1", None]), expected).score == 0.0
    with open_grader(guesses, seconds=0.5, num_workers=1) as play:
        assert play.grade(json.dumps(["spin"]), expected).reason == "timed out"


@needs_verifiers
def test_an_environment_that_speaks_first_is_asked_for_the_question(guesses: str) -> None:
    first, second = (load_problems(f"{guesses}?opens=false").problems for _ in range(2))
    assert first == second  # its random numbers are seeded
    assert first[1].question.startswith("Game 4: 0.")


@needs_verifiers
@pytest.mark.slow
def test_a_conversation_drives_the_loop(guesses: str, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    from stepalign.stopping import StopRequest
    from stepalign.storage.jsonl import read_json_lines
    from stepalign.verbs.progress import Display
    from stepalign.verbs.train import train_config

    recipe = write_recipe(
        condition="grpo",
        data={"train": guesses, "grader_seconds": 30.0},
        training={"max_steps": 2, "problems_per_step": 2},
        sampling={"num_generations": 2, "max_completion_length": 120},
        environment={"kind": "auto", "max_turns": 3, "max_turn_length": 12},
        evaluation={"num_samples": 1, "at_start": False},
    )
    config = load_config(str(recipe), ["data.test=null"])
    train_config(config, tmp_path / "run", resume=False, listener=Display("run"), stop=StopRequest())
    rollouts = list(read_json_lines(tmp_path / "run" / "rollouts.jsonl"))
    assert len(rollouts) == 8
    for rollout in rollouts:
        assert rollout["reward"] is not None
        turns, ids = rollout.get("turns", []), rollout["completion"]["ids"]
        mask = rollout["completion"].get("sampled_mask", [True] * len(ids))
        for turn in turns:
            assert set(mask[turn["start"] : turn["end"]]) == {turn["role"] == "solver"}
    assert any(turn["text"] == "a number, please" for rollout in rollouts for turn in rollout.get("turns", []))
