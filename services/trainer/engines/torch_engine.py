"""How does a tiny model sample rollouts inside the trainer or a small server, without vLLM?"""

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from searchrl.agent.ports import Generation, Sampling, Tokenizer
from searchrl.errors import ConfigurationError, Conflict, InvalidRequest, ServiceError, Unavailable
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.checkpoints.fingerprint import fingerprint_tensors
from services.trainer.engines.batch_gate import BatchGate
from services.trainer.engines.decoder import Decoder, Row
from services.trainer.engines.engine_port import EngineCounters, EngineHealth
from services.trainer.engines.kv_pool import GROUPED_ATTENTION
from services.trainer.engines.stop_detector import StopDetector

Result = TypeVar("Result")


class EngineTokenizer(Tokenizer, Protocol):
    """A tokenizer that also knows which tokens end a text."""

    eos_ids: frozenset[int]


@dataclass(slots=True, eq=False)
class _Request:
    row: Row
    future: "Future[Generation]"


class TorchEngine:
    """Samples many rollouts together on the CPU; implements ``RolloutEngine``.

    One owner thread runs the model, so the event loop stays responsive. A rollout's keys and values are kept from turn
    to turn and only new tokens are fed. In lockstep (``BatchGate``) results are a function of prompts, seeds and
    weights alone; otherwise waiting requests join the running batch at the next token. Weights change only while
    nothing decodes, and everything kept is dropped with the old ones.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: EngineTokenizer,
        *,
        lockstep: bool = False,
        slots: int = 256,
        threads: int = 1,
        version: int = 0,
    ) -> None:
        if "sliding_attention" in (getattr(model.config, "layer_types", None) or ()):
            raise InvalidRequest("the torch engine does not support models with sliding-window attention")
        model.set_attn_implementation(GROUPED_ATTENTION)
        self._model = model.eval().float()
        self._head = output_head(model)
        stops = StopDetector(tokenizer, model.config.vocab_size)
        self._decoder = Decoder(self._model, self._head, stops, tokenizer.eos_ids, slots)
        self._decoder.version = version
        self._fingerprint = fingerprint_tensors(dict(self._model.named_parameters()))
        self._gate: BatchGate[_Request] = BatchGate(lockstep)
        self._admitted: deque[_Request] = deque()
        self._running: dict[Row, _Request] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._closing = False
        self._decode_seconds = 0.0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, args=(threads,), name="torch-engine", daemon=True)
        self._thread.start()

    @classmethod
    def from_folder(
        cls, folder: Path, *, lockstep: bool = False, slots: int = 256, threads: int = 1, version: int = 0
    ) -> Self:
        """Load a model folder (weights, ``config.json``, ``tokenizer.json``).

        Raises:
            ConfigurationError: the folder holds no model.
        """
        if not (folder / "config.json").is_file():
            raise ConfigurationError(f"{folder} is not a model folder: it has no config.json")
        disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            raise ConfigurationError(f"cannot load the model in {folder}: {error}") from error
        tokenizer = ModelTokenizer.from_folder(folder)
        return cls(model, tokenizer, lockstep=lockstep, slots=slots, threads=threads, version=version)

    def open_session(self, rollout_id: str) -> None:
        """See ``RolloutEngine``."""
        with self._changed:
            self._gate.open_session(rollout_id)

    def close_session(self, rollout_id: str) -> None:
        """See ``RolloutEngine``."""
        with self._changed:
            self._gate.close_session(rollout_id)
            self._changed.notify()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        """See ``searchrl.agent.ports.Policy``; without a rollout id nothing is kept after the call."""
        self._check_prompt(prompt_ids)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        name = rollout_id or f"once-{secrets.token_hex(8)}"
        row = Row(name, tuple(prompt_ids), sampling, seed & (2**64 - 1), keep_cache=bool(rollout_id))
        request = _Request(row, Future())
        with self._changed:
            if self._closing:
                raise Unavailable("the engine is closed")
            try:
                self._gate.add(name, request)
            except ValueError as error:
                raise Conflict(str(error)) from error
            self._changed.notify()
        try:
            return await asyncio.wrap_future(request.future)
        except asyncio.CancelledError:
            self._abandon(request)
            raise

    async def load_weights(self, tensors: Mapping[str, Tensor], version: int, fingerprint: str) -> None:
        """See ``RolloutEngine``."""
        await self._call(lambda: self._replace_weights(tensors, version, fingerprint))

    async def score(self, ids: Sequence[int], start: int) -> list[float]:
        """See ``RolloutEngine``."""
        if not 1 <= start < len(ids):
            raise InvalidRequest(f"score needs 1 <= start < {len(ids)} tokens, got {start}")
        return await self._call(lambda: _score(self._model, self._head, ids, start))

    async def health(self) -> EngineHealth:
        """See ``RolloutEngine``."""
        with self._changed:
            return self.state()

    def state(self) -> EngineHealth:
        """What ``health`` reports, for callers outside an event loop."""
        waiting = self._gate.waiting + len(self._admitted)
        return EngineHealth(self._decoder.version, self._fingerprint, True, waiting, len(self._running))

    def counters(self) -> EngineCounters:
        """See ``RolloutEngine``."""
        decoder = self._decoder
        return EngineCounters(
            decoder.prompt_tokens,
            decoder.reused_tokens,
            decoder.sampled_tokens,
            self._decode_seconds,
            self._gate.waiting + len(self._admitted),
        )

    async def close(self) -> None:
        """Finish the running batch, refuse what waits, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _check_prompt(self, prompt_ids: Sequence[int]) -> None:
        vocabulary = self._model.config.vocab_size
        if not prompt_ids or not all(0 <= token < vocabulary for token in prompt_ids):
            raise InvalidRequest(f"a prompt needs at least one token id, all within 0..{vocabulary - 1}")
        if len(prompt_ids) >= self._decoder.max_context:
            limit = self._decoder.max_context
            raise InvalidRequest(f"the prompt has {len(prompt_ids)} tokens, the model's context ends at {limit}")

    def _abandon(self, request: _Request) -> None:
        with self._changed:
            request.row.cancelled = True
            self._gate.discard(request.row.rollout_id)
            self._changed.notify()

    async def _call(self, action: Callable[[], Result]) -> Result:
        """Run ``action`` in the owner thread as soon as nothing decodes."""
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(action())
            except Exception as error:  # noqa: BLE001 - handed to the caller as it is
                future.set_exception(error)

        with self._changed:
            if self._closing:
                raise Unavailable("the engine is closed")
            self._commands.append(run)
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def _work(self, threads: int) -> None:
        torch.set_num_threads(threads)
        while self._wait_for_work():
            self._run_commands()
            started = time.perf_counter()
            try:
                self._advance()
            except Exception as error:  # noqa: BLE001 - the thread must outlive a failed batch
                self._fail_running(error)
            self._decode_seconds += time.perf_counter() - started
        self._refuse_waiting()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do, and move what may start into the batch; False to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy() or self._closing or self._commands or self._gate.is_open(True))
            if self._closing and not self._busy():
                return False
            if not self._commands and not self._closing and self._gate.is_open(idle=not self._busy()):
                self._decoder.forget(self._gate.take_ended())
                self._admitted.extend(self._gate.take())
            return True

    def _busy(self) -> bool:
        return bool(self._running or self._admitted)

    def _run_commands(self) -> None:
        while self._commands and not self._busy():
            self._commands.popleft()()

    def _advance(self) -> None:
        """Admit what fits, then sample one token for every running row."""
        free = self._decoder.free
        entering = [self._admitted.popleft() for _ in range(min(free, len(self._admitted)))]
        entering = [request for request in entering if not request.row.cancelled]
        if entering:
            self._running |= {request.row: request for request in entering}
            self._decoder.admit([request.row for request in entering])
        if self._running:
            for row in self._decoder.step():
                self._deliver(self._running.pop(row))

    def _deliver(self, request: _Request) -> None:
        row = request.row
        if request.future.set_running_or_notify_cancel():
            request.future.set_result(
                Generation(tuple(row.ids), tuple(row.logprobs), tuple(row.versions), row.finish_reason)
            )

    def _fail_running(self, error: Exception) -> None:
        self._decoder.reset()
        for request in self._running.values():
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(ServiceError(f"decoding failed: {error}"))
        self._running.clear()

    def _refuse_waiting(self) -> None:
        with self._changed:
            for request in self._gate.take():
                if request.future.set_running_or_notify_cancel():
                    request.future.set_exception(Unavailable("the engine is closing"))
            while self._commands:
                self._commands.popleft()()

    def _replace_weights(self, tensors: Mapping[str, Tensor], version: int, fingerprint: str) -> None:
        held = dict(self._model.named_parameters())
        wrong = [name for name, tensor in tensors.items() if name not in held or held[name].shape != tensor.shape]
        if wrong:
            raise Conflict(f"the engine has no weight {wrong[0]} of that shape")
        actual = fingerprint_tensors(dict(tensors))
        if actual != fingerprint:
            raise Conflict(f"the weights of version {version} have fingerprint {actual}, not {fingerprint}")
        missing = set(held) - set(tensors)
        if missing:
            raise Conflict(f"the weights of version {version} lack {sorted(missing)[0]}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                held[name].copy_(tensor)
        self._decoder.forget_all()
        self._decoder.version, self._fingerprint = version, fingerprint


def output_head(model: PreTrainedModel) -> nn.Module:
    """The layer from hidden states to logits.

    Raises:
        InvalidRequest: the model is not a language model.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise InvalidRequest("the torch engine needs a causal language model")
    return head


@torch.inference_mode()
def _score(model: PreTrainedModel, head: nn.Module, ids: Sequence[int], start: int) -> list[float]:
    hidden = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    mask = torch.zeros(1, 1, len(ids), len(ids)).masked_fill_(hidden, float("-inf"))
    tokens_1T = torch.tensor([list(ids)])
    states = model.base_model(input_ids=tokens_1T, attention_mask=mask, use_cache=False).last_hidden_state
    logits = head(states[0, start - 1 : -1]).float()
    return torch.log_softmax(logits, -1).gather(1, tokens_1T[0, start:, None])[:, 0].tolist()
