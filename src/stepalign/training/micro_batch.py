"""Samples as flat tensors: one entry per completion token, completion after completion, as the hidden states come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepalign.objectives.policy_gradient import LOSS_TYPES, LossType, StepCounts
from stepalign.records import Sample


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The samples of one forward pass."""

    samples: Sequence[Sample]
    token_ids_N: Tensor
    mask_N: Tensor
    """True for tokens that train."""
    weights_N: Tensor
    """What a token counts in the loss of the step, float32; 0 outside the mask."""

    @classmethod
    def of(cls, samples: Sequence[Sample], loss_type: LossType, counts: StepCounts, device: torch.device) -> MicroBatch:
        """Flatten the samples. The counts are those of the whole step."""
        ids_N = torch.tensor([i for s in samples for i in s.completion_ids], dtype=torch.long, device=device)
        mask_N = torch.tensor([m for s in samples for m in s.loss_mask], dtype=torch.bool, device=device)
        lengths_B = torch.tensor([sum(s.loss_mask) for s in samples], device=device)  # trained tokens only
        weights_N = torch.zeros(len(ids_N), device=device)
        weights_N[mask_N] = LOSS_TYPES[loss_type](torch.repeat_interleave(lengths_B, lengths_B), counts)
        return cls(samples, ids_N, mask_N, weights_N)

    @property
    def sampler_log_probs_N(self) -> Tensor:
        """Log-probabilities of the completion tokens when they were drawn, float32."""
        return torch.tensor([p for s in self.samples for p in s.sampler_log_probs], device=self.token_ids_N.device)

    def per_token(self, value: Callable[[Sample], float]) -> Tensor:
        """[N], a value of each sample repeated over its tokens, float32."""
        return self._repeated(torch.tensor([float(value(s)) for s in self.samples]))

    def rows(self, chosen: Callable[[Sample], bool]) -> Tensor:
        """[N] bool, the tokens of the chosen samples."""
        return self._repeated(torch.tensor([bool(chosen(s)) for s in self.samples]))

    def _repeated(self, values_B: Tensor) -> Tensor:
        lengths_B = torch.tensor([len(s.completion_ids) for s in self.samples])
        return torch.repeat_interleave(values_B, lengths_B).to(self.token_ids_N.device)
