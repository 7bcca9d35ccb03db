"""The errors that users see.

::

    StainseqError            anything stainseq refuses to do; exit code 1
    ├── InputError           a value, file or table that cannot be right (also a ValueError)
    │   ├── FormatError      unknown layout, truncated or damaged file
    │   ├── ScaleError       missing microns per pixel; image and coordinates in different frames
    │   └── MissingError     an element, column, gene or id that is not there (also a KeyError)
    ├── StoreError           the slide store cannot be read or written; newer format; locked
    ├── DependencyError      an optional package that is not installed (also an ImportError)
    └── AccessError          gated or absent weights; says how to get them

Every message says what is wrong, where, and how to fix it, in that order.
"""

from __future__ import annotations


class StainseqError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    what
        What is wrong, in one clause.
    where
        File, slide, element or key.
    fix
        The call or option that mends it.
    """

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [what if where is None else f"{what}, {where}"]
        if fix:
            parts.append(fix)
        super().__init__("; ".join(parts))

    def __str__(self) -> str:
        return str(self.args[0])


class InputError(StainseqError, ValueError):
    """A value, file or table that cannot be right."""


class FormatError(InputError):
    """Unknown layout, truncated or damaged file."""


class ScaleError(InputError):
    """Missing microns per pixel, or image and coordinates in different frames."""


class MissingError(InputError, KeyError):
    """An element, column, gene or id that is not there."""


class StoreError(StainseqError):
    """The slide store cannot be read or written."""


class DependencyError(StainseqError, ImportError):
    """An optional package that is not installed."""


class AccessError(StainseqError):
    """Gated or absent weights."""
