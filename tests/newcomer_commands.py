"""Run the command lines of README.md and docs/*.md as written, in a scratch folder with the files that they name.

    python tests/newcomer_commands.py [--list]

A command that needs a network, a server, a card or hours is not run: `stepalign train` and `compare` are then asked for
`--dry-run` where the model is at hand, any other is held against the command's own parser. The reason is printed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer.main

from stepalign.cli import app

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDERS = {"MODEL": "embedded:arithmetic", "RECIPE": "arithmetic", "DIR": "runs/dir", "DUMP": "completions.jsonl"}
# Pattern of a command line -> why it is not run here.
NEEDS = {
    r"https?://": "a server",
    r"\b(Qwen|HuggingFaceTB|nvidia)/|hub:": "the network",
    r"^stepalign (lab|serve)\b": "a page or a server that stays open",
    r"train gsm8k|^stepalign \w+ (paper|words)\b": "the network, for the model",
    r"verifiers:": "the package verifiers and a taskset",
    r"--gpu|torchrun|sampling\.engine=vllm|^stepalign launch": "a card or servers",
    r"\bRUN\b|--critiques runs/": "a run that this page makes before",
    r"path/to/|\.gguf\b": "a file of yours",
}
LONG = re.compile(r"^stepalign (train|compare|prepare|select|demo|preflight|reproduce)\b")
DRY = re.compile(r"^stepalign (train|compare)\b")


class Line(NamedTuple):
    document: str
    command: str


def command_lines() -> Iterator[Line]:
    """Every ``stepalign`` and ``python examples/...`` line of the fenced blocks, continued lines joined."""
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", file.read_text(encoding="utf-8"), re.S | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.sub(r"\s+#.*$", "", " ".join(line.split()))
                if re.match(r"stepalign |python examples/", command):
                    yield Line(file.name, command)


def write_files(folder: Path) -> None:
    """The files that the documents name: a few attempts, training and test problems."""
    wrong = {
        "question": "What is 3 + 4?",
        "completion": "3 + 4 = 8\n#### 8",
        "answer": "7",
        "reference": "3 + 4 = 7\n#### 7",
    }
    attempt = wrong | {"solution": wrong["completion"], "contexts": {"critique": "3 + 4 = 7", "vague": "Look again."}}
    (folder / "attempts.jsonl").write_text(json.dumps(attempt) + "\n", encoding="utf-8")
    dump = {"step": 1, "prompt": "10 + 1 + 4 - 3", "solution": "12"}
    rows = [dump | {"completion": f"<answer> {n}", "accuracy_reward": float(n == 12)} for n in (11, 12)]
    (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, numbers in {"train": range(1, 9), "test": range(11, 15)}.items():
        rows = [
            {"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = <<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"}
            for n in numbers
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "examples").symlink_to(ROOT / "examples")


def parses(words: list[str]) -> str:
    """ "" where the command line's own parser takes these words, else what it says. Nothing is run."""
    group: Any = typer.main.get_command(app)
    try:
        group.commands[words[1]].make_context(words[1], words[2:])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def check(line: Line, folder: Path) -> tuple[str, str]:
    """(how it was checked, what went wrong or "")."""
    text = re.sub(r"\b(MODEL|RECIPE|DIR|DUMP)\b", lambda found: PLACEHOLDERS[found[0]], line.command)
    words = shlex.split(text.rstrip(" &"))
    reason = next((why for pattern, why in NEEDS.items() if re.search(pattern, text)), "")
    if len(words) > 2 and re.match(r"runs/|checked", words[2]) and not (folder / words[2]).exists():
        reason = reason or "a run that this page makes before"
    if words[0] == "stepalign" and not words[1].startswith("-") and (wrong := parses(words)):
        return "parsed", wrong
    if reason:
        return f"parsed (needs {reason})", ""
    if LONG.match(text) and "--dry-run" not in words and "--help" not in words:
        if not DRY.match(text):
            return "parsed (long)", ""
        words.append("--dry-run")
    how = "dry run" if "--dry-run" in words else "run"
    command = (
        [sys.executable, "-m", "stepalign", *words[1:]] if words[0] == "stepalign" else [sys.executable, *words[1:]]
    )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    return how, "" if done.returncode == 0 else (done.stderr or done.stdout).strip()[-800:]


def main() -> int:
    lines = list(dict.fromkeys(command_lines()))
    if "--list" in sys.argv:
        print("\n".join(f"{line.document}: {line.command}" for line in lines))
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        for line in lines:
            how, wrong = check(line, folder)
            failed += bool(wrong)
            print(f"{'FAILED' if wrong else 'ok':6} {how:40} {line.document}: {line.command}", flush=True)
            if wrong:
                print("       " + wrong.replace("\n", "\n       "), flush=True)
    print(f"{len(lines)} command lines, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
