"""Random small architectures for the property tests.

A draw is a :class:`ConvCase` or a :class:`TokenCase`: a frozen dataclass whose repr can be pasted back into Python. It
builds the model and its inputs, and knows BY CONSTRUCTION where the model may be cut and which parameters a
head then owns. Nothing here imports the code under test.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.nets import conv, paths, token

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture: how to build it, what to feed it, where it may be cut."""

    blocks: tuple[str, ...] = ("plain",)

    def network(self) -> nn.Module:
        raise NotImplementedError

    def inputs(self, batch: int) -> dict[str, Tensor]:
        raise NotImplementedError

    @property
    def legal(self) -> tuple[str, ...]:
        """Paths of modules after which the model may be cut."""
        raise NotImplementedError

    @property
    def illegal(self) -> tuple[str, ...]:
        """Paths of blocks across which a skip connection is still alive."""
        raise NotImplementedError

    def trunk_prefixes(self, path: str) -> tuple[str, ...]:
        """First parts of the names of all parameters that are used no later than in the module at ``path``."""
        raise NotImplementedError

    def fresh(self, seed: int = 0) -> nn.Module:
        """The model as its constructor draws it from ``seed``, in eval mode."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.network().eval()

    def build(self, seed: int = 0) -> nn.Module:
        """The model as if it had been trained: no parameter or buffer is constant."""
        model = self.fresh(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with torch.no_grad():
                for value in [*model.parameters(), *model.buffers()]:
                    if value.is_floating_point():
                        value.add_(torch.rand_like(value), alpha=0.1)
        return model

    def example(self, batch: int = 2, seed: int = 0) -> Any:
        """What one passes as ``example``: a tuple of positional inputs, or a dict where the net takes tokens."""
        inputs = self.data(batch, seed)
        return inputs if isinstance(self, TokenCase) else tuple(inputs.values())

    def data(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.inputs(batch)

    def __repr__(self) -> str:
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # how hypothesis prints a failing draw


@dataclasses.dataclass(frozen=True, repr=False)
class ConvCase(Case):
    pool: str = "mean"
    output: str = "tensor"
    long_skip: bool = False
    second: str = "none"
    auxiliary: bool = False

    def network(self) -> nn.Module:
        return conv.ConvNet(self.blocks, self.pool, self.output, self.long_skip, self.second, self.auxiliary)

    def inputs(self, batch: int) -> dict[str, Tensor]:
        inputs = {"x": torch.randn(batch, 3, conv.SIDE, conv.SIDE)}
        if self.second == "early":
            inputs["other"] = torch.randn(batch, 3, conv.SIDE, conv.SIDE)
        elif self.second == "late":
            inputs["other"] = torch.randn(batch, 3)
        return inputs

    @property
    def legal(self) -> tuple[str, ...]:
        stem = () if self.second == "early" else ("stem",)
        return (*stem, *(path for path in self.block_paths if path not in self.illegal))

    @property
    def illegal(self) -> tuple[str, ...]:
        return self.block_paths[1:] if self.long_skip else ()

    @property
    def block_paths(self) -> tuple[str, ...]:
        return tuple(f"blocks.{i}" for i in range(len(self.blocks)))

    def trunk_prefixes(self, path: str) -> tuple[str, ...]:
        if path == "stem":
            return ("stem.",)
        index = self.block_paths.index(path)
        early = ("auxiliary.",) if index > 0 else ()
        return ("stem.", "second.", *early, *(f"{name}." for name in self.block_paths[: index + 1]))


@dataclasses.dataclass(frozen=True, repr=False)
class TokenCase(Case):
    blocks: tuple[str, ...] = ("mlp",)
    source: str = "ids"
    cls: bool = False
    position: str = "none"
    rotary: bool = False
    decoder: str = "pooled"
    mask: bool = False
    labels: bool = False
    passes: int = 1

    def network(self) -> nn.Module:
        return token.TokenNet(self.blocks, self.source, self.cls, self.position, self.rotary, self.decoder, self.passes)

    def inputs(self, batch: int) -> dict[str, Tensor]:
        length = token.LENGTH + self.cls
        if self.source == "ids":
            x = torch.randint(token.VOCABULARY, (batch, token.LENGTH))
        elif self.source == "floats":
            x = torch.randn(batch, token.LENGTH, 3)
        else:
            x = torch.randn(batch, 3, 2, 2 * token.LENGTH)
        inputs = {"x": x}
        if self.mask:
            keep = torch.randint(1, length + 1, (batch, 1))
            inputs["attention_mask"] = (torch.arange(length) < keep).long()
        if self.labels:
            shape = (batch,) if self.decoder == "pooled" else (batch, length)
            inputs["labels"] = torch.randint(token.CLASSES, shape)
        return inputs

    @property
    def legal(self) -> tuple[str, ...]:
        """Without a second pass: a block that runs twice is no place to cut."""
        return (*(f"blocks.{i}" for i in range(len(self.blocks)) if self.passes == 1), "norm")

    @property
    def illegal(self) -> tuple[str, ...]:
        return ()

    @property
    def tied(self) -> bool:
        return self.decoder in ("tied", "functional")

    def trunk_prefixes(self, path: str) -> tuple[str, ...]:
        early = ("embed.", "cls", "position")
        if path == "norm":
            return (*early, "blocks.", "norm.")
        last = int(path.split(".")[1])
        return (*early, *(f"blocks.{i}." for i in range(last + 1)))


@dataclasses.dataclass(frozen=True, repr=False)
class PathCase(Case):
    """A net in which several tensors carry the computation at once; ``blocks`` of the others are no matter here."""

    kind: str = "branches"
    depth: int = 2
    branches: int = 2
    special: bool = False

    def network(self) -> nn.Module:
        make: dict[str, Callable[[], nn.Module]] = {
            "branches": lambda: paths.Branches(self.depth, self.branches, exchange=not self.special),
            "unet": lambda: paths.UNet(self.depth),
            "translation": lambda: paths.EncoderDecoder(self.depth, queries=self.special),
            "towers": lambda: paths.Towers(self.depth),
        }
        return make[self.kind]()

    def inputs(self, batch: int) -> dict[str, Tensor]:
        inputs = {"x": torch.randn(batch, 4)}
        if self.kind == "towers":
            inputs["other"] = torch.randn(batch + 1, 4)[:batch]
        elif self.kind == "translation" and not self.special:
            inputs["target"] = torch.randn(batch, 4)
        return inputs

    @property
    def mains(self) -> dict[str, int]:
        """Every block in order of execution, with the number of tensors that carry the computation after it."""

        def numbered(name: str) -> list[str]:
            return [f"{name}.{i}" for i in range(self.depth)]

        if self.kind == "branches":
            return dict.fromkeys(numbered("blocks"), self.branches)
        if self.kind == "unet":
            downs = {path: i + 1 for i, path in enumerate(numbered("downs"))}
            return downs | {"bottom": self.depth + 1} | {p: self.depth - i for i, p in enumerate(numbered("ups"))}
        if self.kind == "towers":
            return dict.fromkeys([*numbered("left"), *numbered("right")], 1)
        # Queries have nothing of their own: all that the decoder knows is the encoder's.
        decoder = dict.fromkeys(numbered("decoder"), 2 if self.special else 1)
        return dict.fromkeys(numbered("encoder"), 1) | decoder | {f"decoder.{self.depth - 1}": 1}

    @property
    def legal(self) -> tuple[str, ...]:
        return tuple(path for path, count in self.mains.items() if count == 1)

    @property
    def illegal(self) -> tuple[str, ...]:
        return tuple(path for path, count in self.mains.items() if count > 1)

    def trunk_prefixes(self, path: str) -> tuple[str, ...]:
        order = list(self.mains)
        early = ("stem", "embed", "first", "second")
        late = ("queries", "target") if path.startswith("decoder") else ()
        return (*early, *late, *(f"{name}." for name in order[: order.index(path) + 1]))


def _conv_blocks(kinds: list[str]) -> bool:
    """Autograd keeps a ReLU's output, so that a block which overwrites its input can't follow."""
    return not any(a in conv.ENDS_WITH_RELU and b == "inplace" for a, b in itertools.pairwise(kinds))


def conv_cases(min_blocks: int = 1, max_blocks: int = 4) -> st.SearchStrategy[ConvCase]:
    kinds = st.sampled_from(list(conv.BLOCKS))
    return st.builds(
        ConvCase,
        blocks=st.lists(kinds, min_size=min_blocks, max_size=max_blocks).filter(_conv_blocks).map(tuple),
        pool=st.sampled_from(["mean", "adaptive", "flatten"]),
        output=st.sampled_from(["tensor", "dict", "namedtuple", "nested"]),
        long_skip=st.sampled_from([False, False, True]),
        second=st.sampled_from(["none", "none", "early", "late"]),
        auxiliary=st.booleans(),
    )


@st.composite
def token_cases(
    draw: st.DrawFn, min_blocks: int = 1, max_blocks: int = 3, max_passes: int = 2, tied: bool = True
) -> TokenCase:
    source = draw(st.sampled_from(["ids", "floats", "image"]))
    decoders = ["pooled", "linear", *(["tied", "functional"] if source == "ids" and tied else [])]
    return TokenCase(
        blocks=tuple(draw(st.lists(st.sampled_from(list(token.BLOCKS)), min_size=min_blocks, max_size=max_blocks))),
        source=source,
        cls=draw(st.booleans()),
        position=draw(st.sampled_from(["none", "parameter", "buffer"])),
        rotary=draw(st.booleans()),
        decoder=draw(st.sampled_from(decoders)),
        mask=draw(st.booleans()),
        labels=draw(st.booleans()),
        passes=draw(st.sampled_from([1, 1, max_passes])),
    )


def cases(**bounds: Any) -> st.SearchStrategy[Case]:
    """Conv nets and token nets, both in half of the draws."""
    return st.one_of(conv_cases(**bounds), token_cases(**bounds))


def path_cases() -> st.SearchStrategy[PathCase]:
    return st.builds(
        PathCase,
        kind=st.sampled_from(["branches", "unet", "translation", "towers"]),
        depth=st.integers(2, 4),
        branches=st.integers(2, 3),
        special=st.booleans(),
    )


def all_cases() -> st.SearchStrategy[Case]:
    """Nets with one stream and nets with several."""
    return st.one_of(cases(), path_cases())


@st.composite
def split_cases(draw: st.DrawFn, **bounds: Any) -> tuple[Case, str]:
    """An architecture that runs every block once, and a path after which it may be cut."""
    case = draw(st.one_of(conv_cases(**bounds), token_cases(max_passes=1, **bounds)))
    return case, draw(st.sampled_from(case.legal))


KINDS: tuple[Case, ...] = (
    *(ConvCase(blocks=("gated", kind, "gated")) for kind in conv.BLOCKS),
    *(TokenCase(blocks=("mlp", kind, "mlp"), mask=True, rotary=True) for kind in token.BLOCKS),
)
"""Every kind of block between two plain ones: what the few quick draws may not reach."""


def call(function: Callable[..., Any], example: Any) -> Any:
    """Call ``function`` as the example says: positional inputs for a tuple, keywords for a dict."""
    return function(**example) if isinstance(example, dict) else function(*example)


def holds_for(**draws: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[[str], None]]:
    """Turn a check into two tests: a quick one on fixed draws, and a thorough one (``-m slow``) on many random ones."""

    def decorate(check: Callable[..., None]) -> Callable[[str], None]:
        @pytest.mark.parametrize("profile", ["quick", pytest.param("thorough", marks=pytest.mark.slow)])
        def test(profile: str) -> None:
            settings.get_profile(profile)(given(**draws)(check))()

        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        return test

    return decorate
