from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsplit
import sparsity
from recipes._errors import RecipeError
from recipes.evaluation import head_outputs
from recipes.methods import (
    BatchEnsemble,
    Edst,
    Ensemble,
    Fission,
    Method,
    Mimo,
    OneShot,
    Rigl,
    Set,
    Single,
    Sparse,
    Static,
    Tree,
    batch_ensemble,
    dst_ensemble,
    edst_ensemble,
    full_ensemble,
    joined,
    mimo,
    network_fission,
    neurotrails,
    pruned,
    rigl_sparse,
    set_sparse,
    single_dense,
    static_sparse,
    treenet,
)
from recipes.training import costs
from recipes.wide_resnet import WRN

EXAMPLE = torch.zeros(2, 3, 8, 8)
CUTS = ("stages.0.0", "stages.1.0")
ALL = [
    single_dense(),
    static_sparse(0.8),
    set_sparse(0.8, every=2),
    rigl_sparse(0.8, every=2),
    pruned(0.8),
    full_ensemble(2),
    dst_ensemble(2, 0.8, every=2),
    treenet(1, 3),
    neurotrails(1, 3, 0.8, every=2),
    mimo(3, repeat=2),
    batch_ensemble(2),
    network_fission(CUTS, 3),
    edst_ensemble(3, 0.8, every=2),
]


def make() -> nn.Module:
    return WRN(10, 1, num_classes=5)


def batch(key: int, rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(key)
    return torch.randn(rows, 3, 8, 8, generator=generator), torch.randint(0, 5, (rows,), generator=generator)


def steps(method: Method, net: nn.Module, count: int, optimizer: Any = None) -> sparsity.Engine | None:
    """Train as a user would."""
    optimizer = optimizer or torch.optim.SGD(
        [{k: v for k, v in group.items() if k != "lr_factor"} for group in method.groups(net)], lr=0.05, momentum=0.9
    )
    engine = method.attach(net, optimizer, count, [], seed=0)
    for step in range(count):
        x, y = method.batch(*batch(step), torch.Generator().manual_seed(step))
        method.loss(net, nn.functional.cross_entropy, x, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return engine


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.label)
def test_every_method_trains_and_joins(method: Method) -> None:
    """From build to joined ensemble: the protocol, exact sparsity, and the vote of probabilities."""
    networks = method.build(make, EXAMPLE, seed=0)
    assert len(networks) == method.networks
    kept = []
    for net in networks:
        before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
        steps(method, net, 6)
        moved = [name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])]
        assert len(moved) == len(before)
        kept += [net] * len(method.snapshots(6))
    net = method.join(make, EXAMPLE, kept).eval()
    x, _ = batch(99)
    assert isinstance(net, fxsplit.SplitModel)
    heads = [torch.log_softmax(output, -1) for output in net.head_outputs(x)]
    assert len(heads) == method.heads
    voted = torch.logsumexp(torch.stack(heads), 0) - math.log(len(heads))
    assert torch.allclose(torch.log_softmax(net(x), -1), voted, atol=1e-5)
    sparse = getattr(method, "sparse", None)
    if sparse is not None and sparse.sparsity:
        assert sparsity.masks_of(net).sparsity == pytest.approx(sparse.sparsity, abs=1e-3)


def test_a_seed_decides_the_networks_and_members_differ() -> None:
    for method in ALL:
        one, other = method.network(make, EXAMPLE, seed=5), method.network(make, EXAMPLE, seed=5)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)), method.label
    first, second = full_ensemble(2).build(make, EXAMPLE, seed=5)
    single = single_dense().network(make, EXAMPLE, seed=5)
    weights = [net.get_parameter("conv1.weight") for net in (single, first, second)]
    assert not any(torch.equal(weights[a], weights[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


class TestJoined:
    def test_each_head_is_a_network_with_its_buffers_and_masks(self) -> None:
        method = dst_ensemble(2, 0.8, every=2)
        networks = method.build(make, EXAMPLE, seed=0)
        for net in networks:
            steps(method, net, 4)
        ensemble = method.join(make, EXAMPLE, networks).eval()
        x, _ = batch(1)
        assert isinstance(ensemble, fxsplit.SplitModel)
        for output, net in zip(ensemble.head_outputs(x), networks, strict=True):
            assert torch.equal(output, net.eval()(x))
        masks = sparsity.masks_of(ensemble)
        for number, net in enumerate(networks):
            for path, mask in sparsity.masks_of(net).items():
                assert torch.equal(masks[f"heads.{number}.{path}"], mask)

    @pytest.mark.parametrize("method", [m for m in ALL if m.heads == 1], ids=lambda method: method.label)
    def test_a_single_network_is_the_only_head(self, method: Method, tmp_path: Any) -> None:
        network = method.network(make, EXAMPLE, seed=0)
        steps(method, network, 6)
        net = method.join(make, EXAMPLE, [network]).eval()
        x, _ = batch(1)
        expected = network.eval()(x)
        assert isinstance(net, fxsplit.SplitModel)
        fxsplit.save(net, tmp_path / "net.safetensors")
        again = fxsplit.load(tmp_path / "net.safetensors", make(), example=EXAMPLE).eval()
        for each in (net, again):
            assert torch.equal(each(x), expected)
            (output,) = each.head_outputs(x)
            assert torch.equal(output, expected)
            assert costs(each, EXAMPLE) == costs(network, EXAMPLE)

    @pytest.mark.parametrize("kind", [Single, Ensemble])
    def test_what_is_masked_may_be_named_by_path(self, kind: type[Single]) -> None:
        method = kind(Sparse(0.5, skip=("first_layer", "fc")))
        networks = method.build(make, EXAMPLE, seed=0)
        net = method.join(make, EXAMPLE, networks)
        masks = dict(sparsity.masks_of(net))
        for number, each in enumerate(networks):
            for path, mask in sparsity.masks_of(each).items():
                assert torch.equal(masks.pop(f"heads.{number}.{path}"), mask)
        assert not any(".fc." in path for path in masks)
        assert all(mask.all() for mask in masks.values())

    def test_survives_saving(self, tmp_path: Any) -> None:
        networks = [make().eval(), make().eval()]
        net = joined(make, EXAMPLE, networks, Sparse(0.0))
        fxsplit.save(net, tmp_path / "net.safetensors")
        again = fxsplit.load(tmp_path / "net.safetensors", make(), example=EXAMPLE).eval()
        x, _ = batch(1)
        assert torch.equal(again(x), net.eval()(x))


class TestRewiring:
    def test_one_shot_pruning_is_global_magnitude_at_its_step(self) -> None:
        method = pruned(0.75, at=0.5)
        net, twin = (method.network(make, EXAMPLE, seed=0) for _ in range(2))
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
        # By hand: three dense steps, then the update at the start of the fourth, from the weights as they are.
        for step in range(3):
            nn.functional.cross_entropy(twin(batch(step)[0]), batch(step)[1]).backward()
            optimizer.step()
            optimizer.zero_grad()
        weights = sparsity.masks_of(twin).weights
        magnitudes = torch.cat([weight.parameter.detach().abs().flatten() for weight in weights.values()])
        kept = math.ceil(0.25 * len(magnitudes) - 0.5)
        limit = magnitudes.sort(descending=True).values[kept - 1]
        engine = steps(method, net, 6)
        for path, mask in sparsity.masks_of(net).items():
            assert torch.equal(mask, weights[path].parameter.abs() >= limit), path
        assert engine is not None
        assert engine.last is not None
        assert engine.last.step == 3

    def test_pruning_needs_training_on_both_sides(self) -> None:
        net = pruned(0.5, at=0.99).network(make, EXAMPLE, seed=0)
        with pytest.raises(RecipeError, match="leaves no training on one side"):
            pruned(0.5, at=0.99).attach(net, torch.optim.SGD(net.parameters(), 0.1), 10, [], 0)

    def test_static_masks_stay_and_set_moves_them(self) -> None:
        for method, moves in ((static_sparse(0.8), False), (set_sparse(0.8, every=2), True)):
            net = method.network(make, EXAMPLE, seed=0)
            before = {path: mask.clone() for path, mask in sparsity.masks_of(net).items()}
            steps(method, net, 4)
            same = all(torch.equal(mask, before[path]) for path, mask in sparsity.masks_of(net).items())
            assert same != moves

    @pytest.mark.parametrize("rewiring", [Rigl(every=100), Rigl(every=100, temperature=3.0), Set(every=100)])
    def test_a_training_shorter_than_the_first_update(self, rewiring: Any) -> None:
        net = Single(Sparse(0.5), rewiring).network(make, EXAMPLE, seed=0)
        with pytest.raises(RecipeError, match="train for 50 steps, but its first topology update comes after 100"):
            rewiring.attach(net, torch.optim.SGD(net.parameters(), 0.1), 50, Sparse(0.5), [], 0)

    def test_the_floor_of_the_released_schedule(self) -> None:
        net = Single(Sparse(0.5)).network(make, EXAMPLE, seed=0)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        engine = Rigl(every=10, floor=0.005).attach(net, optimizer, 100, Sparse(0.5), [], 0)
        assert engine.rule is not None
        assert engine.rule.fraction(50) == pytest.approx((0.5 + 0.005) / 2)
        assert engine.rule.fraction(100) == pytest.approx(0.005)

    def test_selectors_by_name(self) -> None:
        net = Single(Sparse(0.5, skip=("first_layer", "fc"))).network(make, EXAMPLE, seed=0)
        masks = sparsity.masks_of(net)
        assert "conv1.weight" not in masks
        assert "fc.weight" not in masks


class TestEdst:
    def test_tickets_as_the_paper_counts_epochs(self) -> None:
        assert Edst().snapshots(850) == (250, 350, 450, 550, 650, 750, 850)
        assert Edst(4, 30 / 310, 70 / 310).snapshots(310) == (100, 170, 240, 310)

    def test_between_tickets_a_large_share_is_replaced(self) -> None:
        method = Edst(2, explore=0.2, sparse=Sparse(0.5), every=4, fraction=0.1, escape=0.8)
        net = method.network(make, EXAMPLE, seed=0)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        updates: list[Any] = []
        method.attach(net, optimizer, 10, [updates.append], seed=0)
        assert method.snapshots(10) == (6, 10)
        active = {layer.path: (layer.nonzeros, layer.total) for layer in sparsity.masks_of(net).layers}
        for step in range(10):
            x, y = batch(step)
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert [update.step for update in updates] == [4, 6, 8]
        for path, (nonzeros, total) in active.items():
            assert updates[1].dropped[path] == min(math.floor(0.8 * nonzeros), total - nonzeros)
            assert updates[0].dropped[path] <= 0.1 * nonzeros

    def test_too_short_a_training(self) -> None:
        method = edst_ensemble(7, 0.9, every=2)
        net = method.network(make, EXAMPLE, seed=0)
        with pytest.raises(RecipeError, match="5 steps are too few for 7 tickets"):
            method.attach(net, torch.optim.SGD(net.parameters(), 0.1), 5, [], 0)


class TestLosses:
    def test_mimo_adds_the_members_up(self) -> None:
        method = Mimo(3, repeat=2)
        net = method.network(make, EXAMPLE, seed=0)
        x, y = method.batch(*batch(0), torch.Generator().manual_seed(0))
        assert x.shape == (16, 3, 3, 8, 8)
        assert isinstance(net, fxsplit.SplitModel)
        net.eval()
        by_hand = sum(nn.functional.cross_entropy(o, y[:, m]) for m, o in enumerate(net.head_outputs(x)))
        assert torch.allclose(method.loss(net, nn.functional.cross_entropy, x, y), by_hand)  # pyright: ignore

    def test_mimo_with_a_batch_too_small(self) -> None:
        with pytest.raises(RecipeError, match="Set a larger batch_size"):
            Mimo(3, repeat=2).batch(*batch(0, rows=2), torch.Generator())

    def test_fission_distils_from_the_mean(self) -> None:
        method = Fission(CUTS, 3, temperature=3.0)
        net = method.network(make, EXAMPLE, seed=0).eval()
        x, y = batch(0)
        assert isinstance(net, fxsplit.SplitModel)
        outputs = net.head_outputs(x)
        teacher = torch.softmax(torch.stack(outputs).mean(0) / 3, -1)
        by_hand = 0
        for output in outputs:
            student = torch.log_softmax(output / 3, -1)
            by_hand = by_hand + nn.functional.cross_entropy(output, y)
            by_hand = by_hand + 9 * (teacher * (teacher.log() - student)).sum(-1).mean()
        assert torch.allclose(method.loss(net, nn.functional.cross_entropy, x, y), by_hand, rtol=1e-5)  # pyright: ignore

    def test_trees_take_the_mean_or_the_sum(self) -> None:
        x, y = batch(0)
        net = treenet(1, 3).network(make, EXAMPLE, seed=0).eval()
        assert isinstance(net, fxsplit.SplitModel)
        mean = torch.stack([nn.functional.cross_entropy(o, y) for o in net.head_outputs(x)]).mean()
        assert torch.allclose(Tree(1, 3).loss(net, nn.functional.cross_entropy, x, y), mean)
        assert torch.allclose(Tree(1, 3, total=True).loss(net, nn.functional.cross_entropy, x, y), 3 * mean)

    def test_fast_weights_do_not_decay_and_learn_more_slowly(self) -> None:
        method = BatchEnsemble(2, fast_lr=0.25)
        net = method.network(make, EXAMPLE, seed=0)
        slow, fast = method.groups(net)
        assert (fast["lr_factor"], fast["weight_decay"]) == (0.25, 0.0)
        assert len(slow["params"]) + len(fast["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Sparse(1.0), "sparsity must be at least 0 and below 1"),
        (lambda: Ensemble(members=0), "members must be at least 1"),
        (lambda: Tree(members=0), "members must be at least 1"),
        (lambda: Mimo(shared=2.0), "shared must lie in"),
        (lambda: Fission(CUTS, 2), "2 members part at 1 to 1 places, got 2"),
        (lambda: Edst(sparse=Sparse(0.0)), "is sparse"),
        (lambda: Edst(3, explore=0.5, refine=0.3), "leave no training for 3 tickets"),
        (lambda: Rigl(every=0), "every must be at least 1"),
    ],
)
def test_settings_that_cannot_work(wrong: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        wrong()


def test_labels() -> None:
    assert [method.label for method in ALL] == [
        "Single dense",
        "Single static (S=0.8)",
        "Single SET (S=0.8)",
        "Single RigL (S=0.8)",
        "Single pruned (S=0.8)",
        "Full ensemble (M=2)",
        "DST ensemble (M=2, S=0.8)",
        "TreeNet (M=3)",
        "NeuroTrails (M=3, S=0.8)",
        "MIMO (M=3)",
        "BatchEnsemble (M=2)",
        "NFE (M=3)",
        "EDST ensemble (M=3, S=0.8)",
    ]
    assert Tree(1, 3, Sparse(0.8), Static()).label == "NeuroTrails (M=3, S=0.8, static)"
    assert Tree(1, 3, Sparse(0.8), OneShot()).label == "NeuroTrails (M=3, S=0.8, pruned)"
    assert Mimo(2, 2, 0.6).label == "MIMO (M=2, rho=0.6)"


@pytest.mark.parametrize(
    "method",
    [
        treenet(1, 2),
        Tree(1, 2, Sparse(0.1, skip=("attention",)), Rigl(every=2, temperature=3.0)),
        Tree(1, 2, Sparse(0.1, include=("embeddings",)), Rigl(every=2)),
        full_ensemble(2),
        edst_ensemble(2, 0.5, every=2),
        batch_ensemble(2),
    ],
    ids=lambda method: method.label,
)
def test_language_models(method: Method) -> None:
    from recipes.rows import Llama
    from recipes.training import predictions

    example = torch.arange(16).reshape(2, 8)
    tiny = Llama(layers=2, hidden=16, intermediate=24, heads=2, positions=16)
    net = method.network(lambda: tiny.make(20, 0), example, seed=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    method.attach(net, optimizer, 4, [], seed=0)

    def criterion(output: Any, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(*predictions(output, y))

    losses = []
    for _ in range(4):
        loss = method.loss(net, criterion, example, example)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    ensemble = method.join(lambda: tiny.make(20, 0), example, [net] * method.networks * len(method.snapshots(4)))
    assert len(head_outputs(ensemble, example)) == method.heads


def test_a_classifier_of_timm() -> None:
    import timm

    def resnet() -> nn.Module:
        return timm.create_model("resnet10t", num_classes=4)

    net = neurotrails("layer2.0", 2, 0.8, every=1).network(resnet, torch.zeros(2, 3, 32, 32), seed=0)
    assert isinstance(net, fxsplit.SplitModel)
    assert net.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
