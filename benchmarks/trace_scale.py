"""How the cost of tracing grows: ``python -m benchmarks.trace_scale [--only layers|7b] [--clock wall|cpu]``.

A small Llama and a ViT are traced with 12, 24, 48 and 96 layers: seconds, seconds per operation of the graph, ratio to
one forward pass, and the exponent with which the time grows with the number of operations (1 is linear). Then a Llama
of seven billion weights on the meta device: traced, split in the middle with copied and with fresh heads, masked, in a
process of its own that reports its peak memory.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import fxsplit
import sparsity
from benchmarks._memory import resident

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
LAYERS = (12, 24, 48, 96)
HEADS, SPARSITY = 3, 0.8
SECONDS, GIGABYTES = 60.0, 2.0


def llama(layers: int) -> nn.Module:
    """A LLaMA whose layers do next to no work, so that what is measured is the tracing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=99, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=48
        )
    )


def vit(layers: int) -> nn.Module:
    """A small ViT of timm on 32 x 32 pixels."""
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=layers, embed_dim=48, num_heads=2)


def seven_billion() -> nn.Module:
    """LLaMA-7B on the meta device: shapes without values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig())


MODELS: dict[str, Callable[[int], nn.Module]] = {"llama": llama, "vit": vit}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log(seconds) over log(sizes), by least squares.

    Example:
        >>> round(exponent([1, 2, 4], [3.0, 6.0, 12.0]), 6)
        1.0
    """
    xs, ys = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def forward_seconds(traced: fxsplit.TracedModel, clock: Callable[[], float], repeat: int = 3) -> float:
    """The least time of one forward pass of the original with the example."""
    args, kwargs = traced.example
    model = traced.source.eval()
    times = []
    for _ in range(repeat):
        start = clock()
        model(*args, **kwargs)
        times.append(clock() - start)
    return min(times)


def measure_layers(name: str, clock: Callable[[], float], repeat: int) -> tuple[list[list[str]], float]:
    """Rows of the table for one model, and the exponent."""
    build, rows = MODELS[name], []
    sizes: list[int] = []
    seconds: list[float] = []
    fxsplit.trace(build(1))  # loads what is loaded lazily
    for layers in LAYERS:
        model, times = build(layers), []
        for _ in range(repeat):
            start = clock()
            traced = fxsplit.trace(model)
            times.append(clock() - start)
        sizes.append(len(traced.graph.nodes))
        seconds.append(min(times))
        passes = seconds[-1] / forward_seconds(traced, clock)
        rows.append(
            [name, str(layers), str(sizes[-1]), f"{seconds[-1]:.2f}", f"{seconds[-1] / sizes[-1]:.2e}", f"{passes:.1f}"]
        )
    return rows, exponent(sizes, seconds)


def operate(model: nn.Module, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of every step of the surgery on a large model, and the peak memory of the process."""
    times: dict[str, float] = {}

    def timed(step: str, function: Callable[[], Any]) -> Any:
        start = clock()
        result = function()
        times[step] = clock() - start
        return result

    traced = timed("trace", lambda: fxsplit.trace(model))
    for init in ("copy", "fresh"):
        net = timed(f"split_{init}", lambda init=init: fxsplit.split(traced, 0.5, heads=HEADS, init=init))
        timed(f"sparsify_{init}", lambda net=net: sparsity.sparsify(net, SPARSITY))
    return {**times, "seconds": sum(times.values()), "peak_gb": resident("VmHWM") / 2**30}


def report(figures: Mapping[str, float]) -> str:
    """The figures in a line, with a verdict."""
    met = figures["seconds"] < SECONDS and figures["peak_gb"] < GIGABYTES
    listed = " ".join(f"{name}={value:.2f}" for name, value in figures.items())
    return f"{listed} (aims: {SECONDS:.0f} s, {GIGABYTES:.0f} GB: {'met' if met else 'missed'})"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["layers", "7b"])
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu where other programs run beside")
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    torch.set_num_threads(1)
    if options.only == "7b":
        print(f"7b: {report(operate(seven_billion(), clock))}")
        return
    print("| model | layers | nodes | seconds | seconds per node | forward passes |\n|---|---|---|---|---|---|")
    slopes = {}
    for name in MODELS:
        rows, slopes[name] = measure_layers(name, clock, options.repeat)
        for row in rows:
            print(f"| {' | '.join(row)} |", flush=True)
    for name, slope in slopes.items():
        print(f"{name}: seconds grow with nodes to the power of {slope:.2f}")
    if options.only is None:
        command = [sys.executable, "-m", "benchmarks.trace_scale", "--only", "7b", "--clock", options.clock]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="")


if __name__ == "__main__":
    main()
