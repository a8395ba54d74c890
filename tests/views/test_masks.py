"""Sets of patches against loops, and how often each patch is in one."""

from __future__ import annotations

import itertools

import torch

from selfsight.views.masks import as_mask, block, others, random_patches


def test_every_subset_is_as_likely():
    draws = torch.rand(20_000, 5, generator=torch.Generator().manual_seed(0))
    index = random_patches(draws, 2)
    assert (index[:, 1] > index[:, 0]).all()  # ascending and therefore unique
    counts = torch.tensor(
        [float((index == torch.tensor(pair)).all(1).sum()) for pair in itertools.combinations(range(5), 2)]
    )
    assert ((counts - 2000) ** 2 / 2000).sum() < 28  # chi-square, 9 degrees of freedom


def test_a_mask_and_what_it_leaves():
    index = torch.tensor([[1, 3], [0, 2]])
    assert as_mask(index, 4).tolist() == [[False, True, False, True], [True, False, True, False]]
    assert others(index, 4).tolist() == [[0, 2], [1, 3]]


def test_blocks_are_whole_and_reach_every_place():
    draws = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0))
    blocks = block(draws, 5, 2, 3).view(-1, 5, 5)
    seen = set()
    for mask in blocks:
        at = mask.nonzero()
        top, left = at.min(0).values.tolist()
        assert mask[top : top + 2, left : left + 3].all() and mask.sum() == 6
        seen.add((top, left))
    assert seen == set(itertools.product(range(4), range(3)))
