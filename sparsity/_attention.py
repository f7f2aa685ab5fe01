"""Which weights project to queries, keys, values and outputs of attention, by the names that libraries use."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparsity._selectors import Site

_FUSED = {
    *("qkv", "to_qkv", "qkv_proj", "qkv_linear", "wqkv", "qkvs", "c_attn", "query_key_value", "queries_keys_values"),
    *(
        "kv",
        "to_kv",
        "kv_proj",
        "key_value",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
        "keys_values",
        "qk",
        "to_qk",
        "query_key",
    ),
}
_QUERY = {
    *("q", "query", "q_proj", "query_proj", "q_lin", "q_linear", "linear_q", "wq", "to_q", "to_query", "q_attn"),
    *("q_head", "q_a_proj", "q_b_proj", "query_global", "projection_query", "queries"),
}
_KEY_OR_VALUE = {
    *("k", "key", "k_proj", "key_proj", "k_lin", "k_linear", "linear_k", "wk", "to_k", "to_key", "k_head"),
    *("v", "value", "v_proj", "value_proj", "v_lin", "v_linear", "linear_v", "wv", "to_v", "to_value", "v_head"),
    *("key_global", "value_global", "projection_key", "projection_value", "keys", "values"),
}
_INPUT = _FUSED | _QUERY | _KEY_OR_VALUE
_OUTPUT = {
    *("proj", "out_proj", "o_proj", "c_proj", "output_proj", "post_proj", "proj_out", "projection", "dense"),
    *("o", "wo", "out", "output", "out_lin", "linear_out", "to_out", "final"),
}


def attention_projections(model: nn.Module, sites: Sequence[Site]) -> set[str]:
    """Return the paths of the sites that are projections of attention."""
    modules = dict(model.named_modules())
    blocks = {path: _children(module) for path, module in modules.items() if _is_attention(module)}
    return {site.path for site in sites if _projects(site.path, modules, blocks)}


def _children(module: nn.Module) -> set[str]:
    return {name.lower() for name in module._modules}


def _is_attention(module: nn.Module) -> bool:
    children = _children(module)
    fused = children & _FUSED
    return isinstance(module, nn.MultiheadAttention) or bool(fused or (children & _QUERY and children & _KEY_OR_VALUE))


def _projects(path: str, modules: dict[str, nn.Module], blocks: dict[str, set[str]]) -> bool:
    parts = path.split(".")
    for end in range(len(parts)):
        around, below = ".".join(parts[:end]), [part.lower() for part in parts[end:]]
        if around in blocks:
            if isinstance(modules[around], nn.MultiheadAttention) or below[0] in _INPUT | _OUTPUT:
                return True
        elif below[:2] == ["output", "dense"] and _has_no_output(around, blocks):
            return True
    return False


def _has_no_output(around: str, blocks: dict[str, set[str]]) -> bool:
    """Tell whether ``around`` holds attention that leaves its output to a layer beside it."""
    children = (blocks.get(f"{around}.{name}" if around else name) for name in ("self", "attention", "self_attention"))
    return any(found is not None and not found & _OUTPUT for found in children)
