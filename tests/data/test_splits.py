"""Train and test out of one collection, by a column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_labels import collection

from selfsight.data.splits import train_and_test
from selfsight.errors import SelfsightError


def test_a_group_is_on_one_side_and_a_fifth_is_for_testing(tmp_path: Path):
    rng = np.random.default_rng(0)
    groups = [f"p{number}" for number in rng.integers(60, size=300)]
    train, test, note = train_and_test(collection(tmp_path, label=list("ab" * 150), group=groups), "group")
    assert not set(train.groups) & set(test.groups) and not set(train.ids) & set(test.ids)
    assert len(train) + len(test) == 300 and 50 <= len(test) <= 70
    assert abs(test.values.count("a") - len(test) / 2) < 8
    count = len(set(train.groups)), len(set(test.groups))
    assert note == f"train and test are split by group: {count[0]} values in train, {count[1]} in test, none in both"


def test_images_without_a_label_are_left_out_and_counted(tmp_path: Path):
    groups = [f"p{i}" for i in range(10)] * 2
    train, test, note = train_and_test(collection(tmp_path, label=[None, *"babababab"] * 2, group=groups), "group")
    assert len(train) + len(test) == 18 and None not in train.values + test.values
    assert note.endswith(", none in both; 2 images without a label are left out")


def test_another_column_takes_the_place_of_the_groups(tmp_path: Path):
    groups, sites = [f"p{i}" for i in range(70)], [f"s{i % 7}" for i in range(70)]
    train, test, _ = train_and_test(collection(tmp_path, label=list("ab" * 35), group=groups, site=sites), "site")
    assert set(train.groups) | set(test.groups) == {f"s{i}" for i in range(7)} and len(set(test.groups)) == 1


def test_a_column_of_splits_says_which_is_which(tmp_path: Path):
    splits = ["Train"] * 5 + ["val"] * 3 + ["test"] * 2 + [None]
    items = collection(tmp_path, label=list("abababababa"), split=splits)
    train, test, note = train_and_test(items, "split")
    assert (len(train), len(test)) == (5, 2)
    assert note == "train and test are those of the column split, where test is 'test'; 4 other images are left out"
    items = collection(tmp_path, "b", label=list("aabb"), site=["train", "dev"] * 2)
    assert [len(side) for side in train_and_test(items, "site")[:2]] == [2, 2]


def test_columns_that_make_no_split(tmp_path: Path):
    items = collection(tmp_path, label=list("abab"), split=["train"] * 4, site=["one"] * 4)
    with pytest.raises(SelfsightError, match=r"has no column patient\. It has .*'site'.*--columns patient=patient$"):
        train_and_test(items, "patient")
    with pytest.raises(SelfsightError, match=r"The column group of .* is empty"):
        train_and_test(items, "group")
    with pytest.raises(SelfsightError, match=r"column split of .* names no test items\. It has 'train'"):
        train_and_test(items, "split")
    with pytest.raises(SelfsightError, match="lie in 1 groups, which stay together"):
        train_and_test(items, "site")
