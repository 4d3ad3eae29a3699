"""A server that speaks vLLM's routes on a real loopback socket, computes with a real model, and fails on purpose.

Shapes of requests and replies are those of vLLM 0.32 (``tests/data/vllm.json`` holds recorded ones). Tokens come from
whole forward passes without a cache, one generator per sample: nothing is shared with the sampler under test.
"""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch
from killable_server import KillableServer
from safetensors.torch import load_file

Script = Callable[[int, dict[str, Any]], str]
"""(requests for completions so far, body) -> name of a behaviour."""


def _with(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda event: event["choices"][0].update(values)


def _scored(*log_probs: Any) -> Callable[[dict[str, Any]], Any]:
    return _with(logprobs={"token_logprobs": list(log_probs)})


SPOILED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no log-probabilities": _scored(),
    "too many log-probabilities": _scored(-1.0, -1.0),
    "NaN": _scored(float("nan")),
    "probability 0": _scored(-float("inf")),
    "the value that vLLM gives for it": _scored(-9999.0),
    "a probability above 1": _scored(0.5),
    "null": _scored(None),
    "text as a log-probability": _scored("-1.0"),
    "log-probabilities that are none": _with(logprobs="none"),
    "an id that is no integer": _with(token_ids=[1.5]),
    "text as an id": _with(token_ids=["1"]),
    "an id below 0": _with(token_ids=[-1]),
    "an id beyond the vocabulary": _with(token_ids=[10**6]),
    "no token at all": _with(token_ids=[], logprobs=None, finish_reason="stop"),
    "more tokens than asked for": _with(token_ids=[1] * 99, logprobs={"token_logprobs": [-1.0] * 99}),
    "an end at the server's own limit": _with(finish_reason="length"),
    "the number of no completion": _with(index=99),
    "a negative number": _with(index=-1),
    "no number": _with(index=None),
    "an end without an end token": _with(token_ids=[0], finish_reason="stop"),
    "an end that is none": _with(finish_reason="abort"),
    "another model": lambda event: event.update(model="another"),
    "an error": lambda event: (event.clear(), event.update(error={"message": "EngineCore died"})),
    "no choices": lambda event: event.clear(),
    "choices of another kind": lambda event: event.update(choices=["text"]),
}
"""What a reply may be that no server should send: each changes the first event."""


class VllmServer(KillableServer):
    """Serves a copy of ``model`` as ``solver``."""

    def __init__(
        self,
        model: Any,
        *,
        port: int = 0,
        script: Script | None = None,
        routes: tuple[str, ...] = ("lora", "transfer"),
        context_length: int = 256,
        raw_log_probs: bool = False,
        token_seconds: float = 0.0,
        max_logprobs: int = 20,
        tokenizer: Any = None,
    ) -> None:
        """``tokenizer`` gives the texts of tokens in ``prompt_logprobs``."""
        self.max_logprobs, self.tokenizer = max_logprobs, tokenizer
        self.base = copy.deepcopy(model).eval()
        self.adapters: dict[str, Any] = {}
        self.version, self.paused, self.stage = "default", False, "idle"
        self.script = script or (lambda asked, body: "ok")
        self.routes, self.context_length, self.raw_log_probs = routes, context_length, raw_log_probs
        self.token_seconds = token_seconds
        self.bodies: list[dict[str, Any]] = []
        self.calls: Counter[str] = Counter()
        self.most_adapters = 0
        self.computing = threading.Lock()
        super().__init__(_Handler, port)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: VllmServer

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.calls["GET " + path] += 1
        if path == "/v1/models":
            base = {"id": "solver", "object": "model", "root": "/models/solver", "parent": None}
            rows = [{**base, "max_model_len": self.server.context_length}]
            rows += [{"id": name, "object": "model", "parent": "solver"} for name in self.server.adapters]
            return self._json(200, {"object": "list", "data": rows})
        if path == "/weight_info" and "transfer" in self.server.routes:
            return self._json(200, {"weight_version": self.server.version})
        return self._json(405 if path in self._post_routes() else 404, {"detail": "no"})

    def _post_routes(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        transfer = {
            "/pause": lambda body: self._set(paused=True),
            "/resume": lambda body: self._set(paused=False),
            "/init_weight_transfer_engine": lambda body: self._set(stage="ready"),
            "/start_weight_update": lambda body: self._step("ready", "started"),
            "/update_weights": self._update,
            "/finish_weight_update": self._finish,
            "/reset_prefix_cache": lambda body: self._set(),
        }
        lora = {"/v1/load_lora_adapter": self._load, "/v1/unload_lora_adapter": self._unload}
        return {
            "/v1/completions": self._complete,
            **(transfer if "transfer" in self.server.routes else {}),
            **(lora if "lora" in self.server.routes else {}),
        }

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        self.server.calls[path] += 1
        route = self._post_routes().get(path)
        if route is None:
            return self._json(404, {"detail": "Not Found"})
        return route(body)

    # -- weights

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self.server, name, value)
        self._json(200, {})

    def _step(self, before: str, after: str) -> None:
        if self.server.stage != before:
            return self._json(500, {"error": f"{self.server.stage}, not {before}"})
        return self._set(stage=after)

    def _update(self, body: dict[str, Any]) -> None:
        with self.server.computing:
            for file in sorted(Path(body["update_info"]["path"]).glob("*.safetensors")):
                _, unexpected = self.server.base.load_state_dict(load_file(file), strict=False)
                assert not unexpected, unexpected
        self._step("started", "updated")

    def _finish(self, body: dict[str, Any]) -> None:
        self.server.version = body["weight_version"]
        self._step("updated", "ready")

    def _load(self, body: dict[str, Any]) -> None:
        from peft import PeftModel

        name, path = body["lora_name"], body["lora_path"]
        if name in self.server.adapters:
            return self._json(400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}})
        if not Path(path, "adapter_config.json").exists():
            return self._json(404, {"error": {"message": f"No adapter found for {path}"}})
        with self.server.computing:
            self.server.adapters[name] = PeftModel.from_pretrained(copy.deepcopy(self.server.base), path).eval()
            self.server.most_adapters = max(self.server.most_adapters, len(self.server.adapters))
        return self._bytes(200, f"Success: LoRA adapter '{name}' added successfully.".encode(), "text/plain")

    def _unload(self, body: dict[str, Any]) -> None:
        self.server.adapters.pop(body["lora_name"], None)
        self._bytes(200, b"Success", "text/plain")

    # -- completions

    def _complete(self, body: dict[str, Any]) -> None:
        server = self.server
        with server.lock:
            behaviour = server.script(len(server.bodies), body)
            server.bodies.append(body)
        kind, _, argument = behaviour.partition(" ")
        if kind == "status":
            return self._json(int(argument), {"error": {"message": "EngineCore encountered an issue"}})
        model = server.base if body["model"] == "solver" else server.adapters.get(body["model"])
        if model is None:
            message = f"The model `{body['model']}` does not exist."
            return self._json(404, {"error": {"message": message, "type": "NotFoundError", "code": 404}})
        ((*prompt,),) = body["prompt"]
        if len(prompt) + body["max_tokens"] > server.context_length:
            return self._json(400, {"error": {"message": "maximum context length"}})
        if "prompt_logprobs" in body:
            return self._score(model, prompt, body["prompt_logprobs"])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        left = int(argument) if kind == "cut" else 10**9
        for choices in self._draw(model, prompt, body):
            time.sleep(server.token_seconds)
            for choice in choices:
                if not left:
                    return self._hang_up()
                left -= 1
                event = {"object": "text_completion", "model": body["model"], "choices": [choice]}
                if kind == "spoiled" and left == 10**9 - 1:
                    SPOILED[argument](event)
                for _ in range(1 + (kind == "twice" and choice["finish_reason"] is not None)):
                    self._event(json.dumps(event))
                while kind == "silent":
                    time.sleep(0.02)
                    self._event(": still here", prefix="")
        if not left:
            return self._hang_up()
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")
        return None

    @torch.no_grad()
    def _score(self, model: Any, prompt: list[int], k: int) -> None:
        """The k likeliest tokens at each place of the prompt, and its own token where that is another."""
        if k > self.server.max_logprobs:
            message = f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.server.max_logprobs}"
            return self._json(400, {"error": {"message": message, "type": "BadRequestError", "code": 400}})
        with self.server.computing:
            rows = model(input_ids=torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        found: list[Any] = [None]
        for token, row in zip(prompt[1:], rows, strict=False):
            order = row.argsort(descending=True).tolist()
            chosen = [*order[:k], *([token] if token not in order[:k] else [])]
            text = self.server.tokenizer.decode if self.server.tokenizer else lambda ids: str(ids[0])
            found.append({
                str(one): {"logprob": float(row[one]), "rank": order.index(one) + 1, "decoded_token": text([one])}
                for one in chosen
            })  # fmt: skip
        choice = {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": found}
        return self._json(200, {"object": "text_completion", "choices": [choice]})

    @torch.no_grad()
    def _draw(self, model: Any, prompt: list[int], body: dict[str, Any]) -> Any:
        """One chunk a sample and token, in the order in which tokens come."""
        server, temperature = self.server, body["temperature"]
        live = list(range(body["n"]))
        noise = {i: torch.Generator().manual_seed(body["seed"] + i) for i in live}
        ids = {i: list(prompt) for i in live}
        for place in range(body["max_tokens"]):
            with server.computing:
                logits = model(input_ids=torch.tensor([ids[i] for i in live])).logits[:, -1].float()
            choices = []
            for i, row in zip(list(live), logits, strict=True):
                probabilities = torch.softmax(row / (temperature or 1.0), -1)
                token = int(
                    torch.multinomial(probabilities, 1, generator=noise[i]) if temperature else probabilities.argmax()
                )
                log_prob = float((torch.softmax(row, -1) if server.raw_log_probs else probabilities)[token].log())
                ids[i].append(token)
                reason = "stop" if token in body["stop_token_ids"] else None
                if reason is None and place + 1 == body["max_tokens"]:
                    reason = "length"
                if reason:
                    live.remove(i)
                choices.append(
                    {
                        "index": i,
                        "text": "",
                        "token_ids": [token],
                        "logprobs": {"token_logprobs": [log_prob]},
                        "finish_reason": reason,
                    }
                )
            yield choices
            if not live:
                return

    # -- bytes

    def _event(self, text: str, prefix: str = "data: ") -> None:
        data = f"{prefix}{text}\n\n".encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _json(self, status: int, data: Any) -> None:
        self._bytes(status, json.dumps(data).encode(), "application/json")

    def _bytes(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
