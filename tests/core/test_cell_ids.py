"""Ids that spell integers, there and back."""

from __future__ import annotations

import numpy as np
import pytest

from stainseq.core import cell_ids
from stainseq.errors import InputError


def test_spelled_and_back():
    numbers = np.array([0, 1, 15, 16, 10_000, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    text = cell_ids.spell(numbers)
    assert text[:2].tolist() == ["aaaaaaaa-1", "aaaaaaab-1"]
    assert text[4] == "aaaachba-1"
    assert text[-1] == "pppppppp-1"
    back = cell_ids.spelled(text)
    assert back is not None
    assert back.dtype == np.uint32
    assert np.array_equal(back, numbers)
    assert int(cell_ids.spelled(np.array(["ffkpbaba-1"]))[0]) == int("55af1010", 16)  # 10x's own example
    for wrong in ([-1], [2**32]):
        with pytest.raises(InputError, match="do not fit"):
            cell_ids.spell(np.array(wrong))


@pytest.mark.parametrize("ids", [["aaaachba-2"], ["aaaachbq-1"], ["aaaachba"], ["aaaachba-1", "aaaachba-1:2"], []])
def test_other_forms(ids):
    assert cell_ids.spelled(np.array(ids, dtype=str)) is None


def test_numbers():
    assert cell_ids.numbers(np.array(["b", "a", "b", "c"])).tolist() == [0, 1, 0, 2]
    assert cell_ids.numbers(np.array(["aaaachba-1", "aaaaaaab-1", "aaaachba-1"], dtype=object)).tolist() == [
        10_000, 1, 10_000
    ]  # fmt: skip
    # No room for a background above: numbered.
    assert cell_ids.numbers(np.array(["pppppppp-1", "aaaaaaab-1"])).tolist() == [0, 1]
    assert cell_ids.numbers(np.array([], dtype=str)).tolist() == []
