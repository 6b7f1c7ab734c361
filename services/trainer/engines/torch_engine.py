"""Samples rollouts of a tiny model inside the trainer or a small server, without vLLM.

Two threads meet here. The event loop's thread runs the methods of ``RolloutEngine``. The owner thread runs the methods
of ``Owner``; the model, the decoder, ``_running`` and ``_admitted`` are changed by it alone. They share the gate,
``_commands`` and ``_closing``: the gate changes only under ``_changed``, commands are added only under it, and the
owner thread alone removes commands, when nothing decodes. Results return through futures, whose callbacks asyncio
schedules in the loop. Counters are read without the lock, because each is a single number for metrics.
"""

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from searchrl.agent.types import Generation, Sampling, Tokenizer
from searchrl.errors import Conflict, InvalidRequest, ServiceError, Unavailable
from searchrl.platform.health import Health
from searchrl.platform.owner_thread import FailureWatch, OwnerThread
from searchrl.tokenization.model_files import check_vocabulary
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.engines.base import EngineBase, EngineContext, EngineCounters, EngineHealth
from services.trainer.engines.batch_gate import BatchGate
from services.trainer.engines.decoder import Decoder, Row
from services.trainer.engines.kv_pool import attention_window, causal_mask, use_cached_attention
from services.trainer.engines.sampling import StopDetector
from services.trainer.learner.model_folder import fingerprint_tensors, load_language_model
from services.trainer.learner.output_layer import OutputLayer
from services.trainer.learner.reports import PublishedWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")
FAILURES_TO_GIVE_UP = 5
"""Failed batches in a row after which the engine stops: a model or device that fails so often does not recover."""


class TorchEngineSettings(EngineBase):
    """Sampling in the trainer's own process."""

    kind: Literal["torch"] = Field(
        default="torch", description="torch: in this process, on CPUs, in float32; vllm: servers of vLLM."
    )
    slots: PositiveInt = Field(default=256, description="Rollouts decoded at once.")
    threads: PositiveInt = Field(default=1, description="Threads of the engine.")


class EngineTokenizer(Tokenizer, Protocol):
    """A tokenizer that also names the tokens that end a text."""

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
    nothing decodes, and all caches are dropped with the old ones. A batch that fails does not affect later ones; after
    several failures in a row, or if the thread itself breaks, the engine refuses all requests.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: EngineTokenizer,
        *,
        lockstep: bool = False,
        slots: int = 256,
        context_tokens: int | None = None,
        threads: int = 1,
        version: int = 0,
        health: Health | None = None,
    ) -> None:
        """Start the owner thread.

        Args:
            context_tokens: most tokens of a prompt and its answer, where the model's own context is longer; bounds the
                memory of the keys and values.

        Raises:
            ConfigurationError: the model cannot be run with cached keys and values, or its logits change when it is.
        """
        self._model = model.eval().float()
        self._output = OutputLayer(model)
        use_cached_attention(self._model, self._output)
        stops = StopDetector(tokenizer, model.config.vocab_size)
        self._decoder = Decoder(self._model, self._output, stops, tokenizer.eos_ids, slots, context_tokens)
        self._decoder.version = version
        self._fingerprint = fingerprint_tensors(dict(self._model.named_parameters()))
        self._gate: BatchGate[_Request] = BatchGate(lockstep)
        self._admitted: deque[_Request] = deque()
        self._running: dict[Row, _Request] = {}
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closing = False
        self._threads = threads
        self._decode_seconds = 0.0
        # The only lock. It is held for bookkeeping, never while the model runs, so the event loop's thread does not
        # wait for a forward pass.
        self._changed = threading.Condition()
        # One failed batch may be a single bad request's; the second in a row makes the engine not ready.
        self._watch = FailureWatch("torch engine", health=health, not_ready_after=2, give_up_after=FAILURES_TO_GIVE_UP)
        self._thread = OwnerThread[Literal[True]](self, self._watch)
        self._thread.start()

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        lockstep: bool = False,
        slots: int = 256,
        context_tokens: int | None = None,
        threads: int = 1,
        version: int = 0,
        health: Health | None = None,
    ) -> Self:
        """Load a model folder (weights, ``config.json``, ``tokenizer.json``).

        Raises:
            ConfigurationError: the folder holds no model that can be sampled from; see ``load_language_model``.
        """
        model = load_language_model(folder, torch.float32)
        tokenizer = ModelTokenizer.from_folder(folder)
        check_vocabulary(folder, tokenizer.vocab_size)
        return cls(
            model,
            tokenizer,
            lockstep=lockstep,
            slots=slots,
            context_tokens=context_tokens,
            threads=threads,
            version=version,
            health=health,
        )

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
        """See ``searchrl.agent.types.Policy``; without a rollout id, no cache is kept after the call."""
        self._check_prompt(prompt_ids)
        # 64 bits are what the sampler hashes; a negative seed of a caller is mapped into them below
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        name = rollout_id or f"once-{secrets.token_hex(8)}"
        row = Row(name, tuple(prompt_ids), sampling, seed & (2**64 - 1), keep_cache=bool(rollout_id))
        request = _Request(row, Future())
        with self._changed:
            self._check_open()
            try:
                self._gate.add(name, request)
            except ValueError as error:
                raise Conflict(str(error)) from error
            self._changed.notify()
        try:
            # The owner thread sets the future; asyncio takes the result over in the loop's thread. Cancelling the await
            # also cancels the future, so the owner thread cannot set it any more and has to ask before it does.
            return await asyncio.wrap_future(request.future)
        except asyncio.CancelledError:
            self._abandon(request)
            raise

    async def start(self) -> None:
        """See ``RolloutEngine``; the engine runs since it was built."""

    async def load_weights(self, weights: PublishedWeights) -> None:
        """See ``RolloutEngine``."""
        await self._call(lambda: self._replace_weights(weights.tensors, weights.version, weights.fingerprint))

    async def score(self, ids: Sequence[int], start: int) -> list[float]:
        """See ``RolloutEngine``."""
        if not 1 <= start < len(ids):
            raise InvalidRequest(f"score needs 1 <= start < {len(ids)} tokens, got {start}")
        return await self._call(lambda: _score(self._model, self._output, ids, start))

    async def health(self) -> EngineHealth:
        """See ``RolloutEngine``."""
        with self._changed:
            return self.state()

    def state(self) -> EngineHealth:
        """What ``health`` reports, for callers outside an event loop."""
        ready = self._watch.ended is None
        return EngineHealth(self._decoder.version, self._fingerprint, ready, len(self._running))

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
        """Finish the running batch, refuse waiting requests, end the thread."""
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
            raise InvalidRequest(f"the prompt has {len(prompt_ids)} tokens, the context ends at {limit}")

    def _abandon(self, request: _Request) -> None:
        """Withdraw a request: from the gate if it waits there, else its row ends at the next token."""
        with self._changed:
            request.row.cancelled = True
            self._gate.discard(request.row.rollout_id, request)
            self._changed.notify()

    def _check_open(self) -> None:
        """Call it under the lock, so that no request slips in after ``refuse_work`` has refused the queued ones.

        Raises:
            Unavailable: the engine is closed, or its thread has ended.
        """
        if self._closing:
            raise Unavailable("the engine is closed")
        self._watch.check()

    async def _call(self, action: Callable[[], Result]) -> Result:
        """Run ``action`` in the owner thread as soon as nothing decodes."""
        future: Future[Result] = Future()
        with self._changed:
            self._check_open()
            self._commands.append((action, future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def take_work(self) -> Literal[True] | None:
        """See ``searchrl.platform.owner_thread.Owner``."""
        if torch.get_num_threads() != self._threads:  # torch keeps the number per thread, and this is the owner thread
            torch.set_num_threads(self._threads)
        return True if self._wait_for_work() else None

    def do_work(self, work: Literal[True]) -> None:
        """See ``Owner``: run the queued commands if nothing decodes, then sample one token for every row."""
        self._run_commands()
        started = time.perf_counter()
        try:
            self._advance()
        finally:
            self._decode_seconds += time.perf_counter() - started

    def fail_work(self, work: Literal[True], error: Exception) -> None:
        """See ``Owner``."""
        # A pass that broke off may have written some layers of the pool and not others: no cache can be trusted, those
        # of idle rollouts included. Their next turns are fed from the start.
        self._decoder.reset()
        failed = list(self._running.values())
        self._running.clear()
        for request in failed:
            _refuse(request.future, error)

    def refuse_work(self, error: Unavailable) -> None:
        """See ``Owner``."""
        with self._changed:
            requests = [*self._running.values(), *self._admitted, *self._gate.take()]
            futures = [*(request.future for request in requests), *(future for _, future in self._commands)]
            self._running.clear()
            self._admitted.clear()
            self._commands.clear()
        # Outside the lock: setting a result runs callbacks of others.
        for future in futures:
            _refuse(future, Unavailable(str(error), error.retry_after_seconds))

    def _wait_for_work(self) -> bool:
        """Wait for work and admit the requests that may start; return False to end the thread.

        While commands wait, nothing is admitted: new weights would otherwise wait for as long as requests keep coming.
        """
        with self._changed:
            # ``is_open(True)``, because it is asked only if nothing is busy. There is no timeout: whatever another
            # thread changes about these four conditions, it notifies.
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
            action, future = self._commands.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(action())
            except Exception as error:  # noqa: BLE001 - passed to the caller unchanged
                future.set_exception(error)
            except BaseException:
                future.set_exception(ServiceError("internal error in torch engine"))
                raise

    def _advance(self) -> None:
        """Admit what fits, then sample one token for every running row."""
        free = self._decoder.free
        entering = [self._admitted.popleft() for _ in range(min(free, len(self._admitted)))]
        entering = [request for request in entering if not request.row.cancelled]
        if entering:
            # before they are fed: if that fails, ``fail_work`` must find and answer them
            self._running |= {request.row: request for request in entering}
            self._decoder.admit([request.row for request in entering])
        if self._running:
            # one token a call: between two calls, take_work admits new requests and notices commands and closing
            for row in self._decoder.step():
                self._deliver(self._running.pop(row))

    def _deliver(self, request: _Request) -> None:
        row = request.row
        if request.future.set_running_or_notify_cancel():
            request.future.set_result(
                Generation(tuple(row.ids), tuple(row.logprobs), tuple(row.versions), row.finish_reason)
            )

    def _replace_weights(self, tensors: Mapping[str, Tensor], version: int, fingerprint: str) -> None:
        # Everything is checked before anything is copied: a refused publication leaves the old weights complete.
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


def build_torch_engine(settings: TorchEngineSettings, context: EngineContext) -> TorchEngine:
    """Load the run's model into an engine of this process."""
    return TorchEngine.from_folder(
        context.model,
        lockstep=context.lockstep,
        slots=settings.slots,
        context_tokens=context.context_tokens,
        threads=settings.threads,
        health=context.health,
    )


def _refuse(future: "Future[Any]", error: Exception) -> None:
    # A future that its caller cancelled, or that has a result already, raises if it is set: it is left alone.
    if future.running() or (not future.done() and future.set_running_or_notify_cancel()):
        future.set_exception(error)


@torch.inference_mode()
def _score(model: "PreTrainedModel", output: OutputLayer, ids: Sequence[int], start: int) -> list[float]:
    # With an explicit mask, because transformers builds none for a custom attention; without the pool, whose slots may
    # hold the caches of rollouts.
    mask = causal_mask(torch.arange(len(ids))[None], len(ids), attention_window(model.config))
    tokens_1T = torch.tensor([list(ids)])
    states = model.base_model(input_ids=tokens_1T, attention_mask=mask, use_cache=False).last_hidden_state
    logits = output(states[0, start - 1 : -1])
    return torch.log_softmax(logits, -1).gather(1, tokens_1T[0, start:, None])[:, 0].tolist()
