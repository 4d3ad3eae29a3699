"""Wrong inputs, each answered in one message: what, where, and a hint; before torch is loaded, nothing written.

One process gives all the commands, one after the other, and looks after each whether torch has been loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = {
    "a.jsonl": '{"question": "What is 1 + 1?", "completion": "\\\\boxed{2}", "answer": "2"}\n',
    "bad.jsonl": '{"question": "1 + 1", \n',
    "none.jsonl": "",
    "file": "text",
    "broken.toml": "[model\n",
    "misspelt.toml": "[trainig]\nmax_steps = 3\n",
    "chat.jsonl": '{"prompt": [{"role": "user", "content": "1 + 1"}], "answer": "2"}\n',
    "other/config.toml": "",
    "thesis/thesis.txt": "years of work",
    "twice.jsonl": '{"id": "x", "question": "1", "completion": "2", "contexts": {"c": "3"}}\n' * 2,
    "adapter/adapter_config.json": '{"base_model_name_or_path": "tiny"}',
    "tiny/config.json": "{}",
    "ours.py": "def design(group, index):\n    return 'x'\n",
}
TRAIN, COMPARE = "train arithmetic --out x", "compare arithmetic --out x"
EVALUATE = "evaluate embedded:arithmetic --problems embedded:arithmetic --out e.json"
CRITIQUE = "critique a.jsonl --out c --critic"
GSM8K = "--set data.test=null --set data.validation=null --set condition=refsol --set data.train"

# Words, exit code, and parts of the message.
CASES: list[tuple[str, int, tuple[str, ...]]] = [
    # Words of the command line
    ("trian arithmetic --out x", 2, ("No such command 'trian'", "train", "--help")),
    ("train", 2, ("Missing argument", "train --help")),
    ("train arithmetic", 2, ("Missing option '--out'", "--help")),
    (f"{TRAIN} --setting a=b", 2, ("No such option: --setting", "--set")),
    (f"{EVALUATE} --n 0", 2, ("--n", "--help")),
    (f"{EVALUATE} --n many", 2, ("--n", "--help")),
    ("lab embedded:arithmetic --port 99999", 2, ("--port", "--help")),
    # Recipes and keys
    ("train arithmetik --out x", 2, ("no recipe arithmetik", "did you mean arithmetic?")),
    ("train broken.toml --out x", 2, ("not valid TOML", "broken.toml", "line 1")),
    ("train misspelt.toml --out x", 2, ("unknown key trainig", "misspelt.toml")),
    (f"{TRAIN} --set training.max_stesp=3", 2, ("unknown key training.max_stesp", "did you mean training.max_steps?")),
    (f"{TRAIN} --set training.max_steps", 2, ("has no value", "--set key.path=value")),
    (f"{TRAIN} --set training.max_steps=many", 2, ("given 'many'", "--set training.max_steps", "docs/keys.md")),
    (f"{TRAIN} --set training.max_steps=-1", 2, ("greater than or equal to 0, given -1", "docs/keys.md")),
    (f"{TRAIN} --set training.learning_rate=nan", 2, ("training.learning_rate", "docs/keys.md")),
    (f"{TRAIN} --set objective.divergence=revers_kl", 2, ("unknown divergence 'revers_kl'", "reverse_kl")),
    (f"{TRAIN} --set critic.kind=programatic", 2, ("critic.kind", "did you mean programmatic?")),
    (f"{TRAIN} --set training.report_to=trakio", 2, ("training.report_to", "did you mean trackio?")),
    (f"{TRAIN} --set per_device_train_batch_size=8", 2, ("did you mean training.max_micro_batch_tokens?",)),
    (f"{TRAIN} --set output_dir=y", 2, ("unknown key output_dir", "--out names the folder of a run")),
    (f"{TRAIN} --set top_p=0.9", 2, ("unknown key top_p", "sampling.temperature alone")),
    (f"{TRAIN} --set model.lora.targets=all-linear", 2, ('a list, such as ["a", "b"]', "given 'all-linear'")),
    (f"{TRAIN} --set model.path=adapter", 2, ("adapter holds an adapter of tiny", "merge_and_unload")),
    (f"{TRAIN} --set model.path=no-one/nothing", 2, ("the Hub cannot be reached", "hf download no-one/nothing")),
    (f"{TRAIN} --set model.path.x=1", 2, ("path is a value and has no key x", "model.path.x")),
    (f"{EVALUATE} --set evaluation.temprature=1", 2, ("did you mean evaluation.temperature?",)),
    (f"{EVALUATE} --recipe nope", 2, ("no recipe nope", "shipped recipes")),
    # Conditions, contexts, arms, prompts
    (f"{TRAIN} --set condition=step_alligned", 2, ("unknown condition", "did you mean step_aligned?")),
    (f"{TRAIN} --set condition=ours.py:desing", 2, ("ours.py", "hint")),
    (f"{TRAIN} --set condition=nowhere.py:design", 2, ("nowhere.py", "hint")),
    (f"{TRAIN} --set condition=grpo", 2, ("there is only one", "sampling.num_generations=8")),
    (f"{TRAIN} --set prompts.student=stundent", 2, ("no prompt template 'stundent'", "student")),
    (f"{TRAIN} --set prompts.self_teacher={{{{question}}}}", 2, ("never shows its context", "{{ feedback }}")),
    (f"{COMPARE} --set compare.arms=[]", 2, ("no arms to compare", "compare.arms", "hint")),
    (f"{COMPARE} --set compare.seeds=[0,0]", 2, ("seeds must be given, and differ", "compare.seeds")),
    (f"{COMPARE} --set \"signal.contexts=['refrence']\"", 2, ("where: signal.contexts", "did you mean reference?")),
    (f"{COMPARE} --set compare.launcher=srunn", 2, ("no command srunn", "compare.launcher", "hint")),
    (f"{COMPARE} --set evaluation.checkpoint_rule=best_on_validation --set data.validation=null", 2, ("hint",)),
    # Problems
    (f"{TRAIN} --set data.train=nowhere.jsonl", 2, ("no such file", "nowhere.jsonl", 'Did you mean "none.jsonl"?')),
    (
        f"{TRAIN} --set data.train=embedded:algebra",
        2,
        ("no shipped set embedded:algebra", "shipped: embedded:arithmetic"),
    ),
    (f"{TRAIN} --set data.train=hub:nope", 2, ("hub:nope", "hub:OWNER/NAME")),
    (f"{TRAIN} --set data.columns=gms8k", 2, ("gms8k", 'Did you mean "gsm8k"?')),
    (f"{TRAIN} {GSM8K}=bad.jsonl", 2, ("bad.jsonl, line 1",)),
    (f"{TRAIN} {GSM8K}=none.jsonl", 2, ("no rows", "none.jsonl")),
    (f"{TRAIN} {GSM8K}=chat.jsonl", 2, ('no column "question"', "--set data.columns=trl")),
    (f"{TRAIN} {GSM8K}=a.jsonl", 2, ("no training problem has a reference solution", "data.columns")),
    ("train paper --out x --set model.device=cpu", 2, ("data/openmathreasoning", "stepalign select")),
    ("select arithmetic --out x --problems nowhere.jsonl", 2, ("no such file", "none.jsonl")),
    ("evaluate embedded:arithmetic --problems nowhere.jsonl --out e.json", 2, ("no such file", "none.jsonl")),
    # Models
    ("evaluate ./no --problems a.jsonl --out e.json", 2, ("no model at ./no", "Hugging Face layout")),
    ("evaluate thesis --problems a.jsonl --out e.json", 2, ("config.json is missing", "hint")),
    (f"{TRAIN} --set model.path=embedded:algebra", 2, ("unknown embedded solver", "embedded:arithmetic")),
    ("lab ./nomodel", 2, ("no model at ./nomodel", "hint")),
    # Folders and files that are written
    ("train arithmetic --out file", 2, ("--out must be a folder", "file is a file")),
    ("train arithmetic --out file/run", 2, ("--out must be a folder", "is a file")),
    ("train arithmetic --out thesis", 4, ("holds other files, such as thesis.txt", "--out")),
    ("evaluate embedded:arithmetic --problems a.jsonl --out other", 2, ("must be a file", "other/NAME.json")),
    ("grade a.jsonl --completion completion --answer answer --out file/x.jsonl", 2, ("is a file",)),
    ("grade a.jsonl --completion completion --answer answer --out a.jsonl", 2, ("would replace the input", "--out")),
    # Grading, critics, signals, pages
    ("grade nowhere.jsonl --completion a --answer b --out o", 2, ("no such file", 'Did you mean "none.jsonl"?')),
    ("grade a.jsonl --completion completoin --answer answer --out o", 2, ('Did you mean "completion"?',)),
    ("grade none.jsonl --completion a --answer b --out o", 2, ("no rows", "none.jsonl")),
    ("grade a.jsonl --completion completion --answer answer --out o --grader nowhere:grade", 2, ("nowhere",)),
    ("critique nowhere --out c --critic programmatic", 2, ("no such file", "nowhere", "hint")),
    ("critique a.jsonl --out c", 2, ("who is the critic?", "--critic", "hint")),
    (f"{CRITIQUE} localhost:8000", 2, ("an address needs its protocol", "--critic http://localhost:8000")),
    (f"{CRITIQUE} http://127.0.0.1:9/v1", 3, ("does not answer", "127.0.0.1:9", "start the server")),
    (f"{CRITIQUE} http://127.0.0.1:99999/v1 --model m", 2, ("not a URL", "99999", "hint")),
    (f"{CRITIQUE} programmatic", 2, ("knows the embedded task only", "hint")),
    (f"{CRITIQUE} programmatic --columns questoin=a", 2, ("unknown column name questoin", "known: question")),
    (f"{CRITIQUE} programmatic --columns nonsense", 2, ("no list of pairs", "question=Q,completion=C")),
    ("signal a.jsonl --out s", 2, ("a file needs a model", "--model FOLDER")),
    ("signal a.jsonl --out s --model embedded:arithmetic", 2, ("no contexts", "a.jsonl:1", '"contexts": {')),
    ("signal twice.jsonl --out s --model embedded:arithmetic", 2, ("two rows have the id 'x'", "lines 1 and 2")),
    ("signal fizbuzz --out s --model embedded:arithmetic", 2, ("did you mean fizzbuzz?",)),
    ("signal fizzbuzz --out s --model embedded:arithmetik", 2, ("unknown embedded solver", "embedded:arithmetic")),
    ("signal fizzbuzz --out s --model embedded:arithmetic --contexts nope", 2, ("no row has a context nope",)),
    ("signal thesis --out s", 2, ("not a run folder", "hint")),
    ("show thesis", 2, ("no signal here", "stepalign signal")),
    ("report thesis", 2, ("not a comparison folder and not a run", "hint")),
    ("report other thesis", 2, ("several runs need a place", "--out FOLDER")),
]
WITHOUT_HINT = {"twice.jsonl", "bad.jsonl", "broken.toml", "x --set model.path.x=1"}
"""Messages whose first line and place say it all."""

SCRIPT = """
import contextlib, io, json, shlex, sys
from stepalign.cli import main
for words in json.load(sys.stdin):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["stepalign", *shlex.split(words)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            code = repr(error)
    print(json.dumps([code, err.getvalue(), sorted({"torch", "transformers"} & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str, list[str]]]]:
    folder = tmp_path_factory.mktemp("wrong")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    words = [case[0] for case in CASES]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(words), cwd=folder, capture_output=True, text=True,
        check=False, env={**os.environ, "HF_HUB_OFFLINE": "1", "STEPALIGN_CACHE": str(folder / "cache")},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == len(CASES), done.stderr
    return folder, {case: tuple(json.loads(line)) for case, line in zip(words, lines, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_wrong_input_has_one_message_that_says_what_mends_it(answers, case) -> None:
    words, code, parts = case
    found, said, loaded = answers[1][words]
    assert found == code, said
    assert said.startswith("error: "), said
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    for part in parts:
        assert part in said
    assert "\n  hint: " in said or any(part in words for part in WITHOUT_HINT), said
    assert loaded == [], "a mistake is found before torch is loaded"


def test_nothing_was_written(answers) -> None:
    folder, _ = answers
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in left if "__pycache__" not in name} == FILES.keys()
