"""What surgery costs: ``python -m benchmarks.surgery [--repeat N]``.

Time is that of `neurotrailify` over that of ``copy.deepcopy`` of the M heads it has to make, interleaved, medians.
Memory is the rise of the process's resident high-water mark during `neurotrailify` over the bytes of the result.
Every case runs in a process of its own, on the CPU, after one surgery on a tiny model that loads what is loaded lazily.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxsplit
import sparsity
from benchmarks._memory import resident

HEADS = 3
SPARSITY = 0.8
TARGET_TIME, TARGET_MEMORY = 3.0, 1.3


@dataclass(frozen=True)
class Case:
    """A model and where it is split."""

    build: Callable[[], nn.Module]
    split: str | int


def resnet50() -> nn.Module:
    """timm's ResNet-50: 25.6M parameters."""
    import timm

    return timm.create_model("resnet50", pretrained=False)


def llama_350m() -> nn.Module:
    """A LLaMA of the 350M size: 24 layers, hidden size 1024, as in the paper's language experiments."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2736, num_hidden_layers=24, num_attention_heads=16, vocab_size=32000
    )
    return LlamaForCausalLM(config)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CASES = {"resnet50": Case(resnet50, "layer3.2"), "llama-350m": Case(llama_350m, 8)}


def operate(model: nn.Module, split: str | int, init: str) -> fxsplit.SplitModel:
    """The surgery that is measured."""
    return fxsplit.neurotrailify(model, split, heads=HEADS, sparsity=SPARSITY, init=init)


def head_part(model: nn.Module, net: fxsplit.SplitModel) -> list[nn.Module]:
    """The source's modules with parameters or buffers of their own that one head needs a copy of."""
    paths = [old for new, old in net.origin.items() if new.startswith("heads.0.")]
    modules = [model.get_submodule(path) for path in dict.fromkeys(paths)]
    return [module for module in modules if module._parameters or module._buffers]


def measure_time(case: Case, init: str, repeat: int, clock: str) -> dict[str, float]:
    """Medians in seconds of the whole, of its phases and of the rival."""
    model = case.build()
    part = head_part(model, operate(model, case.split, init))
    watch = Stopwatch(CLOCKS[clock])
    for _ in range(repeat):
        watch.measure("deepcopy", copy_parts, part)
        watch.measure("total", operate, model, case.split, init)
        graph = watch.measure("trace", fxsplit.trace, model)
        net = watch.measure("split", fxsplit.split, graph, case.split, heads=HEADS, init=init)
        watch.measure("sparsify", sparsity.sparsify, net, SPARSITY)
        del graph, net
    return {name: statistics.median(values) for name, values in watch.seconds.items()}


class Stopwatch:
    """Calls functions and keeps how long each call took, by name."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds: dict[str, list[float]] = {}

    def measure(self, name: str, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``action`` and return its result."""
        gc.collect()
        start = self.now()
        result = action(*args, **kwargs)
        self.seconds.setdefault(name, []).append(self.now() - start)
        return result


def copy_parts(part: list[nn.Module]) -> list[list[nn.Module]]:
    """The rival: every head's modules, deep-copied, with one memo per head."""
    return [copy.deepcopy(part) for _ in range(HEADS)]


def measure_memory(case: Case, init: str, repeat: int, clock: str) -> dict[str, float]:
    """Bytes: the peak that one surgery adds to the resident set, and the size of its result."""
    model = case.build()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    net = operate(model, case.split, init)
    return {"peak": resident("VmHWM") - before, "result": size_of(net)}


def size_of(module: nn.Module) -> int:
    """Bytes of the distinct storages behind all parameters and buffers."""
    storages = [tensor.untyped_storage() for tensor in (*module.parameters(), *module.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


MEASUREMENTS = {"time": measure_time, "memory": measure_memory}


def run_child(measurement: str, name: str, init: str, repeat: int, clock: str) -> dict[str, float]:
    """Measure in a fresh process."""
    arguments = ["--child", measurement, name, init, "--repeat", str(repeat), "--clock", clock]
    command = [sys.executable, "-m", "benchmarks.surgery", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(measurement: str, name: str, init: str, repeat: int, clock: str) -> None:
    """Load what is loaded lazily, measure, and print the result as JSON."""
    tiny = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    fxsplit.neurotrailify(tiny, "1", sparsity=0.5, example=torch.zeros(2, 4))
    print(json.dumps(MEASUREMENTS[measurement](CASES[name], init, repeat, clock)))


def report(name: str, init: str, repeat: int, clock: str) -> str:
    """One line with the ratios and one with the phases."""
    seconds = run_child("time", name, init, repeat, clock)
    memory = run_child("memory", name, init, repeat, clock)
    ratio, peak = seconds["total"] / seconds["deepcopy"], memory["peak"] / memory["result"]
    phases = ", ".join(f"{phase} {seconds[phase]:.2f} s" for phase in ("trace", "split", "sparsify"))
    return (
        f"{name:<11} init={init:<5}  time {ratio:6.2f}x deepcopy of {HEADS} heads ({verdict(ratio, TARGET_TIME)})"
        f"  peak memory {peak:5.2f}x the result ({verdict(peak, TARGET_MEMORY)})\n"
        f"    {seconds['total']:.2f} s in all: {phases}; deepcopy {seconds['deepcopy']:.2f} s; "
        f"peak {memory['peak'] / 2**20:.0f} MiB, result {memory['result'] / 2**20:.0f} MiB"
    )


def verdict(value: float, target: float) -> str:
    """The target next to what was measured."""
    return f"target < {target:g}x, {'met' if value < target else 'MISSED'}"


def main(arguments: list[str] | None = None) -> None:
    """Measure every case and print ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surgery", description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="runs per median (default: 5)")
    parser.add_argument("--case", choices=CASES, action="append", help="only this model; may be repeated")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that does other work (default: wall)"
    )
    parser.add_argument("--child", nargs=3, metavar=("MEASUREMENT", "CASE", "INIT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        measurement, name, init = options.child
        child(measurement, name, init, options.repeat, options.clock)
        return
    machine = f"{torch.get_num_threads()} threads, {platform.machine()}"
    print(f"torch {torch.__version__}, {machine}, {options.clock} time, medians of {options.repeat}")
    for name in options.case or CASES:
        for init in ("fresh", "copy"):
            print(report(name, init, options.repeat, options.clock), flush=True)


if __name__ == "__main__":
    main()
