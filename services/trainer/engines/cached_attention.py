"""Switches a model to the attention of the KV pool and checks that its log-probabilities stay the same."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from searchrl.errors import ConfigurationError
from services.trainer.engines.kv_pool import ADVICE, GROUPED_ATTENTION, KvPool
from services.trainer.learner.output_layer import OutputLayer, probe_ids

SPLIT = 5
"""The probe is fed in two parts, so that the second one reads keys and values of the first from the pool."""
TOLERANCE_NATS = 1e-3
"""Far above the rounding of float32, in which the engine computes; what it shall catch is a wrong mask or position."""


@torch.inference_mode()
def use_cached_attention(model: PreTrainedModel, output: OutputLayer) -> None:
    """Let ``model`` read keys and values from a pool.

    Raises:
        ConfigurationError: it cannot, or its log-probabilities change.
    """
    ids_1T = probe_ids(output.vocabulary)
    # computed before the switch below, with the attention the model was loaded with
    expected_TV = torch.log_softmax(
        output(model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0]), -1
    )
    pool = KvPool(model.config, slots=1, context_tokens=ids_1T.shape[1])
    model.set_attn_implementation(GROUPED_ATTENTION)
    try:
        parts = [_feed(model, output, pool, ids_1T[:, :SPLIT], 0), _feed(model, output, pool, ids_1T[:, SPLIT:], SPLIT)]
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"the torch engine cannot run {type(model).__name__} ({error}); {ADVICE}") from error
    difference = (torch.log_softmax(torch.cat(parts), -1) - expected_TV).abs()
    chosen = difference[:-1].gather(1, ids_1T[0, 1:, None]).max().item()
    if not chosen <= TOLERANCE_NATS:
        raise ConfigurationError(
            f"the torch engine computes other log-probabilities for {type(model).__name__} than the model itself "
            f"(by {chosen:.3g} nats); {ADVICE}"
        )


def _feed(model: PreTrainedModel, output: OutputLayer, pool: KvPool, ids_1T: Tensor, start: int) -> Tensor:
    mask = pool.window(0, torch.tensor([start]), ids_1T.shape[1])
    states = model.base_model(
        input_ids=ids_1T,
        position_ids=pool.positions_BT,
        attention_mask=mask,
        past_key_values=pool,
        use_cache=True,
    ).last_hidden_state
    return output(states[0])
