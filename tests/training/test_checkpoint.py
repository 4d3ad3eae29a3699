"""Checkpoints: complete, exact, and never half-read, whatever happens to their files or to the writer."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stepalign.config import ObjectiveSection, TeacherSection, TrainingSection
from stepalign.errors import ConfigError
from stepalign.events import Event
from stepalign.models.load import Solver, load_solver
from stepalign.records import Sample
from stepalign.training.checkpoint import (
    find_checkpoints,
    load_latest,
    restore_optimizer,
    restore_weights,
    save_checkpoint,
    write_state,
)
from stepalign.training.learner import Learner
from stepalign.training.teacher import Teacher

SAMPLE = Sample(
    rollout_id="x",
    student_prompt_ids=(3, 20, 4),
    teacher_prompt_ids=(3, 20, 9, 30, 4),
    completion_ids=(10, 22, 31, 1),
    sampler_log_probs=(-1.0,) * 4,
    loss_mask=(True,) * 4,
    advantage=0.0,
    distillation_weight=1.0,
    policy_weight=0.0,
)


class Run:
    """The parts of a run that a checkpoint holds."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self.learner = Learner(solver, ObjectiveSection(), TrainingSection(learning_rate=0.01), temperature=1.0)
        self.teacher = Teacher(solver.model, TeacherSection(weights="ema", ema_decay=0.9))

    def step(self, number: int) -> None:
        self.learner.update([SAMPLE], self.teacher, number)

    def save(self, root: Path, step: int) -> Path:
        return save_checkpoint(
            root,
            step,
            solver=self.solver,
            write=lambda folder: write_state(folder, self.learner.optimizer, self.teacher.values),
            state={"step": step, "none": None, "number": 0.1, "undefined": float("nan")},
        )

    def restore(self, root: Path) -> int:
        found = load_latest(root)
        assert found is not None
        restore_weights(self.solver, found.weights)
        restore_optimizer(self.learner.optimizer, found.optimizer)
        self.teacher.load(found.teacher)
        return found.state["step"]

    def bits(self) -> list[bytes]:
        tensors = [*self.solver.model.parameters(), *self.teacher.values.values()]
        for _, state in sorted(self.learner.optimizer.state_dict()["state"].items()):
            tensors += [state[name] for name in sorted(state)]
        return [t.detach().numpy().tobytes() for t in tensors]


@pytest.fixture
def run(make_solver: Callable[..., Solver]) -> Run:
    run = Run(make_solver(0))
    run.step(0)
    return run


def test_what_is_restored_goes_on_with_the_same_bits(run: Run, make_solver: Callable[..., Solver], tmp_path: Path):
    run.save(tmp_path, 1)
    other = Run(make_solver(5))
    assert other.restore(tmp_path) == 1
    assert other.bits() == run.bits()
    for step in (1, 2, 3):
        run.step(step)
        other.step(step)
    assert other.bits() == run.bits()


def test_the_state_comes_back_as_it_was(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path, 7)
    found = load_latest(tmp_path)
    assert found is not None
    assert found.folder == tmp_path / "step-00007"
    assert (found.state["step"], found.state["none"], found.state["number"]) == (7, None, 0.1)
    assert found.state["undefined"] != found.state["undefined"]


def test_a_checkpoint_is_a_model_folder(run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = run.save(tmp_path, 1)
    ids = torch.tensor([[3, 20, 4]])
    with torch.no_grad():
        expected = run.solver.model.eval()(ids).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, expected)
        loaded = load_solver(str(folder))
        assert torch.equal(loaded.model(ids).logits, expected)
    assert loaded.tokenizer.get_vocab() == run.solver.tokenizer.get_vocab()
    assert not [p for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_the_newest_is_taken_also_beyond_five_digits(run: Run, tmp_path: Path) -> None:
    for step in (9, 10, 99_999, 100_000, 2):
        run.save(tmp_path, step)
    assert [int(p.name.removeprefix("step-")) for p in find_checkpoints(tmp_path)] == [2, 9, 10, 99_999, 100_000]
    found = load_latest(tmp_path)
    assert found is not None
    assert found.state["step"] == 100_000


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "nothing") is None


# ---------------------------------------------------------------------------------------------------------------------
# Damage

DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "one byte short": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "one bit in the middle": lambda data: flip(data, len(data) // 2),
    "last byte": lambda data: flip(data, len(data) - 1),
    "longer": lambda data: data + b"\0",
    "gone": lambda data: None,
}


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.fixture
def two(run: Run, tmp_path: Path) -> Path:
    """An older and a newer checkpoint."""
    run.save(tmp_path, 1)
    run.step(1)
    run.save(tmp_path, 2)
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_any_file_is_seen_and_the_older_one_is_taken(two: Path, damage: str) -> None:
    newer = two / "step-00002"
    names = sorted(p.name for p in newer.iterdir())
    assert {"model.safetensors", "optimizer.safetensors", "teacher.safetensors", "state.json"} < set(names)
    for name in names:
        path = newer / name
        whole = path.read_bytes()
        data = DAMAGES[damage](whole)
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        found = load_latest(two)
        assert found is not None
        assert found.state["step"] == 1, name
        path.write_bytes(whole)
    found = load_latest(two)
    assert found is not None
    assert found.state["step"] == 2


def test_no_flipped_bit_in_the_manifest_raises_or_is_believed(two: Path) -> None:
    """Either the older checkpoint, or the newer one unharmed (a flip in white space)."""
    manifest = two / "step-00002" / "manifest.json"
    whole, weights = manifest.read_bytes(), load_file(two / "step-00002" / "model.safetensors")
    rng = random.Random(0)
    for place in rng.sample(range(len(whole)), 150):
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
        found = load_latest(two)
        assert found is not None
        if found.state["step"] == 2:
            assert all(torch.equal(tensor, weights[name]) for name, tensor in found.weights.items())


def test_all_damaged_is_an_error_and_not_a_fresh_start(two: Path) -> None:
    for folder in find_checkpoints(two):
        (folder / "teacher.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="every checkpoint is damaged") as caught:
        load_latest(two)
    assert "step-00002/teacher.safetensors" in caught.value.what


def test_a_manifest_that_lacks_a_file_is_damage(two: Path) -> None:
    manifest = two / "step-00002" / "manifest.json"
    whole = json.loads(manifest.read_text())
    for name in ("{}", *(n for n in whole if n.endswith((".json", ".safetensors")))):
        manifest.write_text("{}" if name == "{}" else json.dumps({n: e for n, e in whole.items() if n != name}))
        heard: list[Event] = []
        found = load_latest(two, heard.append)
        assert found is not None
        assert found.state["step"] == 1, name
        assert [event.kind for event in heard] == ["warning"]
        assert "step-00002/" in heard[0].text
        assert "step-00001" in heard[0].text
    (two / "step-00002" / "optimizer.safetensors").unlink()  # with its entry: a part that every checkpoint has
    manifest.write_text(json.dumps({n: e for n, e in whole.items() if n != "optimizer.safetensors"}))
    found = load_latest(two)
    assert found is not None
    assert found.state["step"] == 1


def test_without_any_manifest_a_run_does_not_start_anew(two: Path) -> None:
    for folder in find_checkpoints(two):
        (folder / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"every checkpoint is damaged: step-00002/manifest\.json"):
        load_latest(two)


def test_final_weights_are_checked_when_they_are_loaded(two: Path) -> None:
    folder = two / "step-00002"
    load_solver(str(folder))
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(flip(whole, len(whole) // 2))
        with pytest.raises(ConfigError, match=f"{name} of the model is damaged"):
            load_solver(str(folder))
        (folder / name).write_bytes(whole)
    (folder / "manifest.json").write_text('{"name": "of another program"}')
    load_solver(str(folder))


def test_weights_of_another_model_are_refused(two: Path, make_solver: Callable[..., Solver]) -> None:
    found = load_latest(two)
    assert found is not None
    with pytest.raises(ConfigError, match="other trainable parameters"):
        restore_weights(make_solver(0, num_layers=3), found.weights)
    wider = {name: torch.cat([tensor, tensor]) for name, tensor in found.weights.items()}
    with pytest.raises(ConfigError, match="other trainable parameters"):
        restore_weights(make_solver(0), wider)


# ---------------------------------------------------------------------------------------------------------------------
# Atomicity


def test_what_a_dead_writer_left_is_neither_read_nor_in_the_way(run: Run, tmp_path: Path) -> None:
    folder = run.save(tmp_path, 1)
    shutil.copytree(folder, tmp_path / ".step-00002.tmp")  # complete but for its name
    (tmp_path / ".step-00002.tmp" / "stray").write_text("x", encoding="utf-8")
    (tmp_path / "step-00003").mkdir()  # no manifest
    found = load_latest(tmp_path)
    assert found is not None
    assert found.state["step"] == 1
    run.save(tmp_path, 2)
    found = load_latest(tmp_path)
    assert found is not None
    assert found.state["step"] == 2
    assert not (found.folder / "stray").exists()


def test_a_folder_that_was_about_to_be_replaced_comes_back(run: Run, tmp_path: Path) -> None:
    """A process may die between the two renames, and this may be the only checkpoint there is."""
    run.save(tmp_path, 1).rename(tmp_path / ".step-00001.old")
    for name in (".step-00001.tmp", ".step-00000.gone", ".step-00002.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    found = load_latest(tmp_path)
    assert found is not None
    assert found.state["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00001"]
    shutil.copytree(tmp_path / "step-00001", tmp_path / ".step-00001.old")  # after the second rename
    assert load_latest(tmp_path) is not None
    assert [p.name for p in tmp_path.iterdir()] == ["step-00001"]


def test_a_full_disk_leaves_no_half_and_names_the_folder(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path, 1)

    def fills_the_disk(folder: Path) -> None:
        (folder / "optimizer.safetensors").symlink_to("/dev/full")
        with (folder / "optimizer.safetensors").open("wb") as file:
            file.write(b"x" * 100_000)

    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(tmp_path, 2, solver=run.solver, write=fills_the_disk, state={})
    assert caught.value.filename == str(tmp_path / "step-00002")
    assert [p.name for p in tmp_path.iterdir()] == ["step-00001"]


def test_saving_a_step_again_replaces_it(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path, 1)
    (tmp_path / "step-00001" / "stray").write_text("x", encoding="utf-8")
    run.step(1)
    run.save(tmp_path, 1)
    assert not (tmp_path / "step-00001" / "stray").exists()
    found = load_latest(tmp_path)
    assert found is not None
    for name, parameter in run.solver.model.named_parameters():
        assert torch.equal(found.weights[name], parameter)


def test_a_writer_killed_at_any_moment_leaves_only_whole_checkpoints(run: Run, tmp_path: Path) -> None:
    """A child process saves as fast as it can and is killed with SIGKILL, again and again."""
    rng = random.Random(4)
    last, unfinished = 0, 0
    started = time.perf_counter()
    run.save(tmp_path / "elsewhere", 1)
    one_save = time.perf_counter() - started  # the machine may be busy
    for trial in range(100):  # ten, and more where the machine let no child come far
        if trial >= 10 and last and unfinished:
            break
        child = os.fork()
        if child == 0:
            step = last
            while True:
                step += 1
                run.save(tmp_path, step)
                for old in find_checkpoints(tmp_path)[:-2]:
                    shutil.rmtree(old)
        time.sleep(rng.uniform(1.5, 5.0) * one_save)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        unfinished += any(tmp_path.glob(".step-*.tmp"))
        found = load_latest(tmp_path)
        if found is not None:
            assert found.folder == find_checkpoints(tmp_path)[-1]  # the newest is whole, not only some older one
            assert found.state["step"] == json.loads((found.folder / "state.json").read_text())["step"] >= last
            last = found.state["step"]
            for name, parameter in run.solver.model.named_parameters():
                assert torch.equal(found.weights[name], parameter)
    assert last > 0
    assert unfinished > 0  # some were killed in the middle of a save
