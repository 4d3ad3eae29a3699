"""``stepalign export RUN --to hub``: the last weights with a model card that holds the results."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepalign.config import Config, load_config
from stepalign.errors import ConfigError
from stepalign.feedback.designs import find_condition
from stepalign.storage.files import MANIFEST, damaged_file, read_json, whole_folder
from stepalign.storage.jsonl import read_json_lines

SHOWN = ("pass@", "maj@", "avg@")
CARD = """\
# {name}

{what} of `{solver}`, trained {how} (stepalign {version}) on the problems of `{train}`:
condition `{condition}`, {steps} optimizer steps, {rollouts} rollouts, seed {seed}. `recipe.toml` has every key.

## Results

Problems of `{test}`, n = {num_samples} completions each at temperature {temperature:g}, {percent:g} % intervals. The
weights are those after the last step; no checkpoint was chosen.

{table}

Nothing else has been measured with these weights.

## Use

```python
{code}
```

The student's prompt is `prompts.student` of `recipe.toml`{system}.
"""
FULL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""
ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""


def write_hub_folder(run: Path, out: Path) -> list[str]:
    """Copy the last weights of a run and its recipe into a new folder, and write README.md, the model card.

    Returns:
        What to look at before it is uploaded, a sentence each.

    Raises:
        ConfigError: no finished run, damaged weights, no results on test problems, or ``out`` is there.
    """
    final = run / "final"
    if not (run / "config.toml").exists() or not final.is_dir():
        raise ConfigError("there are no final weights", where=str(run), hint="give the --out of a finished train")
    if damaged := damaged_file(final):
        raise ConfigError(f"{damaged} is not as training left it", where=str(final), hint=f"stepalign doctor {run}")
    if out.exists():
        raise ConfigError("the folder is there already", where=str(out), hint="--out A-NEW-FOLDER")
    config = load_config(str(run / "config.toml"))
    tested = [row for row in read_json_lines(run / "evaluations.jsonl") if row["set"] == "test"]
    if not tested:
        raise ConfigError(
            "the run has no results on test problems", where=str(run), hint="train with data.test; a card needs results"
        )
    adapter = (final / "adapter_config.json").exists()
    is_local = Path(config.model.path).exists() or config.model.path.startswith("embedded:")
    with whole_folder(out) as folder:
        for file in final.iterdir():
            if file.name not in (MANIFEST, "README.md"):
                shutil.copyfile(file, folder / file.name)
        shutil.copyfile(run / "config.toml", folder / "recipe.toml")
        (folder / "README.md").write_text(_card(run, config, tested, adapter, is_local, out.name), encoding="utf-8")
    notes = ["add a licence to the head of README.md"]
    texts = list(_texts(tomllib.loads((out / "recipe.toml").read_text(encoding="utf-8"))))
    for what, holds in (("a path of this machine", os.path.isabs), ("an address of a server", _is_address)):
        notes += [f"{what}: recipe.toml: {key}" for key in dict.fromkeys(key for key, text in texts if holds(text))]
    if adapter and is_local:
        notes.append("a path of this machine: adapter_config.json: base_model_name_or_path")
    return notes


def _is_address(text: str) -> bool:
    return re.match(r"https?://", text) is not None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in a recipe."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _texts(one, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, key)


def _card(
    run: Path, config: Config, tested: Sequence[Mapping[str, Any]], adapter: bool, is_local: bool, name: str
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    last = tested[-1]
    metrics = {row["metric"]: row for row in last["metrics"] if row["value"] is not None}
    distils = find_condition(config.condition).distillation_weight > 0
    train, test = (Path(path or "").name or str(path) for path in (config.data.train, config.data.test))
    head = ModelCardData(
        library_name="peft" if adapter else "transformers",
        base_model=None if is_local else config.model.path,
        pipeline_tag="text-generation",
        tags=["stepalign", *(["self-distillation"] if distils else []), config.condition],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=test,
                dataset_name=test,
                metric_type=metric,
                metric_value=row["value"],
            )
            for metric, row in metrics.items()
            if metric.startswith(SHOWN)
        ],
    )
    body = CARD.format(
        name=name,
        what="LoRA adapters" if adapter else "Weights",
        how="on feedback by self-distillation (arXiv 2606.11173)" if distils else "on the verdicts of its attempts",
        solver=Path(config.model.path).name if is_local else config.model.path,
        version=read_json(run / "versions.json").get("stepalign"),
        condition=config.condition,
        train=train,
        test=test,
        steps=last["step"],
        rollouts=f"{last['rollouts']:,}",
        seed=config.training.seed,
        num_samples=config.evaluation.num_samples,
        temperature=config.evaluation.temperature,
        percent=round(100 * config.evaluation.confidence, 6),
        table=_table(tested),
        code=(ADAPTER if adapter else FULL).format(name=name),
        system=f", under the system message {json.dumps(config.prompts.system)}" if config.prompts.system else "",
    )
    return f"---\n{head.to_yaml()}\n---\n\n{body}"


def _table(tested: Sequence[Mapping[str, Any]]) -> str:
    """The first evaluation where it is of the untrained solver, and the last one."""
    rows = [tested[0], tested[-1]] if tested[0]["step"] == 0 and len(tested) > 1 else [tested[-1]]
    names = [row["metric"] for row in rows[-1]["metrics"] if row["metric"].startswith(SHOWN) and row["k"] == row["n"]]
    lines = [f"| | problems | rollouts | {' | '.join(map(str.capitalize, names))} |", "| --- " * (len(names) + 3) + "|"]
    for row in rows:
        found = {one["metric"]: one for one in row["metrics"]}
        label = "untrained" if row["step"] == 0 else f"after step {row['step']}"
        cells = [_cell(found[name]) for name in names]
        lines.append(f"| {label} | {found[names[0]]['problems']} | {row['rollouts']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    value, low, high = (row[name] for name in ("value", "low", "high"))
    return "undefined" if value is None else f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
