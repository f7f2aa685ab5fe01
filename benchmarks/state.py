"""What compact optimizer state saves: ``python -m benchmarks.state [--models NAME ...] [--sparsity S ...]``.

AdamW on the networks of benchmarks.training, masked, with ``compact_state=True`` over states of all weights: bytes of
the optimizer's state and of what the engine keeps beside it, peak resident memory of a process that makes three
training steps, and the time of ``optimizer.step()`` with the same gradients, interleaved, medians. All on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

import sparsity
from benchmarks._memory import resident
from benchmarks.training import MODELS, median_seconds

MIB = 2**20


def attach(net: nn.Module, share: float, compact: bool) -> tuple[Optimizer, sparsity.Engine]:
    """Mask a network and give it an optimizer and an engine."""
    sparsity.sparsify(net, share)
    optimizer = AdamW(net.parameters(), lr=1e-4)
    return optimizer, sparsity.rigl(net, optimizer, every=10**6, compact_state=compact)


def backward(net: nn.Module, batch: Any) -> None:
    """Make the gradients of one batch."""
    inputs, labels = batch()
    outputs = net(**inputs) if isinstance(inputs, dict) else net(*inputs)
    logits = outputs if isinstance(outputs, Tensor) else outputs.logits
    nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()


def size(tensors: Any) -> int:
    """Bytes of all tensors in nested dicts."""
    if isinstance(tensors, dict):
        return sum(map(size, tensors.values()))
    return tensors.nbytes if isinstance(tensors, Tensor) else 0


def child(name: str, share: str, kind: str) -> None:
    """Make three steps; print bytes of states and places, and the peak memory of this process."""
    net, batch = MODELS[name]()
    optimizer, engine = attach(net, float(share), kind == "compact")
    for _ in range(3):
        backward(net, batch)
        optimizer.step()
        optimizer.zero_grad()
    places = 4 * engine.masks.nonzeros if kind == "compact" else 0
    print(json.dumps([size(dict(optimizer.state)), places, resident("VmHWM")]))


def measure(name: str, share: float, repeat: int) -> None:
    """Print one row."""
    found = {}
    for kind in ("plain", "compact"):
        command = [sys.executable, "-m", "benchmarks.state", "--child", name, str(share), kind]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    net, batch = MODELS[name]()
    rivals = {}
    for kind in found:
        mine = copy.deepcopy(net)
        optimizer, _ = attach(mine, share, kind == "compact")
        backward(mine, batch)
        rivals[kind] = optimizer.step
        optimizer.step()
    seconds = median_seconds(repeat, **rivals)
    (plain, _, peak), (compact, places, less) = found["plain"], found["compact"]
    print(
        f"{name}, S={share}: state {plain / MIB:.0f} MiB, compact {compact / MIB:.0f} MiB and {places / MIB:.0f} MiB "
        f"of places = {(compact + places) / plain:.3f}x; peak {peak / MIB:.0f} MiB, compact {less / MIB:.0f} MiB = "
        f"{less / peak:.3f}x; optimizer.step {seconds['plain']:.3f} s, compact {seconds['compact']:.3f} s = "
        f"{seconds['compact'] / seconds['plain']:.2f}x"
    )


def main() -> None:
    """Run the chosen models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.9, 0.95])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.child:
        child(*options.child)
        return
    for name in options.models:
        for share in options.sparsity:
            torch.manual_seed(0)
            measure(name, share, options.repeat)


if __name__ == "__main__":
    main()
