"""Computes logits from hidden states as the model itself does, including the logit scale of some families."""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from searchrl.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PROBE_TOKENS = 8
"""Enough for a scale, a cap or another norm to show; short enough to cost nothing."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Nats. In float32 the two computations differ by rounding only; half precision rounds the hidden states as well."""


class OutputLayer:
    """Logits of hidden states: the output embedding, then the model's scale."""

    def __init__(self, model: "PreTrainedModel") -> None:
        """Find the layer.

        Raises:
            ConfigurationError: the model is not a language model.
        """
        head = cast("nn.Module | None", model.get_output_embeddings())
        if head is None:
            raise ConfigurationError("the model has no layer for logits; a causal language model is needed")
        self._head = head
        self._scale = logit_scale(getattr(model, "config", None))
        self.vocabulary = int(cast(nn.Linear, head).weight.shape[0])

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits in float32."""
        # The head runs in the model's precision, as in the model itself. What follows needs float32: in bfloat16, a
        # log-probability near -10 is rounded to a multiple of 0.0625, which changes its ratio by up to 3 %.
        logits = self._head(hidden).float()
        return logits if self._scale == 1.0 else logits * self._scale


def logit_scale(config: "PretrainedConfig | None") -> float:
    """Granite divides its logits by ``logits_scaling``, Cohere multiplies them with ``logit_scale``."""
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    return float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)


def probe_ids(vocabulary: int) -> Tensor:
    """A few different tokens. Shape: [1, T]."""
    return (torch.arange(PROBE_TOKENS) * 7919 % vocabulary)[None]  # 7919 is a prime, so ids hardly repeat


@torch.no_grad()
def check_logits(model: "PreTrainedModel", ids_1T: Tensor) -> None:
    """Compare log-probabilities of a few tokens with those of the model's own forward pass.

    Raises:
        ConfigurationError: they differ: the model changes its logits in a way that training and sampling here would
            omit.
    """
    output = OutputLayer(model)
    ids = ids_1T.to(model.device)
    backbone = cast(nn.Module, model.base_model)
    ours = torch.log_softmax(output(backbone(input_ids=ids, use_cache=False).last_hidden_state), -1)
    theirs = torch.log_softmax(cast(nn.Module, model)(input_ids=ids, use_cache=False).logits.float(), -1)
    chosen = ids[0, 1:, None]
    difference = (ours - theirs)[0, :-1].gather(1, chosen).abs().max().item()
    if not difference <= TOLERANCE.get(model.dtype, 1e-3):  # not ">": a NaN must be refused as well
        raise ConfigurationError(
            f"{type(model).__name__} changes its logits in a way that is not known here: log-probabilities differ by "
            f"{difference:.3g} nats from the model's own, so it cannot be trained or sampled from"
        )
