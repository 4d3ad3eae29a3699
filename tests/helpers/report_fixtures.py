"""Plausible results.json and signal.json as docs/formats.md describes them, made from a seed and nothing else."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

ARMS = (
    # name, label, condition, rollouts per step, final accuracy, time constant in steps
    ("grpo", "GRPO", "grpo", 256, 0.71, 26.0),
    ("grpo_rollouts", "GRPO, equal rollouts", "grpo", 32, 0.33, 60.0),
    ("refsol", "RefSol", "refsol", 32, 0.50, 18.0),
    ("stepalign", "StepAlignFB", "stepalign", 32, 0.85, 15.0),
)
STEPS = 62
BASE = 0.143
N = 12


def fill(folder: Path, results: dict[str, Any], signal: dict[str, Any]) -> Path:
    """A folder that a report is written from."""
    for name, content in (("results", results), ("signal", signal)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def make_results(*, seeds: tuple[int, ...] = (0, 1), test_problems: int = 200, rule: str = "last") -> dict[str, Any]:
    rng = random.Random(7)
    metrics = _base_metrics(test_problems, rule)
    curves, training, arms = [], [], []
    for name, label, condition, per_step, final, tau in ARMS:
        runs = []
        for seed in seeds:
            reached = final + rng.gauss(0, 0.012)
            metrics += _metrics(name, seed, reached, test_problems, rule, rng)
            curves.append(_curve(name, seed, reached, tau, per_step, rng))
            training.append(_training(name, seed, reached, tau, per_step, condition, rng))
            runs.append(_run(name, seed, condition, per_step, rng))
        if len(seeds) > 1:
            metrics += _metrics(name, None, final, test_problems, rule, rng)
        diff = {"condition": condition} | ({"training.num_generations": 8} if condition == "grpo" else {})
        arms.append({"name": name, "label": label, "condition": condition, "config_diff": diff, "runs": runs})
    return {
        "format": 1,
        "version": "0.1.0",
        "recipe": "recipes/arithmetic.toml",
        "model": "embedded:arithmetic",
        "seeds": list(seeds),
        "num_samples": N,
        "temperature": 1.0,
        "checkpoint_rule": rule,
        "problems": {"train": 282, "validation": 100, "test": test_problems},
        "arms": arms,
        "metrics": metrics,
        "paired": _paired(seeds, test_problems, rule),
        "curves": curves,
        "training": training,
        "timings": {"training": 121.4, "evaluation": 39.9, "signal": 19.6, "report": 0.8, "total": 187.3},
        "peak_memory_bytes": 912_345_678,
    }


def _metric(arm: str, seed: int | None, name: str, value: float, low: float, high: float, denominator: int,
            problems: int, rule: str, step: int) -> dict[str, Any]:  # fmt: skip
    k = int(name.split("@")[1]) if "@" in name else None
    return {
        "arm": arm, "seed": seed, "set": "test", "metric": name, "k": k, "n": N, "checkpoint_rule": rule, "step": step,
        "value": value, "numerator": round(value * denominator), "denominator": denominator, "low": low, "high": high,
        "problems": problems,
    }  # fmt: skip


def _metrics(
    arm: str, seed: int | None, accuracy: float, problems: int, rule: str, rng: random.Random
) -> list[dict[str, Any]]:
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / problems) * 0.8
    majority = min(1.0, accuracy**0.5 + 0.06)
    passed = min(1.0, 1 - (1 - accuracy) ** 4)
    rows = [("pass@12", passed, problems), ("maj@12", majority, problems), ("avg@12", accuracy, problems * N),
            ("pass@1", accuracy, problems * N)]  # fmt: skip
    out = [
        _metric(
            arm, seed, name, value, max(0.0, value - half), min(1.0, value + half), denominator, problems, rule, STEPS
        )
        for name, value, denominator in rows
    ]
    length = 43.0 + rng.uniform(-2, 2)
    out.append(
        _metric(arm, seed, "mean_length", length, length - 0.6, length + 0.6, problems * N, problems, rule, STEPS)
    )
    out.append(_metric(arm, seed, "truncated_share", 0.004, 0.001, 0.008, problems * N, problems, rule, STEPS))
    return out


def _base_metrics(problems: int, rule: str) -> list[dict[str, Any]]:
    rows = [row | {"step": 0} for row in _metrics("base", None, BASE, problems, rule, random.Random(1))]
    return [row | ({"value": 0.725, "low": 0.66, "high": 0.79} if row["metric"] == "pass@12" else {}) for row in rows]


def _curve(arm: str, seed: int, final: float, tau: float, per_step: int, rng: random.Random) -> dict[str, Any]:
    points = []
    for step in (0, 6, 12, 18, 24, 31, 40, 50, 62):
        value = BASE + (final - BASE) * (1 - math.exp(-step / tau)) / (1 - math.exp(-STEPS / tau))
        value += rng.gauss(0, 0.01) if step else 0.0
        half = 1.96 * math.sqrt(value * (1 - value) / 100) * 0.7
        points.append({"step": step, "rollouts": step * per_step, "seconds": step * 0.5, "value": value,
                       "low": value - half, "high": value + half})  # fmt: skip
    return {"arm": arm, "seed": seed, "set": "validation", "metric": "avg@12", "points": points}


def _training(
    arm: str, seed: int, final: float, tau: float, per_step: int, condition: str, rng: random.Random
) -> dict[str, Any]:
    points = []
    for step in range(1, STEPS + 1):
        progress = 1 - math.exp(-step / tau)
        teacher = condition != "grpo"
        points.append({
            "step": step, "rollouts": step * per_step, "seconds": step * 0.5,
            "reward": min(1.0, max(0.0, 0.2 + (final - 0.2) * progress + rng.gauss(0, 0.05))),
            "divergence": 0.9 * math.exp(-step / tau) + 0.08 + abs(rng.gauss(0, 0.02)) if teacher else None,
            "student_entropy": 0.25 - 0.12 * progress + rng.gauss(0, 0.006),
            "teacher_entropy": 0.10 + 0.02 * progress + rng.gauss(0, 0.004) if teacher else None,
            "right_value_probability": min(1.0, 0.93 + rng.gauss(0, 0.01)) if teacher else None,
            "completion_length": 41 + rng.gauss(0, 0.8),
        })  # fmt: skip
    return {"arm": arm, "seed": seed, "points": points}


def _run(name: str, seed: int, condition: str, per_step: int, rng: random.Random) -> dict[str, Any]:
    calls = 0 if condition != "stepalign" else per_step * STEPS
    sampling = 8.0 * per_step / 32 * rng.uniform(0.95, 1.05)
    return {
        "seed": seed, "path": f"arms/{name}/seed-{seed}", "steps": STEPS, "rollouts": per_step * STEPS,
        "completion_tokens": per_step * STEPS * 42 + rng.randrange(500),
        "seconds": sampling + 22.4,
        "seconds_by_phase": {"sampling": sampling, "feedback": 0.2, "learning": 11.0, "evaluation": 9.0},
        "critic": {"calls": calls, "malformed": 3 if calls else 0, "failed": 0, "cached": 12 if calls else 0,
                   "prompt_tokens": 0, "completion_tokens": 0, "cost": None},
        "masked": {"critique is malformed": 3} if calls else {},
        "warnings": ["reward fell by 0.21 between steps 40 and 55 while student entropy rose: this run may be decaying"]
        if name == "grpo_rollouts" and seed == 0 else [],
    }  # fmt: skip


def _paired(seeds: tuple[int, ...], problems: int, rule: str) -> list[dict[str, Any]]:
    rows = [("stepalign", "refsol", 0.351, 0.312, 0.39, 0.0001), ("stepalign", "grpo", 0.139, 0.08, 0.2, 0.0004),
            ("refsol", "grpo", -0.212, -0.27, -0.15, 0.0002), ("stepalign", "grpo_rollouts", 0.52, 0.47, 0.57, 0.0001),
            ("refsol", "grpo_rollouts", 0.02, -0.03, 0.07, 0.43)]  # fmt: skip
    return [
        {"a": a, "b": b, "set": "test", "metric": "avg@12", "checkpoint_rule": rule, "difference": gap, "low": low,
         "high": high, "p_value": p, "seeds": list(seeds), "problems": problems}
        for a, b, gap, low, high, p in rows
    ]  # fmt: skip


CASES = ("one_wrong_step", "correct", "wrong_approach")
CONTEXTS = (("step_aligned", "StepAlignFB"), ("reference", "RefSol"), ("verdict", "Verdict only"))


def make_signal(*, rollouts: int = 6, contexts: int = 2, top: int = 5, steps: int = 5) -> dict[str, Any]:
    rng = random.Random(11)
    return {
        "format": 1,
        "model": "embedded:arithmetic",
        "temperature": 1.1,
        "unit": "nats",
        "definition": "A_t = log p(y_t | question, context, y_<t) - log p(y_t | question, y_<t)",
        "contexts": [{"name": name, "label": label} for name, label in CONTEXTS[:contexts]],
        "localisation": [_localisation(name, index) for index, (name, _) in enumerate(CONTEXTS[:contexts])],
        "rollouts": [_rollout(index, CASES[index % 3], contexts, top, steps, rng) for index in range(rollouts)],
    }


def _localisation(context: str, index: int) -> dict[str, Any]:
    share, right, wrong, area = ((0.41, 0.23, -4.42, 0.98), (0.20, -1.05, -2.19, 0.63), (0.26, 0.0, 0.0, 0.5))[index]
    numbers = [
        ("share_of_abs_signal_in_wrong_step", share, 0.03, 0.154,
         "share of sum |A_t| of wrong rollouts that lies inside the first wrong step;"
         " baseline: that step's share of tokens"),
        ("mean_right_tokens", right, 0.02, None, "mean A_t over tokens of right steps, nats"),
        ("mean_wrong_result", wrong, 0.11, None, "mean A_t at the wrong value of the first wrong step, nats"),
        ("auroc_wrong_result", area, 0.01, 0.5, "-A_t as a detector of the wrong value among tokens of right steps"),
    ]  # fmt: skip
    return {
        "context": context, "num_rollouts": 282, "num_wrong": 224,
        "numbers": [{"name": name, "value": value, "low": value - half, "high": value + half, "baseline": baseline,
                     "description": text} for name, value, half, baseline, text in numbers],
    }  # fmt: skip


def _rollout(index: int, case: str, contexts: int, top: int, steps: int, rng: random.Random) -> dict[str, Any]:
    value = rng.randrange(20)
    wrong_at = {"correct": 0, "one_wrong_step": max(1, (steps * 3) // 5), "wrong_approach": 1}[case]
    question, pieces, spans, lines = f"{value}", [], [], []
    roles: list[str] = []
    for step in range(1, steps + 1):
        sign, operand = rng.choice("+-"), rng.randrange(1, 10)
        question += f" {sign} {operand}"
        right = (value + operand if sign == "+" else value - operand) % 20
        said = (right + rng.choice((1, 2, 18, 19))) % 20 if step == wrong_at else right
        words = [f"<step_{step}>", " ", str(value), f" {sign}", f" {operand}", " =", f" {said}", "\n"]
        start = sum(map(len, pieces))
        pieces += words
        status = "right" if not wrong_at or step < wrong_at else "wrong" if step == wrong_at else "after_error"
        roles += ["result" if at == 6 and step == wrong_at else status for at in range(len(words))]
        spans.append({"label": str(step), "start": start, "end": sum(map(len, pieces)), "status": status})
        lines.append(f"<step_{step}> {value} {sign} {operand} = {right}")
        value = said
    start = sum(map(len, pieces))
    pieces += ["Answer", ":", f" {value}"]
    roles += ["after_error" if wrong_at else "right"] * 3
    spans.append(
        {
            "label": "answer",
            "start": start,
            "end": sum(map(len, pieces)),
            "status": "after_error" if wrong_at else "right",
        }
    )
    text = "".join(pieces)
    tokens, at = [], 0
    for piece in pieces:
        tokens.append(
            {
                "text": piece,
                "start": at,
                "end": at + len(piece),
                "id": 10 + len(piece) * 7 + ord(piece[-1]) % 50,
                "special": False,
            }
        )
        at += len(piece)
    tokens.append({"text": "<|im_end|>", "start": at, "end": at, "id": 2, "special": True})
    roles.append("special")
    student = [-abs(rng.gauss(0.15, 0.3)) for _ in tokens]
    return {
        "rollout_id": f"r{index:03d}",
        "case": case,
        "verdict": "correct" if case == "correct" else "incorrect",
        "question": question,
        "expected_answer": "7",
        "reference": "\n".join(lines),
        "text": text,
        "tokens": tokens,
        "steps": spans,
        "contexts": [_context(name, at, roles, tokens, student, "\n".join(lines), wrong_at, top, rng)
                     for at, (name, _) in enumerate(CONTEXTS[:contexts])],
    }  # fmt: skip


def _context(name: str, kind: int, roles: list[str], tokens: list[dict[str, Any]], student: list[float], text: str,
             wrong_at: int, top: int, rng: random.Random) -> dict[str, Any]:  # fmt: skip
    aligned = {"right": 0.22, "wrong": -0.2, "result": -4.4, "after_error": -0.7, "special": 0.05}
    reference = {"right": -1.0, "wrong": -1.2, "result": -2.2, "after_error": -1.1, "special": 0.02}
    center = (aligned, reference, dict.fromkeys(aligned, 0.0))[kind]
    ratio = [rng.gauss(center[role], (0.12, 1.1, 0.02)[kind]) for role in roles]
    # A log-probability is at most 0: a token the student was sure of can hardly be reinforced.
    ratio = [min(value, -lp - 1e-6) for value, lp in zip(ratio, student, strict=True)]
    return {
        "name": name,
        "text": ("Feedback on your attempt:\n" if kind == 0 else "") + text,
        "case": "D" if wrong_at else "A",
        "first_error": str(wrong_at or ""),
        "log_ratio": ratio,
        "student_log_prob": list(student),
        "teacher_log_prob": [lp + value for lp, value in zip(student, ratio, strict=True)],
        "forward_kl": [abs(value) * 0.3 for value in ratio],
        "student_entropy": [abs(lp) * 0.9 for lp in student],
        "teacher_entropy": [0.1 + 0.05 * rng.random() for _ in ratio],
        "top_student": [_top(token, lp, top) for token, lp in zip(tokens, student, strict=True)],
        "top_teacher": [_top(token, lp + value, top) for token, lp, value in zip(tokens, student, ratio, strict=True)],
    }


def _top(token: dict[str, Any], log_prob: float, top: int) -> list[list[Any]]:
    rest = max(1e-9, 1 - math.exp(log_prob))
    others = [[f" {index}", math.log(rest * 0.6 * 0.4**index)] for index in range(top - 1)]
    return sorted([[token["text"], log_prob], *others], key=lambda entry: -entry[1])[:top]


HOSTILE = (
    "<script>window.hit=1</script>",
    "</script><script>window.hit=1</script>",
    "</style><img src=x onerror=window.hit=1>",
    "<!--<script>",
    "--><svg onload=window.hit=1>",
    '"><iframe srcdoc="<script>parent.hit=1</script>">',
    "<a href=javascript:window.hit=1>x</a>",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egnirts desrever\u202c",
    "line\u2028separator\u2029end",
    "\u0000nul\u0008\u007f\u009b31m",
    "]]><![CDATA[",
    "&lt;b&gt;&amp;&#60;script&#62;",
    "\ud83d",
    "😀é漢字 \u200d\u200b\ufeff",
    "${window.hit=1}`",
    "https://example.invalid/x.png",
)


def make_hostile_results(payload: str) -> dict[str, Any]:
    results = make_results(seeds=(0,))
    results["recipe"] = results["model"] = results["version"] = payload
    results["checkpoint_rule"] = "last"
    for arm in results["arms"]:
        arm["label"] = arm["label"] + payload
        arm["config_diff"] = {payload: payload}
        arm["runs"][0]["warnings"] = [payload]
        arm["runs"][0]["masked"] = {payload: 1}
        arm["runs"][0]["path"] = payload
        arm["runs"][0]["seconds_by_phase"] = {payload: 3.0}
    results["timings"] = {payload: 1.0}
    return results


def make_hostile_signal(payload: str) -> dict[str, Any]:
    signal = make_signal(rollouts=2)
    signal["model"] = signal["definition"] = payload
    for context in signal["contexts"]:
        context["label"] += payload
    for row in signal["localisation"]:
        row["numbers"][0]["description"] = row["numbers"][0]["name"] = payload
    for rollout in signal["rollouts"]:
        for key in ("rollout_id", "question", "expected_answer", "reference"):
            rollout[key] = payload
        start = len(rollout["text"])
        rollout["text"] += payload
        rollout["tokens"][-1] |= {"start": start, "end": start + len(payload), "text": payload, "special": False}
        rollout["steps"][-1]["label"] = payload
        rollout["steps"][-1]["end"] = len(rollout["text"])
        for context in rollout["contexts"]:
            context["text"] = context["case"] = context["first_error"] = payload
            context["top_teacher"][0] = [[payload, -0.1]]
    return signal


def long_signal(rollouts: int, tokens: int, contexts: int, top: int) -> dict[str, Any]:
    """Full-entropy numbers: no real signal compresses worse."""
    rng = random.Random(5)
    words = [" the", " sum", "x", " =", " 12", "\\frac", "{", "}", " therefore", ".\n", " equals", " we", " have"]
    signal = make_signal(rollouts=1, contexts=contexts)
    signal["rollouts"] = []
    for index in range(rollouts):
        pieces = [rng.choice(words) for _ in range(tokens)]
        spans, at = [], 0
        for piece in pieces:
            spans.append(
                {"text": piece, "start": at, "end": at + len(piece), "id": rng.randrange(150_000), "special": False}
            )
            at += len(piece)
        student = [-rng.expovariate(1.5) for _ in pieces]
        alternatives = [[[rng.choice(words), -rng.expovariate(0.5)] for _ in range(top)] for _ in pieces]
        entries = []
        for name, _ in CONTEXTS[:contexts]:
            ratio = [rng.gauss(0, 1) for _ in pieces]
            entries.append({
                "name": name, "text": "".join(rng.choices(words, k=tokens)), "case": "D",
                "first_error": "3", "log_ratio": ratio,
                "student_log_prob": student, "teacher_log_prob": [a + b for a, b in zip(student, ratio, strict=True)],
                "forward_kl": [rng.random() for _ in pieces], "student_entropy": student, "teacher_entropy": ratio,
                "top_student": alternatives, "top_teacher": alternatives,
            })  # fmt: skip
        text = "".join(pieces)
        steps = [
            {"label": str(step), "start": at * step // 9, "end": at * (step + 1) // 9, "status": "right"}
            for step in range(9)
        ]
        signal["rollouts"].append({
            "rollout_id": f"r{index}", "case": "correct", "verdict": "correct", "question": "q", "expected_answer": "1",
            "reference": text, "text": text, "tokens": spans, "steps": steps, "contexts": entries,
        })  # fmt: skip
    return signal
