"""What a data set says of itself: README, JSON, and a figure of some of its patches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import spec
from . import _compact, _samples

if TYPE_CHECKING:
    from ._samples import DataSet

EXAMPLES = 8
"""Patches in the figure, spread over all; tall enough to be looked at, small enough for a README."""


def write(
    path: Path,
    data: DataSet,
    counts: Sequence[tuple[str, np.ndarray]],
    facts: dict[str, Any],
    *,
    licence: str,
    form: str,
    card: bool = True,
    head: str = "",
) -> list[Path]:
    """Write README.md, dataset.json and examples.png.

    Parameters
    ----------
    path
        Folder of the data set.
    data
        What was written.
    counts
        Set of each patch and its nuclei per class, in the order of the stream.
    facts
        Of the export.
    licence
        Of the data.
    form
        Name of the format.
    card
        Whether to write it at all.
    head
        What the README begins with.
    """
    if not card:
        return []
    told = describe(data, counts, facts, licence=licence, form=form)
    (path / "dataset.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    figure(path / "examples.png", data)
    (path / "README.md").write_text(head + _text(told), encoding="utf-8")
    return [path / n for n in ("README.md", "dataset.json", "examples.png")]


def describe(
    data: DataSet, counts: Sequence[tuple[str, np.ndarray]], facts: dict[str, Any], *, licence: str, form: str
) -> dict[str, Any]:
    """The same as JSON: sizes, classes, slides, counts of patches and of nuclei by set, tissue and class."""
    names = list(data.classes.names)
    table = np.array([c for _, c in counts], dtype=np.int64).reshape(len(counts), len(names))
    parts = np.array([p for p, _ in counts], dtype=object)
    tissues = np.concatenate([np.full(len(s.chosen), s.tissue, dtype=object) for s in data.sources])
    slides = np.concatenate([np.full(len(s.chosen), s.slide, dtype=object) for s in data.sources])

    def by(groups: np.ndarray) -> dict[str, Any]:
        return {
            str(g): {"patches": int((groups == g).sum()), "nuclei": _named(names, table[groups == g].sum(axis=0))}
            for g in dict.fromkeys(groups)
        }

    first = data.sources[0].patches
    return {
        "format": form,
        "licence": licence,
        "stainseq": facts.get("package_version"),
        "format_version": spec.FORMAT_VERSION,
        "size_px": first.size_px,
        "mpp": first.mpp,
        "classes": data.classes.dictionaries()["cat2idx"],
        "colours": data.classes.dictionaries()["cat2color"],
        "label_map": data.classes.map_name,
        "patches": len(data),
        "patches_without_nuclei": int((table.sum(axis=1) == 0).sum()),
        "nuclei": _named(names, table.sum(axis=0)),
        "sets": by(parts),
        "tissues": by(tissues),
        "slides": [
            {
                "name": s.slide,
                "tissue": s.tissue,
                **s.facts,
                "image_mpp": round(s.patches.image.mpp, 6),
                "nuclei_of_the_slide": len(s.kinds),
                "nuclei_not_drawn": int((s.kinds == 0).sum()),
                "nuclei_without_label": int((s.labels == None).sum()),  # noqa: E711  elementwise
                "patches_left_out": len(s.patches) - len(s.chosen),
                **by(slides)[s.slide],
            }
            for s in data.sources
            if len(s.chosen)
        ],
    }


def _named(names: list[str], values: np.ndarray) -> dict[str, int]:
    return {n: int(v) for n, v in zip(names, values, strict=True)}


def _text(told: dict[str, Any]) -> str:
    lines = [
        "# Patches of H&E with labelled nuclei",
        "",
        f"{told['patches']:,} patches of {told['size_px']} x {told['size_px']} px at {told['mpp']:g} um/px, format "
        f"`{told['format']}`, written by stainseq {told['stainseq']}. Licence of the data: {told['licence']}.",
        "",
        "A nucleus counts in every patch that shows it, as it does in the maps: patches that overlap count it again.",
        "",
        "![Patches with the outlines of nuclei](examples.png)",
        "",
    ]
    names = list(told["classes"])
    for title, key in (("Sets", "sets"), ("Tissues", "tissues")):
        lines += [f"## {title}", "", f"| | patches | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
        for name, held in told[key].items():
            numbers = " | ".join(f"{held['nuclei'][n]:,}" for n in names)
            lines.append(f"| {name} | {held['patches']:,} | {numbers} |")
        lines.append("")
    lines += ["## Classes", "", "| in maps | class | colour |", "|---|---|---|"]
    lines += [f"| {i + 1} | {n} | {', '.join(map(str, told['colours'][n]))} |" for n, i in told["classes"].items()]
    columns = (
        "name", "tissue", "patient", "platform", "image_mpp", "patches", "patches_left_out", "nuclei_of_the_slide",
        "nuclei_without_label", "nuclei_not_drawn",
    )  # fmt: skip
    lines += ["", "## Slides", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(str(s.get(c, '')) for c in columns)} |" for s in told["slides"]]
    return "\n".join(lines) + "\n"


def figure(path: Path, data: DataSet) -> Path:
    """Some patches with the outlines of their nuclei in the colours of the classes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    patches = _examples(data)
    columns = min(4, len(patches))
    rows = -(-len(patches) // columns)
    drawn = Figure(figsize=(2.6 * columns, 2.8 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, patch in zip(axes, patches, strict=False):
        axis.imshow(_outlined(patch, data))
        axis.set_title(patch.name, fontsize=7)
    shown = [Line2D([], [], color=(c[0] / 255, c[1] / 255, c[2] / 255), label=n) for n, c in _legend(data)]
    drawn.legend(handles=shown, loc="outside lower center", ncols=min(5, len(shown)), fontsize=7, frameon=False)
    drawn.savefig(path, dpi=110, metadata={"Software": None})
    return path


def _legend(data: DataSet) -> list[tuple[str, tuple[int, int, int]]]:
    return list(zip(data.classes.names, data.classes.colours, strict=True))


def _examples(data: DataSet) -> list[_samples.Patch]:
    """Patches at even steps through those with nuclei in them, else through all."""
    places = [(s, int(i)) for s in data.sources for i in s.chosen]
    picked = np.unique(np.linspace(0, len(places) - 1, 4 * EXAMPLES).astype(int))
    made = []
    for source, index in (places[k] for k in picked):
        mask = data.nuclei(source).masks(source.patches, np.array([index]), shown=source.kinds > 0)[0]
        seen = np.zeros(len(source.kinds) + 1, dtype=np.int32)
        made.append(_samples.Patch(source, index, _compact.drawn(mask, seen), mask.shape))
    full = [p for p in made if len(p.drawn.members)] or made
    return [full[k] for k in np.unique(np.linspace(0, len(full) - 1, min(EXAMPLES, len(full))).astype(int))]


def _outlined(patch: _samples.Patch, data: DataSet) -> np.ndarray:
    pixels = patch.pixels().copy()
    nuclei = patch.dense(patch.drawn.instances)
    # The inner edge of a nucleus: its pixels that have another value beside them.
    padded = np.pad(nuclei, 1, mode="edge")
    edge = np.zeros(nuclei.shape, dtype=bool)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        edge |= padded[dy : dy + nuclei.shape[0], dx : dx + nuclei.shape[1]] != nuclei
    edge &= nuclei > 0
    colours = np.array(data.classes.colours, dtype=np.uint8)
    pixels[edge] = colours[patch.kinds[nuclei[edge] - 1] - 1]
    return pixels
