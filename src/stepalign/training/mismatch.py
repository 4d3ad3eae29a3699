"""Whether a sampler with weights of its own draws from the policy that learns: its log-probabilities against ours.

A server may hold other weights than it was given, report log-probabilities before temperature, or cut the distribution.
Every one of these shows here, and nowhere else before the run decays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from stepalign.errors import EndpointError
from stepalign.events import Listener, warning
from stepalign.models.load import Solver, on_device
from stepalign.models.sampling import Sampler
from stepalign.models.scoring import completion_hidden
from stepalign.objectives.fused import fused_linear_log_probs
from stepalign.records import Completion
from stepalign.rollouts.stream import Batch
from stepalign.waiting import wait_for

WARN, STOP = 1e-3, 0.1
"""Nats per token, mean of the absolute differences."""
LEAST_TOKENS, DRAWN, DRAWN_TOKENS = 64, 4, 16
"""Compared of each server; completions drawn for want of fresh ones, and their tokens."""
Scored = tuple[Sequence[int], Sequence[int], Sequence[float], Sequence[bool]]
"""Prompt, completion, the sampler's log-probabilities, and which tokens it sampled."""


class SamplerCheck:
    """Compares some tokens of every step, and draws some where the step's own come from older weights."""

    def __init__(self, solver: Solver, sampler: Sampler, temperature: float, every: int, listener: Listener) -> None:
        self._solver, self._sampler, self._temperature = solver, sampler, temperature
        self._every, self._listener = every, listener
        self._drew = self._warned = False

    def __call__(self, batch: Batch, step: int) -> dict[str, float]:
        """Mean and maximum of |difference| per token, named as in TRL; NaN where nothing was compared.

        Raises:
            EndpointError: the mean of a server is above ``STOP``.
        """
        fresh: dict[str, list[Scored]] = {}  # by server: one that holds other weights must not hide behind the others
        prompts = {sample.rollout_id: sample.student_prompt_ids for sample in reversed(batch.samples)}
        for rollout in batch.rollouts:  # the first sample of each has no earlier turn behind its prompt
            drawn = rollout.completion
            own = fresh.setdefault(drawn.server, [])
            if drawn.policy_version == step and sum(len(one[1]) for one in own) < LEAST_TOKENS:
                own.append(_beginning(prompts[rollout.rollout_id], drawn))
        if not any(fresh.values()) and batch.samples and (not self._drew or step % self._every == 0):
            fresh = self._draw(batch.samples[0].student_prompt_ids, step, len(fresh))
        gaps = {server: differences(self._solver, rows, self._temperature) for server, rows in fresh.items() if rows}
        for server, own_gaps in gaps.items():
            if len(own_gaps) and (mean := float(own_gaps.mean())) > STOP:
                raise EndpointError(
                    f"a rollout server draws from another policy than the one that learns: its log-probabilities "
                    f"differ by {mean:.2g} nats per token on average, by {float(own_gaps.max()):.2g} at most",
                    where=f"step {step}, {server}",
                    hint="restart it on model.path with the command that stepalign serve MODEL --print shows",
                )
        every = torch.cat(list(gaps.values())) if gaps else torch.empty(0)
        mean, largest = (float(every.mean()), float(every.max())) if len(every) else (math.nan, math.nan)
        if mean > WARN and not self._warned:
            self._warned = True
            text = f"the rollout servers' log-probabilities differ from the learner's by {mean:.2g} nats per token"
            self._listener(warning(f"{text}; objective.importance_clip corrects for it"))
        name = "sampling/sampling_logp_difference"
        return {f"{name}/mean": mean, f"{name}/max": largest}

    def _draw(self, prompt: Sequence[int], step: int, servers: int) -> dict[str, list[Scored]]:
        """Some completions behind a prompt, asked for once for each server."""
        self._drew = True
        settings = {"temperature": self._temperature, "max_tokens": DRAWN_TOKENS, "seed": step}
        drawn = wait_for(self._sampler.sample([prompt] * servers, num_samples=DRAWN, **settings))
        found: dict[str, list[Scored]] = {}
        for one in (one for group in drawn for one in group if one.policy_version == step):
            found.setdefault(one.server, []).append(_beginning(prompt, one))
        return found


def _beginning(prompt: Sequence[int], drawn: Completion) -> Scored:
    return prompt, drawn.ids[:LEAST_TOKENS], drawn.log_probs[:LEAST_TOKENS], drawn.sampled_mask[:LEAST_TOKENS]


@torch.no_grad()
def differences(solver: Solver, drawn: Sequence[Scored], temperature: float) -> torch.Tensor:
    """|log p(sampler) - log p(learner)| of the sampled tokens, nats, float64."""
    hidden_NH = completion_hidden(solver, [(tuple(prompt), tuple(ids)) for prompt, ids, _, _ in drawn])
    token_ids = on_device([i for _, ids, _, _ in drawn for i in ids], solver.device, torch.long)
    ours = fused_linear_log_probs(hidden_NH, solver.head_VH, token_ids, temperature=temperature).log_probs
    theirs = torch.tensor([p for _, _, log_probs, _ in drawn for p in log_probs], dtype=torch.float64)
    sampled = torch.tensor([m for _, _, _, mask in drawn for m in mask])
    return (ours.double().cpu() - theirs).abs()[sampled]
