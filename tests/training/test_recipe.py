"""A recipe survives YAML and JSON, and budgets are checked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from helpers import tiny_recipe, two_views

from selfsight.data.pixels import PixelFormat
from selfsight.errors import SelfsightError
from selfsight.objectives.facts import Facts
from selfsight.training.recipe import Budget, Recipe, typed
from selfsight.training.rules import resolve
from selfsight.training.settle import differing
from selfsight.views.plan import Colour, ViewGroup, ViewPlan

PLAN = ViewPlan(
    (
        ViewGroup(2, 32, (0.3, 0.9), (0.5, 2.0), 0.1, Colour(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, (0.2, 1.5), 0.8)),
        ViewGroup(3, 16, shared=frozenset({"colour", "geometry"}), draws=7),
    ),
    companion="frames",
)


@pytest.mark.parametrize("text", [lambda x: yaml.safe_load(yaml.safe_dump(x)), lambda x: json.loads(json.dumps(x))])
def test_round_trip(text):
    recipe = tiny_recipe(
        PLAN, objective_options={"temperature": 0.1}, encoder_args={"layers": [1, 2]}, budget=Budget(minutes=1.5),
        reasons={"size": "because"}, learning_rate=1e-5,
    )  # fmt: skip
    again = Recipe.from_dict(text(recipe.to_dict()))
    assert again == recipe
    assert again.to_dict() == recipe.to_dict()


def facts_with(free: int, decoding: float) -> Facts:
    """A thousand grey images, a megabyte of canvases each at whatever side."""
    return Facts(
        items=1000, side=200, format=PixelFormat("L", 8, (0.0, 255.0)), device="cpu", bf16=False, threads=4, free=free,
        decoding=lambda side: decoding, size_of=lambda side: 10**9,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("free", "decoding", "budget", "expected"),
    [
        (10**10, 60.0, Budget(minutes=10), "resident"),
        (10**9, 60.0, Budget(minutes=10), "stream"),  # half of the disk is the most
        (10**10, 130.0, Budget(minutes=10), "stream"),  # and a fifth of the time
        (10**10, 1e6, Budget(epochs=3), "resident"),  # where time is not counted, it is spent once
    ],
)
def test_canvases_are_resident_where_they_fit(free: int, decoding: float, budget: Budget, expected: str):
    recipe = resolve({"budget": budget}, facts_with(free, decoding))
    assert recipe.canvases == expected and recipe.reasons["canvases"]


def test_images_that_are_decoded_already_are_not_said_to_take_no_time():
    said = [resolve({"budget": Budget(minutes=10)}, facts_with(10**10, s)).reasons["canvases"] for s in (60.0, 0.0)]
    assert said == ["decoded once, in about 60 s; 10 GB are free", "decoded already; 10 GB are free"]


def test_a_resolved_recipe_survives_too():
    facts = facts_with(free=10**12, decoding=60.0)
    recipe = resolve({"seed": 3, "budget": Budget(steps=7)}, facts)
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe
    assert recipe.seed == 3 and "seed" not in recipe.reasons and recipe.channels == 1
    assert set(recipe.reasons) == set(recipe.to_dict()) - {"reasons", "seed", "budget"}  # every other has its reason


@pytest.mark.parametrize(
    "damage, named",
    [
        ({"colours": 1}, "colours"),
        ({"views": {}}, "views"),
        ({"budget": {"hours": 1}}, "hours"),
        ({"views": {"groups": [{}], "companion": None}}, "views"),
    ],
)
def test_what_does_not_fit_is_named(damage: dict, named: str):
    with pytest.raises(SelfsightError, match=named):
        Recipe.from_dict(tiny_recipe(two_views()).to_dict() | damage)


def test_a_missing_value_is_named():
    values = tiny_recipe(two_views()).to_dict()
    del values["seed"]
    with pytest.raises(SelfsightError, match="seed"):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "Give one of --minutes, --epochs and --steps, not none"),
        ({"minutes": 1, "steps": 2}, "not minutes and steps"),
        ({"minutes": 0}, "--minutes must be a number above 0, not 0"),
        ({"steps": -3}, "--steps must be a number above 0, not -3"),
        ({"epochs": float("nan")}, "--epochs must be a number above 0, not nan"),
    ],
)
def test_budget_errors(given: dict, message: str):
    with pytest.raises(SelfsightError, match=message):
        Budget(**given)


def test_a_recipe_is_frozen_and_compared_by_value():
    recipe = tiny_recipe(PLAN)
    assert recipe != replace(recipe, seed=1)
    with pytest.raises(AttributeError):
        recipe.seed = 5  # type: ignore[misc]


def test_what_is_asked_otherwise_than_before_is_named_in_order():
    before = {"seed": 1, "size": 32, "views": [2, 4], "recipe": "a.yaml", "budget": {"steps": 5}}
    assert differing(before, {**before, "views": [2, 4]}) == []
    now = {"size": 64, "views": [2, 5], "extend": True, "recipe": "b.yaml", "seed": 1}
    assert differing(before, now) == ["budget", "extend", "recipe", "size", "views"]
    assert differing(before, {**before, "seed": 2, "recipe": "b.yaml"}, {"recipe", "extend"}) == ["seed"]
    assert differing({}, {"seed": None, "size": 0}) == ["size"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"objectiv": "simclr"}, r"A recipe has no objectiv\. Did you mean objective\?"),
        ({"budget": {"minute": 3}}, r"The budget of a recipe has no minute\. Did you mean minutes\?"),
        ({"views": {"groups": [{"count": 2, "sizes": 32}]}}, r"A group of views has no sizes\. Did you mean size\?"),
        ({"views": {"groups": [{"count": 2, "size": 32, "colour": {"xyz": 1}}]}}, r"has no xyz\. It has: brightness, "),
    ],
)
def test_a_key_that_is_misspelt_is_named_with_the_one_that_was_meant(values, said):
    with pytest.raises(SelfsightError, match=said):
        typed(values)
