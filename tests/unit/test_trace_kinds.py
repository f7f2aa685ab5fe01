"""Kinds of modules and ways to write a model: each is traced bit for bit, and split into heads that equal it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import einops
import pytest
import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import fxsplit
from fxsplit._flops import layer_flops
from fxsplit._trace import TracedModel, trace
from tests.checks import assert_same
from tests.zoo.tracing import check_step

WIDTH = 8
Feed = tuple[tuple[Any, ...], dict[str, Any]]
Inputs = Callable[[int], Feed]


def check(model: nn.Module, inputs: Inputs, cut: str, gradients: tuple[bool, ...] = (False, True)) -> TracedModel:
    """Eval mode at three batch sizes, a train step from one seed, copied heads, fresh heads; nothing is kept whole."""
    args, kwargs = inputs(2)
    traced = trace(model, (args, kwargs))
    assert traced.report.coarse_leaves == []
    assert traced.report.warnings == []
    assert traced.report.guards == []
    assert traced.report.constants == []
    copied = fxsplit.split(traced, cut, init="copy").eval()
    model.eval()
    traced.eval()
    for batch in (1, 4, 7):
        args, kwargs = inputs(batch)
        for enabled in gradients:
            with torch.set_grad_enabled(enabled):
                expected = model(*args, **kwargs)
                assert_same(plain(traced(*args, **kwargs)), plain(expected))
                for output in copied.head_outputs(*args, **kwargs):
                    assert_same(plain(output), plain(expected))
    check_step(model, traced, inputs(3), plain)
    fresh = fxsplit.split(traced, cut, heads=2)
    assert fresh.report.not_redrawn == {}
    first, second = (dict(head.named_parameters()) for head in fresh.heads)
    random = [name for name in first if not fresh.report.init[name].startswith("kept")]
    assert random
    assert not any(torch.equal(first[name], second[name]) for name in random)
    return traced


def plain(value: Any) -> Any:
    """Dataclasses as tuples, which torch can flatten."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value).__name__, [plain(item) for item in value]
    return value


def vectors(batch: int) -> Feed:
    return (torch.randn(batch, WIDTH),), {}


def sequences(batch: int) -> Feed:
    return (torch.randn(batch, 5, WIDTH),), {}


def padded(batch: int) -> Feed:
    mask = torch.zeros(batch, 5, dtype=torch.bool)
    mask[0, -2:] = True
    return (torch.randn(batch, 5, WIDTH), mask), {}


def with_lengths(batch: int) -> Feed:
    return (torch.randn(batch, 5, WIDTH), torch.tensor([5, 3, 2, 4, 1, 5, 2][:batch])), {}


class Between(nn.Module):
    """A body between two linear layers."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.body(self.a(x)))


# einops.


class Einops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        patches = Rearrange("b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
        self.patch = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), patches, nn.Linear(32, WIDTH))
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.qkv, self.mean, self.out = nn.Linear(WIDTH, 3 * WIDTH), Reduce("b n c -> b c", "mean"), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        x = torch.cat([einops.repeat(self.token, "1 1 d -> b 1 d", b=x.shape[0]), x], 1)
        q, k, v = einops.rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=2)
        weights = einops.einsum(q, k, "b h i d, b h j d -> b h i j").softmax(-1)
        x = einops.rearrange(torch.einsum("bhij,bhjd->bhid", weights, v), "b h n d -> b n (h d)") + x
        x, shapes = einops.pack([x, x[:, :1]], "b * d")
        first, _ = einops.unpack(x, shapes, "b * d")
        return self.out(self.mean(first) + einops.reduce(x, "b n c -> b c", "max"))


def test_einops() -> None:
    check(Einops(), lambda batch: ((torch.randn(batch, 3, 8, 8),), {}), "patch")


# Attention and transformers of torch.nn.


class Attends(nn.Module):
    def __init__(self, need_weights: bool, batch_first: bool = True, dropout: float = 0.1) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first, dropout=dropout)
        self.need_weights, self.batch_first = need_weights, batch_first

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Any:
        x = self.lin(x)
        x = x if self.batch_first else x.transpose(0, 1)
        causal = torch.triu(torch.ones(5, 5, dtype=torch.bool, device=x.device), 1)
        x, weights = self.attention(x, x, x, attn_mask=causal, key_padding_mask=hidden, need_weights=self.need_weights)
        return (self.out(x), weights) if self.need_weights else self.out(x)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("inputs", [sequences, padded], ids=["causal", "causal and padded"])
def test_multihead_attention(need_weights: bool, inputs: Inputs) -> None:
    check(Attends(need_weights), inputs, "lin")


def test_multihead_attention_with_the_sequence_first() -> None:
    check(Attends(True, batch_first=False), sequences, "lin")


def encoder(nested: bool, **options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 3, nn.LayerNorm(WIDTH), enable_nested_tensor=nested)


class Encodes(nn.Module):
    def __init__(self, encoder: nn.TransformerEncoder) -> None:
        super().__init__()
        self.lin, self.encoder, self.out = nn.Linear(WIDTH, WIDTH), encoder, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.out(self.encoder(self.lin(x), src_key_padding_mask=hidden))


@pytest.mark.parametrize("inputs", [sequences, padded], ids=["", "padded"])
@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}], ids=["post", "pre"])
def test_transformer_encoders(inputs: Inputs, options: dict[str, Any]) -> None:
    """Without gradients torch fuses each layer in eval mode, and so does the graph."""
    traced = check(Encodes(encoder(False, **options)), inputs, "encoder.layers.1")
    layer = 2 * 5 * (4 * WIDTH * WIDTH + 2 * WIDTH * 16)
    flops = layer_flops(traced)
    assert sum(count for path, count in flops.items() if path.startswith("encoder.layers.1.")) == layer


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_of_transformer_encoders_are_left_out_and_said() -> None:
    """Torch uses them where gradients are off; elsewhere graph and model are the same."""
    model = Encodes(encoder(True)).eval()
    with pytest.warns(fxsplit.FxSplitWarning, match=r"'encoder' sets the hidden positions.*enable_nested_tensor=False"):
        traced = trace(model, padded(2)[0])
    (x, hidden), _ = padded(4)
    assert_same(traced(x, hidden), model(x, hidden))
    with torch.no_grad():
        shown = ~hidden
        torch.testing.assert_close(traced(x, hidden)[shown], model(x, hidden)[shown])
    assert trace(model, sequences(2)[0]).report.warnings == []


class Transforms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.out = nn.Transformer(WIDTH, 2, 2, 2, 16, batch_first=True), nn.Linear(WIDTH, 3)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        return self.out(self.both(source, target, tgt_mask=causal, tgt_is_causal=True))


@pytest.mark.parametrize("cut", ["both.encoder.layers.0", "both.decoder.layers.0"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_transformers_of_torch(cut: str) -> None:
    check(Transforms(), lambda batch: ((torch.randn(batch, 5, WIDTH), torch.randn(batch, 4, WIDTH)), {}), cut)


# Recurrent networks.


class Recurs(nn.Module):
    def __init__(self, rnn: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.lin, self.rnn, self.out = nn.Linear(WIDTH, WIDTH), rnn, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        x, state = self.rnn(self.lin(x))
        return self.out(x[:, -1]), state


RNNS: dict[str, Callable[[], tuple[nn.RNNBase, int]]] = {
    "RNN": lambda: (nn.RNN(WIDTH, 6, nonlinearity="relu", batch_first=True), 6),
    "LSTM": lambda: (nn.LSTM(WIDTH, 6, 2, batch_first=True, dropout=0.2, bidirectional=True), 12),
    "GRU": lambda: (nn.GRU(WIDTH, 6, 2, batch_first=True), 6),
}


@pytest.mark.parametrize("kind", RNNS)
@pytest.mark.parametrize("cut", ["lin", "rnn"])
def test_recurrent_networks(kind: str, cut: str) -> None:
    check(Recurs(*RNNS[kind]()), sequences, cut)


class Packs(nn.Module):
    def __init__(self, total_length: bool = True) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(6, 3)
        self.rnn = nn.LSTM(WIDTH, 6, 2, batch_first=True)
        self.total_length = total_length

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.lin(x), lengths, batch_first=True, enforce_sorted=False)
        packed, _ = self.rnn(packed)
        assert isinstance(packed, PackedSequence)
        total = x.shape[1] if self.total_length else None
        x, _ = pad_packed_sequence(packed, batch_first=True, total_length=total)
        return self.out(x).sum(1)


def test_packed_sequences() -> None:
    traced = check(Packs(), with_lengths, "lin")
    model = traced.source.eval()
    x = torch.randn(3, 5, WIDTH)
    for lengths in ([1, 1, 1], [3, 4, 2], [5, 5, 5]):
        assert_same(traced.eval()(x, torch.tensor(lengths)), model(x, torch.tensor(lengths)))


def test_the_longest_length_is_no_number_of_the_graph() -> None:
    with pytest.raises(fxsplit.TraceError, match=r"longest length, .*pad_packed_sequence takes total_length"):
        trace(Packs(False), with_lengths(2)[0])


class Then(nn.Module):
    """A module in the middle of a model of two arguments."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.a, self.inner, self.b = nn.Linear(WIDTH, WIDTH), inner, nn.Linear(3, 300)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.b(self.inner(self.a(x), other))


class Selects(nn.Module):
    """The number of rows that it works on is in the data."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        chosen = x[~hidden]
        return self.lin(chosen.view(chosen.shape[0], 2, WIDTH // 2).flatten(1)).mean(0, keepdim=True)


def test_modules_that_use_the_longest_length_are_kept_whole() -> None:
    traced = trace(model := Then(Packs(False)).eval(), with_lengths(2)[0])
    assert [path for path, _ in traced.report.coarse_leaves] == ["inner"]
    x = torch.randn(3, 5, WIDTH)
    for lengths in ([1, 1, 1], [3, 4, 2], [5, 5, 5]):
        assert_same(traced(x, torch.tensor(lengths)), model(x, torch.tensor(lengths)))


def test_modules_that_count_what_they_select_are_kept_whole() -> None:
    model = Then(Selects()).eval()
    traced = trace(model, padded(2)[0])
    assert [path for path, _ in traced.report.coarse_leaves] == ["inner"]
    x = torch.randn(4, 5, WIDTH)
    for chance in (0.2, 0.8):
        hidden = torch.rand(4, 5) > chance
        assert_same(traced(x, hidden), model(x, hidden))


def test_a_selection_that_nobody_counts_stays_in_the_graph() -> None:
    class Picks(nn.Module):
        def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
            return x[~hidden].sum(0, keepdim=True)[:, :3]

    model = Then(Picks()).eval()
    traced = trace(model, padded(2)[0])
    assert traced.report.coarse_leaves == []
    x, hidden = torch.randn(4, 5, WIDTH), torch.rand(4, 5) > 0.5
    assert_same(traced(x, hidden), model(x, hidden))


# Functions that other parts of torch took hold of.


@torch.compiler.disable
def not_compiled(x: Tensor) -> Tensor:
    return F.gelu(x) * 2


def test_functions_that_are_not_to_be_compiled() -> None:
    check(Between(not_compiled), vectors, "a")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", ["compile", "script"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler itself asks for it
def test_compiled_functions_are_recorded_as_they_were_written(make: str) -> None:
    """Within rounding: compilers fuse operations."""

    def body(x: Tensor) -> Tensor:
        return F.gelu(x) * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: scripts are deprecated, the compiler imports what is
        compiled = torch.compile(body, backend="eager") if make == "compile" else torch.jit.script(body)
    model = Between(compiled).eval()
    traced = trace(model, vectors(2)[0])
    assert len(traced.graph.nodes) == 6
    x = torch.randn(5, WIDTH)
    torch.testing.assert_close(traced(x), model(x))


class Cubes(torch.autograd.Function):
    """Two results, and a backward pass that is not its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x**3 * factor, x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 5 * gradients[0] * x * ctx.factor, None


class Squares(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return 7 * gradients[0] * ctx.saved_tensors[0]


def test_autograd_functions() -> None:
    def body(x: Tensor) -> Tensor:
        cubes, signs = Cubes.apply(x, 2.0)  # type: ignore[misc]
        return Squares.apply(cubes) + signs  # type: ignore[operator,return-value]

    check(Between(body), vectors, "a")


class Checkpoints(nn.Module):
    def __init__(self, reentrant: bool, always: bool) -> None:
        super().__init__()
        self.stem, self.reentrant, self.always = nn.Linear(WIDTH, WIDTH), reentrant, always
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3), nn.ReLU()) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            around = self.training or self.always
            x = checkpoint(block, x, use_reentrant=self.reentrant) if around else block(x)
        return x


@pytest.mark.parametrize("always", [False, True], ids=["in train mode", "in both modes"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing(reentrant: bool, always: bool) -> None:
    traced = check(Checkpoints(reentrant, always), vectors, "blocks.1")
    assert any(line.startswith("gradient checkpointing") for line in traced.report.dropped)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_transformers(reentrant: bool) -> None:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=31, use_cache=False, **sizes))  # type: ignore[arg-type]
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})

    def ids(batch: int) -> Feed:
        return (), {"input_ids": torch.randint(3, 31, (batch, 6))}

    args, kwargs = ids(2)
    traced = trace(model, (args, kwargs))
    assert any(line.startswith("gradient checkpointing") for line in traced.report.dropped)
    assert traced.report.coarse_leaves == []
    assert traced.report.warnings == []
    check_step(model, traced, ids(3))
    net = fxsplit.split(traced, "model.layers.0", init="copy").eval()
    with torch.no_grad():
        for output in net.head_outputs(**kwargs):
            assert_same(output, model.eval()(**kwargs))


# Signatures and outputs.


@dataclasses.dataclass
class Result:
    scores: Tensor
    parts: list[Tensor]
    count: int
    name: str = "result"


class Pair(NamedTuple):
    first: Tensor
    second: Any


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dataclass": lambda x, y: Result(y, [x, y * 2], 3),
    "named tuple": lambda x, y: Pair(x, {"q": [y, (y + 1, None)]}),
    "nested dicts": lambda x, y: {"a": {"b": [y, {"c": x}], "d": (y, 1, "s")}, "e": None},
    "dataclass in a named tuple": lambda x, y: Pair(y, Result(x, [], 1)),
}


class Returns(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), kind

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return OUTPUTS[self.kind](x, self.b(x))


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs(kind: str) -> None:
    traced = check(Returns(kind), vectors, "a")
    x = torch.randn(2, WIDTH)
    net = fxsplit.split(traced, "a", heads=2).eval()
    assert type(net(x)) is type(traced.source(x))
    # What the trunk computes is the same in every head, and the vote leaves it as it is.
    leaves = [leaf for leaf in pytree.tree_leaves(plain(net(x))) if isinstance(leaf, Tensor)]
    assert any(torch.equal(leaf, net.trunk(x)) for leaf in leaves)


class TakesBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, batch: dict[str, Any], *, hidden: Tensor | None = None) -> Tensor:
        x = self.a(sum(batch["features"])) + batch["more"]["position"][0]
        return self.b(x if hidden is None else x.masked_fill(hidden, 0))


def nested(batch: int) -> dict[str, Any]:
    position = (torch.randn(batch, WIDTH),)
    return {"features": [torch.randn(batch, WIDTH), torch.randn(batch, WIDTH)], "more": {"position": position}}


def test_nested_inputs() -> None:
    check(TakesBatch(), lambda batch: ((nested(batch),), {}), "a")
    check(TakesBatch(), lambda batch: ((nested(batch),), {"hidden": torch.rand(batch, 1) > 0.5}), "a")
    check(TakesBatch(), lambda batch: ((), {"batch": nested(batch), "hidden": torch.rand(batch, 1) > 0.5}), "a")


class TakesPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, pair: Pair) -> Tensor:
        return self.b(self.a(pair.first) * pair.second)


def test_named_tuples_as_inputs() -> None:
    check(TakesPair(), lambda batch: ((Pair(torch.randn(batch, WIDTH), torch.randn(batch, 1)),), {}), "a")


class TakesAnything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, *terms: Tensor, **factors: Tensor) -> Tensor:
        return self.b(self.a(terms[0] + terms[-1]) * factors["scale"] * factors.get("more", 1))


class TakesKeywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, *, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.b(self.a(x) * (1 if scale is None else scale))


def test_keywords_only() -> None:
    check(TakesKeywords(), lambda batch: ((), {"x": torch.randn(batch, WIDTH)}), "a")
    check(TakesKeywords(), lambda batch: ((), {"scale": torch.rand(batch, 1), "x": torch.randn(batch, WIDTH)}), "a")


def test_variadic_arguments() -> None:
    def feed(batch: int) -> Feed:
        return (torch.randn(batch, WIDTH), torch.randn(batch, WIDTH)), {"scale": torch.rand(batch, 1)}

    model = TakesAnything().eval()
    args, kwargs = feed(2)
    traced = trace(model, (args, kwargs))
    for batch in (1, 4, 7):
        args, kwargs = feed(batch)
        assert_same(traced(*args, **kwargs), model(*args, **kwargs))
