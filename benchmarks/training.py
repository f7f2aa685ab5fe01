"""What sparse training costs: ``python -m benchmarks.training [--only update soft step root memory] [--threads N]``.

update: one RigL update of WRN28-10 with three heads (106M weights), over the usual way (sort all scores of each layer,
fetch a number for each), and over reading weights and gradients once, the least that any update has to do. Then
how much longer an optimizer step with an update takes: choice, checks, counts, zeroing weights, gradients and states.
soft: drawing what soft magnitude drops from a tensor of 24.6M weights.
step: a training step of a masked net over one of the same net without masks, WRN28-10 with three heads at batch 128 on
8 x 8, 16 x 16 and 32 x 32 pixels (as of CIFAR) and a Llama of 38M at batch 8 x 256: with AdamW as it is, with the fused
one on both sides, with states of active weights only, and compiled with the fused one. With each the pages of new
memory, which the system clears first: how many there are depends on what the allocator gave back before. With
MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_MMAP_THRESHOLD_=4294967296 in the environment glibc keeps them all.
root: the square root of a tensor with zeros over one without, which AdamW takes.
memory: peak resident memory of a process that makes three such steps, over that without masks.
Rivals are interleaved and medians taken; memory is measured in processes of their own. All on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxsplit
import sparsity
from benchmarks._memory import resident
from sparsity import Amount, Layer, per_layer

HEADS, SPARSITY, FRACTION = 3, 0.8, 0.3
KINDS = ("dense", "masked")
Step = Callable[[], None]


def wide_resnet(pixels: int = 8) -> tuple[nn.Module, Callable[[], tuple[Any, Tensor]]]:
    """WRN28-10 with three heads and a batch of small images, of a height and width in pixels."""
    from recipes.wide_resnet import WRN

    example = torch.randn(2, 3, pixels, pixels)
    net = fxsplit.split(fxsplit.trace(WRN(28, 10, 100), example), 1 / 3, heads=HEADS)
    return net, lambda: ((torch.randn(128, 3, pixels, pixels),), torch.randint(100, (128,)))


def llama() -> tuple[nn.Module, Callable[[], tuple[Any, Tensor]]]:
    """A Llama of 38M parameters with three heads, and a batch of tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8000, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6
    )
    net = fxsplit.split(fxsplit.trace(LlamaForCausalLM(config)), 1 / 3, heads=HEADS)

    def batch() -> tuple[Any, Tensor]:
        ids = torch.randint(8000, (8, 256))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids

    return net, batch


MODELS = {
    "WRN28-10 M=3, 8 x 8 pixels": wide_resnet,
    "WRN28-10 M=3, 16 x 16 pixels": functools.partial(wide_resnet, 16),
    "WRN28-10 M=3, 32 x 32 pixels": functools.partial(wide_resnet, 32),
    "Llama 38M M=3": llama,
}


def median_seconds(repeat: int, **rivals: Callable[[], object]) -> dict[str, float]:
    """Call the rivals in turn; median seconds of each."""
    return {name: seconds for name, (seconds, _) in medians(repeat, **rivals).items()}


def medians(repeat: int, **rivals: Callable[[], object]) -> dict[str, tuple[float, int]]:
    """Call the rivals in turn; median seconds of each, and median number of pages that it got from the system."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    pages: dict[str, list[int]] = {name: [] for name in rivals}
    for _ in range(repeat):
        for name, rival in rivals.items():
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            rival()
            seconds[name].append(time.perf_counter() - start)
            pages[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {name: (statistics.median(seconds[name]), int(statistics.median(pages[name]))) for name in rivals}


def layers_of(net: nn.Module) -> list[Layer]:
    """What an update looks at, with gradients drawn at random."""
    return [
        Layer(
            path, weight.parameter.detach(), weight.holder.mask, torch.randn_like(weight.parameter), torch.Generator()
        )
        for path, weight in sparsity.masks_of(net).weights.items()
    ]


def by_sorting(layers: Sequence[Layer]) -> None:
    """The usual way: sort all scores of each layer, with the number of active weights fetched from each mask."""
    for layer in layers:
        active = int(layer.mask.sum().item())
        count = int(FRACTION * active)
        kept = torch.sort(torch.where(layer.mask, layer.weight.abs(), -1.0).flatten(), descending=True).indices
        mask = torch.zeros(layer.mask.numel(), dtype=torch.bool)
        mask[kept[: active - count]] = True
        score = torch.where(layer.mask.flatten(), -1.0, layer.dense_gradient().abs().flatten())
        mask[torch.sort(score, descending=True).indices[:count]] = True


def ours(layers: Sequence[Layer]) -> None:
    """The choice of an engine, with the counts and checks before it."""
    from sparsity._survey import survey

    active, _, _ = survey(layers, {})
    free = {layer.path: layer.mask.numel() - active[layer.path] for layer in layers}
    amounts = [Amount(min(int(FRACTION * active[layer.path]), free[layer.path])) for layer in layers]
    per_layer(layers, amounts, sparsity.drop.magnitude, sparsity.grow.gradient)


def update(repeat: int) -> None:
    """Print the cost of one update."""
    net, _ = wide_resnet()
    masks = sparsity.sparsify(net, SPARSITY)
    layers = layers_of(net)
    seconds = median_seconds(
        repeat,
        ours=lambda: ours(layers),
        sorting=lambda: by_sorting(layers),
        reading=lambda: [(layer.weight.sum(), layer.dense_gradient().sum()) for layer in layers],
    )
    print(
        f"choice of an update of {masks.total / 1e6:.0f}M weights: {seconds['ours']:.3f} s; "
        f"sorting {seconds['sorting']:.2f} s = {seconds['sorting'] / seconds['ours']:.1f}x (aim > 5x); "
        f"reading once {seconds['reading']:.3f} s, ours = {seconds['ours'] / seconds['reading']:.1f}x (aim < 6x)"
    )
    plain, rewiring = optimizer_steps(net, repeat)
    more = rewiring - plain
    print(f"optimizer step with an update {rewiring:.2f} s, without {plain:.3f} s: the update takes {more:.2f} s")


def optimizer_steps(net: nn.Module, repeat: int) -> tuple[float, float]:
    """Median seconds of fused AdamW's step without and with an update of all masks."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    engine = sparsity.rigl(net, optimizer, every=2, until=10**6)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(2 * repeat + 2):
        logits = net(torch.randn(4, 3, 8, 8))
        nn.functional.cross_entropy(logits.flatten(0, -2), torch.randint(100, (len(logits.flatten(0, -2)),))).backward()
        before, start = engine.last, time.perf_counter()
        optimizer.step()
        seconds[engine.last is not before].append(time.perf_counter() - start)
        optimizer.zero_grad()
    return statistics.median(seconds[False]), statistics.median(seconds[True])


def soft(repeat: int) -> None:
    """Print the time of one draw of soft magnitude."""
    weight = torch.randn(32000, 768)
    mask = torch.rand_like(weight) < 1 - SPARSITY
    layer = Layer("", weight * mask, mask, None, torch.Generator())
    amount, score = Amount(int(FRACTION * int(mask.count_nonzero()))), sparsity.drop.soft_magnitude(3.0)
    seconds = median_seconds(repeat, ours=lambda: per_layer([layer], [Amount(0, -amount.drop)], score, score))
    print(f"soft magnitude on {weight.numel() / 1e6:.1f}M weights: {seconds['ours']:.2f} s (aim < 0.5 s)")


def stepper(
    net: nn.Module,
    batch: Callable[[], tuple[Any, Tensor]],
    model: Callable[..., Any],
    *,
    fused: bool | None = None,
    compact: bool = False,
) -> Step:
    """One training step of ``net``, called as ``model``, without an update of the masks."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=fused)
    if sparsity.masks_of(net):
        sparsity.rigl(net, optimizer, every=10**6, compact_state=compact)

    def step() -> None:
        inputs, labels = batch()
        outputs = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def step(repeat: int) -> None:
    """Print the time of a masked step over that of a dense one."""
    for name, build in MODELS.items():
        net, batch = build()

        def masked(net: nn.Module = net) -> nn.Module:
            other = copy.deepcopy(net)
            sparsity.sparsify(other, SPARSITY)
            return other

        def rival(net: nn.Module, compiled: bool = False, batch: Any = batch, **options: Any) -> Step:
            return stepper(net, batch, torch.compile(net) if compiled else net, **options)

        _compare(
            name,
            repeat,
            {
                "": (rival(copy.deepcopy(net)), rival(masked())),
                ", fused AdamW": (rival(copy.deepcopy(net), fused=True), rival(masked(), fused=True)),
            },
        )
        _compare(name, repeat, {", compact_state": (rival(copy.deepcopy(net)), rival(masked(), compact=True))})
        compiled = rival(copy.deepcopy(net), True, fused=True), rival(masked(), True, fused=True)
        _compare(name, repeat, {", compiled, fused AdamW": compiled})
        torch.compiler.reset()


def _compare(name: str, repeat: int, pairs: dict[str, tuple[Step, Step]]) -> None:
    rivals = {f"{kind}{how}": call for how, pair in pairs.items() for kind, call in zip(KINDS, pair, strict=True)}
    for call in rivals.values():
        call()
    found = medians(repeat, **rivals)
    aim = 1.03 if name.startswith("WRN") else 1.05
    for how in pairs:
        (dense, before), (sparse, after) = (found[f"{kind}{how}"] for kind in KINDS)
        ratio = f"{sparse / dense:.3f}x (aim < {aim}x)"
        faults = f"page faults {before / 1000:.0f}k and {after / 1000:.0f}k"
        print(f"step of {name}{how}: dense {dense:.2f} s, masked {sparse:.2f} s = {ratio}; {faults}", flush=True)


def root(repeat: int) -> None:
    """Print how much longer torch takes for the square root of zeros."""
    full = torch.rand(4_000_000)
    zeros = full * (torch.rand_like(full) < 1 - SPARSITY)
    seconds = median_seconds(5 * repeat, full=full.sqrt, zeros=zeros.sqrt)
    print(f"square root at {SPARSITY:.0%} zeros: {seconds['zeros'] / seconds['full']:.1f}x the time without zeros")


def memory(repeat: int) -> None:
    """Print the peak memory of masked steps over that of dense ones."""
    for name in MODELS:
        peaks = {}
        for kind in ("dense", "masked"):
            command = [sys.executable, "-m", "benchmarks.training", "--child", name, kind]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peaks[kind] = json.loads(done.stdout.splitlines()[-1])
        ratio = peaks["masked"] / peaks["dense"]
        print(
            f"peak memory of {name}: dense {peaks['dense'] / 2**30:.2f} GiB, masked {peaks['masked'] / 2**30:.2f} GiB "
            f"= {ratio:.3f}x (aim < 1.08x)"
        )


def child(name: str, kind: str) -> None:
    """Make three steps and print the peak memory of this process."""
    net, batch = MODELS[name]()
    if kind == "masked":
        sparsity.sparsify(net, SPARSITY)
    one = stepper(net, batch, net)
    for _ in range(3):
        one()
    print(json.dumps(resident("VmHWM")))


PARTS = {"update": update, "soft": soft, "step": step, "root": root, "memory": memory}


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.child:
        child(*options.child)
        return
    torch.manual_seed(0)
    for part in options.only:
        PARTS[part](options.repeat)


if __name__ == "__main__":
    main()
