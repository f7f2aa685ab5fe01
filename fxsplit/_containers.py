"""Containers of a graph module: modules that only hold others, so that paths stay as they were.

A graph calls layers, not the blocks around them. A block's path still leads to a module, but nobody calls that one.
"""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

from torch import nn
from torch.utils.hooks import RemovableHandle

from fxsplit._errors import NoEffectWarning, SplitError

_HOW = (
    "The graph calls the modules inside of it one by one; hook one of those (for the block's output the last one), or "
    "use fxsplit.hook_block(net, path, hook)."
)


class Container(nn.Module):
    """Stands for a block of the original model, whose modules it holds under their names; the graph never calls it."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not possible.

        Raises:
            SplitError: Always.
        """
        raise SplitError(
            f"This module only holds {list(self._modules)} under their original paths; the code that called them is in "
            "the graph of the whole. Call the model, its trunk or one of its heads."
        )

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Register, with a warning that the hook will never run."""
        self._warn()
        return super().register_forward_hook(*args, **kwargs)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Register, with a warning that the hook will never run."""
        self._warn()
        return super().register_forward_pre_hook(*args, **kwargs)

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Register, with a warning that the hook will never run."""
        self._warn()
        return super().register_full_backward_hook(*args, **kwargs)

    def register_full_backward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Register, with a warning that the hook will never run."""
        self._warn()
        return super().register_full_backward_pre_hook(*args, **kwargs)

    def _warn(self) -> None:
        held = list(self._modules)
        message = f"a hook on the container of {held} will never run. {_HOW}"
        warnings.warn(message, NoEffectWarning, stacklevel=3)


def mark_containers(root: nn.Module) -> None:
    """Make containers of the plain modules that torch.fx puts around the modules of a graph, in place."""
    for module in root.modules():
        mark_container(module)


def mark_container(module: nn.Module) -> None:
    """Make a container of ``module`` if it is a plain one."""
    if type(module) is nn.Module:
        module.__class__ = Container
