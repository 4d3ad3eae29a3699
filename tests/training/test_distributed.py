"""Two ranks of torchrun compute what one process computes, and end together.

One start of two ranks runs all cases of ``two_ranks.py``: the loss within 1e-4, the gradient norm within 1e-5, the
weights after three steps within 1e-4. Others are the command itself under torchrun, whose rank 1 is killed, or hangs.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, wait_until
from safetensors.torch import load_file
from warm import CHILDREN, behind, python

from stepalign.config import changed, load_config
from stepalign.errors import ConfigError
from stepalign.records import Sample
from stepalign.training.ranks import shared_out
from stepalign.verbs.checks import run_checks
from stepalign.verbs.inputs import Inputs

pytestmark = pytest.mark.slow
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SCRIPT = Path(__file__).with_name("two_ranks.py")


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = list(load_script().cases())


@dataclass
class Hanging:
    """The command on two ranks, of which rank 1 hangs."""

    process: subprocess.Popen[bytes]
    log: Path
    ranks: list[int]


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Hanging:
    """Its timeout passes while other tests of this file are at work."""
    folder = tmp_path_factory.mktemp("hanging")
    out, log = folder / "run", folder / "log"
    settings = [
        *("training.max_steps=10000", "training.problems_per_step=4", "training.save_steps=1"),
        *("training.rank_timeout=12", "sampling.max_completion_length=6", "evaluation.at_start=false"),
    ]
    words = ["-m", "stepalign", "train", "arithmetic", "--out", str(out)]
    words += [word for setting in settings for word in ("--set", setting)]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*python(), *TORCHRUN, *words], env={**os.environ, **CHILDREN}, stdout=file, stderr=file
        )
    wait_until(lambda: list(out.glob("checkpoints/step-*/manifest.json")), process, log)
    ranks = ranks_of(process.pid)
    os.kill(behind(ranks["1"]), signal.SIGSTOP)
    return Hanging(process, log, [*ranks.values(), *map(behind, ranks.values())])


@pytest.fixture(scope="module")
def found(hanging: Hanging, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The numbers of every case."""
    folder = tmp_path_factory.mktemp("ranks")
    code = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [*python(), "-c", code, str(folder)],
            env={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=PATIENCE) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "".join(error[-5000:] for _, error in told)
    rows = [json.loads(line) for line in told[0][0].splitlines() if line.startswith("{")]
    return {row.pop("case"): row for row in rows}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_learn_what_one_process_learns(name: str, found: dict[str, dict[str, Any]]) -> None:
    case = found[name]
    for ranks, one in zip(case["ranks"], case["one"], strict=True):
        assert ranks.keys() == one.keys()
        assert ranks["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-6)
        assert ranks["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        for key, value in one.items():
            assert (
                math.isnan(ranks[key]) if math.isnan(value) else ranks[key] == pytest.approx(value, rel=1e-3, abs=1e-5)
            )
    assert case["weights"] <= 1e-4


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_checkpoint_moves_between_numbers_of_ranks_exactly(name: str, found: dict[str, dict[str, Any]]) -> None:
    case = found[f"checkpoint, {name}"]
    assert case["pickled"] == []
    assert [case[key] for key in ("two to one", "one to two", "two to two")] == [0.0, 0.0, 0.0]
    assert case["next step"] <= 1e-6
    assert case["weights after it"] <= 1e-6


def test_a_killed_rank_ends_the_run_which_one_process_then_finishes(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(
        training={"max_steps": 6, "problems_per_step": 4, "save_steps": 2},
        evaluation={"num_samples": 1, "at_start": False},
    )
    train = ["-m", "stepalign", "train", str(recipe), "--out"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*python(), *train, str(whole)], check=True, capture_output=True)
    # Stopped where rank 1 dies: in its third step at the latest.
    with (tmp_path / "log").open("w+") as log:
        command = [*python(), *TORCHRUN, *train, str(broken)]
        process = subprocess.Popen(command, env={**os.environ, **CHILDREN}, stdout=log, stderr=log)
        wait_until(lambda: list(broken.glob("checkpoints/step-00002/manifest.json")), process, tmp_path / "log")
        ranks = ranks_of(process.pid)
        os.kill(ranks["1"], signal.SIGKILL)
        assert process.wait(timeout=PATIENCE) != 0
        log.seek(0)
        text = log.read()
    assert "has given no sign" not in text  # its death ends the run, not the timeout of the others
    assert "rank 1 of 2" in text or "rank      : 1 (local_rank: 1)" in text
    assert all(not Path(f"/proc/{pid}").exists() for pid in ranks.values())
    subprocess.run([*python(), *train, str(broken), "--resume"], check=True, capture_output=True)
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, broken)]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows[1]] == pytest.approx([row["loss"] for row in rows[0]], rel=1e-4)
    final = [load_file(run / "final" / "model.safetensors") for run in (whole, broken)]
    assert final[0].keys() == final[1].keys()
    assert max(float((final[0][name] - final[1][name]).abs().max()) for name in final[0]) <= 1e-4


def test_a_rank_that_hangs_ends_the_run_at_the_timeout_with_its_name(hanging: Hanging) -> None:
    assert hanging.process.wait(timeout=PATIENCE) != 0
    text = hanging.log.read_text()
    assert "error: rank 1 of 2 has given no sign for" in text or "rank 1 at " in text
    assert all(not Path(f"/proc/{pid}").exists() for pid in hanging.ranks)


def ranks_of(torchrun: int) -> dict[str, int]:
    """The processes of a torchrun that was forked, by rank."""
    return {environment("RANK", pid): pid for pid in children(behind(torchrun))}


def children(pid: int) -> list[int]:
    return [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]


def environment(name: str, pid: int) -> str:
    found = [v for v in Path(f"/proc/{pid}/environ").read_text().split("\0") if v.startswith(f"{name}=")]
    return found[0].partition("=")[2] if found else ""


def test_means_that_depend_on_the_cut_are_refused(
    monkeypatch: pytest.MonkeyPatch, write_recipe: Callable[..., Path]
) -> None:
    config = changed(
        load_config(write_recipe(condition="grpo", sampling={"num_generations": 4})),
        {"objective.loss_type": "bnpo"},
        "test",
    )
    run_checks(Inputs(config), loads_model=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="bnpo"):
        run_checks(Inputs(config), loads_model=False)


def sample(name: str, prompt: tuple[int, ...], length: int) -> Sample:
    return Sample(
        rollout_id=name, student_prompt_ids=prompt, teacher_prompt_ids=None, completion_ids=(5,) * length,
        sampler_log_probs=(-1.0,) * length, loss_mask=(True,) * length, advantage=1.0, distillation_weight=0.0,
        policy_weight=1.0,
    )  # fmt: skip


def test_samples_are_shared_out_by_tokens_and_each_goes_to_one_rank() -> None:
    samples = [sample(str(i), (i % 5,) * (3 + i % 5), 1 + (7 * i) % 23) for i in range(40)]
    for size in (1, 2, 3, 8):
        shares = shared_out(samples, size)
        assert sorted(s.rollout_id for share in shares for s in share) == sorted(s.rollout_id for s in samples)
        tokens = [sum(len(s.student_prompt_ids) + 2 * len(s.completion_ids) for s in share) for share in shares]
        longest = max(len(s.student_prompt_ids) + 2 * len(s.completion_ids) for s in samples)
        assert max(tokens) - min(tokens) <= max(longest, sum(tokens) / size / 2)
    one = [sample(str(i), (9, 9), 4) for i in range(6)]  # one prompt: a group is cut where it is more than a part
    assert [len(share) for share in shared_out(one, 3)] == [2, 2, 2]
    two = [sample("a", (1,), 4), sample("b", (2,), 4), sample("c", (1,), 4), sample("d", (2,), 4)]
    assert [[s.rollout_id for s in share] for share in shared_out(two, 2)] == [["a", "c"], ["b", "d"]]
    assert shared_out([], 2) == [[], []]
