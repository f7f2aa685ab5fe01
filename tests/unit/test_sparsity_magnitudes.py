"""The compiled selection by magnitude: against a stable sort, in all orders, and where it leaves the work to torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sparsity
from sparsity import Layer, _kernel, _magnitudes, per_layer
from sparsity._magnitudes import Magnitudes, Selection
from sparsity._rewire import Scope
from sparsity._smallest import smallest, smallest_of
from sparsity.runtime import _build, _cpu

SIZE = 300_001
SAMPLED = 19  # what is sampled of so many


@pytest.fixture(autouse=True, params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


VALUES: dict[str, Callable[[], Tensor]] = {
    "bell": lambda: torch.randn(SIZE, generator=random()),
    "ties": lambda: torch.randint(-9, 10, (SIZE,), generator=random()).float(),
    "zeros of both signs": lambda: torch.randn(SIZE, generator=random()).mul(0.4).round(),
    "equal": lambda: torch.full((SIZE,), -2.0),
    "sorted": lambda: torch.arange(SIZE).float(),
    "wide": lambda: torch.randn(SIZE, generator=random()).mul(20).exp(),
    "infinite": lambda: torch.randn(SIZE, generator=random()).mul(20).exp().reciprocal().masked_fill(
        torch.rand(SIZE, generator=random(1)) < 0.3, -torch.inf
    ),
    "what is sampled is larger": lambda: torch.where(torch.arange(SIZE) % SAMPLED == 0, 5.0, 0.0)
    + torch.rand(SIZE, generator=random()),
}  # fmt: skip


def expected(vectors: list[Tensor], count: int, among: list[Tensor], largest: bool) -> list[Tensor]:
    sizes = torch.cat(vectors).abs().double()
    order = torch.where(torch.cat(among), -sizes if largest else sizes, torch.nan).sort(stable=True).indices
    chosen = torch.zeros(len(sizes), dtype=torch.bool)
    chosen[order[:count]] = True
    return list(chosen.split([len(vector) for vector in vectors]))


def by_kernel(vector: Tensor, count: int, mask: Tensor, outside: bool = False, largest: bool = False) -> Tensor | None:
    """What the kernel chooses, or None if it leaves that to torch."""
    [found] = _magnitudes.smallest_of_each([[Selection([Magnitudes(vector, largest)], count, [mask], outside)]])
    return None if found is None else found[0]


@pytest.mark.parametrize("share", [1e-5, 0.04, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("kind", VALUES)
def test_as_by_sorting(kind: str, largest: bool, share: float) -> None:
    vector, mask = VALUES[kind](), torch.rand(SIZE, generator=random(2)) < 0.2
    for outside in (False, True):
        among = ~mask if outside else mask
        count = max(1, round(share * int(among.sum())))
        [wanted] = expected([vector], count, [among], largest)
        assert torch.equal(smallest(Magnitudes(vector, largest), count, mask, outside=outside), wanted)
        found = by_kernel(vector, count, mask, outside, largest)
        assert found is not None
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("outside", [False, True])
def test_several_tensors_as_one(outside: bool) -> None:
    vectors = [VALUES["ties"]()[:size] for size in (1, 63, 64, 65, SIZE, 0, 16384, 16385, 7)]
    masks = [torch.rand(len(vector), generator=random(3)) < 0.4 for vector in vectors]
    among = [~mask if outside else mask for mask in masks]
    # A third, a threshold inside the last tensor's ties, and all but one.
    total = sum(int(each.sum()) for each in among)
    for count in (total // 3, total - 5, total - 1):
        chosen = smallest_of([Magnitudes(vector) for vector in vectors], count, masks, outside=outside)
        assert all(map(torch.equal, chosen, expected(vectors, count, among, False)))


def test_what_it_leaves_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    vector, mask = VALUES["bell"](), torch.rand(SIZE, generator=random(2)) < 0.2
    every = int(mask.sum())

    def found(vector: Tensor, mask: Tensor = mask, count: int = 100) -> Tensor | None:
        return by_kernel(vector, count, mask)

    assert found(vector) is not None
    assert found(vector, count=every) is not None
    assert found(vector, count=every + 1) is None
    assert found(vector.double()) is None
    assert found(vector.bfloat16()) is None
    assert found(torch.stack([vector, vector], 1)[:, 0]) is None
    monkeypatch.setattr(_magnitudes, "kernel", lambda source: None)
    assert found(vector) is None


@pytest.mark.parametrize("outside", [False, True])
def test_several_selections_at_once(outside: bool) -> None:
    """Each as if it were alone, whatever becomes of the others."""
    mask = torch.rand(SIZE, generator=random(2)) < 0.2
    among = ~mask if outside else mask
    vectors = [VALUES[kind]() for kind in ("bell", "equal", "wide", "what is sampled is larger", "sorted")]
    counts = [1, 20_000, int(among.sum()), 30_000, 40_000]
    wanted = [
        Selection([Magnitudes(vector, largest)], count, [mask], outside)
        for vector, count in zip(vectors, counts, strict=True)
        for largest in (False, True)
    ]
    too_many = Selection([Magnitudes(vectors[0])], SIZE + 1, [mask], outside)
    *found, none = _magnitudes.smallest_of_each([[each] for each in (*wanted, too_many)])
    assert none is None
    for each, chosen in zip(wanted, found, strict=True):
        vector, largest = each.scores[0].vector, each.scores[0].largest
        assert chosen is not None
        assert torch.equal(chosen[0], expected([vector], each.count, [among], largest)[0])


@pytest.mark.parametrize("outside", VALUES)
@pytest.mark.parametrize("inside", VALUES)
def test_two_selections_in_one(inside: str, outside: str) -> None:
    """What is taken where the mask is True and what elsewhere, in several tensors, whatever the kernel has to do."""
    sizes = [SIZE - 70_000, 0, 69_900, 100]
    mask = torch.rand(SIZE, generator=random(2)) < 0.2
    inner, outer = VALUES[inside](), VALUES[outside]()
    group = [
        Selection([Magnitudes(part) for part in inner.split(sizes)], 20_000, mask.split(sizes)),
        Selection([Magnitudes(part, largest=True) for part in outer.split(sizes)], 30_000, mask.split(sizes), True),
    ]
    [taken], [elsewhere] = expected([inner], 20_000, [mask], False), expected([outer], 30_000, [~mask], True)
    for selections in (group, group[::-1]):
        [found] = _magnitudes.smallest_of_each([selections])
        assert found is not None
        assert torch.equal(torch.cat(found), taken | elsewhere)
    # If one of both can't be made, none is.
    short = Selection(group[1].scores, SIZE, group[1].among, True)
    [none, one] = _magnitudes.smallest_of_each([[group[0], short], [group[0]]])
    assert none is None
    assert one is not None
    assert torch.equal(torch.cat(one), taken)


def test_a_convolution_whose_places_differ() -> None:
    """The sample meets all places of a kernel, so that it does not mislead."""
    weight = torch.randn(640, 640, 3, 3, generator=random()) * torch.tensor([10.0, 1, 1, 1, 1, 1, 1, 1, 1]).view(3, 3)
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    chosen = by_kernel(weight.view(-1), weight.numel() // 2, mask)
    assert chosen is not None
    assert torch.equal(chosen, expected([weight.view(-1)], weight.numel() // 2, [mask], False)[0])


def layers() -> list[Layer]:
    made = []
    for number, rows in enumerate((30, 300, 1400)):
        weight, gradient = (torch.randn(rows, 500, generator=random(seed)) for seed in (number, number + 10))
        mask = torch.rand(rows, 500, generator=random(number + 20)) < 0.3
        made.append(Layer(str(number), weight * mask, mask, gradient, torch.Generator()))
    return made


@pytest.mark.parametrize("regrow", [False, True])
@pytest.mark.parametrize("scope", [per_layer, sparsity.over_layers])
def test_an_update_is_the_same_without_a_compiler(scope: Scope, regrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    amounts = [sparsity.Amount(count) for count in (1000, 20_000, 60_000)]
    used: list[list[Tensor] | None] = []
    kernel = _magnitudes.smallest_of_each

    def noted(wanted: list[list[Selection[Magnitudes]]]) -> list[list[Tensor] | None]:
        found = kernel(wanted)
        used.extend(found)
        return found

    monkeypatch.setattr(_magnitudes, "smallest_of_each", noted)
    with_kernel = scope(layers(), amounts, sparsity.drop.magnitude, sparsity.grow.gradient, regrow)
    assert used
    assert None not in used

    def no_compiler(*_: str) -> None:
        raise sparsity.BuildError("no C++ compiler")

    monkeypatch.setattr(_build, "library_path", no_compiler)
    monkeypatch.setattr(_magnitudes, "kernel", _kernel.kernel.__wrapped__)
    without = scope(layers(), amounts, sparsity.drop.magnitude, sparsity.grow.gradient, regrow)
    assert used[-1] is None
    for one, other in zip(with_kernel, without, strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("trouble", ["no home", "cache", "CXX", "ISA"])
def test_no_trouble_with_the_kernel_reaches_a_training(
    trouble: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SPARSITY_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    if trouble == "no home":
        monkeypatch.setattr(Path, "home", no_home)
    elif trouble == "cache":
        monkeypatch.setenv("SPARSITY_CACHE_DIR", str(tmp_path / "file" / "cache"))
    else:
        monkeypatch.setenv("SPARSITY_CACHE_DIR", str(tmp_path))
        monkeypatch.setenv(*{"CXX": ("CXX", "g++ 'unclosed"), "ISA": ("SPARSITY_ISA", "mmx")}[trouble])
    _build._spare_dir.cache_clear()
    monkeypatch.setattr(_magnitudes, "kernel", _kernel.kernel.__wrapped__)
    vector, mask = VALUES["bell"](), torch.rand(SIZE, generator=random(2)) < 0.2
    assert torch.equal(smallest(Magnitudes(vector), 9000, mask), expected([vector], 9000, [mask], False)[0])
    made = by_kernel(vector, 9000, mask)
    assert (made is None) == (trouble in ("CXX", "ISA"))  # the others build for this process alone
    _build._spare_dir.cache_clear()


@pytest.mark.parametrize("isa", _cpu.supported_isas())
def test_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSITY_ISA", isa)
    monkeypatch.setattr(_magnitudes, "kernel", _kernel.kernel.__wrapped__)
    vector, mask = VALUES["bell"](), torch.rand(SIZE, generator=random(2)) < 0.2
    found = by_kernel(vector, 9000, mask)
    assert found is not None
    assert torch.equal(found, expected([vector], 9000, [mask], False)[0])
