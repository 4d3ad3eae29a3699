"""Environments: who replies, which ids follow which, what is trained on, what a rollout of several turns records."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from stepalign.config import CriticSection, EnvironmentSection, ServerSection, load_config
from stepalign.domains.math.grading import Grader
from stepalign.domains.python import sandbox
from stepalign.domains.python.sandbox import Ran
from stepalign.errors import ConfigError
from stepalign.feedback.prompts import load_template
from stepalign.models.prompts import PromptBuilder
from stepalign.records import Completion, Problem, rollout_from_json, to_json
from stepalign.rollouts.collect import RolloutMaker
from stepalign.rollouts.environment import Conversation
from stepalign.rollouts.repliers import answer_call, find_call, make_replier
from stepalign.waiting import wait_for

UNAVAILABLE = sandbox.why_unavailable()
needs_sandbox = pytest.mark.skipif(bool(UNAVAILABLE), reason=f"no sandbox here: {UNAVAILABLE}")
PROBLEM = Problem(problem_id="p", question="2 + 3?", answer="5", reference="2 + 3 = 5")


# ---------------------------------------------------------------------------------------------------------------------
# Ids between two turns

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "ChatML": _CHATML,
    "header and turn, no line break": (
        "{% for m in messages %}{{ '[' + m['role'] + ']\n\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
    ),
    "only the assistant's turn has an end": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + '<|im_end|>' }}{% else %}"
        "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
    ),
    "no token ends a turn": (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    ),
}


def builder(tokenizer: Any, template: str = _CHATML, **options: Any) -> PromptBuilder:
    own = copy.copy(tokenizer)
    own.chat_template = template
    templates = {
        "student": load_template("{{ question }}"),
        "self_teacher": load_template("{{ question }} {{ feedback }}"),
    }
    return PromptBuilder(own, **templates, **options)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("said", ["why?", "no <|im_end|> here", " größer\n\n"])
def test_two_turns_and_a_message_are_what_the_chat_template_writes(
    byte_tokenizer, name: str, system: str, said: str
) -> None:
    """Where a template rewrites no earlier turn, its own rendering of the whole conversation is the oracle."""
    prompts = builder(byte_tokenizer, TEMPLATES[name], system=system)
    own: Any = prompts._tokenizer
    answer = own.encode("it is 5", add_special_tokens=False)
    whole = own.apply_chat_template(
        [
            *([{"role": "system", "content": system}] if system else []),
            {"role": "user", "content": PROBLEM.question},
            {"role": "assistant", "content": "it is 5"},
            {"role": "user", "content": said},
        ],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )
    first = (*prompts.student(PROBLEM), *answer)
    end = own.convert_tokens_to_ids("<|im_end|>")
    if name == "only the assistant's turn has an end":  # it writes a blank in front, which the solver samples itself
        first = (*prompts.student(PROBLEM), *own.encode(" it is 5", add_special_tokens=False))
    decoded = own.decode(whole)
    assert own.decode([*first, *prompts.reply(said, answer[-1])]) == decoded
    if name != "no token ends a turn":
        assert own.decode([*first, end, *prompts.reply(said, end)]) == decoded


def test_a_template_that_drops_the_thoughts_of_earlier_turns_leaves_the_sampled_ids_alone(byte_tokenizer) -> None:
    template = (
        "{% for m in messages %}{% set c = m['content'] %}{% if m['role'] == 'assistant' and loop.last %}"
        "{% set c = '<think>\n\n</think>\n\n' + c %}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    prompts = builder(byte_tokenizer, template)
    end = byte_tokenizer.convert_tokens_to_ids("<|im_end|>")
    followed = byte_tokenizer.decode(prompts.reply("why?", end))
    assert followed == "\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_without_an_end_of_the_turn_that_rewrites_earlier_ones_is_refused(byte_tokenizer) -> None:
    shown = "{% if m['role'] == 'user' or loop.last %}{{ m['content'] + ' ' }}{% endif %}"
    template = f"{{% for m in messages %}}{shown}{{% endfor %}}"
    with pytest.raises(ConfigError, match="end of the solver's turn"):
        builder(byte_tokenizer, template).reply("why?", 5)


# ---------------------------------------------------------------------------------------------------------------------
# Conversations


class Recited:
    """A sampler that recites the turns of an episode, by the number of earlier ones in the prompt."""

    def __init__(self, tokenizer: Any, *turns: str) -> None:
        self.tokenizer, self.turns = tokenizer, turns
        self.asked: list[tuple[int, ...]] = []

    async def publish(self, weights, version): ...

    def close(self): ...

    async def sample(self, prompts, *, num_samples, temperature, max_tokens, seed, on_finished: Any = None):
        found = []
        for row, prompt in enumerate(prompts):
            self.asked.append(tuple(prompt))
            number = self.tokenizer.decode(list(prompt)).count("<|im_start|>assistant\n") - 1
            ids = self.tokenizer.encode(self.turns[number], add_special_tokens=False)
            ids = [*ids, self.tokenizer.convert_tokens_to_ids("<|im_end|>")]
            reason = "length" if len(ids) > max_tokens else "stop"
            ids = tuple(ids[:max_tokens])
            one = Completion(ids=ids, log_probs=(-0.5,) * len(ids), finish_reason=reason, policy_version=0)
            found.append([one] * num_samples)
            for index in range(num_samples if on_finished else 0):
                on_finished(row, index, one)
        return found


def talk(tokenizer: Any, section: EnvironmentSection, *turns: str, room: int = 500, **files: Any) -> Any:
    """The one rollout of recited turns in an environment."""
    with Grader() as grader:
        replier = make_replier(section, CriticSection(), grader, **files)
        assert replier is not None
        try:
            prompts = builder(tokenizer)
            limits = {"max_turns": section.max_turns, "max_reply_length": section.max_reply_length}
            maker = RolloutMaker(
                tokenizer=prompts._tokenizer,
                sampler=Recited(prompts._tokenizer, *turns),
                environment=Conversation(prompts=prompts, replier=replier, **limits),
                grader=grader,
                max_turn_length=section.max_turn_length,
            )
            ((rollout,),) = wait_for(maker.attempt([PROBLEM], num_samples=1, temperature=1.0, max_tokens=room, seed=0))
        finally:
            getattr(replier, "close", lambda: None)()
    return rollout


def said(rollout: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in rollout.attempt.turns]


CALL = "Let me see.\n```python\nprint(2 + 3)\n```"


@needs_sandbox
def test_a_call_is_answered_and_the_turn_without_one_is_the_end(byte_tokenizer) -> None:
    rollout = talk(byte_tokenizer, EnvironmentSection(kind="python_tool"), CALL, "So \\boxed{5}")
    assert said(rollout) == [("solver", CALL), ("tool", "5"), ("solver", "So \\boxed{5}")]
    assert rollout.verdict == "correct"
    completion = rollout.completion
    for turn in rollout.attempt.turns:
        inside = completion.sampled_mask[turn.start : turn.end]
        assert set(inside) == {turn.role == "solver"}
    edges = [(turn.start, turn.end) for turn in rollout.attempt.turns]
    assert [start for start, _ in edges] == [0, *(end for _, end in edges[:-1])]
    assert edges[-1][1] == len(completion.ids)
    assert rollout.attempt.transcript.startswith("[solver]\nLet me see.")


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("2 + 3", "5"),
        ("x = 1", "(no output)"),
        ("print('a')\n1 / 0", "a\n"),
        ("import socket; socket.socket()", "PermissionError"),
        ("open('/etc/hostname').read()", "PermissionError"),
        ("import sys\nsys.exit(3)", "exit code 3"),
        ("def f(:", "SyntaxError"),
        ("'x' * 10**11", "MemoryError"),
        ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
        ("raise SystemExit", "(no output)"),
    ],
)
def test_calls_answer_with_their_output_or_the_end_of_their_traceback(byte_tokenizer, code: str, output: str) -> None:
    rollout = talk(byte_tokenizer, EnvironmentSection(kind="python_tool"), f"```python\n{code}\n```", "5")
    role, text = said(rollout)[1]
    assert role == "tool"
    assert output in text


@pytest.mark.parametrize(
    ("turn", "code"),
    [
        ("```py\n1\n```", "1\n"),
        ("a\n```Python3\n1\n```\nb\n```python\n2\n```", "2\n"),
        ("```\n1\n```", None),
        ("```python\n1", None),
        ("```python\n \n```", None),
        ("```python\r\n1\r\n```", "1\r\n"),
        ("<think>\n```python\n1\n```\n</think>\n5", None),
        ("`print(1)`", None),
    ],
)
def test_a_call_is_a_complete_python_block_outside_of_thinking(turn: str, code: str | None) -> None:
    assert find_call(turn) == code


@needs_sandbox
def test_turns_messages_and_all_tokens_have_limits_of_their_own(byte_tokenizer) -> None:
    long = "```python\nprint('y' * 99)\n```"
    cut = talk(byte_tokenizer, EnvironmentSection(kind="python_tool", max_reply_length=7), long, "5")
    assert said(cut)[1] == ("tool", "yyyyyyy")
    assert cut.attempt.turns[1].dropped_tokens == 92
    again = talk(byte_tokenizer, EnvironmentSection(kind="python_tool", max_turns=2), CALL, CALL, "5")
    assert [role for role, _ in said(again)] == ["solver", "tool", "solver"]
    short = talk(byte_tokenizer, EnvironmentSection(kind="python_tool", max_turn_length=9), CALL, "5")
    assert short.attempt.truncated
    assert not short.attempt.turns
    assert len(short.completion.ids) == 9
    full = talk(byte_tokenizer, EnvironmentSection(kind="python_tool"), CALL, "5", room=47)
    assert full.attempt.truncated
    assert not full.attempt.turns


@needs_sandbox
def test_an_output_without_end_is_cut_and_leaves_room_for_the_reason_of_a_failure() -> None:
    assert answer_call("print('é' * 10**6)") == f"{'é' * 8000}\n(the output goes on after 16000 bytes)"
    failed = answer_call("print('y' * 9000)\n1 / 0")
    assert "yyy" in failed
    assert failed.endswith("ZeroDivisionError: division by zero")
    assert len(failed) < 1000


def test_a_call_without_a_processor_is_asked_again_when_it_comes_again(
    byte_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [Ran(fault="timed out"), Ran(output="5\n"), Ran(output="6\n"), Ran(fault="timed out", starved=True)]
    monkeypatch.setattr("stepalign.domains.python.sandbox.run_program", lambda *_, **__: ends.pop(0))
    monkeypatch.setattr("stepalign.domains.python.sandbox.why_unavailable", lambda: "")
    code = "slow = 'on a busy machine'"
    assert [answer_call(code), answer_call(code), answer_call(code)] == ["timed out", "5", "5"]
    assert answer_call(f"{code} ") == "6"
    busy = f"```python\n{code}  # once more\n```"
    rollout = talk(byte_tokenizer, EnvironmentSection(kind="python_tool"), busy, "5")
    assert (rollout.attempt.truncated, rollout.attempt.turns, ends) == (True, (), [])


def test_a_machine_without_processes_ends_the_rollout_alone(byte_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(code: str) -> str:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("stepalign.rollouts.repliers.answer_call", fail)
    monkeypatch.setattr("stepalign.domains.python.sandbox.why_unavailable", lambda: "")
    rollout = talk(byte_tokenizer, EnvironmentSection(kind="python_tool"), CALL, "5")
    assert rollout.attempt.truncated
    assert not rollout.attempt.turns


def test_a_message_of_megabytes_is_cut_before_its_tokens_are_counted(byte_tokenizer, own: Path) -> None:
    section = EnvironmentSection(kind=f"{own}:Endless", max_turns=2, max_reply_length=9)
    message = talk(byte_tokenizer, section, "5", "6").attempt.turns[1]
    counted = byte_tokenizer.encode("7 " * (64 * 9 // 2), add_special_tokens=False)
    assert message.text == byte_tokenizer.decode(counted[:9])
    assert message.dropped_tokens == len(counted) - 9 + 1


MESSAGE = "{% if verdict != 'correct' %}That is {{ verdict }}, not {{ answer }}.{% endif %}"


def test_a_scripted_user_replies_until_nothing_is_wrong_and_the_last_answer_counts(byte_tokenizer) -> None:
    section = EnvironmentSection(kind="user", messages=(MESSAGE, MESSAGE))
    rollout = talk(byte_tokenizer, section, "\\boxed{4}", "\\boxed{5}", "\\boxed{6}")
    assert said(rollout) == [
        ("solver", "\\boxed{4}"),
        ("user", "That is incorrect, not 5."),
        ("solver", "\\boxed{5}"),
    ]
    assert (rollout.verdict, rollout.answer) == ("correct", "5")
    worse = talk(byte_tokenizer, section, "\\boxed{4}", "\\boxed{3}", "\\boxed{6}")
    assert [role for role, _ in said(worse)] == ["solver", "user", "solver", "user", "solver"]
    assert (worse.verdict, worse.answer) == ("incorrect", "6")
    assert not talk(byte_tokenizer, section, "\\boxed{5}").attempt.turns


def test_a_served_user_reads_the_conversation_and_ends_it(byte_tokenizer, serve, tmp_path: Path) -> None:
    replies = iter(["say Say it in a box.", "say [END]"])
    server = serve(lambda text, number: next(replies))
    section = EnvironmentSection(kind="user", served=ServerSection(base_urls=(server.url,), model="m"), max_turns=9)
    for _ in range(2):  # the second time from the cache alone
        rollout = talk(byte_tokenizer, section, "five", "\\boxed{5}", "never", folder=tmp_path)
        assert said(rollout) == [("solver", "five"), ("user", "Say it in a box."), ("solver", "\\boxed{5}")]
    assert len(server.bodies) == 2
    assert "[solver]\nfive\n\n[user]\nSay it in a box." in json.dumps(server.bodies[1]).replace("\\n", "\n")


OWN = '''
class Quiz:
    """Asks for the square of what was found, and knows whether it is right."""

    def __init__(self, rounds=1):
        self.rounds = rounds

    def reply(self, problem, turns):
        asked = sum(turn.role == "user" for turn in turns)
        return f"And the square of {turns[-1].text}?" if asked < self.rounds else None

    def grade(self, problem, turns):
        return turns[-1].text == "25"


class Broken:
    def reply(self, problem, turns):
        return 1 / 0


class Silent:
    pass


class Wrong:
    def reply(self, problem, turns):
        return 5

class Away:
    def __init__(self):
        raise OSError("no service")

class Stuck:
    def reply(self, problem, turns):
        return None

    def close(self):
        raise OSError("still open")

class Endless:
    def reply(self, problem, turns):
        return "7 " * 5_000_000

class Odd:
    def __init__(self, grade):
        self.given = {"huge": 10**400, "above": 1.5}.get(grade, grade)

    def reply(self, problem, turns):
        return None

    def grade(self, problem, turns):
        return self.given
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "quiz.py"
    file.write_text(OWN, encoding="utf-8")
    return file


def test_a_class_of_ones_own_replies_and_grades(byte_tokenizer, own: Path) -> None:
    section = EnvironmentSection(kind=f"{own}:Quiz", options={"rounds": 1})
    rollout = talk(byte_tokenizer, section, "5", "25")
    assert said(rollout) == [("solver", "5"), ("user", "And the square of 5?"), ("solver", "25")]
    assert rollout.reward == 1.0
    assert talk(byte_tokenizer, section, "5", "24").reward == 0.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Broken", {}, "ZeroDivisionError"),
        ("Silent", {}, "no method reply"),
        ("Wrong", {}, "returns int"),
        ("Missing", {}, "no class Missing"),
        ("Quiz", {"laps": 3}, "cannot be made"),
        ("Away", {}, r"OSError: no service.*\n.*quiz.py"),
        ("Stuck", {}, r"OSError: still open.*\n.*quiz.py"),
        ("Odd", {"grade": "fine"}, "no grade: returned 'fine'"),
        ("Odd", {"grade": "huge"}, "no grade"),
        ("Odd", {"grade": "above"}, r"no grade: a score is in \[0, 1\]"),
    ],
)
def test_a_class_that_breaks_the_contract_is_named(byte_tokenizer, own: Path, name, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        talk(byte_tokenizer, EnvironmentSection(kind=f"{own}:{name}", options=options), "5", "25")


def test_a_message_that_asks_for_something_unknown_is_refused_and_so_is_an_empty_script() -> None:
    for section in (EnvironmentSection(kind="user", messages=("{{ mood }}",)), EnvironmentSection(kind="user")):
        with pytest.raises(ConfigError):
            make_replier(section, CriticSection(), Grader())


def test_the_environment_has_a_short_form(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('environment = "python_tool"\n', encoding="utf-8")
    assert load_config(recipe, ["environment.max_turns=2"]).environment.max_turns == 2
    assert load_config(recipe).environment.kind == "python_tool"
    assert load_config(None, ["environment=user"]).environment.kind == "user"
    assert load_config(None).environment.kind == "auto"
    with pytest.raises(ConfigError, match="an environment is one of"):
        load_config(None, ["environment=python_tol"])


def test_the_example_of_the_documents_plays_its_game(byte_tokenizer, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "game.py").write_text(code, encoding="utf-8")
    section = EnvironmentSection(kind=f"{tmp_path / 'game.py'}:Game", max_turns=9)
    rollout = talk(byte_tokenizer, section, "9", "five", "2", "5")
    assert said(rollout)[1::2] == [("tool", "lower"), ("tool", "a number, please"), ("tool", "higher")]
    assert rollout.reward == 1.0
    short = talk(byte_tokenizer, section.model_copy(update={"options": {"most": 2}}), "9", "2", "5")
    assert (len(short.attempt.turns), short.reward) == (3, 0.0)
    for table in re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S):
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(table, encoding="utf-8")
        assert load_config(recipe).environment.kind != "auto"


# ---------------------------------------------------------------------------------------------------------------------
# Records


def test_a_rollout_lists_its_turns_and_comes_back_from_its_line(byte_tokenizer, own: Path) -> None:
    rollout = talk(byte_tokenizer, EnvironmentSection(kind=f"{own}:Quiz"), "5", "25")
    line = json.loads(json.dumps(to_json(rollout)))
    assert [(turn["role"], turn["text"], turn["trained"]) for turn in line["turns"]] == [
        ("solver", "5", True),
        ("user", "And the square of 5?", False),
        ("solver", "25", True),
    ]
    assert line["turns"][0]["start"] == 0
    assert "turns" not in line["completion"]
    line["completion"]["log_probs"] = list(rollout.completion.log_probs)
    back = rollout_from_json(line, PROBLEM)
    assert back.attempt.turns == back.completion.turns == rollout.attempt.turns
    assert back.completion.sampled_mask == rollout.completion.sampled_mask
    single = talk(byte_tokenizer, EnvironmentSection(kind=f"{own}:Quiz", options={"rounds": 0}), "5")
    assert "turns" not in to_json(single)
