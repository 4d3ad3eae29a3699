"""``stepalign launch``: rollout servers and a training run on one machine, started, watched and stopped together.

Each is an ordinary command (``stepalign serve``, ``torchrun ... stepalign train``) with a log of its own. A child holds
a pipe of this process on standard input, so that all of them end when it is killed.
"""

from __future__ import annotations

import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2

from stepalign.config import Config
from stepalign.critics import RUN_FILES
from stepalign.errors import ConfigError, EndpointError, UserError
from stepalign.events import Listener, line, warning
from stepalign.stopping import Interrupted, StopRequest
from stepalign.storage.jsonl import whole_lines
from stepalign.storage.run_folder import RunFolder, as_before
from stepalign.verbs.checks import run_checks
from stepalign.verbs.inputs import Inputs
from stepalign.verbs.processes import POLL_SECONDS, STOPPED, Child, Job
from stepalign.verbs.serve import cards

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
SHARED_CARD, OWN_CARD = 0.4, 0.9
"""Share of a card's memory for the servers on it, beside a learner or alone."""
START_SECONDS = 1800.0
"""For a server to load its model."""
STOP_SECONDS = 15.0
"""For servers to end with the run; they are killed afterwards."""
ASK_SECONDS = 10.0
"""Between two questions whether a server answers."""
ANSWER_SECONDS = 5.0
WRONG = (2, 4, 5)
"""Exit codes after which another attempt would end alike: a wrong recipe, a folder in use, a spent budget."""
_EXIT_CODE = re.compile(r"^ *rank *: (\d+) .*\n *exitcode *: (-?\d+)", re.MULTILINE)
"""How torchrun reports the rank that failed first, behind those that failed after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """What is started."""

    servers: int = 0
    """Rollout servers; 0 leaves sampling as the recipe says."""
    ranks: int = 1
    """Processes of the learner."""
    port: int = 8000
    """Of the first server; the others have the next ones."""
    python: str = "python3"
    """Interpreter of the environment that has vLLM."""
    restarts: int = 3
    """Of each process; one that dies once more ends the launch."""
    compares: bool = False
    """Run all arms of the recipe instead of its one condition."""

    @property
    def settings(self) -> list[str]:
        """Words for ``--set`` by which a recipe finds the servers."""
        urls = ", ".join(f'"http://127.0.0.1:{self.port + one}/v1"' for one in range(self.servers))
        return ["sampling.engine=vllm", f"sampling.base_urls=[{urls}]"] if self.servers else []


def jobs_of(fleet: Fleet, config: Config, recipe: str, out: Path, settings: Sequence[str]) -> tuple[list[Job], Job]:
    """The servers and the run. Cards go to the ranks first, then to the servers, which share some where few are left.

    Args:
        settings: the words of ``--set``, those of the fleet included.
    """
    logs, here = out.with_name(f"{out.name}.launch"), cards()
    ours, theirs = here[: fleet.ranks], here[fleet.ranks :] or here
    lora = config.model.lora.r if config.model.lora else 8
    longest = max(config.sampling.max_completion_length, config.evaluation_length)
    servers = []
    for one in range(fleet.servers):
        words = ["serve", config.model.path, "--port", str(fleet.port + one), "--python", fleet.python]
        words += ["--lora-rank", str(lora), "--max-model-len", str(max(4096, 2 * longest))]
        card = theirs[one % len(theirs)] if theirs else ""
        at_once = sum(theirs[other % len(theirs)] == card for other in range(fleet.servers)) if theirs else 1
        if card and (card in ours or at_once > 1):
            words += ["--gpu-memory", f"{(SHARED_CARD if card in ours else OWN_CARD) / at_once:.2f}"]
        servers.append(_job(f"server {one + 1}", words, logs, {"CUDA_VISIBLE_DEVICES": card} if card else {}))
    words = ["compare" if fleet.compares else "train", recipe, "--out", str(out)]
    for setting in settings:
        words += ["--set", setting]
    launcher = (sys.executable, *TORCHRUN, str(fleet.ranks)) if fleet.ranks > 1 else ()
    if fleet.compares and launcher:
        words += ["--set", f"compare.launcher={shlex.join([*launcher, '--no-python'])}"]
    run = _job("run", words, logs, {"CUDA_VISIBLE_DEVICES": ",".join(ours)} if ours else {})
    if launcher and not fleet.compares:
        run = replace(run, command=(*launcher, *run.command[1:]))
    return servers, replace(run, folder=out)


def _job(name: str, words: Sequence[str], logs: Path, environment: dict[str, str]) -> Job:
    command = (sys.executable, "-m", "stepalign", *words)
    log = logs / f"{name.replace(' ', '-')}.log"
    return Job(name=name, command=command, folder=logs, log=log, environment=environment)


def launch(
    fleet: Fleet,
    servers: Sequence[Job],
    run: Job,
    config: Config,
    *,
    resume: bool,
    stop: StopRequest,
    listener: Listener,
) -> None:
    """Start the servers, wait until all of them answer, and train. A process that dies is started again.

    Raises:
        ConfigError: a port is taken, or the recipe is wrong; nothing was started.
        UserError: the run failed in a way that would repeat itself, or one time too many.
        EndpointError: no server is left.
        Interrupted: asked to stop; the run has saved itself.
    """
    for one in range(fleet.servers):
        _check_port(fleet.port + one)
    if not fleet.compares:
        run_checks(Inputs(config), loads_model=False)
        RunFolder.check(run.folder, as_before(config, run.folder), resume=resume, extra=RUN_FILES)
    watched = [_Server(job, f"http://127.0.0.1:{fleet.port + one}") for one, job in enumerate(servers)]
    with _Supervisor(fleet, watched, run, config.sampling.timeout, stop, listener) as supervisor:
        supervisor.go(resume)


@dataclass
class _Server:
    """A rollout server, as far as it is known; times of the monotonic clock."""

    job: Job
    url: str
    child: Child | None = None
    deaths: int = 0
    answers: bool = False
    started: float = 0.0
    heard: float = 0.0
    asked: float = 0.0

    def is_well(self) -> bool:
        """Whether it answers, asked again only every few seconds."""
        now = time.monotonic()
        if now - self.asked > (ASK_SECONDS if self.answers else 1.0):
            self.asked = now
            with suppress(httpx2.HTTPError):
                if httpx2.get(f"{self.url}/v1/models", timeout=ANSWER_SECONDS, trust_env=False).status_code == 200:
                    self.answers, self.heard = True, time.monotonic()
        return self.answers


class _Supervisor:
    """Servers and run while they work; ``with`` ends them all."""

    def __init__(
        self, fleet: Fleet, servers: list[_Server], run: Job, patience: float, stop: StopRequest, listener: Listener
    ) -> None:
        self._fleet, self._servers, self._job, self._patience = fleet, servers, run, patience
        self._stop, self._say = stop, listener
        self._run: Child | None = None
        self._read = 0

    def __enter__(self) -> _Supervisor:
        return self

    def __exit__(self, *exception: object) -> None:
        children = [server.child for server in self._servers] + [self._run]
        for child in filter(None, children):
            child.signal(signal.SIGTERM)
        end = time.monotonic() + (0.5 if self._stop.asked else STOP_SECONDS)  # servers have nothing to save
        for child in filter(None, children):
            with suppress(Exception):
                child.process.wait(max(0.1, end - time.monotonic()))
            child.signal(signal.SIGKILL)
            child.close()

    def go(self, resume: bool) -> None:
        """Until the run has ended."""
        for server in self._servers:
            self._start(server)
        while not all(server.is_well() for server in self._servers):
            self._look_after_servers()
            if self._stop.asked:
                raise Interrupted
            time.sleep(POLL_SECONDS)
        deaths = 0
        self._begin(resume)
        while True:
            assert self._run is not None
            code = self._run.process.poll()
            self._echo()
            if code is not None:
                self._run.close()
                if code == 0:
                    return
                if self._stop.asked:
                    raise Interrupted
                error, ranks = self._run.failure(code), self._ranks_that_failed()
                if ranks and error.what.startswith("="):  # the end of torchrun's report
                    error.what = "rank {} ended with exit code {}".format(*ranks[-1])
                code = int(ranks[-1][1]) if ranks else code
                deaths += 1
                if code in (*STOPPED, *WRONG) or deaths > self._fleet.restarts:
                    raise error
                self._say(warning(f"the run ended: {error.what}; it goes on from its last checkpoint"))
                self._begin(resume=True)
            elif self._stop.asked and not self._run.asked:
                self._run.ask_to_stop()
            self._look_after_servers()
            time.sleep(POLL_SECONDS)

    def _begin(self, resume: bool) -> None:
        job = replace(self._job, command=(*self._job.command, "--resume")) if resume else self._job
        self._read = job.log.stat().st_size if job.log.exists() else 0
        self._begun = self._read
        self._run = Child(job)

    def _echo(self) -> None:
        for content in whole_lines(self._job.log, self._read):
            self._read += len(content)
            self._say(line(content.decode(errors="replace").rstrip()))

    def _ranks_that_failed(self) -> list[tuple[str, str]]:
        """(rank, exit code) as torchrun reports them, the first that failed last."""
        with self._job.log.open("rb") as log:
            log.seek(self._begun)
            return _EXIT_CODE.findall(log.read().decode(errors="replace"))

    def _start(self, server: _Server) -> None:
        self._say(line(f"{server.job.name} at {server.url}, log {server.job.log}"))
        server.child, server.answers, server.started = Child(server.job), False, time.monotonic()

    def _look_after_servers(self) -> None:
        for server in self._servers:
            child = server.child
            if child is None or self._stop.asked:
                continue
            since = server.heard if server.is_well() else server.started
            silent = time.monotonic() - since > (self._patience if server.answers else START_SECONDS)
            if (code := child.process.poll()) is None and not silent:
                continue
            child.signal(signal.SIGKILL)
            child.close()
            error = child.failure(code) if code is not None else UserError("it does not answer any more")
            server.child = None
            server.deaths += 1
            if isinstance(error, ConfigError) or not (self._run or server.deaths <= self._fleet.restarts):
                raise error
            if server.deaths <= self._fleet.restarts:
                self._say(warning(f"{server.job.name} ended: {error.what}; it is started again"))
                self._start(server)
            elif any(other.child for other in self._servers):
                self._say(warning(f"{server.job.name} ended once more: {error.what}; the run goes on without it"))
            else:
                raise EndpointError(
                    f"no rollout server is left: {error.what}",
                    where=str(server.job.log),
                    hint="mend it and give the command again with --resume",
                )


def _check_port(port: int) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            hint = "stop what listens there, or give another first port"
            raise ConfigError(f"port {port} is in use", where="--port", hint=hint) from None
