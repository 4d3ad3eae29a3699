"""Canaries: passwords and keys in every odd spelling through every command that takes them. None in a file or on the
terminal. And hostile text through every way in: no message moves a terminal.

Each place is (words, environment, files to write); trials go through places and spellings together.
"""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fault_trials.damage import SELECTED, WORDS, a_run, opened
from fault_trials.lab import Ended, Lab, fresh

CANARY = "cAnArY0815xyz"
SPELLINGS = (
    *("u:{c}@", "u:a@{c}@", "u:{c} b@", "u:a/{c}@", "u:a?{c}@", "u:a#{c}@", "u:a:{c}@", "u:a%40{c}@", "{c}@", ":{c}@"),
    *("u:{c}%20d@", "u:[{c}]@", "u:a'{c}@", 'u:a"{c}@', "u:a\\{c}@", "u:a,{c}@", "u:@@{c}@", "u:<{c}>@", "u:é{c}@"),
    *("u:" + "{c}" * 50 + "@", "u:a;{c}@", "u:a&{c}=@", "u:${c}@", "u:a%2F{c}%3F@", "u:a=@{c}/b@", "u:{c}\t@"),
)
QUERIES = (
    *("?api_key={c}", "?key={c}", "?token={c}", "?sig={c}", "?x={c}", "?a=1&subscription-key={c}", "?{c}", "#{c}"),
    *("?code={c}&b=2", "?api-version=3&k=a%20b{c}", "?Password={c}", "?X-Amz-Signature={c}"),
)
HOSTILE = "\x1b[31m\x1b]0;owned\x07 \x9b2J \u202eevil \x08"
RAW = frozenset("\x00\x07\x08\x1b\x7f\x9b\u202e")


class Place(NamedTuple):
    """A command line with ``{url}`` in it, or where its text comes from."""

    words: str
    environment: Mapping[str, str] = {}
    files: Mapping[str, str] = {}
    """Name -> content, in the folder ``{here}``."""

    def write(self, values: Mapping[str, str]) -> list[str]:
        """Write the files; the words."""
        for file, text in self.files.items():
            Path(values["here"], file).write_text(_filled(text, values), encoding="utf-8")
        line = self.words
        for name, part in PARTS.items():
            line = line.replace(name, part)
        return [_filled(word, values) for word in shlex.split(line)]


PARTS = {
    "{train}": f"train arithmetic --out {{here}}/out {WORDS} --set training.max_steps=1",
    "{small}": f"{WORDS} --set training.max_steps=1",
    "{select}": f"{WORDS} {SELECTED} --set selection.critic_solves=true",
    "{asking}": "{named} --set critic.base_urls={urls}",
    "{named}": "--set critic.kind=endpoint --set critic.model=critic --set critic.timeout=1",
    "{served}": '{base_urls={urls},model=\\"critic\\"}',
}
RECIPE = 'condition = "stepalign"\n[model]\npath = "embedded:arithmetic"\n[data]\ntrain = "embedded:arithmetic"\n'
ASKED = {"question": "1 + 2", "answer": "3", "completion": "<answer> 4"}
ROWS = {"a.jsonl": json.dumps(ASKED) + "\n"}
JUDGED = {"j.jsonl": '{"question": "Say it.", "rubric": "It is said."}\n'}
ARMS = '[[compare.arms]]\nname = "a"\nlabel = "{escaped}"\n[[compare.arms]]\nname = "{escaped}"\n'
SERVER = '[critic]\nkind = "endpoint"\nmodel = "critic"\ntimeout = 1\nbase_urls = {urls}\n'
PLACES: dict[str, Place] = {
    "train": Place("{train} {asking}"),
    "train, in a recipe": Place(
        "train {here}/r.toml --out {here}/out --set training.max_steps=1", files={"r.toml": RECIPE + SERVER}
    ),
    "train, addresses in the environment": Place("{train} {named}", {"STEPALIGN_CRITIC_URLS": "{urls}"}),
    "train, key in the environment": Place(
        "{train} {named} --set critic.base_urls={critics} --set critic.api_key_env=MY_KEY", {"MY_KEY": "{c}"}
    ),
    "train, two critics": Place("{train} {asking} --set critic.second={served}"),
    "train, rollout servers": Place("{train} --set sampling.engine=vllm --set sampling.base_urls={urls}"),
    "train, servers of a teacher": Place("{train} --set objective.teacher.base_urls={urls}"),
    "train, a served user": Place("{train} --set environment.kind=user --set environment.served={served}"),
    "train, a key in the body": Place('{train} {named} --set critic.extra_body={api_key=\\"{c}\\"}'),
    "train, a key as a key": Place("{train} --set critic.api_key={c}"),
    "train, a header": Place('{train} --set critic.headers={Authorization=\\"{c}\\"}'),
    "train, an address as the model": Place("{train} --set model.path={url}"),
    "train, an address as the data": Place("{train} --set data.train={url}"),
    "train, an address as the cache": Place("{train} {named} --set critic.cache={url}"),
    "train --dry-run": Place("{train} {asking} --dry-run"),
    "train, an address as the recipe": Place("train {url} --out {here}/out"),
    "compare": Place("compare arithmetic --out {here}/out {small} {asking}"),
    "compare --dry-run": Place("compare arithmetic --out {here}/out {asking} --dry-run"),
    "launch --print": Place("launch arithmetic --out {here}/out {asking} --print"),
    "launch": Place("launch arithmetic --out {here}/out {small} {asking} --restarts 0"),
    "select": Place("select arithmetic --out {here}/out {select} {asking}"),
    "preflight": Place("preflight arithmetic --out {here}/out --num 4 {small} {asking}"),
    "prepare": Place("prepare {url} --out {here}/out {small}"),
    "critique": Place("critique {here}/a.jsonl --critic {url} --model critic --out {here}/out", files=ROWS),
    "critique, a model by its server": Place("critique {here}/a.jsonl --critic {url} --out {here}/out", files=ROWS),
    "signal": Place("signal {run} --out {here}/out --num 2 --contexts step_aligned {asking}"),
    "signal, an address as the model": Place("signal {here}/a.jsonl --model {url} --out {here}/out", files=ROWS),
    "evaluate": Place(
        "evaluate embedded:arithmetic --problems {here}/j.jsonl --n 1 --out {here}/e.json --set judge={served}",
        files=JUDGED,
    ),
    "evaluate, an address as the model": Place("evaluate {url} --problems embedded:arithmetic --out {here}/e.json"),
    "evaluate, an address as the problems": Place("evaluate embedded:arithmetic --problems {url} --out {here}/e.json"),
    "grade": Place("grade {url} --completion completion --answer answer --out {here}/v.jsonl"),
    "lab": Place("lab {url} {asking}"),
    "doctor": Place("doctor {url}"),
    "serve --print": Place("serve {url} --print"),
    "a word that is none": Place("train arithmetic {url} --out {here}/out"),
    "an option that is none": Place("train arithmetic --out {here}/out --api-key={c}"),
}
"""``{url}``: an address with a secret, ``{urls}``: a list of it; ``{c}``: the secret itself."""
READERS = {
    "grade": "grade {here}/a.jsonl --completion completion --answer answer --out {here}/v.jsonl --workers 1",
    "critique": "critique {here}/a.jsonl --critic {critic} --model critic --out {here}/out",
    "train": "{train} --set data.train={here}/a.jsonl",
    "signal": "signal {here}/a.jsonl --model embedded:arithmetic --out {here}/out",
    "evaluate": "evaluate embedded:arithmetic --problems {here}/a.jsonl --n 1 --out {here}/e.json",
}
HOSTILE_PLACES: dict[str, Place] = {
    **{name: place for name, place in PLACES.items() if "{url}" in place.words and "critique" not in name},
    **{
        f"{command}, {column} of a row": Place(words, files={"a.jsonl": json.dumps({**ASKED, column: HOSTILE}) + "\n"})
        for column in ("question", "answer", "problem_id", "completion", "critique")
        for command, words in READERS.items()
    },
    "a column of that name": Place(
        "grade {here}/a.jsonl --completion completion --answer x{bad} --out {here}/v.jsonl", files=ROWS
    ),
    "a key of that name": Place("{train} --set critic.{bad}=1"),
    "a value": Place("{train} --set condition={bad}"),
    "a recipe's name": Place("train {bad} --out {here}/out"),
    "a folder's name": Place("train arithmetic --out {here}/{bad} {small}"),
    "a missing folder": Place("doctor {here}/{bad}"),
    "a file that is no recipe": Place("train {here}/r.toml --out {here}/out", files={"r.toml": "{bad} = ["}),
    "a key of a recipe": Place("train {here}/r.toml --out {here}/out", files={"r.toml": '["{escaped}"]\nx = 1\n'}),
    "an arm of a recipe": Place(
        "compare {here}/r.toml --out {here}/out --dry-run", files={"r.toml": RECIPE + ARMS}
    ),
    "a prompt": Place("{train} --set prompts.critic={bad} --dry-run"),
    "a command": Place("{bad}"),
}  # fmt: skip
"""``{bad}``: the hostile text, ``{escaped}``: the same as TOML escapes it."""


def secrets(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """``number`` trials: an address with a secret, or the secret itself, in each place; spellings in turn."""
    host = _host(lab)
    urls = [f"http://{user.format(c=CANARY)}{host}/v1" for user in SPELLINGS]
    urls += [f"http://{host}/v1{query.format(c=CANARY)}" for query in QUERIES]
    urls += [url.replace(host, "127.0.0.1:9") for url in urls[::2]]
    names = list(PLACES)
    for trial in range(first, first + number):
        name, url = names[trial % len(names)], urls[(trial + trial // len(names)) % len(urls)]
        lab.ask_servers(random.Random(trial).choice(("faults 0", "faults 0.5", 'critic ["echo_key", "refuse_key"]')))
        with fresh(lab.folder / "here") as here:
            ended = _run(lab, PLACES[name], here, {"url": url, "urls": json.dumps([url]), "c": CANARY})
            told = [str(path.relative_to(here)) for path in here.rglob("*") if _holds(path)]
            told = [file for file in told if file not in PLACES[name].files]
        said = CANARY in ended.out + ended.err
        row = {"kind": name, "seed": trial, "url": url, "code": ended.code, "files": told, "terminal": said}
        row["outcome"] = "traceback" if ended.has_traceback else "told" if told or said else "nowhere"
        yield row if row["outcome"] == "nowhere" else row | {"said": (ended.out + ended.err)[-900:]}


def hostile(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """``number`` trials: text with control codes in each place; a server that answers with nothing else, too."""
    _host(lab)
    names = [*HOSTILE_PLACES, *(name for name in PLACES if "{asking}" in PLACES[name].words)]
    for trial in range(first, first + number):
        name = names[trial % len(names)]
        place = HOSTILE_PLACES.get(name) or PLACES[name]
        lab.ask_servers(f"critic {json.dumps(['ok' if name in HOSTILE_PLACES else f'say {HOSTILE}'])}")
        url = lab.addresses["critic"] if name not in HOSTILE_PLACES else f"http://h/{HOSTILE}"
        values = {"url": url, "urls": json.dumps([url]), "c": HOSTILE, "bad": HOSTILE}
        with fresh(lab.folder / "here") as here:
            ended = _run(lab, place, here, values | {"escaped": json.dumps(HOSTILE)[1:-1]})
        raw = sorted({f"{ord(character):x}" for character in RAW & set(ended.out + ended.err)})
        row = {"kind": name, "seed": trial, "code": ended.code, "raw": raw}
        row["outcome"] = "traceback" if ended.has_traceback else "raw control codes" if raw else "no raw control code"
        yield row | {"said": (ended.out + ended.err)[-900:]} if raw or ended.has_traceback else row


def _host(lab: Lab) -> str:
    lab.ask_servers("asked")
    return lab.addresses["critic"].removeprefix("http://").removesuffix("/v1")


def _run(lab: Lab, place: Place, here: Path, values: Mapping[str, str]) -> Ended:
    critic = lab.addresses["critic"]
    values = {"here": str(here), "run": str(a_run(lab)), "critic": critic, **values}
    values["critics"] = json.dumps([critic])
    here.mkdir()
    words = place.write(values)
    environment = {name: _filled(text, values) for name, text in place.environment.items()}
    return opened(lab, words) if words[0] == "lab" else lab.run(words, environment=environment)


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _holds(path: Path) -> bool:
    return CANARY in str(path) or (path.is_file() and CANARY.encode() in path.read_bytes())
