"""A chat server on a real loopback socket that fails on purpose."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any

from killable_server import KillableServer

Script = Callable[[str, int], str]
"""(user message, how often it was asked before) -> name of a behaviour."""

HANG_SECONDS = 3.0
CHECK = "2 + 3"
"""The problem of the request that a critic sends before a run."""


def reply_to(text: str) -> str:
    """The right reply to a prompt: it names the prompt, so that a reply given to the wrong rollout shows."""
    return f"<think>hm</think>\n<case>D</case>\n<step_1> about {text}\n<answer> {text}"


class FaultServer(KillableServer):
    """Serves ``/v1/chat/completions`` and ``/v1/models``; ``script`` decides how each request ends."""

    def __init__(
        self, script: Script | None = None, *, latency: float = 0.0, hangs: float = HANG_SECONDS, port: int = 0
    ) -> None:
        self.script = script or (lambda text, asked: "ok")
        self.latency, self.hang_seconds = latency, hangs
        self.asked: Counter[str] = Counter()
        self.behaviours: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        """Requests before a run, which no script sees and nothing else counts."""
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.under_way = self.most_under_way = 0
        self.released = threading.Event()
        super().__init__(_Handler, port)

    def stop(self) -> None:
        self.released.set()
        super().stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultServer

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": [{"id": "critic"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        server = self.server
        if text == CHECK or f"\n{CHECK}\n" in text:
            server.checks.append(body)
            with suppress(LookupError):  # a script may know the texts of its test only
                behaviour = server.script(text, 0)
                return self._behave(behaviour if behaviour.startswith("status") else "ok", CHECK)
            return self._behave("ok", CHECK)
        with server.lock:
            behaviour = server.script(text, server.asked[text])
            server.asked[text] += 1
            server.behaviours[behaviour] += 1
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.times.append(time.monotonic())
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            time.sleep(server.latency)
            self._behave(behaviour, text)
        finally:
            with server.lock:
                server.under_way -= 1

    def _behave(self, behaviour: str, text: str) -> None:
        kind, _, argument = behaviour.partition(" ")
        if kind == "ok":
            self._chat(reply_to(text))
        elif kind == "say":
            self._chat(argument)
        elif kind == "echo_key":
            self._chat(f"<step_1> your key is {self.headers['Authorization']} <answer> 1")
        elif kind == "refuse_key":
            self._json(401, {"error": {"message": f"bad key {self.headers['Authorization']}"}})
        elif kind == "status":
            self._json(int(argument), {"error": {"message": "no"}})
        elif kind == "retry_after":
            self._json(429, {"error": {"message": "slow down"}}, {"Retry-After": argument})
        elif kind == "retry_after_date":  # now, rounded down to a second: a date that has just passed
            self._json(429, {"error": {"message": "slow down"}}, {"Retry-After": formatdate(usegmt=True)})
        elif kind == "cut_body":
            self._start(200, 1000, "application/json")
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif kind == "cut_json":
            self._bytes(b'{"choices": [{"message": {"content": "<step_1>', "application/json")
        elif kind == "html":
            self._bytes(b"<html><body>Bad gateway</body></html>", "text/html")
        elif kind == "empty_choices":
            self._json(200, {"choices": [], "usage": None})
        elif kind == "null":
            self._chat(None)
        elif kind == "error_in_200":
            self._json(200, {"error": {"message": "overloaded"}})
        elif kind == "hang_until_released":
            self.server.released.wait(timeout=30)
            self.close_connection = True
        elif kind == "hang":
            self.server.released.wait(self.server.hang_seconds)
            self.close_connection = True
        elif kind == "close":
            self.close_connection = True
        elif kind == "length":
            self._chat("<step_1> cut in the mid", "length")
        else:
            raise ValueError(behaviour)

    def _chat(self, content: str | None, finish_reason: str = "stop") -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
        self._json(200, {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}})

    def _json(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        self._bytes(json.dumps(data).encode(), "application/json", status, headers)

    def _bytes(self, data: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._start(status, len(data), kind, headers)
        self.wfile.write(data)

    def _start(self, status: int, length: int, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
