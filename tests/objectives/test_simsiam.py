"""SimSiam's decorrelation against a slow reference, closed forms and the paper's batch norm."""

from __future__ import annotations

import pytest
import torch
from helpers import default_objective, tiny_encoder, two_views
from torch import Tensor

from selfsight.errors import SelfsightError
from selfsight.objectives.simsiam import SimSiam, decorrelated, group_size


def slow_decorrelation(z: Tensor, group: int) -> Tensor:
    """Gram and Schmidt: each dimension of a group less what those before it tell of it, then scaled. The floor of the
    variances is that of further items which stray in one dimension each."""
    out = []
    for first in range(0, z.shape[1], group):
        part = z[:, first : first + group] - z[:, first : first + group].mean(0)
        stray = (1e-2 * part.square().mean() * len(part)).sqrt() * torch.eye(group).double()
        known: list[Tensor] = []
        for column in torch.cat([part, stray]).T:
            left = column - sum((column @ other / len(part) * other for other in known), torch.zeros_like(column))
            known.append(left / (left @ left / len(part)).sqrt())
        out.append(torch.stack(known, 1)[: len(part)])
    return torch.cat(out, 1)


@pytest.mark.parametrize(("shape", "group"), [((40, 6), 3), ((9, 8), 4), ((5, 8), 8)])  # the last: fewer rows than 8
def test_value_and_gradient_equal_the_slow_reference(shape: tuple[int, int], group: int):
    one = (torch.randn(shape) @ torch.randn(shape[1], shape[1])).requires_grad_()
    other, weights = one.detach().double().requires_grad_(), torch.randn(shape)
    got, wanted = decorrelated(one, group), slow_decorrelation(other, group)
    assert torch.allclose(got.double(), wanted, atol=1e-4)
    (got * weights).sum().backward()
    (wanted * weights.double()).sum().backward()
    assert torch.allclose(one.grad.double(), other.grad, atol=1e-4)


def test_correlated_dimensions_come_apart_in_their_group_and_not_between_groups():
    shared = torch.randn(4096, 1)
    z = shared + torch.randn(4096, 8) + 5.0
    before = torch.corrcoef(z.T)
    assert before.fill_diagonal_(1.0).min() > 0.45
    out = decorrelated(z, 4)
    assert torch.allclose(out.mean(0), torch.zeros(8), atol=1e-4)
    covariance = out.T @ out / len(out)
    for own in (covariance[:4, :4], covariance[4:, 4:]):
        assert torch.allclose(own, torch.eye(4), atol=0.05)
    assert covariance[:4, 4:].sum() / 4 > 0.6  # what the groups share is one direction of each, and it is left


def test_a_group_of_one_is_batch_norm():
    z = 7.0 * torch.randn(64, 5) - 2.0
    norm = torch.nn.BatchNorm1d(5, affine=False)
    for column in range(5):  # each by itself, as the floor is a share of the mean variance
        one = z[:, [column]] * 10.0**column
        assert torch.allclose(1.01**0.5 * decorrelated(one, 1), norm(z)[:, [column]], atol=1e-4)


def test_the_paper_has_batch_norm_and_a_group_decorrelates():
    shared, own = 2.0 * torch.randn(256, 1), torch.randn(256, 512)

    def correlated(**options: int) -> float:
        """The mean correlation of dimensions of a group of 16."""
        out = default_objective("simsiam", **options).train().projector[-1](shared + own)
        groups = torch.corrcoef(out.T)[:16, :16] - torch.eye(16)
        return groups.abs().sum().item() / (16 * 15)

    assert correlated(decorrelated=16) < 0.03
    assert correlated(decorrelated=1) == pytest.approx(0.8, abs=0.05)


def test_groups_are_much_smaller_than_the_batch():
    assert default_objective("simsiam").projector[-1].group == group_size(16)
    assert [group_size(batch) for batch in (2, 4, 8, 16, 31, 32, 64, 256)] == [1, 1, 2, 4, 4, 8, 16, 16]


def test_autocast_changes_nothing():
    z = torch.randn(64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decorrelated(z.bfloat16(), 4), decorrelated(z.bfloat16().float(), 4))


def test_a_run_from_before_there_were_groups_goes_on():
    """Its recipe names none, and its checkpoint holds a batch norm."""
    task = SimSiam(tiny_encoder(), two_views(), hidden=32, bottleneck=8)
    assert {name for name in task.state_dict() if name.startswith("projector.4")} == {
        f"projector.4.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_items_that_are_alike_or_not_finite_raise_nothing():
    same = torch.ones(8, 4).requires_grad_()
    out = decorrelated(same, 4)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(8, 4)) and same.grad.isfinite().all()
    broken = torch.randn(8, 4)
    broken[3, 2] = torch.nan
    assert decorrelated(broken, 2)[:, 2:].isnan().all() and decorrelated(broken, 2)[:, :2].isfinite().all()


def test_a_group_that_does_not_divide_the_width_is_refused():
    with pytest.raises(SelfsightError, match=r"must divide hidden, 512; 48 does not"):
        SimSiam.check_options({"decorrelated": 48})
    SimSiam.check_options({"hidden": 96, "decorrelated": 48})
    with pytest.raises(SelfsightError, match=r"must divide hidden, 512; 48 does not"):
        default_objective("simsiam", decorrelated=48)
