"""Holds the keys and values of unfinished rollouts, and the attention that reads them without copying.

A pass works on a window: adjacent slots (rows) and the columns up to the longest of them. This one appends one token
(upper case) to slots 0 to 2, which hold 5, 3 and 2 tokens. All rows read columns 0 to 5, and the mask hides what lies
right of each row's new token.

    column   0 1 2 3 4 5   6 ...
    slot 0   a a a a a A |
    slot 1   b b b B . . |
    slot 2   c c C . . . |
    -------------------- +
    slot 3   d d d d d d   d      outside of the window: neither read nor written
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from searchrl.errors import ConfigurationError
from services.trainer.learner.output_layer import OutputLayer, probe_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

GROUPED_ATTENTION = "searchrl_grouped"
COLUMN_BLOCK = 64
"""Columns are allocated in multiples of this, so that short prompts do not each enlarge the pool by a few tokens.

Enlarging copies the pool. A larger block wastes memory for models with short contexts.
"""
ADVICE = "it cannot be trained; to serve it, use an engine of kind vllm"


def grouped_attention(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_options: object,
) -> tuple[Tensor, None]:
    """Attention of grouped queries that never repeats keys or values.

    The G query heads of one key head are laid out as G x T queries of that head, so a decode step reads the cache once.
    Shapes: B = rows, H = query heads, K = key heads, G = H / K, T = new tokens, S = cached tokens, D = head size.
    """
    rows, heads, tokens, size = query_BHTD.shape
    key_heads = key_BKSD.shape[1]
    # Query heads of one key head are adjacent: with H = 4, K = 2 and T = 1, heads 0 and 1 become two queries of key
    # head 0. The attention of transformers calls ``repeat_kv`` where there is a mask, which would write G copies of
    # every layer's cache for every sampled token.
    query = query_BHTD.reshape(rows, key_heads, heads // key_heads * tokens, size)
    if attention_mask is not None and tokens > 1:
        # One block of T mask rows per query head. A mask of one row, in a decode step, is broadcast over the heads.
        attention_mask = attention_mask.repeat(1, 1, heads // key_heads, 1)
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key_BKSD, value_BKSD, attn_mask=attention_mask, scale=scaling
    )
    return out.reshape(rows, heads, tokens, size).transpose(1, 2), None


def attention_window(config: "PretrainedConfig") -> int | None:
    """Number of tokens that every layer attends to, the current one included; None if there is no limit.

    Raises:
        ConfigurationError: the layers attend to different numbers of tokens.
    """
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        return window
    if kinds == {"full_attention"}:
        return None
    if kinds == {"sliding_attention"} and window:
        return window
    raise ConfigurationError(
        f"the torch engine needs layers of one kind, and this model has {', '.join(sorted(kinds))}; {ADVICE}"
    )


def causal_mask(positions_BT: Tensor, columns: int, window: int | None = None) -> Tensor:
    """Additive mask of shape (B, 1, T, columns)."""
    # Column p is never hidden from position p, so no row consists of -inf alone, whose softmax would be NaN. This
    # includes padding: ``window`` limits its positions to columns that exist.
    columns_S = torch.arange(columns)
    positions_B1T1 = positions_BT[:, None, :, None]
    hidden = columns_S > positions_B1T1
    if window is not None:
        hidden |= columns_S <= positions_B1T1 - window
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def slot_shape(config: "PretrainedConfig", tokens: int) -> tuple[int, int, int, int, int]:
    """Shape of one slot: layers, keys and values (2), key heads, tokens rounded up to blocks, size of a head."""
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads  # models like GPT-2 have one per query head
    columns = -(-tokens // COLUMN_BLOCK) * COLUMN_BLOCK
    return config.num_hidden_layers, 2, key_heads, columns, head_size


def most_slot_bytes(config: "PretrainedConfig", context_tokens: int) -> int:
    """Most bytes that a slot of a ``KvPool`` takes, in float32: when it grows last, old and new data exist."""
    largest = 4 * math.prod(slot_shape(config, context_tokens + 1))
    return largest + largest - 4 * math.prod(slot_shape(config, COLUMN_BLOCK))


class KvPool:
    """A fixed number of slots, each holding the keys and values of one rollout; passed to transformers as its cache.

    A forward pass works on a contiguous range of slots (``window``), so attention reads views. Columns right of a
    slot's length are garbage that the mask hides and later tokens overwrite. Not thread-safe: ``window`` sets the range
    that the following ``update`` of every layer uses.
    """

    def __init__(self, config: "PretrainedConfig", slots: int, context_tokens: int) -> None:
        """Read the sizes; memory is allocated when it is needed, for at most ``context_tokens`` per slot.

        Raises:
            ConfigurationError: layers differ in what they attend to, so that one mask cannot serve them all.
        """
        self._shape = (slots, *slot_shape(config, COLUMN_BLOCK))
        # One column more than any row fills: padding behind the context is written there, and no token sees it.
        self._most_columns = context_tokens + 1
        self._sees = attention_window(config)
        self._data = torch.empty(0)
        self._columns = 0
        self._first = self._last = self._end = 0
        self._rows_B1 = self._positions_BT = torch.empty(0, dtype=torch.long)
        self._uniform_start: int | None = None

    @property
    def slots(self) -> int:
        return self._shape[0]

    def reserve(self, columns: int) -> None:
        """Make room for ``columns`` tokens per slot and keep what is stored.

        The pool grows by at least half, up to the context: enlarging it copies everything, and must not happen for
        every new token.
        """
        if columns <= self._columns:
            return
        columns = max(columns, min(self._columns * 3 // 2, self._most_columns))
        columns = -(-columns // COLUMN_BLOCK) * COLUMN_BLOCK
        # zeros, not empty: a masked column still multiplies its value by 0, and 0 x NaN is NaN
        data = torch.zeros(*self._shape[:4], columns, self._shape[5])
        if self._columns:
            data[:, :, :, :, : self._columns] = self._data
        self._data, self._columns = data, columns

    def window(self, first: int, starts_B: Tensor, tokens: int) -> Tensor:
        """Choose slots ``first`` .. for a pass that appends ``tokens`` per slot at ``starts_B``; return the mask.

        The mask is additive, of shape (B, 1, T, S): token t of a row sees the columns up to its own position, and with
        a sliding window only the last ones of these.
        """
        self._first, self._last = first, first + len(starts_B)
        # Rows of a pass have chunks of different lengths, and the padding of a short one may run over the end of the
        # context. All of it lands in the last column, which no token sees, so it does not matter which write remains.
        self._positions_BT = (starts_B[:, None] + torch.arange(tokens)).clamp(max=self._most_columns - 1)
        self._rows_B1 = torch.arange(self._first, self._last)[:, None]
        lowest, highest = int(starts_B.min()), int(starts_B.max())
        self._end = min(highest + tokens, self._most_columns)
        self._uniform_start = lowest if lowest == highest and self._end == highest + tokens else None
        self.reserve(self._end)
        return causal_mask(self._positions_BT, self._end, self._sees)

    @property
    def positions_BT(self) -> Tensor:
        return self._positions_BT

    def update(self, key_BKTD: Tensor, value_BKTD: Tensor, layer: int, *_args: object) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one layer; return views of everything up to the end of the window."""
        layer_data = self._data[self._first : self._last, layer]
        if self._uniform_start is not None:  # equal lengths: one slice is cheaper than an index per row
            layer_data[:, 0, :, self._uniform_start : self._end] = key_BKTD
            layer_data[:, 1, :, self._uniform_start : self._end] = value_BKTD
        else:
            # Two index tensors around a slice: their dimensions come first in the result, (B, T, K, D), hence the
            # transposed source.
            rows_B1 = self._rows_B1
            self._data[:, layer, 0][rows_B1, :, self._positions_BT] = key_BKTD.transpose(1, 2)
            self._data[:, layer, 1][rows_B1, :, self._positions_BT] = value_BKTD.transpose(1, 2)
        return layer_data[:, 0, :, : self._end], layer_data[:, 1, :, : self._end]

    def get_seq_length(self, *_args: object) -> int:
        """Transformers calls this only to derive positions, which every call here passes explicitly."""
        return 0

    def move(self, sources: list[int], targets: list[int], columns: int) -> None:
        """Copy slots ``sources`` over ``targets`` (all sources are read first, so permutations work)."""
        # Indexing with a list copies, which is what makes a swap of two slots safe. It also costs memory for all of
        # the sources, so callers pass only as many columns as are in use.
        self._data[targets, :, :, :, :columns] = self._data[sources, :, :, :, :columns]


SPLIT = 5
"""The probe is fed in two parts, so that the second one reads keys and values of the first from the pool."""
TOLERANCE_NATS = 1e-3
"""Far above the rounding of float32, in which the engine computes; what it shall catch is a wrong mask or position."""


@torch.inference_mode()
def use_cached_attention(model: "PreTrainedModel", output: OutputLayer) -> None:
    """Let ``model`` read keys and values from a pool.

    Raises:
        ConfigurationError: it cannot, or its log-probabilities change.
    """
    from transformers import AttentionInterface  # takes seconds to import

    ids_1T = probe_ids(output.vocabulary)
    # computed before the switch below, with the attention the model was loaded with
    expected_TV = torch.log_softmax(
        output(model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0]), -1
    )
    pool = KvPool(model.config, slots=1, context_tokens=ids_1T.shape[1])
    # For the whole process: models look the name up at each call. The mask needs no counterpart, because transformers
    # passes a mask of four dimensions on as it is.
    AttentionInterface.register(GROUPED_ATTENTION, grouped_attention)
    model.set_attn_implementation(GROUPED_ATTENTION)
    try:
        parts = [_feed(model, output, pool, ids_1T[:, :SPLIT], 0), _feed(model, output, pool, ids_1T[:, SPLIT:], SPLIT)]
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"the torch engine cannot run {type(model).__name__} ({error}); {ADVICE}") from error
    difference = (torch.log_softmax(torch.cat(parts), -1) - expected_TV).abs()
    # The log-probabilities of the probe's own tokens, as in training; the tail of a distribution may differ by more.
    chosen = difference[:-1].gather(1, ids_1T[0, 1:, None]).max().item()
    if not chosen <= TOLERANCE_NATS:  # not ">": a NaN must be refused as well
        raise ConfigurationError(
            f"the torch engine computes other log-probabilities for {type(model).__name__} than the model itself "
            f"(by {chosen:.3g} nats); {ADVICE}"
        )


def _feed(model: "PreTrainedModel", output: OutputLayer, pool: KvPool, ids_1T: Tensor, start: int) -> Tensor:
    mask = pool.window(0, torch.tensor([start]), ids_1T.shape[1])
    states = model.base_model(
        input_ids=ids_1T,
        position_ids=pool.positions_BT,
        attention_mask=mask,
        past_key_values=pool,
        use_cache=True,
    ).last_hidden_state
    return output(states[0])
