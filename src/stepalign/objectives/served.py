"""Divergences from a teacher of whom only the k likeliest tokens of each place are known, the rest in a tail bucket."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stepalign.objectives.divergences import Divergence, Remainder
from stepalign.objectives.fused import FusedDivergence
from stepalign.objectives.head import slices
from stepalign.objectives.tokens import REMAINDERS, entropy, sampled_token_loss, take_tokens

CHUNK_TOKENS = 256
"""Tokens whose logits exist at once; they are computed again in the backward pass."""


def served_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    top: tuple[Tensor, Tensor, Tensor],
    *,
    weights: Tensor,
    token_ids: Tensor,
    divergence: Divergence,
    temperature: float = 1.0,
    remainder: Remainder = "tail",
    entry_clip: float | None = None,
    token_clip: float | None = None,
) -> FusedDivergence:
    """``fused_linear_divergence`` on the teacher's k likeliest tokens, by autograd.

    Args:
        student_hidden: [N, H].
        student_head: [V, H].
        top: ids [N, K] and log-probabilities [N, K] of the teacher, at the same temperature as the student's, and the
            log-probabilities [N] of the tokens taken.
        weights, token_ids: [N].

    Returns:
        As ``fused_linear_divergence``; no entropy of the teacher, which is not known.
    """
    wide = torch.promote_types(student_hidden.dtype, torch.float32)
    ids_NK, teacher_NK, taken_N = top[0], top[1].to(wide), top[2].to(wide)

    def compare(hidden: Tensor, head: Tensor, ids: Tensor, best: Tensor, taken: Tensor, tokens: Tensor) -> Tensor:
        log_probs = ((hidden @ head.T).to(wide) / temperature).log_softmax(-1)
        own = take_tokens(log_probs, tokens)
        if divergence.formula is None:
            loss = sampled_token_loss(taken, own)
            per_token = loss + (own - taken - loss).detach()  # the value is -A_t, the gradient that of the one sample
        else:
            close = REMAINDERS[remainder]
            per_token = divergence(close(best), close(log_probs.gather(-1, ids)), entry_clip=entry_clip)
        if token_clip is not None:
            per_token = per_token.clamp(max=token_clip)
        return torch.stack([per_token, own, entropy(log_probs.detach())])

    parts: Sequence[Tensor] = [
        checkpoint(
            compare,
            student_hidden[n],
            student_head,
            ids_NK[n],
            teacher_NK[n],
            taken_N[n],
            token_ids[n],
            use_reentrant=False,
        )
        for n in slices(len(student_hidden), CHUNK_TOKENS)
    ]  # type: ignore[assignment]
    per_token_N, own_N, entropy_N = torch.cat(list(parts), dim=1)
    own_N, entropy_N = own_N.detach(), entropy_N.detach()
    return FusedDivergence(
        loss=(weights.to(wide) * per_token_N).sum(),
        per_token=per_token_N.detach(),
        log_ratio=taken_N - own_N,
        student_log_probs=own_N,
        teacher_log_probs=taken_N,
        student_entropy=entropy_N,
    )
