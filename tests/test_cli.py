"""The command line as a person meets it: a fault is one message with a hint, and leaves no trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from stepalign import cli
from stepalign.cli import main
from stepalign.stopping import PROCESS


@dataclass(frozen=True)
class Told:
    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Run a command in this process."""

    def run(*words: str | Path) -> Told:
        monkeypatch.setattr(sys, "argv", ["stepalign", *map(str, words)])
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        told = capfd.readouterr()
        assert isinstance(code, int)
        return Told(code, told.out, told.err)

    return run


def assert_one_message(told: Told, code: int, *parts: str) -> None:
    assert told.code == code, told
    assert "Traceback" not in told.err
    assert told.err.count("error: ") == 1
    for part in parts:
        assert part in told.err, told.err


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------------------------------------------------------------
# Wrong recipes and settings


def test_a_missing_recipe_a_wrong_key_and_a_wrong_value(call: Callable[..., Told], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert_one_message(call("train", "arithmetik", "--out", out), 2, "no recipe", "hint: did you mean arithmetic?")
    told = call("train", "arithmetic", "--out", out, "--set", "training.seeed=1")
    assert_one_message(told, 2, "unknown key training.seeed", "did you mean training.seed?")
    told = call("train", "arithmetic", "--out", out, "--set", "training.max_steps=soon")
    assert_one_message(told, 2, "training.max_steps", "'soon'")
    told = call("compare", "arithmetic", "--out", out, "--set", "training.max_steps")
    assert_one_message(told, 2, "has no value", "hint")
    assert not out.exists()


def test_usage_errors_have_the_code_of_a_wrong_option(call: Callable[..., Told], tmp_path: Path) -> None:
    assert_one_message(call("train", "arithmetic"), 2, "--out")
    assert_one_message(call("trian", "arithmetic", "--out", tmp_path), 2, "trian")
    assert_one_message(call("evaluate", "x", "--problems", "y", "--out", tmp_path / "z", "--n", "0"), 2, "--n")
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stepalign", "--debug", "train", "nothing", "--out", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ConfigError: no recipe nothing" in done.stderr


def test_the_version_is_that_of_the_package(call: Callable[..., Told]) -> None:
    import importlib.metadata

    assert call("--version").out.strip() == importlib.metadata.version("stepalign")


# ---------------------------------------------------------------------------------------------------------------------
# Wrong models and problems: each leaves no file behind


@pytest.fixture
def no_trace(tmp_path: Path) -> Iterator[Path]:
    """A place for --out in which nothing may be left."""
    place = tmp_path / "place"
    place.mkdir()
    yield place / "run"
    assert list(place.iterdir()) == []


def test_a_model_folder_that_is_not_there(call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path):
    recipe = write_recipe(model__path="./no/such/model")
    assert_one_message(call("train", recipe, "--out", no_trace), 2, "no model at ./no/such/model", "hint")


def test_a_run_folder_given_as_a_model(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path, model_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "old-run"
    shutil.copytree(model_folder, run / "final")
    told = call("train", write_recipe(model__path=str(run)), "--out", no_trace)
    assert_one_message(told, 2, "config.json is missing", "final/")


@pytest.mark.parametrize("removed", ["tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_a_model_folder_with_a_part_missing(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path, model_folder: Path, removed: str
) -> None:
    (model_folder / removed).unlink()
    if removed == "tokenizer.json":  # without its own files, a tokenizer is made up from config.json
        (model_folder / "tokenizer_config.json").unlink()
    told = call("train", write_recipe(), "--out", no_trace)
    what = {"tokenizer.json": "tokenizer", "chat_template.jinja": "chat template", "model.safetensors": "safetensors"}
    assert_one_message(told, 2, what[removed], str(model_folder), "hint: ")


def test_weights_in_pickles_are_refused(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path, model_folder: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(model_folder / "model.safetensors"), model_folder / "pytorch_model.bin")
    (model_folder / "model.safetensors").unlink()
    assert_one_message(call("train", write_recipe(), "--out", no_trace), 2, "safetensors")


def test_a_tokenizer_of_another_model(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path, model_folder: Path, byte_tokenizer
) -> None:
    byte_tokenizer.save_pretrained(model_folder)
    assert_one_message(call("train", write_recipe(), "--out", no_trace), 2, "ids", "embeddings", "different models")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"condition": "stepalgin"}, "did you mean stepalign?"),
        ({"condition": "stepalign"}, "programmatic critic"),  # which knows no problems but the embedded ones
        ({"data__train": "none.jsonl"}, "none.jsonl"),
        ({"data__columns": {"question": "query", "answer": "answer"}}, "query"),
        ({"prompts__student": "{{ query }}"}, "query"),
        ({"prompts__student": "no-such-template"}, "no-such-template"),
        ({"prompts__max_teacher_prompt_length": 16}, "prompts.max_teacher_prompt_length"),
    ],
)
def test_what_a_recipe_can_get_wrong_is_found_before_anything_is_written(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path, changes: dict, told: str
) -> None:
    if "prompts__max_teacher_prompt_length" in changes:
        changes = {**changes, "prompts__self_teacher": "{{ question }} " + "Feedback : " * 9 + "{{ feedback }}"}
    assert_one_message(call("train", write_recipe(**changes), "--out", no_trace), 2, told)


def test_a_critic_that_does_not_answer(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path
) -> None:
    recipe = write_recipe(
        condition="stepalign",
        critic__kind="endpoint",
        critic__model="m",
        critic__base_urls=["http://127.0.0.1:9/v1"],
        critic__timeout=5.0,
        critic__attempt_timeout=2.0,
    )
    assert_one_message(call("train", recipe, "--out", no_trace), 3, "127.0.0.1:9")


def test_evaluating_a_model_that_is_not_there(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path, tmp_path: Path
) -> None:
    write_recipe()
    problems = tmp_path / "problems.jsonl"
    told = call("evaluate", "./no/model", "--problems", problems, "--out", no_trace.with_suffix(".json"))
    assert_one_message(told, 2, "no model at ./no/model")
    told = call("evaluate", "embedded:algebra", "--problems", problems, "--out", no_trace.with_suffix(".json"))
    assert_one_message(told, 2, "embedded:arithmetic")


def test_an_out_that_cannot_be_a_folder(
    call: Callable[..., Told], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert_one_message(call("train", write_recipe(), "--out", out), 2, str(out))
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_an_out_that_cannot_be_a_file(call: Callable[..., Told], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for out, told in ((tmp_path, "must be a file"), (tmp_path / "file" / "numbers.json", "is a file")):
        words = ("evaluate", "./no/model", "--problems", "embedded:arithmetic", "--out", out)
        assert_one_message(call(*words), 2, told)


def test_a_device_that_is_not_here(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path
) -> None:
    for device in ("cuda:63", "gpu"):
        assert_one_message(call("train", write_recipe(model__device=device), "--out", no_trace), 2, device, "hint")


def test_a_chat_template_that_does_not_work(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path, model_folder: Path
) -> None:
    (model_folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content", encoding="utf-8")
    assert_one_message(call("train", write_recipe(), "--out", no_trace), 2, "chat template", str(model_folder))


@pytest.mark.parametrize(
    ("template", "key", "settings"),
    [
        ("{{ raise_exception('System role not supported') }}", "prompts.system", ("prompts.system='Be brief.'",)),
        ("{{ m['content'] / 2 }}", "prompts.system", ("prompts.system='Be brief.'",)),
        ("{{ nothing.at_all }}", "prompts.system", ("prompts.system='Be brief.'",)),
    ],
)
def test_a_system_message_that_the_template_refuses_is_an_error_at_its_key(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path, model_folder: Path,
    template: str, key: str, settings: tuple[str, ...],
) -> None:  # fmt: skip
    turn = "{% if m['role'] == 'system' %}" + template + "{% else %}{{ m['content'] }}{% endif %}"
    (model_folder / "chat_template.jinja").write_text(f"{{% for m in messages %}}{turn}{{% endfor %}}", "utf-8")
    words = [word for setting in settings for word in ("--set", setting)]
    assert_one_message(call("train", write_recipe(), "--out", no_trace, *words), 2, f"where: {key}", "hint: ")
    out = no_trace.with_suffix(".json")
    told = call("evaluate", model_folder, "--problems", model_folder.parent / "held-out.jsonl", "--out", out, *words)
    assert_one_message(told, 2, f"where: {key}", "hint: ")


def test_no_command_samples_or_scores_beyond_a_models_positions(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path, model_folder: Path, tmp_path: Path
) -> None:
    """The tiny model has 512 of them. Each refuses before it loads weights or writes anything."""
    recipe, (tensors,) = write_recipe(), model_folder.glob("*.safetensors")
    tensors.write_bytes(b"not weights")
    held_out, long = tmp_path / "held-out.jsonl", tmp_path / "long.jsonl"
    row = {"question": "1 + 1", "answer": "2", "completion": "1 + 1 = 2 ; " * 200, "contexts": {"critique": "1"}}
    long.write_text(json.dumps(row) + "\n", encoding="utf-8")
    words = ("--set", "sampling.max_completion_length=600")
    for verb, *more in (
        ("train", recipe, "--out", no_trace, *words),
        ("compare", recipe, "--out", no_trace, *words, "--set", 'compare.arms=[{name="a"}]',
         "--set", "signal.contexts=['reference']"),
        ("select", recipe, "--out", no_trace, *words, "--set", "selection.critic_solves=false"),
        ("evaluate", model_folder, "--problems", held_out, "--out", no_trace.with_suffix(".json"), "--recipe", recipe,
         *words),
    ):  # fmt: skip
        assert_one_message(call(verb, *more), 2, "no room for a completion of 600", "the model's 512", "hint: ")


def test_an_error_of_the_file_system_has_no_traceback(call: Callable[..., Told], tmp_path: Path) -> None:
    folder = tmp_path / "recipe.toml"
    folder.write_text("", encoding="utf-8")
    (tmp_path / "x" / "problems.jsonl").mkdir(parents=True)
    told = call("train", folder, "--out", tmp_path / "run", "--set", f"data.train={tmp_path / 'x' / 'problems.jsonl'}")
    assert_one_message(told, 2, "problems.jsonl")


# ---------------------------------------------------------------------------------------------------------------------
# Folders that belong to somebody else


def test_a_folder_with_other_files_is_left_alone(
    call: Callable[..., Told], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work", encoding="utf-8")
    for verb in ("train", "compare"):
        recipe = write_recipe(compare__arms=[{"name": "one"}])
        assert_one_message(call(verb, recipe, "--out", home), 4, "thesis.txt", "hint: ")
    assert everything_in(home) == {"thesis.txt": b"years of work"}


def test_a_run_is_continued_only_by_its_own_recipe_and_only_when_asked(
    call: Callable[..., Told], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    recipe = write_recipe()
    done = call("train", recipe, "--out", out)
    assert done.code == 0, done.err
    before = everything_in(out)
    assert_one_message(call("train", recipe, "--out", out), 4, "already holds this run", "--resume")
    told = call("train", recipe, "--out", out, "--resume", "--set", "training.seed=5")
    assert_one_message(told, 4, "another run", "training.seed", "0", "5")
    told = call("train", recipe, "--out", out, "--set", "training.seed=5", "--set", "training.max_steps=3")
    assert_one_message(told, 4, "2 keys differ")
    assert {k: v for k, v in everything_in(out).items() if k != "run.lock"} == {
        k: v for k, v in before.items() if k != "run.lock"
    }
    again = call("train", recipe, "--out", out, "--resume")  # finished already: nothing left to do
    assert again.code == 0
    for name in ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl", "final/model.safetensors"):
        assert everything_in(out)[name] == before[name]


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Another process that holds the folder's lock, with nothing of stepalign in it."""
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX);"
        "f.write('process 4242 on elsewhere'); f.flush(); print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "run.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    try:
        yield holder.pid
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize("verb", ["train", "compare"])
def test_a_folder_that_another_process_writes(
    call: Callable[..., Told], write_recipe: Callable[..., Path], tmp_path: Path, verb: str
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    recipe = write_recipe(compare__arms=[{"name": "one"}], training__max_steps=0)
    with locked(out):
        for resume in ([], ["--resume"]):
            told = call(verb, recipe, "--out", out, *resume)
            assert_one_message(told, 4, "another process", "4242", "hint: ")
        assert os.listdir(out) == ["run.lock"]
    if verb == "train":  # the kernel frees the lock of a process that was killed
        assert call(verb, recipe, "--out", out).code == 0


# ---------------------------------------------------------------------------------------------------------------------
# What works


def test_a_dry_run_prints_and_writes_nothing(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path
) -> None:
    told = call("train", write_recipe(), "--out", no_trace, "--dry-run", "--set", "training.seed=77")
    assert told.code == 0, told.err
    for part in ("seed = 77", "student prompt", "self-teacher prompt", "1 + 2 + 3", "token budgets", "at most 6"):
        assert part in told.out
    told = call("compare", "arithmetic", "--out", no_trace, "--dry-run")
    assert told.code == 0, told.err
    assert "arm grpo: condition = 'grpo'" in told.out


def test_no_command_prints_the_help(call: Callable[..., Told]) -> None:
    told = call()
    assert (told.code, told.err) == (0, "")
    assert "Commands:" in told.out


def test_a_dry_run_makes_control_characters_visible(
    call: Callable[..., Told], write_recipe: Callable[..., Path], no_trace: Path
) -> None:
    recipe = write_recipe(condition="stepalign", critic__kind="endpoint", prompts__critic="{{ question }} \x1b[31m")
    told = call("train", recipe, "--out", no_trace, "--dry-run")
    assert told.code == 0, told.err
    assert "\x1b" not in told.out
    assert "␛[31m" in told.out


def test_train_then_evaluate_the_run(
    call: Callable[..., Told], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    out, numbers = tmp_path / "a [bold]run[/] of mine", tmp_path / "numbers.json"  # no markup, and never wrapped
    told = call("train", write_recipe(), "--out", out)
    assert told.code == 0, told.err
    assert f"weights: {out / 'final'}" in told.out
    assert "\x1b" not in told.out  # quiet and plain where there is no terminal
    told = call("evaluate", out, "--problems", tmp_path / "problems.jsonl", "--n", "3", "--out", numbers)
    assert told.code == 0, told.err
    result = json.loads(numbers.read_text(encoding="utf-8"))
    assert (result["num_problems"], result["num_samples"], result["model"]) == (3, 3, str(out / "final"))
    lines = numbers.with_suffix(".samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [len(json.loads(line)["texts"]) for line in lines] == [3, 3, 3]
    # its weights by their own path still come with the run's prompts and lengths
    told = call(
        "evaluate", out / "final", "--problems", tmp_path / "problems.jsonl", "--n", "1", "--out", tmp_path / "f.json"
    )
    assert told.code == 0, told.err
    assert f"from {out / 'config.toml'}" in told.out
    assert json.loads((tmp_path / "f.json").read_text())["max_completion_length"] == result["max_completion_length"]
    # the same output again, with other settings: the completions beside it are not those that were asked for
    for other in (["--n", "2"], ["--n", "3", "--set", "sampling.max_completion_length=2"]):
        told = call("evaluate", out, "--problems", tmp_path / "problems.jsonl", *other, "--out", numbers)
        assert_one_message(told, 4, "another evaluation", "hint: ")


# ---------------------------------------------------------------------------------------------------------------------
# Ctrl-C, and consoles of other encodings


@pytest.mark.parametrize("verb", ["grade", "evaluate", "train", "compare", "select", "critique", "warmstart", "show"])
def test_ctrl_c_has_its_exit_code_in_every_command(
    call: Callable[..., Told], write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch, verb: str
) -> None:
    """In the first line of each function that does the work: wherever it comes, the shell sees 130."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    works = {
        "grade": "verbs.grade.grade_file",
        "evaluate": "verbs.evaluate.evaluate_model",
        "train": "verbs.train.train_config",
        "compare": "verbs.compare.compare_config",
        "select": "verbs.select.select",
        "critique": "verbs.critique.critique_rollouts",
        "show": "report.terminal.print_rollout",
    }
    attempts = tmp_path / "attempts.jsonl"
    attempts.write_text('{"question": "1 + 1", "completion": "\\\\boxed{2}", "answer": "2"}\n', encoding="utf-8")
    recipe = write_recipe(compare__arms=[{"name": "one"}])
    words = {
        "grade": (attempts, "--completion", "completion", "--answer", "answer", "--out", tmp_path / "v.jsonl"),
        "evaluate": ("embedded:arithmetic", "--problems", "embedded:arithmetic", "--out", tmp_path / "e.json"),
        "critique": (attempts, "--critic", "programmatic", "--out", tmp_path / "c"),
        "show": (tmp_path,),
        "warmstart": ("--out", tmp_path / "w"),
    }
    if verb == "warmstart":
        monkeypatch.setitem(sys.modules, "make_embedded", type("Module", (), {"make_embedded": interrupted}))
    else:
        monkeypatch.setattr(f"stepalign.{works[verb]}", interrupted)
    if verb == "show":
        monkeypatch.setattr("stepalign.token_signal.files.load_signal", lambda *_: {})
    told = call(verb, *words.get(verb, (recipe, "--out", tmp_path / "run")))
    assert told.code == 130
    assert "Traceback" not in told.err
    goes_on = "continue with: stepalign" in told.err
    assert goes_on == (verb not in ("warmstart", "show"))
    assert goes_on == (verb in told.err.partition("continue with: ")[2])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "shift_jis"])
def test_a_console_without_a_character_shows_its_number(encoding: str) -> None:
    words = ["stepalign", "train", "no-\u65e5\u2588.toml", "--out", "x"]
    code = f"import sys; from stepalign.cli import main; sys.argv = {words!a}; main()"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=environment)
    told = done.stderr.decode(encoding)
    assert done.returncode == 2, told
    assert "Traceback" not in told
    assert "\\u2588" in told or "\u2588" in told


def test_a_library_that_takes_the_request_to_stop_for_a_fault_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def asked_while_importing(**_: object) -> None:
        PROCESS.ask(signal.SIGTERM)
        raise ImportError("cannot import name 'PreTrainedModel'")

    monkeypatch.setattr(PROCESS, "asked", False)
    monkeypatch.setattr(PROCESS, "number", signal.SIGINT)
    monkeypatch.setattr(sys, "argv", ["stepalign", "signal"])
    monkeypatch.setattr(cli, "__getattr__", lambda _: asked_while_importing)
    with pytest.raises(SystemExit) as stop:
        cli._main()
    assert stop.value.code == 143
    told = capfd.readouterr().err
    assert told.startswith("stopped (SIGTERM): ")
    assert "Traceback" not in told
    assert "ImportError" not in told
