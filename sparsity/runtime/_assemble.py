"""The passes of a compilation, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from sparsity._errors import CompileError
from sparsity.runtime._cost import choose
from sparsity.runtime._cpu import isa
from sparsity.runtime._emit import Program, emit
from sparsity.runtime._example import Arguments, detached, few_samples, size_of_batch
from sparsity.runtime._expand import expand_norm_acts
from sparsity.runtime._facts import Facts, observe
from sparsity.runtime._fuse import fuse_after, fuse_before
from sparsity.runtime._lower import lower
from sparsity.runtime._program import Ops, Source
from sparsity.runtime._regions import partition


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes:
        threads: Number of threads; None asks torch at every call.
        tune: Whether choices may rest on measurements.
    """

    threads: int | None
    tune: bool


def look(root: nn.Module, graph: fx.Graph, arguments: Arguments) -> Source:
    """Find out what a flat graph does.

    Raises:
        CompileError: It does not run with these arguments.
    """
    expand_norm_acts(root, graph)
    few = few_samples(arguments)
    if few is not None:
        try:
            return Source(root, graph, observe(root, graph, detached(few)))
        except Exception:  # some networks take the batch of their example only
            pass
    try:
        facts: Facts = observe(root, graph, detached(arguments))
    except Exception as error:
        raise CompileError(
            f"compile: the network does not run with this example ({type(error).__name__}: {error}). Pass an example "
            "as for the trace."
        ) from error
    return Source(root, graph, facts)


def sparse_ops(source: Source, arguments: Arguments, settings: Settings) -> Ops:
    """Operations with a choice for every layer, and fused for that choice."""
    ops = dense_ops(source)
    choose(ops, size_of_batch(arguments), isa(), settings.tune)
    fuse_before(ops)
    return ops


def dense_ops(source: Source) -> Ops:
    """Operations fused so that all can run in torch."""
    ops = lower(source)
    fuse_after(ops)
    return ops


def assembled(ops: Ops, threads: int | None) -> Program:
    """Group operations into regions and write the program."""
    return emit(ops, partition(ops, ops.source.facts.chains), threads)
