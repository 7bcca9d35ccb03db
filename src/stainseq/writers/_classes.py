"""Labels of cells to the classes of a data set: maps that come with the package, or a reviewed file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, InputError, MissingError

ANY = "*"
"""In a map: what stands for all labels that it does not name."""

UNLABELLED = "Unlabelled"
ONE_CLASS = "Nucleus"

_COLOURS = (
    (255, 15, 15), (70, 128, 0), (57, 208, 133), (255, 143, 15), (22, 169, 223), (156, 255, 36), (255, 211, 15),
    (130, 55, 235), (69, 237, 255), (22, 69, 223), (214, 39, 178), (140, 86, 75),
)  # fmt: skip


@dataclass(frozen=True)
class LabelMap:
    """Which label becomes which class.

    Parameters
    ----------
    name
        Of the map; in the names of files.
    classes
        Class to (r, g, b), in order. Empty: labels are the classes.
    labels
        Label to class.
    unlabelled
        Class of cells without a label; None where the map names none.
    """

    name: str
    classes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    unlabelled: str | None = None


@dataclass(frozen=True)
class Classes:
    """The classes of one data set.

    Parameters
    ----------
    names
        In order; class number c (1 ...) is ``names[c - 1]``.
    colours
        (r, g, b) of each.
    labels
        Label to class, of the map and of all labels met.
    map_name
        Which map they were made with.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    labels: dict[str, str]
    map_name: str

    def dictionaries(self) -> dict[str, dict[str, Any]]:
        """``label2cat``, ``cat2idx`` (from 0) and ``cat2color``, as STHELAR names them."""
        return {
            "label2cat": dict(sorted(self.labels.items())),
            "cat2idx": {name: i for i, name in enumerate(self.names)},
            "cat2color": {name: list(c) for name, c in zip(self.names, self.colours, strict=True)},
        }


def load_map(given: str | None) -> LabelMap:
    """A map by name or from a file.

    Parameters
    ----------
    given
        "curated" (ten categories of STHELAR, Unknown and Less10), "ct_1" (nine classes), "ct_2" (eight), "ct_3" (five),
        or a file. JSON: ``{label: class}``, or what the TOML has. TOML: tables ``labels`` (``label = "class"`` or
        ``class = ["label", ...]``) and optionally ``classes`` (``class = [r, g, b]``, in order), ``unlabelled =
        "class"``. CSV: columns label and category (or class). A label ``*`` stands for all others. None: labels are
        the classes.

    Raises
    ------
    MissingError
        No such map or file.
    FormatError
        A file that is no map.
    """
    if given is None:
        return LabelMap("labels")
    held = _packaged()
    if given in held:
        return _regrouped(given, held)
    path = Path(given)
    if not path.is_file():
        raise MissingError(f"no label map {given!r}", fix=f"one of {', '.join(held)}, or a TOML, JSON or CSV file")
    try:
        return _of_table(path.stem, _read(path))
    except (ValueError, TypeError, AttributeError, KeyError, OSError) as e:
        raise FormatError(f"no label map ({e})", where=path, fix="give label and category, as in the manual") from e


def _packaged() -> dict[str, Any]:
    from importlib.resources import files

    return tomllib.loads(files(__package__).joinpath("label_maps.toml").read_text(encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".toml":
        return tomllib.loads(text)
    if path.suffix.lower() == ".json":
        held = json.loads(text)
        return dict(held) if "labels" in held and isinstance(held["labels"], dict) else {"labels": dict(held)}
    from ..readers._tables import read_table

    table = read_table(path, dtype=str, keep_default_na=False)
    table.columns = [str(c).strip().lower() for c in table.columns]
    column = next((c for c in ("category", "class", "cat") if c in table), None)
    if "label" not in table or column is None:
        raise ValueError(f"columns {', '.join(table.columns)}")
    double = table["label"][table["label"].duplicated()]
    if len(double):
        raise ValueError(f"the label {double.iloc[0]!r} is there twice")
    return {"labels": dict(zip(table["label"], table[column], strict=True))}


def _of_table(name: str, held: Mapping[str, Any]) -> LabelMap:
    labels: dict[str, str] = {}
    for key, value in held["labels"].items():
        for label, category in [(key, value)] if isinstance(value, str) else [(v, key) for v in value]:
            if labels.setdefault(str(label), str(category)) != str(category):
                raise ValueError(f"the label {label!r} has two classes")
    colours = {str(k): _colour(v) for k, v in held.get("classes", {}).items()}
    if colours:
        unknown = sorted(set(labels.values()) - set(colours))
        if unknown:
            raise ValueError(f"classes without a place in the table of classes: {', '.join(unknown)}")
    order = list(colours) or list(dict.fromkeys(labels.values()))
    rest = held.get("unlabelled")
    if rest is not None and rest not in order:
        order.append(str(rest))
    known = {k: _colour(v) for k, v in _packaged()["curated"]["classes"].items()}
    for name_ in order:
        labels.setdefault(name_, name_)  # a class is its own label
    made = {c: colours.get(c) or known.get(c) or _COLOURS[i % len(_COLOURS)] for i, c in enumerate(order)}
    return LabelMap(name, made, labels, rest)


def _colour(value: Any) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in value)
    if not all(0 <= v <= 255 for v in (r, g, b)):
        raise ValueError(f"colour {value}")
    return r, g, b


def _regrouped(name: str, held: dict[str, Any]) -> LabelMap:
    own = _of_table(name, held[name])
    if "over" not in held[name]:
        return own
    below = _of_table(name, held[held[name]["over"]])
    labels = {label: own.labels[c] for label, c in below.labels.items() if c in own.labels}
    return LabelMap(name, own.classes, {**labels, **own.labels}, own.unlabelled)


def classify(
    labels: Iterable[np.ndarray], chosen: LabelMap, *, unlabelled: str, where: object = None
) -> tuple[Classes, list[np.ndarray]]:
    """Class numbers of cells.

    Parameters
    ----------
    labels
        One object array a slide: text, None where there is no label.
    chosen
        The map.
    unlabelled
        What cells without a label become: "class", the map's own class for them, or ``Unlabelled``, which then is the
        last class; "skip", not drawn; "error".
    where
        For messages.

    Returns
    -------
    Classes and, for each slide, int32 [n]: 1 ... class, 0 not drawn.

    Raises
    ------
    InputError
        Labels that the map does not have; cells without one where that is an error.
    """
    listed = list(labels)
    met = sorted({v for one in listed for v in np.unique(one[one != None])})  # noqa: E711  elementwise
    table = dict(chosen.labels) if chosen.classes else {v: v for v in met}
    unknown = [v for v in met if v not in table]
    if unknown and ANY in table:
        table |= dict.fromkeys(unknown, table[ANY])
        unknown = []
    table.pop(ANY, None)
    if unknown:
        raise InputError(
            f"the label map {chosen.name} lacks {', '.join(unknown[:8])}" + (" ..." if len(unknown) > 8 else ""),
            where=where,
            fix='add them, or a label "*" for all others',
        )
    names = [c for c in chosen.classes if c != ANY] if chosen.classes else list(met)
    lacking = sum(int((one == None).sum()) for one in listed)  # noqa: E711  elementwise
    if lacking and unlabelled == "error":
        raise InputError(f"{lacking} cells without a label", where=where, fix="--option unlabelled=class or skip")
    rest = chosen.unlabelled or UNLABELLED
    if lacking and unlabelled == "class" and rest not in names:
        names.append(rest)
    if not names:
        raise InputError("no cell has a label", where=where, fix="--option unlabelled=class")
    number = {label: names.index(c) + 1 for label, c in table.items()}
    number[None] = names.index(rest) + 1 if unlabelled == "class" and rest in names else 0
    colours = tuple(chosen.classes.get(c, _COLOURS[i % len(_COLOURS)]) for i, c in enumerate(names))
    return Classes(tuple(names), colours, table, chosen.name), [_numbers(one, number) for one in listed]


def _numbers(labels: np.ndarray, number: Mapping[Any, int]) -> np.ndarray:
    import pandas as pd

    codes, levels = pd.factorize(labels, use_na_sentinel=True)
    lookup = np.array([number[v] for v in levels] + [number[None]], dtype=np.int32)
    return lookup[codes]
