"""Compiling is chosen by vocabulary and machine, and never where it cannot work."""

from __future__ import annotations

import shutil

import pytest
import torch

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
