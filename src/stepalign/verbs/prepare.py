"""``stepalign prepare``: a supervised warm-up on a domain's format, until the pass rate on validation is in a band.

A solver that never succeeds cannot be trained on its own attempts, and one that always does needs no training.
"""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from stepalign.build import Session, open_session
from stepalign.config import Config, changed
from stepalign.domains.table import find_domain, load_set
from stepalign.errors import ConfigError
from stepalign.evaluation.statistics import bootstrap_mean
from stepalign.events import Listener, line, progress
from stepalign.models.load import Solver, dtype_of
from stepalign.records import Problem
from stepalign.rollouts.metrics import rollout_numbers
from stepalign.rollouts.order import derive_seed
from stepalign.storage.files import read_json, remove_folder, write_json
from stepalign.storage.run_folder import RunFolder, as_before
from stepalign.training import checkpoint as checkpoints

WARMUP_STEPS = 10


def prepare_solver(config: Config, out: Path, *, resume: bool, listener: Listener) -> dict[str, Any]:
    """Warm a solver up; OUT/solver holds its weights, OUT/prepare.json what was seen and measured.

    Returns:
        What prepare.json holds.

    Raises:
        ConfigError: no validation problems, no examples, or the examples end below the band.
        Interrupted: everything up to the last measurement is saved.
    """
    config = changed(as_before(config, out), {"model.lora": None, "objective.beta": 0.0}, "prepare")
    section = config.prepare
    if section.pass_rate_above >= section.pass_rate_below:
        raise ConfigError(
            "the band is empty: its lower end is not below the upper one", where="prepare.pass_rate_above"
        )
    held_out = load_set(config.data, "validation").problems[: section.num_problems]
    if not held_out:
        raise ConfigError(
            "the pass rate is measured on validation problems, and the recipe names none",
            where="data.validation",
            hint="--set data.validation=FILE, or --set data.validation_share=0.1",
        )
    examples = list(islice(_examples(config), section.examples))
    if section.seed:
        random.Random(derive_seed(section.seed, "examples")).shuffle(examples)
    if not examples:
        raise ConfigError("there is no example: no training problem has a reference solution", where=config.data.train)
    with RunFolder(out, config, resume=resume, kind="warm-up"):
        if (out / "solver").is_dir() and (out / "prepare.json").exists():
            return read_json(out / "prepare.json")
        with closing(open_session(config, listener)) as session:
            result = _WarmUp(session, examples, held_out, out, listener).go()
        checkpoints.save_final(session.solver, out / "solver")
        write_json(out / "prepare.json", result)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return result


def _examples(config: Config) -> Iterator[tuple[Problem, str]]:
    if (own := find_domain(config.data).examples) is not None:
        yield from own(config.data)
        return
    problems = load_set(config.data, "train").problems
    yield from ((problem, problem.reference) for problem in problems if problem.reference)


class _WarmUp:
    """The weights that learn, in float32, beside the session's solver, whose pass rate counts."""

    def __init__(
        self,
        session: Session,
        examples: Sequence[tuple[Problem, str]],
        held_out: Sequence[Problem],
        out: Path,
        listener: Listener,
    ) -> None:
        self.session, self.held_out, self.root, self.listener = session, held_out, out / "checkpoints", listener
        self.section = session.config.prepare
        size = self.section.batch_size
        self.batches = [self._encode(examples[i : i + size]) for i in range(0, len(examples), size)]
        self.learner = Solver(copy.deepcopy(session.solver.model).float().train(), session.solver.tokenizer)
        self.optimizer = torch.optim.AdamW(self.learner.model.parameters(), weight_decay=0.0)
        self.step, self.stride, self.rounds = 0, self.section.measure_steps, list[dict[str, Any]]()

    def go(self) -> dict[str, Any]:
        """Rounds of learning and measuring until the pass rate is in the band."""
        if not self._restore():
            self._measure()
            self._save()
        while not self._in_band():
            if self.rounds[-1]["pass_rate"] >= self.section.pass_rate_below:
                self._go_back()
            if self.step >= len(self.batches):
                found = self.rounds[-1]
                raise ConfigError(
                    f"{found['examples']} examples lead to a pass rate of {found['pass_rate']:.3f}, "
                    f"below the band from {self.section.pass_rate_above}",
                    where="prepare.examples",
                    hint="give more examples, a larger prepare.learning_rate, or easier problems",
                )
            end = min(self.step + self.stride, len(self.batches))
            losses = []
            while self.step < end:
                losses.append(self._learn(self.batches[self.step]))
                self.step += 1
                self.listener(progress("warm-up", self.step, len(self.batches), f"loss {losses[-1]:.3f}"))
            self._publish()
            self._measure(loss=sum(losses) / len(losses))
            self._save()
        return self._result()

    def _in_band(self) -> bool:
        return self.section.pass_rate_above <= self.rounds[-1]["pass_rate"] < self.section.pass_rate_below

    def _go_back(self) -> None:
        """From a round that led over the band to the one before, to go on in smaller rounds."""
        if self.step == 0 or self.stride == 1:
            rate, bound = self.rounds[-1]["pass_rate"], self.section.pass_rate_below
            raise ConfigError(
                f"the pass rate is {rate:.3f}, above the band below {bound}"
                + (", before the first example" if self.step == 0 else " after one step more than below it"),
                where="prepare.pass_rate_below",
                hint="take harder problems, a smaller prepare.learning_rate, or raise the band",
            )
        rounds, stride = self.rounds, max(1, self.stride // 2)
        newest = checkpoints.find_checkpoints(self.root)[-1]
        remove_folder(newest)
        self._restore()
        self.rounds, self.stride = rounds, stride
        self._save()

    def _learn(self, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        ids_BS, labels_BS = (tensor.to(self.learner.device) for tensor in batch)
        rate = self.section.learning_rate * min(1.0, (self.step + 1) / WARMUP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        own = self.session.solver.model.dtype
        with torch.autocast(
            self.learner.device.type, dtype=own if own.itemsize == 2 else None, enabled=own.itemsize == 2
        ):
            # Right padding under causal attention: no real token attends to a pad.
            hidden_BSH = self.learner.decoder(input_ids=ids_BS, use_cache=False).last_hidden_state
            targets = labels_BS[:, 1:]
            kept = targets >= 0
            logits_NV = self.learner.logits(hidden_BSH[:, :-1][kept])
        loss = torch.nn.functional.cross_entropy(logits_NV, targets[kept])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learner.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def _encode(self, examples: Sequence[tuple[Problem, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels [B, S], padded on the right; labels are -1 outside of the solution."""
        tokenizer = self.session.solver.tokenizer
        end = self.session.solver.end_ids[0]
        rows = [
            (self.session.prompts.student(problem), [*tokenizer.encode(text, add_special_tokens=False), end])
            for problem, text in examples
        ]
        width = max(len(prompt) + len(solution) for prompt, solution in rows)
        ids_BS, labels_BS = torch.full((len(rows), width), end), torch.full((len(rows), width), -1)
        for row, (prompt, solution) in enumerate(rows):
            ids_BS[row, : len(prompt) + len(solution)] = torch.tensor([*prompt, *solution])
            labels_BS[row, len(prompt) : len(prompt) + len(solution)] = torch.tensor(solution)
        return ids_BS, labels_BS

    @torch.no_grad()
    def _publish(self) -> None:
        for own, learnt in zip(self.session.solver.model.parameters(), self.learner.model.parameters(), strict=True):
            own.copy_(learnt)

    def _measure(self, loss: float | None = None) -> None:
        seed = derive_seed(self.section.seed, "prepare", str(self.step))
        drawn = self.session.attempt(self.held_out, self.section.num_samples, seed)
        rates = [sum(r.verdict == "correct" for r in rollouts) / len(rollouts) for rollouts in drawn]
        numbers = rollout_numbers(drawn)
        interval = bootstrap_mean(rates, share=True)
        examples = min(self.step * self.section.batch_size, sum(len(ids) for ids, _ in self.batches))
        found = {
            "steps": self.step,
            "examples": examples,
            "loss": loss,
            "pass_rate": sum(rates) / len(rates),
            "low": interval.low,
            "high": interval.high,
            "with_answer": numbers["completions/answered_ratio"],
            "truncated": numbers["completions/clipped_ratio"],
        }
        self.rounds.append(found)
        answered = f"{found['with_answer']:.0%} with an answer"
        self.listener(line(f"{examples} examples: {found['pass_rate']:.1%} right, {answered}"))

    def _save(self) -> None:
        state = {"step": self.step, "stride": self.stride, "rounds": self.rounds}
        checkpoints.save_checkpoint(
            self.root,
            self.step,
            solver=self.learner,
            state=state,
            write=lambda to: checkpoints.write_state(to, self.optimizer, {}),
        )
        for old in checkpoints.find_checkpoints(self.root)[:-2]:
            remove_folder(old)

    def _restore(self) -> bool:
        """Go on from the newest checkpoint, if there is one."""
        found = checkpoints.load_latest(self.root)
        if found is None:
            return False
        checkpoints.restore_weights(self.learner, found.weights)
        checkpoints.restore_optimizer(self.optimizer, found.optimizer)
        self.step, self.stride, self.rounds = (found.state[name] for name in ("step", "stride", "rounds"))
        self._publish()
        return True

    def _result(self) -> dict[str, Any]:
        config, section, found = self.session.config, self.section, self.rounds[-1]
        return {
            "model": config.model.path,
            "dtype": dtype_of(self.session.solver),
            "examples": found["examples"],
            "pass_rate": found["pass_rate"],
            "low": found["low"],
            "high": found["high"],
            "problems": len(self.held_out),
            "num_samples": section.num_samples,
            "temperature": config.evaluation.temperature,
            "max_completion_length": config.evaluation_length,
            "band": [section.pass_rate_above, section.pass_rate_below],
            "rounds": self.rounds,
        }
