"""Run on two ranks: every case against a learner in one process, on rank 0; a line of JSON for each.

torchrun --standalone --nproc-per-node 2 tests/training/two_ranks.py FOLDER
"""

from __future__ import annotations

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from stepalign.config import ObjectiveSection, TrainingSection
from stepalign.models.load import Solver
from stepalign.objectives.divergences import DIVERGENCES
from stepalign.records import Sample
from stepalign.training.checkpoint import Checkpoint, load_latest, restore_optimizer, save_checkpoint, write_state
from stepalign.training.distributed import Team, shard
from stepalign.training.learner import Learner
from stepalign.training.ranks import Ranks, join
from stepalign.training.teacher import Teacher

STEPS, VOCABULARY = 3, 48


class Tokenizer:
    """Saved with a checkpoint; nothing here has text."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def build(*, lora: bool = False, tied: bool = True, checkpointing: bool = False, **_: Any) -> Solver:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=12, tie_word_embeddings=tied,
        initializer_range=0.25,  # next-token distributions far from uniform
    )  # fmt: skip
    model: Any = Qwen3ForCausalLM(config).eval()
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"])).eval()
    if checkpointing:
        model.activation_checkpointing_enable()
    return Solver(model, Tokenizer())  # type: ignore[arg-type]


def make_samples(kind: str, count: int = 8) -> list[Sample]:
    """Completions behind shared and own prompts, some tokens masked; "mixed" has what any condition could make."""
    rng = random.Random(3)
    prompts = [tuple(rng.randrange(5, VOCABULARY) for _ in range(rng.randint(4, 20))) for _ in range(3)]
    samples = []
    for number in range(count):
        length = rng.randint(3, 15)
        student = prompts[number % 3] if number < 6 else tuple(rng.randrange(5, VOCABULARY) for _ in range(9))
        one = {"distilled": "distilled", "grpo": "grpo", "masked": "distilled"}.get(kind) or (
            "distilled", "grpo", "both", "sized", "damped", "idle"
        )[number % 6]  # fmt: skip
        mask = tuple(kind != "masked" and rng.random() < 0.8 for _ in range(length))
        samples.append(
            Sample(
                rollout_id=str(number),
                student_prompt_ids=student,
                teacher_prompt_ids=None if one == "grpo" else (*student[:-1], *range(7, 8 + number), student[-1]),
                completion_ids=tuple(rng.randrange(5, VOCABULARY) for _ in range(length)),
                sampler_log_probs=tuple(rng.uniform(-4, -0.1) if m else float("nan") for m in mask),
                loss_mask=mask,
                advantage=0.0 if one in ("distilled", "damped", "idle") else rng.uniform(-1.5, 1.5),
                distillation_weight=0.0 if one in ("grpo", "sized", "idle") else 1.0,
                policy_weight=1.0 if one in ("grpo", "both", "sized") else 0.0,
                magnitude_mixing=0.6 if one == "sized" else 0.0,
                contrast_prompt_ids=(*student[:-1], 6, student[-1]) if one == "sized" and number % 2 else None,
                entropy_damping=0.3 if one == "damped" else 0.0,
                probe=(0, 9) if one == "distilled" and number % 2 else None,
            )
        )
    return samples


def cases() -> dict[str, dict[str, Any]]:
    weights = ("initial", "ema", "live", "trust_region")
    shapes = {
        "full": {},
        "full untied": {"tied": False},
        "lora": {"lora": True},
        "lora untied": {"lora": True, "tied": False},
    }
    return {
        **{f"{name}, teacher {w}": {**shape, "objective": {"teacher": {"weights": w, "ema_decay": 0.7}}}
           for name, shape in shapes.items() for w in weights},
        **{f"divergence {d}": {"objective": {"divergence": d}} for d in (*DIVERGENCES, "jensen_shannon(0.3)")},
        "top-k, tail": {"objective": {"top_k": 5}},
        "top-k of the teacher, renormalised, untied": {
            "tied": False, "objective": {"top_k": 5, "top_k_support": "teacher", "top_k_remainder": "renormalise"},
        },
        "grpo": {"samples": "grpo"},
        "grpo with beta, lora": {"samples": "grpo", "lora": True, "objective": {"beta": 0.1}},
        "grpo with beta, untied": {"samples": "grpo", "tied": False, "objective": {"beta": 0.1}},
        "every kind of sample with beta": {"samples": "mixed", "objective": {"beta": 0.05, "importance_clip": 2.0}},
        "every kind of sample, live, untied": {
            "samples": "mixed", "tied": False, "objective": {"teacher": {"weights": "live"}, "loss_type": "grpo"},
        },
        "dr_grpo": {"samples": "mixed", "objective": {"loss_type": "dr_grpo"}},
        "one sample": {"count": 1},
        "one sample of a group with beta": {"count": 1, "samples": "grpo", "objective": {"beta": 0.1}},
        "many small micro-batches": {"count": 13, "samples": "mixed", "training": {"max_micro_batch_tokens": 40}},
        "every token masked": {"samples": "masked"},
        "no sample at all": {"count": 0},
        "gradient checkpointing": {"checkpointing": True},
        "gradient checkpointing, lora": {"checkpointing": True, "lora": True},
        "two updates a batch": {"samples": "mixed", "training": {"updates_per_batch": 2, "warmup_steps": 0}},
    }  # fmt: skip


def learn(solver: Solver, case: dict[str, Any], ranks: Ranks | None = None) -> tuple[Learner, Teacher]:
    training = TrainingSection(**{"learning_rate": 1e-3, "weight_decay": 0.01, **case.get("training", {})})
    objective = ObjectiveSection(**case.get("objective", {}))
    extra = {} if ranks is None else {"ranks": ranks}
    learner = Learner(solver, objective, training, temperature=1.2, max_completion_length=15, **extra)
    return learner, Teacher(solver.model, objective.teacher, keeps_reference=objective.beta > 0)


def whole_weights(solver: Solver) -> dict[str, torch.Tensor]:
    named = ((name, p) for name, p in solver.model.named_parameters() if p.requires_grad)
    return {name: getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for name, p in named}


def compare(case: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Numbers of every step and the last weights, of the ranks and of one process."""
    samples = make_samples(case.get("samples", "distilled"), case.get("count", 8))
    plain = build(**case)
    learner, teacher = learn(shard(plain), case, ranks)
    numbers = [learner.update(samples, teacher, 0)]
    learner.keep(1, teacher)
    learner.update(samples, teacher, 1, 50.0)  # a step that wrecks, and is taken back
    learner.back(1, teacher)
    numbers += [learner.update(samples, teacher, step) for step in range(1, STEPS)]
    weights = whole_weights(learner._solver)
    alone = (
        []
        if ranks.rank
        else [one.update(samples, its, step) for one, its in [learn(plain, case)] for step in range(STEPS)]
    )
    off = max((float((w - weights[n]).abs().max()) for n, w in whole_weights(plain).items()), default=0.0)
    return {"ranks": numbers, "one": alone, "weights": off}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def move(folder: Path, case: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """A checkpoint written by two ranks and read by one process, and the other way round; then one more step each."""
    samples = make_samples("mixed")
    whole = build(**case)
    sharded = shard(whole)
    learner, teacher = learn(sharded, case, ranks)
    team = Team(ranks, sharded, learner, teacher, None if ranks.rank else whole)
    for step in range(2):
        learner.update(samples, teacher, step)
    team._parts["gather"]()
    found: dict[str, Any] = {}
    one, its = learn(whole, case)

    def write_all(target: Path) -> None:
        if ranks.rank == 0:
            save_checkpoint(target, 2, solver=whole, write=lambda folder: folder.mkdir(exist_ok=True), state={})
        ranks.sum([0.0])
        team._parts["write"](folder=str(target / "step-00002"))

    write_all(folder / "two")
    kept = {"weights": whole_weights(sharded)}
    state = team._state(learner.optimizer.state_dict()["state"])
    parts = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in state.items()}
    if ranks.rank == 0:
        saved = Checkpoint(folder / "two" / "step-00002", {})
        mine = {f"optimizer.{n}": v for n, v in saved.optimizer.items()} | {
            f"teacher.{n}": v for n, v in saved.teacher.items()
        }
        found["two to one"] = max(
            difference(parts, mine), difference(kept["weights"], {n: saved.weights[n] for n in kept["weights"]})
        )
        restore_optimizer(one.optimizer, saved.optimizer)
        its.load(saved.teacher)
        save_checkpoint(
            folder / "one",
            2,
            solver=whole,
            write=lambda target: write_state(target, one.optimizer, its.state()),
            state={},
        )
        found["pickled"] = [p.name for p in folder.rglob("*") if p.is_file() and p.read_bytes()[:2] == b"\x80\x04"]
        assert load_latest(folder / "one") is not None
    ranks.sum([0.0])
    again = shard(build(**case))
    learner_2, teacher_2 = learn(again, case, ranks)
    team_2 = Team(ranks, again, learner_2, teacher_2, None)
    for name, source in (("one to two", "one"), ("two to two", "two")):
        learner_2.update(samples, teacher_2, 0)  # other values, to be replaced
        team_2._parts["read"](folder=str(folder / source / "step-00002"))
        state = team_2._state(learner_2.optimizer.state_dict()["state"])
        back = {n: getattr(value, "full_tensor", lambda value=value: value)() for n, value in state.items()}
        found[name] = max(difference(parts, back), difference(kept["weights"], whole_weights(again)))
    numbers = learner_2.update(samples, teacher_2, 2)
    if ranks.rank == 0:
        alone = one.update(samples, its, 2)
        found["next step"] = max(abs(numbers[key] - alone[key]) for key in ("loss", "grad_norm"))
        found["weights after it"] = 0.0
    after = whole_weights(again)
    if ranks.rank == 0:
        found["weights after it"] = difference(after, whole_weights(whole))
    team._ended = team_2._ended = True
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    ranks = join(120.0)
    for name, case in cases().items():
        found = compare(copy.deepcopy(case), ranks)
        if ranks.rank == 0:
            print(json.dumps({"case": name, **found}), flush=True)
    for name, case in {
        "full": {"objective": {"teacher": {"weights": "ema", "ema_decay": 0.7}, "beta": 0.1}},
        "lora": {"lora": True, "tied": False, "objective": {"teacher": {"weights": "initial"}}},
    }.items():
        moved = move(folder / name, case, ranks)
        if ranks.rank == 0:
            print(json.dumps({"case": f"checkpoint, {name}", **moved}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
