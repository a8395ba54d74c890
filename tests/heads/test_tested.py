"""The items of a test by the values of a column: each is in one part, and a column that cannot be told is said."""

from __future__ import annotations

import pyarrow as pa
import pytest

from selfsight.errors import SelfsightError
from selfsight.heads.tested import places_by

ROWS = pa.table({"site": ["b", None, "a", "b", ""], "shot": [3, 10, 3, None, 3], "uri": list("vwxyz")})


def test_each_item_is_in_one_part_also_without_a_value() -> None:
    told = {by: {name: places.tolist() for name, places in places_by(ROWS, by, "t").items()} for by in ("site", "shot")}
    assert told["site"] == {"(none)": [1, 4], "a": [2], "b": [0, 3]}
    assert told["shot"] == {"(none)": [3], "10": [1], "3": [0, 2, 4]}
    assert places_by(ROWS, None, "t") == {}


def test_a_column_that_is_not_there_or_tells_too_much_is_said() -> None:
    with pytest.raises(SelfsightError, match=r"^t has no column sit\. Did you mean site\? It has shot, site, uri\.$"):
        places_by(ROWS, "sit", "t")
    many = pa.table({"uri": [str(number) for number in range(51)]})
    assert len(places_by(many[:50], "uri", "t")) == 50
    with pytest.raises(SelfsightError, match=r"^The column uri has 51 values; --by takes one of at most 50\.$"):
        places_by(many, "uri", "t")
