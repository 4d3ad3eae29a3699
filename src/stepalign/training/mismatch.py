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
from stepalign.rollouts.stream import Batch
from stepalign.waiting import wait_for

WARN, STOP = 1e-3, 0.1
"""Nats per token, mean of the absolute differences."""
LEAST_TOKENS, DRAWN, DRAWN_TOKENS = 64, 4, 16
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
            EndpointError: the mean is above ``STOP``.
        """
        fresh: list[Scored] = []
        prompts = {sample.rollout_id: sample.student_prompt_ids for sample in reversed(batch.samples)}
        for rollout in batch.rollouts:  # the first sample of each has no earlier turn behind its prompt
            drawn = rollout.completion
            if drawn.policy_version == step and sum(len(one[1]) for one in fresh) < LEAST_TOKENS:
                fresh.append((prompts[rollout.rollout_id], drawn.ids, drawn.log_probs, drawn.sampled_mask))
        if not fresh and batch.samples and (not self._drew or step % self._every == 0):
            fresh = self._draw(batch.samples[0].student_prompt_ids, step)
        mean, largest = difference(self._solver, fresh, self._temperature) if fresh else (math.nan, math.nan)
        if mean > STOP:
            raise EndpointError(
                f"the rollout servers draw from another policy than the one that learns: their log-probabilities "
                f"differ by {mean:.2g} nats per token on average, by {largest:.2g} at most",
                where=f"step {step}",
                hint="restart them on model.path with the command that stepalign serve MODEL --print shows",
            )
        if mean > WARN and not self._warned:
            self._warned = True
            text = f"the rollout servers' log-probabilities differ from the learner's by {mean:.2g} nats per token"
            self._listener(warning(f"{text}; objective.importance_clip corrects for it"))
        name = "sampling/sampling_logp_difference"
        return {f"{name}/mean": mean, f"{name}/max": largest}

    def _draw(self, prompt: Sequence[int], step: int) -> list[Scored]:
        self._drew = True
        settings = {"temperature": self._temperature, "max_tokens": DRAWN_TOKENS, "seed": step}
        ((*drawn,),) = wait_for(self._sampler.sample([prompt], num_samples=DRAWN, **settings))
        return [(prompt, one.ids, one.log_probs, one.sampled_mask) for one in drawn if one.policy_version == step]


@torch.no_grad()
def difference(solver: Solver, drawn: Sequence[Scored], temperature: float) -> tuple[float, float]:
    """Mean and maximum of |log p(sampler) - log p(learner)| over the sampled tokens, nats."""
    hidden_NH = completion_hidden(solver, [(tuple(prompt), tuple(ids)) for prompt, ids, _, _ in drawn])
    token_ids = on_device([i for _, ids, _, _ in drawn for i in ids], solver.device, torch.long)
    ours = fused_linear_log_probs(hidden_NH, solver.head_VH, token_ids, temperature=temperature).log_probs
    theirs = torch.tensor([p for _, _, log_probs, _ in drawn for p in log_probs], dtype=torch.float64)
    sampled = torch.tensor([m for _, _, _, mask in drawn for m in mask])
    gaps = (ours.double().cpu() - theirs).abs()[sampled]
    return (float(gaps.mean()), float(gaps.max())) if len(gaps) else (math.nan, math.nan)
