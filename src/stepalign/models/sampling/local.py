"""The in-process sampler, for any Hugging Face causal model whose attention is transformers' own.

Tokens are drawn one by one for all rows of a batch, and between two tokens the event loop runs, so that critics and
environments work while completions grow. Four savings over ``model.generate``, none of which changes the distribution:
a prompt is computed once for its n samples; a row that has ended is given to the next waiting prompt; without waiting
prompts it leaves the batch; the head runs on the last position only.

A row draws with random numbers of its own, which follow from the seed, its prompt and the number of the sample: what
it writes does not depend on what is drawn beside it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stepalign import memory
from stepalign.errors import ConfigError
from stepalign.models import packed_attention
from stepalign.models.load import Solver, on_device
from stepalign.models.sampling import OnFinished, slots
from stepalign.records import Completion, FinishReason

REFILL_AT = 0.125
"""Compute waiting prompts when this share of the rows is free: a forward pass for each row would cost as much again."""

PROMPT_TOKENS = 8192
"""Prompt tokens computed at once, at most, unless one prompt is longer; bounds the memory of activations."""


@dataclass(slots=True)
class _Row:
    """A completion that grows."""

    prompt: int
    sample: int
    next_place: int
    """Of its next token, in its own sequence."""
    uniforms: np.ndarray
    """One number in [0, 1) for each token."""
    version: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Prompts:
    """Prompts that are computed; their samples wait for free rows."""

    cache: Any
    logits_PV: torch.Tensor
    waiting: deque[tuple[int, int, int]]
    """(row in the cache, prompt, sample)"""


class LocalSampler:
    """Draws from the weights that are in ``solver.model`` at the time of the call.

    Args:
        max_batch_tokens: prompt and completion tokens held at once.
        stop: texts that end a completion as an end token does; the tokens that spell them belong to it.

    Raises:
        ConfigError: a model that cannot decode rows of different lengths side by side.
    """

    has_own_weights = False

    def __init__(self, solver: Solver, *, max_batch_tokens: int = 65536, stop: Sequence[str] = ()) -> None:
        check_sampler(solver)
        packed_attention.enable(solver.decoder)
        self._solver = solver
        self._max_batch_tokens = max_batch_tokens
        self._stop = tuple(stop)
        self._version = 0
        self._num_calls = 0
        """Calls under way; the model leaves its training mode while there are any."""
        self._was_training = False

    async def publish(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """See :class:`stepalign.models.sampling.Sampler`."""
        self._version = version

    def close(self) -> None:
        """See :class:`stepalign.models.sampling.Sampler`. Nothing was made."""

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
        self._check_room(prompts, max_tokens)
        call = _Call(self, prompts, num_samples, temperature, max_tokens, seed)
        results: dict[tuple[int, int], Completion] = {}
        memory.give_back()  # what the learner has used
        with self._evaluating():
            while call.goes_on():
                for prompt, sample, completion in call.next_tokens():
                    results[prompt, sample] = completion
                    if on_finished is not None:
                        on_finished(prompt, sample, completion)
                if call.rows:
                    call.forward()
                await asyncio.sleep(0)
        memory.give_back()
        return [[results[prompt, sample] for sample in range(num_samples)] for prompt in range(len(prompts))]

    def _check_room(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        limit, longest = self._solver.context_length, max(map(len, prompts), default=0)
        if not all(map(len, prompts)):
            raise ValueError("a completion cannot be drawn behind an empty prompt")
        if limit is not None and longest + max_tokens > limit:
            raise ConfigError(
                f"a prompt of {longest} tokens leaves no room for a completion of {max_tokens} tokens in the model's "
                f"{limit}",
                where="max_completion_length",
                hint="shorten it, or drop the longest problems",
            )

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


class _Call:
    """One call of ``sample``: the prompts that wait, and the rows that are drawn."""

    def __init__(
        self,
        sampler: LocalSampler,
        prompts: Sequence[Sequence[int]],
        num_samples: int,
        temperature: float,
        max_tokens: int,
        seed: int,
    ) -> None:
        self._sampler, self._solver = sampler, sampler._solver
        self._prompts, self._num_samples, self._temperature = prompts, num_samples, temperature
        self._max_tokens = max_tokens
        self._numbers = _Numbers(prompts, num_samples, seed)
        # Short prompts first, and similar lengths together.
        self._waiting = deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i])))
        self._computed: _Prompts | None = None
        self._end_ids = set(self._solver.end_ids)
        shortest = min(map(len, prompts), default=0) + max_tokens
        capacity = min(len(prompts) * num_samples, max(1, sampler._max_batch_tokens // shortest))
        self._slots = slots.Slots(capacity)
        self.rows: list[_Row] = []
        self._logits_BV: torch.Tensor

    def goes_on(self) -> bool:
        """Whether there is a row, after free ones were given to waiting prompts."""
        fewest = max(1, int(REFILL_AT * len(self.rows)))
        while self._free_rows() >= fewest and (self._samples_wait() or self._waiting):
            if not self._samples_wait():
                self._computed = self._compute_prompts()
            self._admit()
        return bool(self.rows)

    def _samples_wait(self) -> bool:
        return self._computed is not None and bool(self._computed.waiting)

    def _free_rows(self) -> int:
        """Rows that the next prompt may take, within the budget of tokens."""
        if self._samples_wait():
            assert self._computed is not None
            upcoming = self._computed.waiting[0][1]
        elif self._waiting:
            upcoming = self._waiting[0]
        else:
            return 0
        longest = max([len(self._prompts[upcoming]), *(len(self._prompts[row.prompt]) for row in self.rows)])
        fit = max(1, self._sampler._max_batch_tokens // (longest + self._max_tokens))
        return min(fit, self._slots.rows) - len(self.rows)

    @torch.inference_mode()
    def _compute_prompts(self) -> _Prompts:
        """The next waiting prompts, as many as free rows have use for; pads on the right disturb no real token."""
        taken: list[int] = []
        while self._waiting and len(taken) * self._num_samples < self._free_rows():
            if taken and (len(taken) + 1) * len(self._prompts[self._waiting[0]]) > PROMPT_TOKENS:
                break
            taken.append(self._waiting.popleft())
        ids_PS = torch.zeros((len(taken), len(self._prompts[taken[-1]])), dtype=torch.long)
        for row, prompt in enumerate(taken):
            ids_PS[row, : len(self._prompts[prompt])] = torch.tensor(self._prompts[prompt])
        cache, device = slots.prompt_cache(), self._solver.device
        with self._solver.computing():
            hidden_PSH = self._solver.decoder(
                input_ids=on_device(ids_PS, device), past_key_values=cache, use_cache=True
            ).last_hidden_state
            last_P = on_device([len(self._prompts[prompt]) - 1 for prompt in taken], device)
            logits_PV = self._solver.logits(hidden_PSH[torch.arange(len(taken), device=device), last_P])
        samples = range(self._num_samples)
        waiting = deque((row, prompt, sample) for row, prompt in enumerate(taken) for sample in samples)
        return _Prompts(cache, logits_PV, waiting)

    @torch.inference_mode()
    def _admit(self) -> None:
        """Give free rows to samples of computed prompts."""
        assert self._computed is not None
        sources: list[int] = []
        first = len(self.rows)
        for _ in range(min(self._free_rows(), len(self._computed.waiting))):
            source, prompt, sample = self._computed.waiting.popleft()
            sources.append(source)
            uniforms = self._numbers.of(prompt, sample, self._max_tokens if self._temperature else 0)
            self.rows.append(_Row(prompt, sample, len(self._prompts[prompt]), uniforms, self._sampler._version))
        sources_B = on_device(sources, self._solver.device)
        self._slots.place(self._computed.cache, sources_B, first)
        logits_BV = self._computed.logits_PV.index_select(0, sources_B)
        self._logits_BV = torch.cat([self._logits_BV, logits_BV]) if first else logits_BV
        if not self._computed.waiting:
            self._computed = None

    @torch.inference_mode()
    def next_tokens(self) -> list[tuple[int, int, Completion]]:
        """Draw a token for every row; those that end leave."""
        at = [row.uniforms[len(row.ids)] for row in self.rows] if self._temperature else [0.0] * len(self.rows)
        ids_B, log_probs_B = draw(self._logits_BV, self._temperature, torch.tensor(at, dtype=torch.float64))
        finished: list[tuple[int, int, Completion]] = []
        kept: list[int] = []
        for index, (row, token, log_prob) in enumerate(
            zip(self.rows, ids_B.tolist(), log_probs_B.tolist(), strict=True)
        ):
            row.ids.append(token)
            row.log_probs.append(log_prob)
            reason = self._end(row)
            if reason is None:
                kept.append(index)
                continue
            completion = Completion(
                ids=tuple(row.ids), log_probs=tuple(row.log_probs), finish_reason=reason, policy_version=row.version
            )
            finished.append((row.prompt, row.sample, completion))
        if finished:
            self._keep(kept)
        return finished

    def _end(self, row: _Row) -> FinishReason | None:
        if row.ids[-1] in self._end_ids:
            return "stop"
        if self._sampler._stop:
            longest = max(map(len, self._sampler._stop))
            ending = self._solver.tokenizer.decode(row.ids[-longest - 4 :], skip_special_tokens=True)
            if any(text in ending for text in self._sampler._stop):
                return "stop"
        return "length" if len(row.ids) == self._max_tokens else None

    def _keep(self, kept: list[int]) -> None:
        """Close the gaps: the last rows move into those that have ended."""
        gaps = sorted(set(range(len(kept))) - set(kept))
        moved = [index for index in kept if index >= len(kept)]
        if moved:
            device = self._solver.device
            self._slots.move(on_device(moved, device), on_device(gaps, device))
            for gap, index in zip(gaps, moved, strict=True):
                self.rows[gap] = self.rows[index]
        del self.rows[len(kept) :]

    @torch.inference_mode()
    def forward(self) -> None:
        """The logits behind the tokens that were drawn last."""
        device = self._solver.device
        self._slots.expect([row.next_place for row in self.rows], device)
        with self._solver.computing():  # not around the loop: autocast belongs to the thread, and others run in between
            hidden_B1H = self._solver.decoder(
                input_ids=on_device([[row.ids[-1]] for row in self.rows], device),
                position_ids=self._slots.positions_B[:, None],
                past_key_values=self._slots,
                use_cache=True,
            ).last_hidden_state
            self._logits_BV = self._solver.logits(hidden_B1H[:, -1])
        for row in self.rows:
            row.next_place += 1


class _Numbers:
    """The random numbers of each sample, from the seed and the ids of its prompt."""

    def __init__(self, prompts: Sequence[Sequence[int]], num_samples: int, seed: int) -> None:
        self._keys: list[tuple[list[int], int]] = []
        seen: Counter[tuple[int, ...]] = Counter()
        for prompt in map(tuple, prompts):  # a prompt that comes again goes on with further samples
            entropy = np.random.SeedSequence([seed % 2**64, *prompt]).generate_state(4).tolist()
            self._keys.append((entropy, seen[prompt] * num_samples))
            seen[prompt] += 1

    def of(self, prompt: int, sample: int, count: int) -> np.ndarray:
        """[count], in [0, 1)."""
        entropy, first = self._keys[prompt]
        return np.random.default_rng([*entropy, first + sample]).random(count)


def check_sampler(solver: Solver) -> None:
    """Raises ConfigError, with the model's name, where its rows cannot be drawn side by side."""
    if reason := slots.unsampleable(solver.decoder):
        raise ConfigError(
            f"no completions can be drawn from {type(solver.model).__name__} in this process: {reason}",
            where="model.path",
            hint="docs/models.md lists the architectures that can; signal works with this one",
        )


def draw(logits_BV: torch.Tensor, temperature: float, uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row and its log-probability in nats under the distribution it was drawn from.

    Args:
        uniform_B: a number in [0, 1) for each row; the token is the first whose cumulative probability exceeds it.
    """
    if temperature == 0:
        ids_B = logits_BV.argmax(-1)
        return ids_B, torch.zeros_like(ids_B, dtype=torch.float32)
    log_probs_BV = torch.log_softmax(logits_BV / temperature, -1)
    wide = torch.float32 if logits_BV.device.type == "mps" else torch.float64
    cumulative_BV = log_probs_BV.exp().cumsum(-1, dtype=wide)
    total_B1 = cumulative_BV[:, -1:]
    drawn_B1 = uniform_B.to(logits_BV.device, wide)[:, None] * total_B1
    below_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))  # rounding must not reach the end itself
    ids_B = torch.searchsorted(cumulative_BV, drawn_B1.minimum(below_B1), right=True).squeeze(1)
    return ids_B, log_probs_BV.gather(1, ids_B[:, None]).squeeze(1)
