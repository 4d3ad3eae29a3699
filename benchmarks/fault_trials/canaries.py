"""Canaries: passwords and keys in every odd spelling through real commands. None in a file, none on the terminal."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from fault_trials.damage import TINY
from fault_trials.lab import Lab, fresh, setting_words

CANARY = "cAnArY0815xyz"
SPELLINGS = (
    *("u:{c}@", "u:a@{c}@", "u:{c} b@", "u:a/{c}@", "u:a?{c}@", "u:a#{c}@", "u:a:{c}@", "u:a%40{c}@", "{c}@", ":{c}@"),
    *("u:{c}%20d@", "u:[{c}]@", "u:a'{c}@", 'u:a"{c}@', "u:a\\{c}@", "u:a,{c}@", "u:@@{c}@", "u:<{c}>@", "u:é{c}@"),
    "u:" + "{c}" * 50 + "@",
)
QUERIES = ("?api_key={c}", "?key={c}", "?token={c}", "?sig={c}", "?x={c}", "?a=1&subscription-key={c}", "?{c}", "#{c}")


def secrets(lab: Lab, number: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """``number`` trials: an address with a secret, or a key in the environment, through train and critique."""
    lab.ask_servers("asked")
    host = lab.addresses["critic"].removeprefix("http://").removesuffix("/v1")
    urls = [f"http://{user.format(c=CANARY)}{host}/v1" for user in SPELLINGS]
    urls += [f"http://{host}/v1{query.format(c=CANARY)}" for query in QUERIES]
    faulty = [url.replace(host, "127.0.0.1:9") for url in urls[::2]]
    for trial in range(first, first + number):
        url = [*urls, *faulty, "key"][trial % (len(urls) + len(faulty) + 1)]
        keys = {"critic.kind": "endpoint", "critic.model": "critic", "critic.timeout": 1}
        with fresh(lab.folder / "out") as out:
            environment = {"MY_KEY": CANARY} if url == "key" else {}
            lab.ask_servers(f"faults {random.Random(trial).choice((0, 0, 0.5))}")
            keys |= {"critic.base_urls": [url if url != "key" else lab.addresses["critic"]]}
            keys |= {"critic.api_key_env": "MY_KEY"} if environment else {}
            words = [
                "train",
                "arithmetic",
                "--out",
                str(out),
                *setting_words({**TINY, **keys, "training.max_steps": 1}),
            ]
            ended = lab.run(words, environment=environment)
            files = [path for path in out.rglob("*") if path.is_file()] if out.exists() else []
            told = [str(path.relative_to(out)) for path in files if CANARY.encode() in path.read_bytes()]
            said = CANARY in ended.out + ended.err
            row = {"kind": "address" if not environment else "key", "seed": trial, "code": ended.code}
            row |= {"files": told, "terminal": said, "traceback": ended.has_traceback}
            row["outcome"] = "nowhere" if not (told or said or ended.has_traceback) else "told"
            if row["outcome"] == "told":
                row["err"] = (ended.out + ended.err)[-600:]
        yield row
