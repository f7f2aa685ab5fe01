"""Text from a traced or split language model, by transformers' own generation."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from fxsplit._errors import SplitError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def as_generator(net: nn.Module) -> PreTrainedModel:
    """A transformers model around ``net``, for ``generate`` and for tools that take a ``PreTrainedModel``.

    All of ``model.generate(...)`` works (greedy, beams, sampling, logits processors, streamers); the vote decides every
    token. Without key-value cache: each step runs the net on all tokens so far. Calling the result returns what ``net``
    returns; what an evaluation harness leaves out is filled in (a mask of ones, labels, whose loss is left out then).
    The parameters are those of ``net``, and nothing is copied.

    Batches may be padded on the left. A net that takes ``position_ids`` gets them; for any other one the padding is
    moved behind the text, where a causal model doesn't see it.

    Args:
        net: A `SplitModel` or `TracedModel` of a language model, or a DistributedDataParallel or compiled one: of
            transformers, or any causal one from tokens ``[B, T]`` to logits ``[B, T, V]``.

    Raises:
        SplitError: ``net`` is none, or transformers is not installed.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
        >>> net = fxsplit.split(fxsplit.trace(LlamaForCausalLM(LlamaConfig(vocab_size=9, **sizes))), 1).eval()
        >>> generator = fxsplit.as_generator(net)
        >>> generator.generate(torch.tensor([[3, 4]]), min_new_tokens=5, max_new_tokens=5, num_beams=2).shape
        torch.Size([1, 7])
    """
    graph = _graph_module(net)
    if importlib.util.find_spec("transformers") is None:
        raise SplitError("Generation needs transformers: pip install 'fxsplit[text]'.")
    from fxsplit._generator import build_generator

    return build_generator(net, graph)


def generate(net: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
    """Continue token sequences with a traced or split language model; the vote over the heads decides every token.

    The net runs in the mode it is in: call ``net.eval()`` first. There is no key-value cache.

    Args:
        net: As for `as_generator`.
        input_ids: Tokens ``[B, T]`` to continue; the encoder's input for an encoder-decoder.
        attention_mask: ``[B, T]``, 1 where there is a token; padding is on the left.
        **options: Of transformers' ``generate``: ``max_new_tokens``, ``eos_token_id``, ``do_sample``, ``temperature``,
            ``top_k``, ``num_beams``, ... The original model's generation config holds the defaults.

    Returns:
        Tokens ``[B, T + new]``, or whatever else the options ask transformers for.

    Raises:
        SplitError: As for `as_generator`.
        InputError: The net was traced for one length only.

    Example:
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.out = nn.Embedding(9, 8), nn.Linear(8, 9)
        ...     def forward(self, input_ids):
        ...         return self.out(self.embed(input_ids))
        >>> net = fxsplit.split(fxsplit.trace(Model(), torch.ones(2, 6, dtype=torch.long)), "embed")
        >>> fxsplit.generate(net, torch.tensor([[3, 4]]), max_new_tokens=5).shape
        torch.Size([1, 7])
    """
    generator: Any = as_generator(net)
    return generator.generate(input_ids, attention_mask=attention_mask, **options)


def _graph_module(net: nn.Module) -> fx.GraphModule:
    """The traced or split model in ``net``, which may be wrapped."""
    inner: Any = net
    while not isinstance(inner, fx.GraphModule):
        held = inner._modules if isinstance(inner, nn.Module) else {}
        wrapped = next((held[name] for name in ("module", "_orig_mod") if name in held), None)
        if wrapped is None:
            raise SplitError(
                f"Generation needs a traced or split model, got {type(net).__name__}; make one with fxsplit.trace or "
                "fxsplit.split."
            )
        inner = wrapped
    return inner
