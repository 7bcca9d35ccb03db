"""Words for people."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """ "1 gene", "2,000 genes".

    Parameters
    ----------
    n
        How many.
    noun
        One of them.
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
