"""A training run placed by Ray: rollout servers and the learner are processes, each held by an actor.

    pip install "stepalign[ray]"
    ray job submit --working-dir . -- python recipes/cluster/ray_job.py paper --out /shared/runs/paper \
      --servers 8 --ranks 8 --python /shared/vllm/bin/python --set 'critic.base_urls=["http://critic:8000/v1"]'

Ray only finds the machines and starts again what died. An actor holds the standard input of its process, so that the
process ends with it; a learner that is started again goes on from its last checkpoint. The folder of --out is on a
file system that all machines see.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import ray

RESTARTS = 3
WRONG = (2, 4, 5)
"""Exit codes after which another attempt would end alike: a wrong recipe, a folder in use, a spent budget."""


class Holder:
    """Holds one process at a time, on the machine where Ray has put this actor."""

    def address(self) -> str:
        return ray.util.get_node_ip_address()

    def pid(self) -> int:
        return os.getpid()

    def hold(self, words: list[str]) -> int:
        """Run a command of this package to its end; its exit code."""
        environment = {**os.environ, "STEPALIGN_LIFELINE": "1"}
        self.process = subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE, env=environment)
        return self.process.wait()

    def stop(self) -> None:
        """End the command and all that it has started, which Ray would leave behind."""
        self.process.terminate()
        self.process.wait()


def held(gpus: float) -> Any:
    """An actor that Ray starts again elsewhere when it dies, with the call that it was at."""
    options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": RESTARTS, "max_task_retries": RESTARTS}
    return ray.remote(Holder).options(**options, max_concurrency=2).remote()


def wait_until_it_answers(url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            if time.monotonic() > deadline:
                raise SystemExit(f"error: no server answers at {url}") from None
        time.sleep(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--out", required=True)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--model", default="Qwen/Qwen3-1.7B", help="as model.path of the recipe")
    parser.add_argument("--lora-rank", default="64")
    parser.add_argument("--python", default="python3", help="interpreter of the environment that has vLLM")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--cpu", action="store_true", help="ask Ray for no cards")
    parser.add_argument("--patience", type=float, default=1800.0, help="seconds for a server to load its model")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    options = parser.parse_args()
    ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=True)

    urls, running = [], []
    for one in range(options.servers):
        actor = held(0 if options.cpu else 1)
        host, port = ray.get(actor.address.remote()), str(options.port + one)
        words = ["-m", "stepalign", "serve", options.model, "--host", host, "--port", port]
        running.append(
            (actor, actor.hold.remote([*words, "--python", options.python, "--lora-rank", options.lora_rank]))
        )
        urls.append(f"http://{host}:{port}/v1")
    for url in urls:
        wait_until_it_answers(url, options.patience)

    words = [options.recipe, "--out", options.out, "--resume", "--set", f"sampling.sync_folder={options.out}.weights"]
    if urls:
        named = ", ".join(f'"{url}"' for url in urls)
        words += ["--set", "sampling.engine=vllm", "--set", f"sampling.base_urls=[{named}]"]
    for setting in options.set:
        words += ["--set", setting]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)]
    train = [*(torchrun if options.ranks > 1 else []), "-m", "stepalign", "train", *words]
    learner = held(0 if options.cpu else options.ranks)
    for attempt in range(1 + RESTARTS):
        code = ray.get(learner.hold.remote(train))
        if code == 0 or code in WRONG:
            break
        print(f"the learner ended with exit code {code}; attempt {attempt + 1} of {1 + RESTARTS}", flush=True)
    for actor, _ in running:
        ray.get(actor.stop.remote())
        ray.kill(actor)
    return code


if __name__ == "__main__":
    sys.exit(main())
