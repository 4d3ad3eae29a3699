"""Compiling is chosen by vocabulary and machine, and never where it cannot work."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from torch._inductor.exc import InductorError

from stepalign.objectives import fused_kernel
from stepalign.training.learner import LARGE_VOCABULARY, can_compile, pays_to_compile


def test_a_small_vocabulary_is_not_worth_it():
    assert not pays_to_compile(torch.zeros(LARGE_VOCABULARY - 1, 1))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_large_one_is_where_the_compiler_works(monkeypatch, tmp_path):
    can_compile.cache_clear()
    assert pays_to_compile(torch.zeros(LARGE_VOCABULARY, 1))
    can_compile.cache_clear()


def test_a_machine_without_a_working_compiler_goes_without(monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    can_compile.cache_clear()
    assert not pays_to_compile(torch.zeros(LARGE_VOCABULARY, 1))
    can_compile.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_any_number_of_rows_is_compiled_once(caplog: pytest.LogCaptureFixture) -> None:
    import torch._dynamo.utils as dynamo

    from stepalign.objectives.fused import fused_linear_divergence

    before = dynamo.counters["stats"]["unique_graphs"]
    head = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    for rows in (7, 1, 2, 16, 3, 33, 171, 172, 5, 4, 8, 9):
        student = torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows)).requires_grad_()
        teacher = student.detach() + 0.1
        found = [
            fused_linear_divergence(
                student, head, teacher, head, weights=torch.ones(rows) / rows, compiled=compiled, chunk_tokens=64
            ).per_token
            for compiled in (True, False)
        ]
        torch.testing.assert_close(*found)
    assert dynamo.counters["stats"]["unique_graphs"] - before == 1
    assert not [
        record for record in caplog.records if record.name.startswith("torch") and record.levelno >= logging.WARNING
    ]


def test_a_file_that_another_process_was_writing_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def compile_too_early(rows):
        def compiled(*args, **options):
            tries.append(args)
            if len(tries) == 1:
                raise InductorError(OSError("file too short"), None)
            return rows(*args, **options)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_too_early)
    monkeypatch.setattr(fused_kernel, "divergence_rows", lambda *args, **options: args)
    rows = fused_kernel.compiled_divergence_rows.__wrapped__()
    given = (torch.randn(3, 5), torch.randn(3, 5), torch.ones(3), None)
    assert rows(*given) == given
    assert len(tries) == 2
