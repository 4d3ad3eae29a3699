"""Small solvers, tokenizers and files that several tests share. Everything runs on one thread, without a network."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from patience import PATIENCE

settings.register_profile("tests", deadline=None)  # the machine may be busy
settings.load_profile("tests")

gc.disable()  # until all tests are collected: modules stay
# Hundreds of processes import this package: compiled once, where the caller's environment forbids it as well.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Before torch is imported anywhere; it is not imported here, since many tests do without.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

if TYPE_CHECKING:
    from fault_server import FaultServer, Script
    from transformers import PreTrainedTokenizerBase

    from stepalign.models.load import Solver

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerBase:
    """The embedded task's tokenizer: one id a word."""
    from stepalign.domains.arithmetic.solver import build_tokenizer
    from stepalign.domains.arithmetic.task import VOCABULARY

    return build_tokenizer(VOCABULARY)


@pytest.fixture
def make_solver(word_tokenizer: PreTrainedTokenizerBase) -> Callable[..., Solver]:
    """Fresh tiny solvers. Large random embeddings, so that the next-token distributions are far from uniform."""
    import torch

    from stepalign.domains.arithmetic.solver import build_tiny_solver
    from stepalign.models.load import Solver

    torch.set_num_threads(1)

    def make(seed: int = 0, *, scale: float = 8.0, **sizes: int) -> Solver:
        small = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 48}
        solver = build_tiny_solver(word_tokenizer, seed=seed, **{**small, **sizes})
        with torch.no_grad():
            solver.model.get_input_embeddings().weight.mul_(scale)
        return Solver(solver.model.eval(), solver.tokenizer)

    return make


@pytest.fixture
def tiny_solver(make_solver: Callable[..., Solver]) -> Solver:
    return make_solver()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One real browser for all browser tests; they skip, visibly, on a machine without one."""
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("no chromium binary on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    playwright.expect.set_options(timeout=1000 * PATIENCE)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=binary, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        browser.new_context, browser.new_page = _patient(browser.new_context), _patient(browser.new_page)
        yield browser
        browser.close()


def _patient(make: Callable[..., Any]) -> Callable[..., Any]:
    """Contexts and pages that wait on a busy machine too."""

    def made(**options: Any) -> Any:
        found = make(**options)
        found.set_default_timeout(1000 * PATIENCE)
        return found

    return made


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with a chat template, learnt from a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    corpus = ["user assistant system", "Feedback: the second step is wrong, it should read 3 + 4 = 7.", "größer naïve"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(corpus * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def model_folder(tmp_path: Path, make_solver: Callable[..., Solver]) -> Path:
    """A tiny solver in Hugging Face layout."""
    from stepalign.models.load import save_solver

    folder = tmp_path / "model"
    save_solver(make_solver(), folder)
    return folder


@pytest.fixture
def write_recipe(tmp_path: Path, model_folder: Path) -> Callable[..., Path]:
    """A complete small recipe on files of its own: RefSol on three chains, one held out, two steps."""
    import tomli_w

    rows = [
        {"question": "1 + 2 + 3", "answer": "6", "reference": "<step_1> 1 + 2 = 3 ; <step_2> 3 + 3 = 6 ; <answer> 6"},
        {"question": "4 - 1 - 1", "answer": "2", "reference": "<step_1> 4 - 1 = 3 ; <step_2> 3 - 1 = 2 ; <answer> 2"},
        {"question": "9 + 9 - 9", "answer": "9", "reference": "<step_1> 9 + 9 = 18 ; <step_2> 18 - 9 = 9 ; <answer> 9"},
        {"question": "5 + 5", "answer": "10", "reference": "<step_1> 5 + 5 = 10 ; <answer> 10"},
    ]

    def write(name: str = "recipe.toml", **changes: Any) -> Path:
        problems, held_out = tmp_path / "problems.jsonl", tmp_path / "held-out.jsonl"
        problems.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]), encoding="utf-8")
        held_out.write_text("".join(json.dumps(row) + "\n" for row in rows[3:]), encoding="utf-8")
        tree: dict[str, Any] = {
            "condition": "refsol",
            "model": {"path": str(model_folder)},
            "data": {
                "train": str(problems),
                "test": str(held_out),
                "columns": {"question": "question", "answer": "answer", "reference": "reference"},
            },
            "prompts": {"student": "{{ question }}", "self_teacher": "{{ question }} Feedback : {{ feedback }}"},
            "sampling": {"max_completion_length": 6},
            "training": {"max_steps": 2, "problems_per_step": 2, "learning_rate": 1e-3},
            "evaluation": {"num_samples": 2},
        }
        for key, value in changes.items():
            node = tree
            *parents, last = key.split("__")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        path = tmp_path / name
        path.write_text(tomli_w.dumps(tree), encoding="utf-8")
        return path

    return write


LONGEST = ("test_compare", "test_launch", "test_distributed", "test_report_browser", "test_signals", "test_resume",
           "test_real_input", "test_calculation", "test_footprint", "test_trackers", "test_endpoint", "test_grading",
           "test_designs_in_signal", "test_prepare")  # fmt: skip
"""The longest files: first, so that no worker is left alone with one of them at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a browser or a finished comparison are marked by their fixtures."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
        if "compared" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Take what is imported out of the collector's sight: looking at it took a sixth of the CPU time of some files."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultServer]]:
    """Starts critics' servers, and stops them behind the test."""
    from fault_server import FaultServer

    servers: list[FaultServer] = []

    def start(script: Script | None = None, **options: Any) -> FaultServer:
        servers.append(FaultServer(script, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
