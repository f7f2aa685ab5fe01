"""Ready-made choices of weights for ``skip`` and ``include`` of `sparsify`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sparsity._attention import attention_projections
from sparsity._components import component_of
from sparsity._order import uses
from sparsity._selectors import Kind, Site


def depthwise(path: str, module: nn.Module, parameter: nn.Parameter) -> bool:
    """Tell whether ``module`` is a depthwise convolution: as many groups as input channels, more than one.

    Example:
        >>> import sparsity
        >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1))
        >>> list(sparsity.sparsify(net, 0.5, skip=sparsity.depthwise))
        ['1.weight']
    """
    return isinstance(module, _ConvNd) and module.groups == module.in_channels > 1


def embeddings(path: str, module: nn.Module, parameter: nn.Parameter) -> bool:
    """Tell whether ``module`` is an ``nn.Embedding`` or ``nn.EmbeddingBag``, for ``include``.

    A weight that an embedding shares with other layers (a tied language model head) gets one mask for all of them.
    Tables of learned positions are embeddings too; to mask only those of tokens, name them by path.

    Example:
        >>> import sparsity
        >>> net = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
        >>> net["head"].weight = net["embed"].weight
        >>> masks = sparsity.sparsify(net, 0.5, include=sparsity.embeddings)
        >>> list(masks), masks.tied
        (['embed.weight'], {'head.weight': 'embed.weight'})
    """
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def _first(model: nn.Module, sites: Sequence[Site]) -> list[str]:
    return [site.path for site in uses(model, sites)[:1]]


def _classifiers(model: nn.Module, sites: Sequence[Site]) -> list[str]:
    declared = _declared(model)
    if declared is not None:
        return [site.path for site in sites if any(site.module is each for each in declared)]
    used = uses(model, sites)
    if not any(_in_head(path) for path, _ in model.named_modules()):
        return [site.path for site in used[-1:]]
    return list({component_of(site.path): site.path for site in used if _in_head(site.path)}.values())


def _in_head(path: str) -> bool:
    return component_of(f"{path}.").startswith("heads.")


def _declared(model: nn.Module) -> list[nn.Module] | None:
    """Return all modules in what a model of timm or transformers says is its classifier; None if it doesn't say."""
    for ask in (_named_by_timm, _output_embeddings):
        modules = ask(model)
        if modules:
            return [part for module in modules for part in module.modules()]
    return None


def _named_by_timm(model: nn.Module) -> list[nn.Module]:
    names: Any = getattr(model, "default_cfg", {}).get("classifier") or ()
    modules = dict(model.named_modules())
    return [modules[name] for name in ((names,) if isinstance(names, str) else names) if name in modules]


def _output_embeddings(model: nn.Module) -> list[nn.Module]:
    ask: Callable[[], Any] | None = getattr(model, "get_output_embeddings", None)
    module = ask() if ask is not None else None
    return [module] if isinstance(module, nn.Module) else []


first_layer = Kind("first_layer", _first)
"""The first weight that a mask could be made for (with embeddings, if they are included).

In a traced or split model it is the one that the graph uses first. In other modules, whose order of execution is not
known, it is the first in the order of definition (``model.named_modules()``). One weight only: of a model with several
stems, name the others by path.
"""

classifier = Kind("classifier", _classifiers)
"""The last layer: of a split model that of each head.

Models of timm name it (``default_cfg['classifier']``, several layers if they have several), language models of
transformers too (``get_output_embeddings()``); if that layer can't have a mask anyway, nothing else is taken for it.
Otherwise it is the weight that is used last, by the order that `first_layer` uses, in each of ``heads.<i>`` (none in a
head without any) or, if there are no heads, in the whole model. Of a split model with several outputs, name the others
by path (``'heads.*.head_dist'``).
"""

attention = Kind("attention", attention_projections)
"""The projections of attention: query, key, value, however they are fused, and output.

Those of ``nn.MultiheadAttention`` are known by its type. Others are known by their names alone, since split models keep
names but not classes: a module counts as attention if it holds a layer with the name of a fused projection (``qkv``,
``kv``, ``c_attn``, ``query_key_value``, ...), or one for queries next to one for keys or values (``q``, ``q_proj``,
``query``, ``to_q``, ...). In it, all layers under such names are meant, and the one for the output (``proj``,
``out_proj``, ``o_proj``, ``to_out``, ``dense``, ...), or, as in BERT, ``output.dense`` next to it. These are the names
in timm and transformers; attention written with other names is not seen, so look at ``Masks.left``, and at the warning
if nothing was found at all.
"""
