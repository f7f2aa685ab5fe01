"""Perplexity of language models: of every head, and of both votes over the heads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fxsplit._generator_inputs import complete_inputs
from recipes.evaluation._errors import EvaluationError
from recipes.evaluation._predict import device_of, evaluation_mode, head_outputs

IGNORED = -100


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a language model, weighted by token: exp of the mean NLL of all predicted tokens.

    Args:
        prob: Of the mean probability, log p = logsumexp_m log p_m - log M.
        logit: Of the mean logit.
        heads: Of every head by itself.
        disagreement: Share of tokens for which two heads would choose differently, over pairs; NaN for one head.
        tokens: Number of predicted tokens.
    """

    prob: float
    logit: float
    heads: tuple[float, ...]
    disagreement: float
    tokens: int


def head_token_logits(net: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
    """Return each head's logits `[B, T, V]` for tokens `[B, T]`; what else a traced network asks for is filled in.

    Args:
        net: A causal language model, split or not.
        input_ids: `[B, T]`.
        attention_mask: `[B, T]`, 1 where there is a token; padding is on the right. A network that takes no mask does
            without, since a causal model doesn't look ahead.

    Raises:
        EvaluationError: An output holds no logits.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
        >>> [logits.shape for logits in head_token_logits(model, torch.tensor([[3, 4]]))]
        [torch.Size([1, 2, 9])]
    """
    if not isinstance(net, fx.GraphModule):
        return head_outputs(net, input_ids)
    names = [str(node.target) for node in net.graph.nodes if node.op == "placeholder"]
    main = "input_ids" if "input_ids" in names else names[0]
    given: dict[str, Any] = {main: input_ids}
    if attention_mask is not None and "attention_mask" in names:
        given["attention_mask"] = attention_mask
    values, _ = complete_inputs(given, names, main, SimpleNamespace(is_encoder_decoder=False))
    return head_outputs(net, **values)


def perplexity(net: nn.Module, batches: Iterable[Tensor | Mapping[str, Tensor]]) -> Perplexity:
    """Measure perplexity: each token of a sequence but its first is predicted from those before it.

    The mean is over all predicted tokens, so that batches and sequences of different lengths count by what they hold.

    Args:
        net: A causal language model, split or not; evaluated on its device and left in its mode.
        batches: Tokens `[B, T]`, or mappings with `input_ids`, and optionally `attention_mask` (padding on the right)
            and `labels`, unshifted, -100 where nothing counts.

    Raises:
        EvaluationError: There is no token to predict, labels that don't fit, or NaN logits.

    Example:
        >>> model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
        >>> nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
        (...)
        >>> round(perplexity(model, [torch.tensor([[0, 1, 2], [3, 2, 1]])]).prob, 4)
        4.0
    """
    totals: Tensor | None = None
    tokens, unequal, heads = 0, 0.0, 0
    for batch in batches:
        input_ids, mask, target = _parts(batch, device_of(net))
        if not bool((target != IGNORED).any()):
            continue
        with evaluation_mode(net):
            logits = head_token_logits(net, input_ids, mask)
        kept = target != IGNORED
        scores = [values[:, :-1][kept].float() for values in logits]
        losses, differences = _batch_losses(scores, target[kept])
        totals = losses if totals is None else totals + losses
        unequal, tokens, heads = unequal + differences, tokens + int(kept.sum()), len(scores)
    if totals is None:
        raise EvaluationError(
            "perplexity: there is no token to predict: no batches, or sequences of a single token. Is the split empty?"
        )
    prob, logit, *each = (_exp(total / tokens) for total in totals.tolist())
    return Perplexity(prob, logit, tuple(each), unequal / tokens if heads > 1 else math.nan, tokens)


def _parts(batch: Tensor | Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
    """Tokens `[B, T]`, mask, and what is to be predicted, `[B, T - 1]`."""
    fields = {"input_ids": batch} if isinstance(batch, Tensor) else batch
    if "input_ids" not in fields or fields["input_ids"].ndim != 2:
        found = list(fields["input_ids"].shape) if "input_ids" in fields else sorted(fields)
        raise EvaluationError(f"perplexity: expected batches of tokens [B, T], or with 'input_ids'; got {found}.")
    input_ids = fields["input_ids"].to(device)
    labels = fields["labels"].to(device) if "labels" in fields else input_ids
    if labels.shape != input_ids.shape:
        raise EvaluationError(
            f"perplexity: labels are unshifted, one for each token {list(input_ids.shape)}; got {list(labels.shape)}."
        )
    mask = fields["attention_mask"].to(device) if "attention_mask" in fields else None
    if mask is not None:
        labels = labels.masked_fill(mask == 0, IGNORED)
    return input_ids, mask, labels[:, 1:]


def _batch_losses(scores: list[Tensor], target: Tensor) -> tuple[Tensor, float]:
    """Sums over tokens: NLL of both votes and of each head, `[2 + M]`, and how often heads differ, mean over pairs."""
    for number, values in enumerate(scores):
        if bool(values.isnan().any()):
            raise EvaluationError(
                f"perplexity: logits of head {number} are NaN. Did training diverge? Look at the loss, and start again "
                "from the last good checkpoint."
            )
    each = torch.stack([functional.cross_entropy(values, target, reduction="none") for values in scores]).double()
    by_probability = math.log(len(scores)) - torch.logsumexp(-each, dim=0)
    # A running sum: the stack of all heads' logits may not fit into memory.
    by_logit = functional.cross_entropy(sum(scores[1:], scores[0]) / len(scores), target, reduction="none").double()
    choices = [values.argmax(dim=-1) for values in scores]
    pairs = list(itertools.combinations(choices, 2))
    differences = sum(int((one != other).sum()) for one, other in pairs) / max(len(pairs), 1)
    return torch.stack([by_probability.sum(), by_logit.sum(), *each.sum(dim=1)]).cpu(), differences


def _exp(mean: float) -> float:
    """`math.exp`, infinite where that would overflow."""
    return math.exp(mean) if mean < 700 else math.inf
