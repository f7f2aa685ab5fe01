"""Tell a step that trains from one that torch.distributed.checkpoint makes to see what an optimizer remembers."""

from __future__ import annotations

from torch.optim import Optimizer

from sparsity._sharded import group_of, host, local


def is_rehearsal(optimizer: Optimizer) -> bool:
    """Tell whether the step about to be made changes nothing and only makes the optimizer's states.

    ``get_state_dict`` and ``set_state_dict`` of torch.distributed.checkpoint make such a step of an optimizer without
    states, so SGD without momentum makes it at each checkpoint: rates of zero, and gradients that are all zero.
    """
    if optimizer.state or any(group.get("lr", 0) != 0 for group in optimizer.param_groups):
        return False
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # A process whose rows happen to have no gradient must not decide otherwise than the rest.
    return not any(host([local(each).any() for each in gradients], [group_of(each) for each in gradients]))
