"""The files that place a run on a cluster: the Slurm script under a stand-in for Slurm, the Ray job on a local Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from patience import PATIENCE, wait_until

CLUSTER = Path(__file__).parents[2] / "recipes" / "cluster"
STAND_INS = {
    "scontrol": "#!/bin/sh\necho localhost\necho 127.0.0.1\n",
    # srun: options end where the command begins
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "curl": '#!/bin/sh\n[ -n "$(ls "$PLACE"/serve-* 2>/dev/null)" ]\n',
    "stepalign": '#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $*" > "$PLACE/$1-$$"\n'
    '[ "$1" = compare ] && exit 0\nexec sleep 600\n',
    "torchrun": '#!/bin/sh\necho "$@" > "$PLACE/torchrun"\nexit "${CODE:-0}"\n',
}


def slurm(place: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    for name, text in STAND_INS.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{place}:{os.environ['PATH']}",
        "PLACE": str(place),
        "SLURM_JOB_NODELIST": "two",
        "OUT": str(place / "a run"),
        "CARDS": "2",
        "PAUSE": "0.1",
        **settings,
    }
    script = ["bash", str(CLUSTER / "slurm.sbatch")]
    return subprocess.run(script, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_under_slurm_one_node_learns_and_the_other_draws(tmp_path: Path) -> None:
    done = slurm(tmp_path, SETTINGS='critic.base_urls=["http://critic:8000/v1"]\ntraining.max_steps=3')
    assert done.returncode == 0, done.stderr
    servers = sorted(file.read_text().strip() for file in tmp_path.glob("serve-*"))
    common = "--python vllm/bin/python --lora-rank 64"
    assert servers == [f"{c} serve Qwen/Qwen3-1.7B --host 127.0.0.1 --port {8000 + c} {common}" for c in (0, 1)]
    run = (tmp_path / "torchrun").read_text().strip()
    assert run.startswith("--standalone --nproc-per-node 2 -m stepalign train paper --out")
    urls = '["http://127.0.0.1:8000/v1","http://127.0.0.1:8001/v1"]'
    for words in ("--resume", f"sampling.base_urls={urls}", "sampling.engine=vllm", "training.max_steps=3"):
        assert words in run
    assert 'critic.base_urls=["http://critic:8000/v1"]' in run


def test_the_exit_code_of_the_learner_is_that_of_the_job_and_servers_end_with_it(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert slurm(tmp_path, CODE="5").returncode == 5
    assert time.monotonic() - begin < 100  # servers that sleep for ten minutes are gone


def test_a_comparison_under_slurm_starts_its_runs_by_torchrun(tmp_path: Path) -> None:
    done = slurm(tmp_path, VERB="compare")
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("compare-*")
    assert "compare.launcher=torchrun --standalone --nproc-per-node 2 --no-python" in run.read_text()


@pytest.mark.slow
def test_ray_starts_a_server_again_whose_actor_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One machine as a cluster; a stand-in for the package says what it is asked to do."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    package = tmp_path / "stand_in"
    package.mkdir()
    (package / "stand_in.py").write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "place = Path(sys.argv[1])\n"
        "(place / f'begun-{os.getpid()}').touch()\n"
        "while not (place / 'go').exists():\n"
        "    time.sleep(0.05)\n"
        "sys.exit(7)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{package}:{CLUSTER}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(CLUSTER))
    import ray_job  # type: ignore[import-not-found]

    quiet = {"include_dashboard": False, "object_store_memory": 100_000_000, "log_to_driver": False}
    ray.init(num_cpus=2, _node_ip_address="127.0.0.1", **quiet)
    try:
        actor = ray_job.held(0)
        work = actor.hold.remote(["-m", "stand_in", str(tmp_path)])
        wait_until(lambda: list(tmp_path.glob("begun-*")))
        os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) > 1)
        (tmp_path / "go").touch()
        assert ray.get(work, timeout=PATIENCE) == 7
        (tmp_path / "go").unlink()
        again = actor.hold.remote(["-m", "stand_in", str(tmp_path)])
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) > 2)
        ray.get(actor.stop.remote(), timeout=PATIENCE)
        assert ray.get(again, timeout=PATIENCE) == -signal.SIGTERM
    finally:
        ray.shutdown()


def test_the_files_are_well_formed() -> None:
    for script in CLUSTER.glob("*.sbatch"):
        subprocess.run(["bash", "-n", str(script)], check=True)
    for script in CLUSTER.glob("*.py"):
        compile(script.read_text(), str(script), "exec")
