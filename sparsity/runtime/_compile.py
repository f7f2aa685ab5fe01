"""`compile`: from a traced or split network to one that skips its zero weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsity._errors import CompileError

if TYPE_CHECKING:
    from sparsity.runtime._net import SparseNet


def compile(net: Any, example: Any, *, threads: int | None = None, tune: bool = True) -> SparseNet:
    """Compile a traced or split network for inference on the CPU that skips zero weights.

    Masks and BatchNorm are folded, what surrounds a layer is fused into it, and each layer runs in the sparse kernel or
    in torch, whichever is faster at its shape and density. What is connected runs as one plan, in one parallel region;
    what no plan can hold runs in torch. ``net`` is not changed, and not needed any more afterwards.

    Args:
        net: Made by `fxsplit.trace`, `fxsplit.split` or `fxsplit.neurotrailify`, in eval mode, float32, on the CPU.
        example: Inputs as for a call: a tensor, a tuple of arguments, a dict of keywords, or ``(args, kwargs)``.
            Choices are made for its batch size and shape; other batches run too.
        threads: Number of threads; None asks torch at every call.
        tune: Whether close choices may be measured, which takes seconds and is remembered on disk; and whether the
            result is compared with the dense network as a whole. False decides by a fixed model of costs, so that the
            same network always gives the same result.

    Returns:
        A module that is called like ``net``; ``.report()`` says what runs and why.

    Raises:
        CompileError: ``net`` is not traced, in training mode, not float32 or not on the CPU; or the example does not
            fit.

    Example:
        >>> import sparsity, torch
        >>> net = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval())
        >>> masks = sparsity.sparsify(net, 0.95)
        >>> x = torch.randn(2, 64)
        >>> fast = sparsity.compile(net, x, tune=False)
        >>> torch.allclose(fast(x), net(x), atol=1e-6)
        True
    """
    # Here, so that importing sparsity stays cheap.
    from sparsity.runtime._assemble import Settings
    from sparsity.runtime._build_net import build
    from sparsity.runtime._example import arguments_of, check_network, detached, warn_of_hooks
    from sparsity.runtime._inline import inline
    from sparsity.runtime._net import SparseNet

    check_network(net)
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise CompileError(f"compile: threads must be at least 1 or None, got {threads!r}.")
    arguments = detached(arguments_of(example))
    warn_of_hooks(net)
    settings = Settings(threads, tune)
    return SparseNet(build(net, inline(net), arguments, settings), arguments, settings)
