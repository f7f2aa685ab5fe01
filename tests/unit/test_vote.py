"""Votes against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxsplit import CallableVote, MeanVote, ProbVote, SplitError
from fxsplit._vote import make_vote


def test_mean_of_three_heads() -> None:
    (result,) = MeanVote()((torch.tensor([1.0, -2.0]),), (torch.tensor([2.0, 0.0]),), (torch.tensor([6.0, 8.0]),))
    assert result.tolist() == [3.0, 2.0]


def test_mean_probability_of_two_heads() -> None:
    """softmax([0, ln 3]) = [1/4, 3/4] and softmax([5, 5]) = [1/2, 1/2], so the mean is [3/8, 5/8]."""
    one, two = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[5.0, 5.0]])
    (result,) = ProbVote()((one,), (two,))
    torch.testing.assert_close(result, torch.tensor([[math.log(3 / 8), math.log(5 / 8)]]))
    (mean,) = MeanVote()((one,), (two,))
    assert not torch.allclose(mean.softmax(-1), result.softmax(-1), atol=1e-3)


def test_mean_probability_is_a_drop_in_for_logits() -> None:
    heads = [torch.randn(4, 5) for _ in range(3)]
    (result,) = ProbVote()(*((h,) for h in heads))
    probabilities = torch.stack([h.softmax(-1) for h in heads]).mean(0)
    torch.testing.assert_close(result.softmax(-1), probabilities)
    target = torch.tensor([0, 1, 2, 4])
    torch.testing.assert_close(F.cross_entropy(result, target), F.nll_loss(probabilities.log(), target))


@pytest.mark.parametrize(("shape", "dim"), [((2, 3), -1), ((2, 5, 3), -1), ((2, 3, 4, 4), 1), ((2, 3, 2, 2, 2), 1)])
def test_class_dimension(shape: tuple[int, ...], dim: int) -> None:
    heads = [torch.randn(shape) for _ in range(2)]
    (result,) = ProbVote()(*((h,) for h in heads))
    torch.testing.assert_close(result.exp().sum(dim), torch.ones_like(result.sum(dim)))


def test_extreme_logits_stay_finite() -> None:
    (result,) = ProbVote()((torch.tensor([[1e4, 0.0]]),), (torch.tensor([[0.0, 1e4]]),))
    torch.testing.assert_close(result, torch.full((1, 2), math.log(0.5)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vote", [MeanVote(), ProbVote()])
def test_the_dtype_is_kept(dtype: torch.dtype, vote: nn.Module) -> None:
    heads = [torch.randn(2, 3).to(dtype) for _ in range(2)]
    (result,) = vote(*((h,) for h in heads))
    assert result.dtype == dtype


@pytest.mark.parametrize("vote", [MeanVote(), ProbVote()])
def test_one_head_is_passed_through(vote: nn.Module) -> None:
    value = torch.randn(2, 3)
    assert vote((value,))[0] is value


def test_only_floating_tensors_are_averaged() -> None:
    one = (torch.tensor([1]), torch.tensor([True]), torch.tensor([1.0]), None)
    two = (torch.tensor([2]), torch.tensor([False]), torch.tensor([2.0]), None)
    integer, boolean, floating, nothing = MeanVote()(one, two)
    assert (integer.tolist(), boolean.tolist(), floating.tolist(), nothing) == ([1], [True], [1.5], None)


def test_losses_are_averaged_and_scores_are_voted_on() -> None:
    loss, scores = [torch.tensor(1.0), torch.tensor(2.0)], [torch.randn(2, 3), torch.randn(2, 3)]
    result = ProbVote()(*zip(loss, scores, strict=True))
    assert result[0] == 1.5
    torch.testing.assert_close(result[1].exp().sum(-1), torch.ones(2))


def test_logits_alone_are_scores_if_there_are_any() -> None:
    vote = make_vote("prob", ["loss", "logits", "hidden"])
    one, two = ((torch.tensor(float(i)), torch.randn(2, 3), torch.full((2, 3), float(i))) for i in (1, 2))
    loss, logits, hidden = vote(one, two)
    assert loss == 1.5
    assert torch.equal(hidden, torch.full((2, 3), 1.5))
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2))


def test_a_function_gets_the_stack_of_the_heads() -> None:
    shapes: list[tuple[int, ...]] = []

    def largest(stack: Tensor) -> Tensor:
        shapes.append(tuple(stack.shape))
        return stack.amax(0)

    vote = make_vote(largest, ["0"])
    (result,) = vote(*((torch.tensor([[float(i), -float(i)]]),) for i in range(3)))
    assert result.tolist() == [[2.0, 0.0]]
    assert shapes == [(3, 1, 2)]
    assert isinstance(vote, CallableVote)


def test_a_module_that_votes_is_part_of_the_network() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.25, 0.75]))

        def forward(self, stack: Tensor) -> Tensor:
            return torch.einsum("m,m...->...", self.weight, stack)

    vote = make_vote(Weighted(), ["0"])
    (result,) = vote((torch.tensor([[4.0]]),), (torch.tensor([[8.0]]),))
    assert result.tolist() == [[7.0]]
    assert [name for name, _ in vote.named_parameters()] == ["fn.weight"]


def test_unknown_votes() -> None:
    with pytest.raises(SplitError, match="got 'majority'"):
        make_vote("majority", ["0"])
