"""A server with the routes of vLLM that a rollout engine calls; it holds no model.

It runs in the test's own event loop, or as a program with the arguments of ``vllm serve``.

The log-probability of token t under weights whose first number is w is ``-w - t / 1000``, and the tokens of a turn
follow from its seed. What goes wrong is set by attributes.
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse
from safetensors.torch import load_file
from torch import distributed as dist

from searchrl.agent.types import Tokenizer
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.engines.vllm.plugin.shared_buffers import open_shared


class VllmRolloutServer:
    """Listens on the loopback interface while it is entered.

    Attributes:
        failing_updates: updates that are refused from now on; the server holds half of an update then.
        deaf: updates are accepted and change nothing.
        refuses_tokens: turns end before their first token.
        development_mode, raw_logprobs, transfers, loads_adapters: how it was started.
        adapters: folder and first number of each adapter that it has loaded.
        hanging: turns that start from now on wait until ``release`` is set or their caller gives up.
    """

    def __init__(self, tokenizer: Tokenizer, max_model_len: int = 512, port: int = 0, host: str = "127.0.0.1") -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.port = port
        self.host = host
        self.weight = 1.0
        self.name = "default"
        self.failing_updates = 0
        self.deaf = False
        self.development_mode = True
        self.raw_logprobs = False
        self.transfers = True
        self.loads_adapters = True
        self.adapters: dict[str, tuple[str, float]] = {}
        self.hanging = False
        self.refuses_tokens = False
        self.release = asyncio.Event()
        self.aborted = asyncio.Event()  # running turns are answered with two tokens
        self.bodies: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.turns: list[str] = []
        self.inquiries = 0  # about its model
        self.running = 0
        self._dead = False
        self._paused = False
        self.parts: list[list[str]] = []  # of updates through shared memory: the names of their tensors
        self._group: Any = None
        self._shared = torch.empty(0)
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        config = uvicorn.Config(self._app(), self.host, self.port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End at once: turns in progress are answered as vLLM answers them when it shuts down."""
        assert self._server is not None and self._serving is not None
        self._dead = True
        self._server.should_exit = self._server.force_exit = True
        self.release.set()
        await self._serving

    async def start_again(self) -> None:
        """Come back on the same port as a new process: with the first weights."""
        self.weight, self.name, self.release, self._dead = 1.0, "default", asyncio.Event(), False
        self.adapters.clear()
        await self.__aenter__()

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/health", lambda: {}, methods=["GET"])
        app.add_api_route("/v1/models", self._models, methods=["GET"])
        app.add_api_route("/tokenize", self._tokenize, methods=["POST"])
        app.add_api_route("/get_world_size", lambda: {"world_size": 1}, methods=["GET"])
        if self.development_mode:
            app.add_api_route("/weight_info", lambda: {"weight_version": self.name}, methods=["GET"])
        app.add_api_route("/v1/completions", self._completions, methods=["POST"])
        for name in (
            "abort_requests",
            "pause",
            "resume",
            "init_weight_transfer_engine",
            "start_weight_update",
            "update_weights",
        ):
            app.add_api_route(f"/{name}", self._control, methods=["POST"])
        app.add_api_route("/finish_weight_update", self._control, methods=["POST"])
        if self.loads_adapters:
            app.add_api_route("/v1/load_lora_adapter", self._load_adapter, methods=["POST"])
            app.add_api_route("/v1/unload_lora_adapter", self._unload_adapter, methods=["POST"])
        return app

    def _models(self) -> dict[str, Any]:
        self.inquiries += 1
        cards = [{"id": name, "root": folder, "parent": "policy"} for name, (folder, _) in self.adapters.items()]
        return {"data": [{"id": "policy", "max_model_len": self.max_model_len, "parent": None}, *cards]}

    async def _load_adapter(self, request: Request) -> PlainTextResponse:
        body = await request.json()
        self.calls.append("load_lora_adapter")
        if self.failing_updates:
            self.failing_updates -= 1
            raise HTTPException(500, "the update failed")
        if body["lora_name"] in self.adapters or body.get("load_inplace"):
            raise HTTPException(400, "an adapter is never loaded in place")
        folder = Path(body["lora_path"])
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8
        weight = float(load_file(folder / "adapter_model.safetensors")["weight"][0])
        self.adapters[body["lora_name"]] = (str(folder), self.weight if self.deaf else weight)
        return PlainTextResponse("Success")

    async def _unload_adapter(self, request: Request) -> PlainTextResponse:
        name = (await request.json())["lora_name"]
        if not name:
            raise HTTPException(400, "a name is needed")
        if self.adapters.pop(name, None) is None:
            raise HTTPException(404, "cannot be found")
        return PlainTextResponse("Success")

    async def _tokenize(self, request: Request) -> dict[str, Any]:
        return {"tokens": self.tokenizer.encode((await request.json())["prompt"])}

    async def _control(self, request: Request) -> dict[str, Any]:
        name = request.url.path.strip("/")
        self.calls.append(name)
        content = await request.body()
        body = await request.json() if content else {}
        if name in ("pause", "resume"):
            self._paused = name == "pause"
        elif name == "init_weight_transfer_engine" and not self.transfers:
            raise HTTPException(500, "Weight transfer not configured.")
        elif name == "init_weight_transfer_engine" and body["init_info"]:
            await asyncio.to_thread(self._join, body["init_info"])
        elif name == "update_weights":
            await asyncio.to_thread(self._update, body["update_info"])
        elif name == "abort_requests":
            self.aborted.set()
        elif name == "finish_weight_update":
            self.name = body["weight_version"]
        return {}

    def _join(self, info: dict[str, Any]) -> None:
        if "handles" in info:
            (handle,) = info["handles"]
            self._shared = open_shared(handle)
            return
        limit = timedelta(seconds=info["seconds"])
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            info["host"], info["port"], None, False, limit
        )
        self._group = dist.ProcessGroupGloo(store, 1, info["size"], limit)

    def _receive(self, info: dict[str, Any]) -> float:
        options = dist.BroadcastOptions()
        options.rootRank = 0
        received: dict[str, torch.Tensor] = {}
        for name, dtype, shape in zip(info["names"], info["dtypes"], info["shapes"], strict=True):
            received[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            self._group.broadcast([received[name]], options).wait()
        return float(received["weight"][0])

    def _read_shared(self, info: dict[str, Any]) -> None:
        self.parts.append(info["names"])
        if "weight" in info["names"]:
            number = info["names"].index("weight")
            dtype, start = getattr(torch, info["dtypes"][number]), info["offsets"][number]
            self.weight = float(self._shared[start : start + dtype.itemsize].view(dtype)[0])

    def _update(self, info: dict[str, Any]) -> None:
        if self.failing_updates:
            self.failing_updates -= 1
            raise HTTPException(500, "the update failed")
        if "offsets" in info:
            self._read_shared(info)
            return
        if "names" in info:
            self.weight = self._receive(info)
            return
        content = Path(info["path"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != info["sha256"]:
            raise HTTPException(500, "another file")
        if not self.deaf:
            self.weight = float(load_file(info["path"])["weight"][0])

    async def _completions(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        self.bodies.append(body)
        if self._paused:
            raise HTTPException(500, "a paused server would not answer")
        if body["model"] != "policy" and body["model"] not in self.adapters:
            raise HTTPException(404, f"The model `{body['model']}` does not exist.")
        weight = self.adapters[body["model"]][1] if body["model"] != "policy" else self.weight
        if "prompt_logprobs" in body:
            entries = [{str(token): {"logprob": logprob_of(weight, token)}} for token in body["prompt"][1:]]
            return {"choices": [{"prompt_logprobs": [None, *entries], "token_ids": [1], "finish_reason": "length"}]}
        if self.refuses_tokens:
            return self._turn(body, weight, 0, "abort")
        self.turns.append(request.headers["x-rollout-id"])
        self.running += 1
        hangs = self.hanging
        try:
            while hangs and not self.release.is_set() and not await request.is_disconnected():
                if self.aborted.is_set():
                    return self._turn(body, weight, 2, "abort")
                await asyncio.sleep(0.01)
        finally:
            self.running -= 1
        if self._dead:
            raise HTTPException(500, "the engine encountered an issue")
        return self._turn(body, weight, body["max_tokens"], "length")

    def _turn(self, body: dict[str, Any], weight: float, length: int, reason: str) -> dict[str, Any]:
        ids = [(body["seed"] + len(body["prompt"]) + n) % 200 for n in range(length)]
        heat = 1.0 if self.raw_logprobs else body["temperature"] or 1.0
        logprobs = {"token_logprobs": [logprob_of(weight, token) / heat for token in ids]}
        return {"choices": [{"token_ids": ids, "logprobs": logprobs, "finish_reason": reason}]}


def logprob_of(weight: float, token: int) -> float:
    return -weight - token / 1000


async def serve(arguments: Sequence[str]) -> None:
    """Serve until a signal ends the process."""
    options = dict(pairwise(arguments))
    tokenizer = ModelTokenizer.from_folder(Path(options["serve"]))
    async with VllmRolloutServer(tokenizer, int(options["--max-model-len"]), int(options["--port"]), options["--host"]):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
