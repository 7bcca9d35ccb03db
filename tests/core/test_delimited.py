"""Sparse rows from text against pandas, and every bad field."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from stainseq.core.delimited import MAX_COUNT, BadField, scan


def _dense(text: bytes, separator: str, columns: int) -> tuple[list[str], np.ndarray]:
    rows = scan(text, separator=separator, columns=columns)
    shape = (len(rows.names), columns)
    return rows.names, sparse.csr_matrix((rows.values, rows.indices, rows.indptr), shape=shape).toarray()


@given(
    st.lists(
        st.lists(st.one_of(st.just(0), st.integers(0, MAX_COUNT)), min_size=3, max_size=3), min_size=1, max_size=12
    ),
    st.sampled_from("\t,;"),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_equals_pandas(values: list[list[int]], separator: str, newline: str, last: bool) -> None:
    lines = [separator.join([f'"s{i}"', *map(str, row)]) for i, row in enumerate(values)]
    text = (newline.join(lines) + (newline if last else "")).encode()
    names, got = _dense(text, separator, 3)
    want = pd.read_csv(io.BytesIO(text), sep=separator, header=None, index_col=0)
    assert names == list(want.index)
    np.testing.assert_array_equal(got, want.to_numpy())


def test_numbers_as_r_and_pandas_write_them() -> None:
    names, got = _dense(b'\n"a",1e+05,3.0, 7 \n\nb,0.0,"4",007\n', ",", 3)
    assert names == ["a", "b"]
    np.testing.assert_array_equal(got, [[100000, 3, 7], [0, 4, 7]])


@pytest.mark.parametrize("text", [b"", b"\n\n"])
def test_nothing(text: bytes) -> None:
    assert _dense(text, ",", 3)[0] == []


@pytest.mark.parametrize(
    ("field", "why"),
    [
        (b"-1", "negative count"),
        (b"1.5", "no whole number"),
        (b"", "missing count"),
        (b"NaN", "missing count"),
        (b"NA", "'NA' is not a count"),
        (b"x", "'x' is not a count"),
        (b"2147483648", "above 2147483647"),
        (b"99999999999999999999", "above 2147483647"),
        (b"inf", "above 2147483647"),
        (b"-0.5", "negative count"),
    ],
)
def test_bad_fields_are_placed(field: bytes, why: str) -> None:
    with pytest.raises(BadField, match=why) as caught:
        scan(b"a,1,2\nb,3," + field + b"\nc,0,0\n", separator=",", columns=2)
    assert (caught.value.row, caught.value.column) == ("b", 1)


@pytest.mark.parametrize("line", [b"b,1", b"b,1,2,3", b"b"])
def test_ragged_rows(line: bytes) -> None:
    with pytest.raises(BadField, match="counts where the header has 2") as caught:
        scan(b"a,1,2\n" + line + b"\nc,0,0\n", separator=",", columns=2)
    assert (caught.value.row, caught.value.column) == ("b", None)
