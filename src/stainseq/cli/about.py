"""What is here: list, doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ._common import Json, NoSeed, emit, table

if TYPE_CHECKING:
    from rich.console import Console

Kind = Literal["encoders", "heads", "readers", "domains", "svg", "writers", "annotators"]


def list_(kind: Annotated[Kind, Parameter(help="What to list.")], /, *, json: Json = None, seed: NoSeed = 0) -> None:
    """List encoders, heads, readers, domain methods, spatial tests, writers or annotators, and what they need."""
    from stainseq import registry

    rows = registry.describe(kind)

    def show(console: Console) -> None:
        if not rows:
            console.print(f"no {kind} here yet")
            return
        shown = table("name", "available", "needs", "")
        for row in rows:
            name = f"{row['name']} (default)" if row.get("default") else str(row["name"])
            needs = row.get("needs") or ()
            text = needs if isinstance(needs, str) else ", ".join(map(str, needs))
            shown.add_row(name, "yes" if row["available"] else "no", text, str(row.get("summary", "")))
        console.print(shown)

    emit(rows, json, show)


def doctor(*, json: Json = None, seed: NoSeed = 0) -> int:
    """Check versions, optional parts, device and folders, with a fix for each thing missing."""
    from ._doctor import checks

    rows = checks()
    broken = [r for r in rows if r["status"] == "fail"]
    result: dict[str, Any] = {"ok": not broken, "checks": rows}

    def show(console: Console) -> None:
        shown = table("", "what", "found", "fix")
        marks = {"ok": "ok", "info": "-", "fail": "FAIL"}
        for row in rows:
            shown.add_row(marks[row["status"]], row["name"], row["found"], row["fix"])
        console.print(shown)

    emit(result, json, show)
    if broken:
        from stainseq.errors import StainseqError

        names = ", ".join(r["name"] for r in broken)
        raise StainseqError(f"{len(broken)} checks failed", where=names, fix=broken[0]["fix"] or "see the list above")
    return 0
