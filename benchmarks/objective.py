"""Time, accuracy and memory of the fused objective against its floor, a plain implementation and installed peers.

    python benchmarks/objective.py time --tokens 512 --hidden 1024
    python benchmarks/objective.py accuracy
    python benchmarks/objective.py memory
    python benchmarks/objective.py grpo

Time is CPU time of one thread, methods interleaved, medians over rounds, with gradients of hidden states and head. The
floor is the bare matrix products of the same run, each with a fresh output: student logits, self-teacher logits, and
the two that carry the gradient back. Peers take part where they can be imported (``pip install --no-deps liger-kernel
trl`` into an environment of their own that also sees torch and this package).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from stepalign.objectives.divergences import DIVERGENCES
from stepalign.objectives.fused import fused_linear_divergence
from stepalign.objectives.policy_gradient import (
    LOSS_TYPES,
    StepCounts,
    clipped_policy_loss,
    group_advantages,
    kl_to_reference,
)

QWEN3_VOCABULARY = 151_936
BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jensen_shannon": 0.5}
"""The three divergences in the peers' single parameter."""


@dataclass
class Case:
    """Inputs with logits of standard deviation 4; ``gap`` sets how far the self-teacher is from the student."""

    student: Tensor
    head: Tensor
    teacher: Tensor
    teacher_head: Tensor
    weights: Tensor
    divergence: str

    @classmethod
    def random(
        cls,
        tokens: int,
        hidden: int,
        vocabulary: int,
        dtype: torch.dtype,
        gap: float,
        divergence: str,
        separate_heads: bool = False,
    ) -> Case:
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        head = noise(vocabulary, hidden).mul_(4 / hidden**0.5).to(dtype)
        student = noise(tokens, hidden)
        hidden_gap = gap / 2**0.5 if separate_heads else gap  # the other half of the variance comes from the head
        teacher = (student + hidden_gap * noise(tokens, hidden)).to(dtype)
        teacher_head = head
        if separate_heads:
            teacher_head = (head.float() + hidden_gap * noise(vocabulary, hidden).mul_(4 / hidden**0.5)).to(dtype)
        weights = torch.full((tokens,), 1 / tokens)
        student, head = student.to(dtype).requires_grad_(), head.requires_grad_()
        return cls(student, head, teacher, teacher_head.detach(), weights, divergence)

    def double(self) -> Case:
        student, head = (tensor.detach().double().requires_grad_() for tensor in (self.student, self.head))
        teacher, teacher_head = self.teacher.double(), self.teacher_head.double()
        return Case(student, head, teacher, teacher_head, self.weights.double(), self.divergence)


Method = Callable[[Case], Tensor]


def fused(case: Case, **options: object) -> Tensor:
    return fused_linear_divergence(
        case.student,
        case.head,
        case.teacher,
        case.teacher_head,
        weights=case.weights,
        divergence=case.divergence,
        **options,  # type: ignore[arg-type]
    ).loss


def naive(case: Case) -> Tensor:
    """Whole logits, softmaxes in at least float32: what one writes first."""
    wide = torch.promote_types(case.head.dtype, torch.float32)
    with torch.no_grad():
        teacher = (case.teacher @ case.teacher_head.t()).to(wide).log_softmax(-1)
    student = (case.student @ case.head.t()).to(wide).log_softmax(-1)
    return (case.weights * DIVERGENCES[case.divergence](teacher, student)).sum()


def liger() -> Method:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    def run(case: Case) -> Tensor:
        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA[case.divergence], compiled=False
        )
        labels = torch.zeros(len(case.student), dtype=torch.long)
        return loss(case.student, case.head, case.teacher, case.teacher_head, labels)

    return run


def trl() -> Method:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def run(case: Case) -> Tensor:
        mask = torch.ones(1, len(case.student))
        hidden = case.student.unsqueeze(0), case.teacher.unsqueeze(0)
        return _chunked_divergence_loss(*hidden, case.head, case.teacher_head, mask, BETA[case.divergence])[0]

    return run


def installed_methods(compiled: bool) -> dict[str, Method]:
    methods: dict[str, Method] = {
        "stepalign": fused,
        "stepalign, fast logits": functools.partial(fused, fast_logits=True),
        "naive": naive,
    }
    if compiled:
        methods["stepalign, compiled"] = functools.partial(fused, compiled=True)
        methods["stepalign, fast logits, compiled"] = functools.partial(fused, fast_logits=True, compiled=True)
    for name, load in {"Liger": liger, "TRL": trl}.items():
        try:
            methods[name] = load()
        except ImportError as error:
            print(f"{name} takes no part: {error}", file=sys.stderr)
    return methods


def gradients(method: Method, case: Case) -> tuple[Tensor, ...]:
    wanted = [tensor for tensor in (case.student, case.head) if tensor.requires_grad]
    return torch.autograd.grad(method(case), wanted)


def products(case: Case) -> None:
    """The floor: three products with a frozen head, else four."""
    student, head = case.student.detach(), case.head.detach()
    logits = student @ head.t()
    _teacher_logits = case.teacher @ case.teacher_head.t()
    _student_gradient = logits @ head
    if case.head.requires_grad:
        _head_gradient = logits.t() @ student


def measure_time(args: argparse.Namespace) -> None:
    shape = args.tokens, args.hidden, args.vocabulary
    case = Case.random(*shape, getattr(torch, args.dtype), 0.3, args.divergence, args.separate_heads)
    case.head.requires_grad_(not args.frozen_head)
    runs: dict[str, Callable[[], object]] = {"floor": functools.partial(products, case)}
    chosen = args.methods.split(";") if args.methods else None
    for name, method in installed_methods(args.compiled).items():
        if chosen is None or name in chosen:
            runs[name] = functools.partial(gradients, method, case)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(args.rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if round_number:  # the first round warms up and compiles
                seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    head = "frozen" if args.frozen_head else "trained"
    print(f"\n{args.divergence}, {args.dtype}, T={args.tokens}, H={args.hidden}, V={args.vocabulary}, {head} head")
    print(f"load average {os.getloadavg()[0]:.1f}, {args.rounds} rounds\n")
    print("| method | CPU s, median | min | x floor |\n|---|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {min(seconds[name]):.2f} | {median / medians['floor']:.2f} |")


def measure_accuracy(args: argparse.Namespace) -> None:
    methods = installed_methods(compiled=False)
    print("| dtype | heads | mean KL, nats | method | loss error | hidden gradient error | head gradient error |")
    print("|---|---|---|---|---|---|---|")
    for dtype, separate in itertools.product((torch.bfloat16, torch.float32), (False, True)):
        for gap in (1.07, 0.265, 0.083, 0.0263):
            case = Case.random(64, 256, 30_000, dtype, gap, args.divergence, separate)
            exact = case.double()
            true_loss, truth = naive(exact).item(), gradients(naive, exact)
            for name, method in methods.items():
                loss_error = abs(method(case).item() - true_loss)
                errors = [
                    ((gradient.double() - true).norm() / true.norm()).item()
                    for gradient, true in zip(gradients(method, case), truth, strict=True)
                ]
                row = f"{loss_error:.1e} | {errors[0]:.1e} | {errors[1]:.1e}"
                kind = f"{str(dtype).removeprefix('torch.')} | {'separate' if separate else 'shared'}"
                print(f"| {kind} | {true_loss:.4f} | {name} | {row} |")


def peak_memory_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def measure_memory(args: argparse.Namespace) -> None:
    if args.child:
        case = Case.random(args.tokens, args.hidden, args.vocabulary, getattr(torch, args.dtype), 0.3, args.divergence)
        method = installed_methods(compiled=False)[args.child]
        warm = Case.random(8, args.hidden, 512, getattr(torch, args.dtype), 0.3, args.divergence)
        gradients(method, warm)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = peak_memory_mib()
        results = gradients(method, case)
        output = sum(result.numel() * result.element_size() for result in results) / 2**20
        print(json.dumps([peak_memory_mib() - before, output]))
        return
    print("| T | method | peak over inputs, MiB | of which gradients | beyond both |\n|---|---|---|---|---|")
    for tokens in (512, 2048):
        for name in args.methods.split(";") if args.methods else installed_methods(compiled=False):
            command = [sys.executable, __file__, "memory", "--child", name, "--tokens", str(tokens)]
            command += ["--hidden", str(args.hidden), "--dtype", args.dtype, "--divergence", args.divergence]
            reply = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peak, output = json.loads(reply.splitlines()[-1])
            print(f"| {tokens} | {name} | {peak:.0f} | {output:.0f} | {peak - output:.0f} |", flush=True)


def compare_grpo(args: argparse.Namespace) -> None:
    """Loss and gradient of the packed policy-gradient side against TRL's own GRPO loss on the same padded numbers.

    ``--freeze FILE`` also writes TRL's numbers down, for the test that compares with them where TRL is not installed.
    """
    import trl
    from trl import GRPOTrainer

    generator = torch.Generator().manual_seed(0)
    lengths_B = torch.tensor([5, 2, 7, 1])
    mask_BT = torch.arange(7)[None] < lengths_B[:, None]
    log_probs_BT = (-3 * torch.rand(4, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    old_BT = log_probs_BT.detach() + 0.3 * torch.randn(4, 7, generator=generator, dtype=torch.float64)
    reference_BT = log_probs_BT.detach() + 0.5 * torch.randn(4, 7, generator=generator, dtype=torch.float64)
    advantages_B = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).flatten().double()
    counts = StepCounts(completions=4, tokens=int(lengths_B.sum()), max_completion_length=9)

    frozen: dict[str, object] = {
        "made by": "python benchmarks/objective.py grpo --freeze tests/objectives/trl_grpo.json",
        "with": {"trl": trl.__version__, "torch": torch.__version__},
        "lengths": lengths_B.tolist(),
        "log_probs": log_probs_BT.tolist(),
        "old_log_probs": old_BT.tolist(),
        "reference_log_probs": reference_BT.tolist(),
        "advantages": advantages_B.tolist(),
        "settings": {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.04, "max_completion_length": 9},
    }
    print("| loss_type | loss | relative loss difference | relative gradient difference |\n|---|---|---|---|")
    for loss_type, weigh in LOSS_TYPES.items():
        stand_in = mock.MagicMock(
            **{"accelerator.num_processes": 1, "args.steps_per_generation": 1, "args.delta": None},
            loss_type=loss_type,
            beta=0.04,
            epsilon_low=0.2,
            epsilon_high=0.28,
            importance_sampling_level="token",
            max_completion_length=9,
            current_gradient_accumulation_steps=1,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            use_vllm=False,
            aux_loss_enabled=False,
            _entropy_bonus_enabled=False,
        )
        stand_in.args.use_bias_correction_kl = False
        stand_in.accelerator.gather.side_effect = stand_in.accelerator.gather_for_metrics.side_effect = lambda x: x
        stand_in._get_per_token_logps_and_entropies.return_value = (log_probs_BT, torch.zeros(4, 7), None)
        inputs = {
            **dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids"), torch.zeros(4, 7, dtype=torch.long)),
            "completion_mask": mask_BT.long(),
            "advantages": advantages_B,
            "old_per_token_logps": old_BT,
            "ref_per_token_logps": reference_BT,
            "num_items_in_batch": lengths_B.sum(),
        }
        peer = GRPOTrainer._compute_loss(stand_in, None, inputs)

        rows_N = torch.arange(4)[:, None].expand_as(mask_BT)[mask_BT]
        log_probs_N = log_probs_BT[mask_BT]
        loss_N, _clipped = clipped_policy_loss(
            log_probs_N, old_BT[mask_BT], advantages_B[rows_N], epsilon=0.2, epsilon_high=0.28
        )
        loss_N = loss_N + 0.04 * kl_to_reference(reference_BT[mask_BT], log_probs_N)
        ours = (weigh(lengths_B[rows_N], counts) * loss_N).sum()
        (gradient,), (peer_gradient,) = (torch.autograd.grad(loss, log_probs_BT) for loss in (ours, peer))
        frozen[loss_type] = {"loss": peer.item(), "gradient": peer_gradient.tolist()}
        apart = (gradient - peer_gradient).norm() / peer_gradient.norm()
        print(f"| {loss_type} | {ours.item():.6f} | {abs(ours - peer) / abs(peer):.1e} | {apart:.1e} |")
    if args.freeze:
        Path(args.freeze).write_text(json.dumps(frozen) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "accuracy", "memory", "grpo"])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=QWEN3_VOCABULARY)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--divergence", choices=list(DIVERGENCES), default="forward_kl")
    parser.add_argument("--frozen-head", action="store_true")
    parser.add_argument("--separate-heads", action="store_true", help="a self-teacher with a head of its own")
    parser.add_argument("--compiled", action="store_true", help="also measure the compiled walk over the rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", default="", help="names separated by semicolons; default all")
    parser.add_argument("--freeze", default="", help="grpo: write TRL's numbers to this file")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = {"time": measure_time, "accuracy": measure_accuracy, "memory": measure_memory, "grpo": compare_grpo}
    run[args.what](args)


if __name__ == "__main__":
    main()
