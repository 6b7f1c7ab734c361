"""Decodes many rollouts together; each keeps its keys and values from turn to turn.

Every rollout occupies one slot of the ``KvPool``. The slots below ``_width`` are fed in every step: they hold the
running rows, and the gaps that ended rows leave. The idle slots behind them keep the caches of rollouts that wait for
documents. Upper case: a rollout that decodes. Lower case: a kept cache. Dot: an empty slot.

    slot              0 1 2 3   4 5 6 7
    four rows decode  A B C D | e f . .   _width 4
    B ends its turn   A b C D | e f . .   b is a gap: it is fed with the others, and its logits are ignored
    _compact          A D C | b e f . .   _width 3: the last running row and the gap have swapped places
    admit e, G and H  A D C E G H | b f   _width 6: e continues with its cache; b and f have moved out of the way

If G and H have equal prompts, G is fed and its keys and values are copied to H. If no slot is free for b or f, the one
that was used least recently is dropped, and its next turn is fed from the start.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from searchrl.agent.types import Sampling
from services.trainer.engines.kv_pool import KvPool
from services.trainer.engines.sampling import StopDetector, sample_tokens, truncation_mask, uniforms
from services.trainer.learner.output_layer import OutputLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEED_TOKENS = 4096
"""Tokens of one pass over prompts, padding included; a longer prompt gets a pass of its own.

More tokens mean fewer passes, and more memory for activations and for the mask.
"""
COMPACT_BELOW = 0.7
"""Gaps are closed during decoding once fewer than this share of the fed slots still decode.

A gap costs a row of every pass, a compaction copies the caches it moves: a higher share copies more often, a lower one
feeds more gaps.
"""
NO_LIMIT = 1 << 20
"""Context of models whose configuration names none, e.g. without learned or rotary positions: more than any prompt."""


@dataclass(slots=True, eq=False)
class Row:
    """One request and the tokens sampled for it so far.

    ``cancelled`` is set by the event loop's thread and read by the owner thread, at the next token; everything else
    belongs to the owner thread."""

    rollout_id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    keep_cache: bool = True
    cancelled: bool = False
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish_reason: str = ""


@dataclass(slots=True, eq=False)
class _Cell:
    """Contents of one slot: the tokens whose keys and values it holds, and the row that decodes there now.

    ``used_at`` counts calls of ``admit``; a clock would make it a matter of timing which caches are dropped."""

    rollout_id: str
    ids: list[int] = field(default_factory=list)
    row: Row | None = None
    used_at: int = 0


class Decoder:
    """Decodes the admitted rows, one token each per step; not thread-safe, without a clock or a queue.

    Its results are a function of the calls made, never of their timing. See the module for the layout of the slots.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        output: OutputLayer,
        stops: StopDetector,
        eos_ids: frozenset[int],
        slots: int,
        context_tokens: int | None = None,
    ) -> None:
        """Allocate nothing yet; ``context_tokens`` limits a row, unless the model's own context is shorter."""
        self.version = 0
        self.prompt_tokens = self.reused_tokens = self.sampled_tokens = 0
        self._model = model
        self._output = output
        self._stops = stops
        self._eos_ids = eos_ids
        of_model = int(getattr(model.config, "max_position_embeddings", None) or NO_LIMIT)
        self.max_context = min(of_model, context_tokens or NO_LIMIT)
        self._pool = KvPool(model.config, slots, self.max_context)
        self._cells: list[_Cell | None] = [None] * slots
        self._width = 0
        self._logits_WV = torch.empty(0)
        self._uses = 0

    @property
    def running(self) -> int:
        """Rows that still decode."""
        return sum(1 for cell in self._cells[: self._width] if cell is not None and cell.row is not None)

    @property
    def free(self) -> int:
        """Rows that can be admitted now."""
        return len(self._cells) - self.running

    def forget(self, rollout_ids: Sequence[str]) -> None:
        """Drop the caches of rollouts that ended."""
        # A cell that still decodes, e.g. one of a cancelled rollout, keeps its slot until its row ends.
        ended = set(rollout_ids)
        for slot, cell in enumerate(self._cells):
            if cell is not None and cell.row is None and cell.rollout_id in ended:
                self._cells[slot] = None

    def forget_all(self) -> None:
        """Drop every cache; call it whenever the weights change: keys and values of the old ones must not be reused."""
        if self.running:
            raise RuntimeError("weights change only between batches")
        self.reset()

    def reset(self) -> None:
        """Drop everything, running rows included."""
        self._cells = [None] * len(self._cells)
        self._width = 0

    @torch.inference_mode()
    def admit(self, rows: Sequence[Row]) -> None:
        """Feed the prompts of ``rows``; they take part in the next step."""
        self._compact()  # so that every kept cache lies behind the running rows, where _place looks for it
        first = self._width
        kept, fresh = self._place(rows)
        logits: list[Tensor] = self._feed_all(first, kept)
        leaders = first + len(kept)
        # The rollouts of a group start with the same prompt: with 8 of them, one is fed and seven are copies.
        unique, order = _distinct_prompts(fresh)
        fresh_logits = self._feed_all(leaders, unique)
        if fresh_logits:
            logits.append(torch.cat(fresh_logits)[order])
        # after the leaders were fed: before, there is nothing to copy
        self._copy_to_followers(leaders, len(unique), order, fresh)
        self._logits_WV = torch.cat([self._logits_WV[:first], *logits]) if first else torch.cat(logits)
        self._width = first + len(rows)

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Sample one token per running row; return the rows that ended."""
        cells = self._cells[: self._width]
        rows = [cell.row if cell is not None else None for cell in cells]
        tokens, logprobs = self._sample(rows)
        ended: list[Row] = []
        for slot, row in enumerate(rows):
            if row is None:
                continue
            self._append(row, tokens[slot], logprobs[slot])
            if row.finish_reason:
                # Its last token is not fed: if the rollout continues, the next prompt brings it with the observation.
                ended.append(row)
                self._release(slot)
        running = self.running
        if running == 0:
            self._width = 0
            return ended
        if running < COMPACT_BELOW * self._width:
            self._compact()
        self._feed_step()
        return ended

    def _append(self, row: Row, token: int, logprob: float) -> None:
        if row.cancelled:
            row.finish_reason = "aborted"
            return
        row.ids.append(token)
        row.logprobs.append(logprob)
        row.versions.append(self.version)
        self.sampled_tokens += 1
        if token in self._eos_ids or self._stops.completes(row.ids, row.sampling.stop):
            row.finish_reason = "stop"
        elif len(row.ids) >= row.sampling.max_tokens or len(row.prompt_ids) + len(row.ids) >= self.max_context:
            row.finish_reason = "length"

    def _sample(self, rows: Sequence[Row | None]) -> tuple[list[int], list[float]]:
        """Draw a token for every fed slot; those of gaps are ignored.

        The random number of a token depends on the row's seed and its position alone, so neither gaps nor neighbors
        change what a row samples.
        """
        settings = [row.sampling if row else Sampling() for row in rows]
        seeds = np.array([row.seed if row else 0 for row in rows], dtype=np.uint64)
        positions = np.array([len(row.prompt_ids) + len(row.ids) if row else 0 for row in rows], dtype=np.uint64)
        temperatures = torch.tensor([setting.temperature for setting in settings], dtype=torch.float32)
        # Truncation sorts the vocabulary of every row. Training samples without it, so the usual step skips that.
        keep = None
        if any(setting.top_p < 1 or setting.top_k > 0 for setting in settings):
            scale = torch.where(temperatures == 0, 1.0, temperatures)[:, None]
            top_k = torch.tensor([setting.top_k for setting in settings])
            top_p = torch.tensor([setting.top_p for setting in settings])
            keep = truncation_mask(self._logits_WV / scale, top_k, top_p)
        numbers = torch.from_numpy(uniforms(seeds, positions))
        ids, logprobs = sample_tokens(self._logits_WV, temperatures, numbers, keep)
        return ids.tolist(), logprobs.tolist()

    def _release(self, slot: int) -> None:
        cell = self._cells[slot]
        assert cell is not None and cell.row is not None
        if cell.row.keep_cache:
            cell.row = None
        else:
            self._cells[slot] = None

    def _feed_step(self) -> None:
        """Feed the token sampled last in each running slot.

        A gap is fed token 0 right behind its kept tokens, where its next turn will overwrite it.
        """
        cells = self._cells[: self._width]
        starts = torch.tensor([len(cell.ids) if cell else 0 for cell in cells])
        tokens = [cell.row.ids[-1] if cell and cell.row else 0 for cell in cells]
        lasts = torch.zeros(len(cells), dtype=torch.long)
        self._logits_WV = self._forward(0, starts, torch.tensor(tokens)[:, None], lasts)
        for cell, token in zip(cells, tokens, strict=True):
            if cell is not None and cell.row is not None:
                cell.ids.append(token)

    def _feed_all(self, first: int, cells: Sequence[_Cell]) -> list[Tensor]:
        """Feed every cell the rest of its prompt, in passes of bounded size; return the logits of each pass."""
        # Greedy over adjacent slots, because a pass covers a contiguous range of them. The cost of a pass is the
        # rectangle of rows x longest chunk: after rows of 100 and 120 tokens, one of 1,500 would make it 4,500 tokens.
        logits, begin = [], 0
        chunks = [list(cell.row.prompt_ids[len(cell.ids) :]) for cell in cells if cell.row]
        while begin < len(cells):
            end, longest = begin + 1, len(chunks[begin])
            while end < len(cells) and max(longest, len(chunks[end])) * (end + 1 - begin) <= FEED_TOKENS:
                longest = max(longest, len(chunks[end]))
                end += 1
            logits.append(self._feed_chunks(first + begin, cells[begin:end], chunks[begin:end], longest))
            begin = end
        return logits

    def _feed_chunks(self, first: int, cells: Sequence[_Cell], chunks: Sequence[list[int]], longest: int) -> Tensor:
        ids_BT = torch.zeros(len(cells), longest, dtype=torch.long)
        for index, chunk in enumerate(chunks):
            ids_BT[index, : len(chunk)] = torch.tensor(chunk)
        starts = torch.tensor([len(cell.ids) for cell in cells])
        lasts = torch.tensor([len(chunk) - 1 for chunk in chunks])
        logits_BV = self._forward(first, starts, ids_BT, lasts)
        for cell, chunk in zip(cells, chunks, strict=True):
            cell.ids.extend(chunk)
            self.prompt_tokens += len(chunk)
        return logits_BV

    def _forward(self, first: int, starts_B: Tensor, ids_BT: Tensor, lasts_B: Tensor) -> Tensor:
        """Run the model on slots ``first`` .. and return the logits after each row's last token."""
        mask = self._pool.window(first, starts_B, ids_BT.shape[1])
        hidden_BTH = self._model.base_model(
            input_ids=ids_BT,
            # the padding of a shorter chunk may lie beyond the model's last position
            position_ids=self._pool.positions_BT.clamp(max=self.max_context - 1),
            attention_mask=mask,
            past_key_values=self._pool,
            use_cache=True,
        ).last_hidden_state
        return self._output(hidden_BTH[torch.arange(len(starts_B)), lasts_B])

    def _copy_to_followers(self, first: int, leaders: int, order: Sequence[int], fresh: Sequence[_Cell]) -> None:
        """Copy keys and values to cells whose prompt equals that of an earlier cell, the only one that was fed."""
        # ``_leaders_first`` has put the leaders first, so everything from index ``leaders`` on is a repetition.
        sources = [first + leader for leader in order[leaders:]]
        if not sources:
            return
        targets = list(range(first + leaders, first + len(fresh)))
        for cell, leader in zip(fresh[leaders:], order[leaders:], strict=True):
            cell.ids = list(fresh[leader].ids)
            self.reused_tokens += len(cell.ids)
        self._pool.move(sources, targets, max(len(cell.ids) for cell in fresh[leaders:]))

    def _place(self, rows: Sequence[Row]) -> tuple[list[_Cell], list[_Cell]]:
        """Move the rows' cells directly behind the running ones: kept rollouts in slot order, then new ones.

        New rows are ordered so that the first row of every distinct prompt comes before all repetitions: the rows that
        are fed stand in adjacent slots.
        """
        first, self._uses = self._width, self._uses + 1
        by_id = {row.rollout_id: row for row in rows}
        kept: list[_Cell] = []
        for cell in self._cells[first:]:
            row = by_id.get(cell.rollout_id) if cell is not None else None
            if cell is not None and row is not None and row.keep_cache:
                cell.row = by_id.pop(cell.rollout_id)
                # A prompt may differ from the held tokens (a rewritten history): only the common prefix is reused.
                shared = _shared_prefix(cell.ids, cell.row.prompt_ids)
                self.reused_tokens += shared
                del cell.ids[shared:]
                kept.append(cell)
        # Clients choose the ids, so two rows may have the same one: the last takes the kept cache, the others are fed.
        placed = {cell.row for cell in kept}
        waiting = [row for row in rows if row not in placed]
        fresh = [_Cell(row.rollout_id, row=row) for row in _leaders_first(waiting)]
        for cell in (*kept, *fresh):
            cell.used_at = self._uses
        self._arrange(first, [*kept, *fresh])
        return kept, fresh

    def _arrange(self, first: int, wanted: Sequence[_Cell]) -> None:
        """Put ``wanted`` into the slots from ``first`` on; move idle cells away, drop the least recently used."""
        taken, cells = set(map(id, wanted)), enumerate(self._cells)
        others = [(slot, cell) for slot, cell in cells if cell and slot >= first and id(cell) not in taken]
        room = len(self._cells) - first - len(wanted)
        # The most recently used ones that fit, back in slot order; cells that need not move stay where they are. The
        # sort is stable, so which of two equally old caches is dropped is the same in every repetition of a run.
        others = sorted(sorted(others, key=lambda pair: -pair[1].used_at)[:room], key=lambda pair: pair[0])
        end = first + len(wanted)
        stay = {slot: cell for slot, cell in others if slot >= end}
        holes = (slot for slot in range(end, len(self._cells)) if slot not in stay)
        target: dict[int, _Cell] = dict(enumerate(wanted, start=first)) | stay
        target |= {next(holes): cell for slot, cell in others if slot < end}
        self._move_cells(first, target)

    def _move_cells(self, first: int, target: dict[int, _Cell]) -> None:
        """Make the slots from ``first`` on hold exactly ``target``, moving the stored keys and values along."""
        old = {id(cell): slot for slot, cell in enumerate(self._cells) if cell is not None}
        moved = [(slot, cell) for slot, cell in target.items() if old.get(id(cell), slot) != slot]
        if moved:
            columns = max(len(cell.ids) for _, cell in moved)
            self._pool.move([old[id(cell)] for _, cell in moved], [slot for slot, _ in moved], columns)
        for slot in range(first, len(self._cells)):
            self._cells[slot] = target.get(slot)

    def _compact(self) -> None:
        """Close the gaps between running rows by swapping the last running rows into them.

        Swapping, not overwriting: a gap may be the kept cache of a rollout that will continue.
        """
        occupied = [slot for slot in range(self._width) if (cell := self._cells[slot]) is not None and cell.row]
        running = len(occupied)
        gaps = [slot for slot in range(running) if (cell := self._cells[slot]) is None or cell.row is None]
        movers = [slot for slot in occupied if slot >= running]
        if gaps:
            columns = max(len(cell.ids) for cell in self._cells[: self._width] if cell is not None)
            self._pool.move([*movers, *gaps], [*gaps, *movers], columns)
            for gap, mover in zip(gaps, movers, strict=True):
                self._cells[gap], self._cells[mover] = self._cells[mover], self._cells[gap]
            self._logits_WV[gaps] = self._logits_WV[movers]
        self._width = running


def _shared_prefix(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Leading tokens of ``prompt`` that need not be fed; the last one always is, because its logits are needed."""
    # The usual case, a prompt that continues the held tokens, is one comparison in C.
    limit = min(len(held), len(prompt) - 1)
    if tuple(held[:limit]) == tuple(prompt[:limit]):
        return limit
    return next(index for index in range(limit) if held[index] != prompt[index])


def _leaders_first(rows: Sequence[Row]) -> list[Row]:
    """Rows in order of prompt length (less padding), the first of each distinct prompt before every repetition."""
    ordered = sorted(rows, key=lambda row: (len(row.prompt_ids), row.rollout_id))
    seen: set[tuple[int, ...]] = set()
    leaders, followers = [], []
    for row in ordered:
        (followers if row.prompt_ids in seen else leaders).append(row)
        seen.add(row.prompt_ids)
    return leaders + followers


def _distinct_prompts(cells: Sequence[_Cell]) -> tuple[list[_Cell], list[int]]:
    """The first cell of each distinct prompt, and for every cell the index of its prompt among them."""
    index_of: dict[tuple[int, ...], int] = {}
    leaders: list[_Cell] = []
    order: list[int] = []
    for cell in cells:
        assert cell.row is not None
        if cell.row.prompt_ids not in index_of:
            index_of[cell.row.prompt_ids] = len(leaders)
            leaders.append(cell)
        order.append(index_of[cell.row.prompt_ids])
    return leaders, order
