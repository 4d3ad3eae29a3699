"""The in-process sampler, for any Hugging Face causal model.

Tokens are drawn one by one for all rows of a batch, and between two tokens the event loop runs, so that critics and
environments work while completions grow. Three savings over ``model.generate``, none of which changes the distribution:
a prompt is prefilled once and its cache expanded to its n samples; rows that have ended leave the batch; the head runs
on the last position only. Keys and values are written into one preallocated buffer, not copied at every token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from stepalign.models.load import Solver
from stepalign.models.sampling import OnFinished
from stepalign.records import Completion, FinishReason

_COMPACT_BELOW = 0.75
"""Drop finished rows when fewer than this share is still active: dropping copies the cache once."""


class LocalSampler:
    """Draws from the weights that are in ``solver.model`` at the time of the call."""

    def __init__(self, solver: Solver, *, max_batch_tokens: int = 65536) -> None:
        self._solver = solver
        self._max_batch_tokens = max_batch_tokens
        self._version = 0
        self._num_calls = 0
        """Calls under way; the model leaves its training mode while there are any."""
        self._was_training = False

    async def publish(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """See :class:`stepalign.models.sampling.Sampler`."""
        self._version = version

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        on_finished: OnFinished | None = None,
    ) -> list[list[Completion]]:
        """See :class:`stepalign.models.sampling.Sampler`."""
        results: dict[tuple[int, int], Completion] = {}
        generator = torch.Generator(device=self._solver.device).manual_seed(seed)

        def finished(prompt: int, sample: int, completion: Completion) -> None:
            results[prompt, sample] = completion
            if on_finished is not None:
                on_finished(prompt, sample, completion)

        with self._evaluating():
            for batch in self._batches(prompts, num_samples, max_tokens):
                for _ in self._sample_batch(batch, prompts, num_samples, temperature, max_tokens, generator, finished):
                    await asyncio.sleep(0)
        return [[results[prompt, sample] for sample in range(num_samples)] for prompt in range(len(prompts))]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        if not self._num_calls:
            self._was_training = self._solver.model.training
            self._solver.model.eval()
        self._num_calls += 1
        try:
            yield
        finally:
            self._num_calls -= 1
            if not self._num_calls:
                self._solver.model.train(self._was_training)

    def _batches(self, prompts: Sequence[Sequence[int]], num_samples: int, max_tokens: int) -> list[list[int]]:
        """Prompt indices in batches whose cache stays below the token budget; similar lengths together."""
        batches: list[list[int]] = []
        batch: list[int] = []
        for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
            width = len(prompts[index]) + max_tokens
            if batch and (len(batch) + 1) * num_samples * width > self._max_batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(index)
        return [*batches, batch] if batch else batches

    @torch.inference_mode()
    def _sample_batch(
        self,
        batch: list[int],
        prompts: Sequence[Sequence[int]],
        num_samples: int,
        temperature: float,
        max_tokens: int,
        generator: torch.Generator,
        finished: OnFinished,
    ) -> Iterator[None]:
        """Complete the prompts of one batch; yields after every token that is not the last."""
        device = self._solver.device
        end_ids = torch.tensor(self._solver.end_ids, device=device)
        computing, version = self._solver.computing(), self._version
        cache = _preallocated_cache(extra_tokens=max_tokens)
        logits_BV, valid_BS, positions_B = self._prefill([prompts[i] for i in batch], cache)
        cache.batch_repeat_interleave(num_samples)
        logits_BV = logits_BV.repeat_interleave(num_samples, 0)
        valid_BS = valid_BS.repeat_interleave(num_samples, 0)
        positions_B = positions_B.repeat_interleave(num_samples, 0)
        has_padding = not bool(valid_BS.all())

        num_rows = len(batch) * num_samples
        owners = torch.arange(num_rows, device=device)  # which result each live row belongs to
        alive = torch.ones(num_rows, dtype=torch.bool, device=device)
        ids_RT = torch.zeros((num_rows, max_tokens), dtype=torch.long, device=device)
        log_probs_RT = torch.zeros((num_rows, max_tokens), device=device)

        def end(rows_B: torch.Tensor, length: int, reason: FinishReason) -> None:
            for row in owners[rows_B].tolist():
                completion = Completion(
                    ids=tuple(ids_RT[row, :length].tolist()),
                    log_probs=tuple(log_probs_RT[row, :length].tolist()),
                    finish_reason=reason,
                    policy_version=version,
                )
                prompt, sample = divmod(row, num_samples)
                finished(batch[prompt], sample, completion)

        for position in range(max_tokens):
            ids_B, log_probs_B = draw(logits_BV, temperature, generator)
            ids_RT[owners, position] = ids_B
            log_probs_RT[owners, position] = log_probs_B
            ended_B = torch.isin(ids_B, end_ids) & alive
            end(ended_B, position + 1, "stop")
            alive &= ~ended_B
            num_alive = int(alive.sum())
            if position + 1 == max_tokens:
                end(alive, max_tokens, "length")
            if not num_alive or position + 1 == max_tokens:
                return
            if num_alive < _COMPACT_BELOW * len(alive):
                kept = alive.nonzero().squeeze(1)
                cache.batch_select_indices(kept)
                owners, ids_B, positions_B, valid_BS = owners[kept], ids_B[kept], positions_B[kept], valid_BS[kept]
                alive = alive[kept]
            valid_BS = torch.cat([valid_BS, valid_BS.new_ones(len(valid_BS), 1)], 1)
            with computing:  # not around the loop: autocast belongs to the thread, and others run while this one waits
                hidden_B1H = self._solver.decoder(
                    input_ids=ids_B[:, None],
                    position_ids=positions_B[:, None],
                    attention_mask=valid_BS[:, None, None, :] if has_padding else None,
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state
            logits_BV = self._solver.logits(hidden_B1H[:, -1])
            positions_B = positions_B + 1
            yield

    def _prefill(self, prompts: Sequence[Sequence[int]], cache: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits after each prompt, which cached positions are real, and the next position of each row."""
        device = self._solver.device
        width = max(map(len, prompts))
        ids_BS = torch.zeros((len(prompts), width), dtype=torch.long)
        valid_BS = torch.zeros((len(prompts), width), dtype=torch.bool)
        for row, prompt in enumerate(prompts):  # left padding: all rows go on at the same place of the buffer
            ids_BS[row, width - len(prompt) :] = torch.tensor(prompt)
            valid_BS[row, width - len(prompt) :] = True
        ids_BS, valid_BS = ids_BS.to(device), valid_BS.to(device)
        positions_BS = (valid_BS.long().cumsum(1) - 1).clamp(min=0)
        mask = None
        if not bool(valid_BS.all()):
            causal_SS = torch.ones((width, width), dtype=torch.bool, device=device).tril()
            # A pad attends to itself, so that no row of the softmax is empty.
            itself_SS = torch.eye(width, dtype=torch.bool, device=device)
            mask = ((causal_SS & valid_BS[:, None, :]) | itself_SS)[:, None]
        with self._solver.computing():
            hidden_BSH = self._solver.decoder(
                input_ids=ids_BS, position_ids=positions_BS, attention_mask=mask, past_key_values=cache, use_cache=True
            ).last_hidden_state
        logits_BV = self._solver.logits(hidden_BSH[:, -1])
        return logits_BV, valid_BS, positions_BS[:, -1] + 1


def draw(logits_BV: torch.Tensor, temperature: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row and its log-probability in nats under the distribution it was drawn from."""
    if temperature == 0:
        ids_B = logits_BV.argmax(-1)
        return ids_B, torch.zeros_like(ids_B, dtype=torch.float32)
    log_probs_BV = torch.log_softmax(logits_BV / temperature, -1)
    # argmax of log p - log(exponential noise) is a draw from p (Gumbel's trick).
    noise_BV = torch.empty_like(log_probs_BV).exponential_(generator=generator)
    ids_B = (log_probs_BV - noise_BV.log()).argmax(-1)
    return ids_B, log_probs_BV.gather(1, ids_B[:, None]).squeeze(1)


def _preallocated_cache(extra_tokens: int) -> Any:
    """A key-value cache whose layers own room for ``extra_tokens`` after the prefill."""
    from transformers.cache_utils import Cache, DynamicLayer

    class Layer(DynamicLayer):
        """Keys and values in one buffer [B, heads, S, head_dim], of which ``used`` positions are filled."""

        used = 0

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.keys, self.values = (_with_room(x, extra_tokens) for x in (key_states, value_states))
                self.used = key_states.shape[-2]
                return key_states, value_states
            assert self.keys is not None
            assert self.values is not None
            start, end = self.used, self.used + key_states.shape[-2]
            self.keys[:, :, start:end] = key_states
            self.values[:, :, start:end] = value_states
            self.used = end
            return self.keys[:, :, :end], self.values[:, :, :end]

        def get_seq_length(self) -> int:
            return self.used

    return Cache(layer_class_to_replicate=Layer)


def _with_room(states: torch.Tensor, extra_tokens: int) -> torch.Tensor:
    batch, heads, length, size = states.shape
    buffer = states.new_zeros((batch, heads, length + extra_tokens, size))
    buffer[:, :, :length] = states
    return buffer
