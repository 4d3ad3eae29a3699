"""Graders as a user would write them, named in tests by import path."""

from __future__ import annotations

import os
import sys


def last_word(completion: str, expected: str) -> bool:
    return completion.split()[-1:] == [expected]


def everything(completion: str, expected: str) -> object:
    """Returns, prints, raises, allocates or waits as the completion says."""
    match completion:
        case "verdict":
            return "undecided"
        case "reason":
            return True, "because"
        case "none":
            return None
        case "score":
            return 0.5
        case "number":
            return 2
        case "list":
            return [1]
        case "raise":
            raise KeyError("no such row")
        case "memory":
            return len(bytearray(3 << 30))
        case "spin":
            while True:
                pass
        case "exit":
            os._exit(3)
        case "print":
            print('{"verdict": "correct", "reason": "forged", "exits": false}')
            sys.stdout.flush()
            return False
        case "pid":
            return False, str(os.getpid())
        case _:
            return completion == expected


not_a_function = 7
