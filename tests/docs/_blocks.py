"""Code blocks of Markdown pages: Python blocks to run, shell blocks to parse, outputs to compare."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    p for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if "_build" not in p.parts and p.is_file()
)

_FENCE = re.compile(r"^```(\w*)\s*$")
_NOTE = re.compile(r"^<!--\s*(.+?)\s*-->$")
_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?")


@dataclass
class Block:
    """One fenced block.

    A comment on the line before a Python block says how tests treat it: ``<!-- needs: data -->`` skips it where the
    real data are absent, ``<!-- in tests: A -> B -->`` replaces text so that it takes seconds.
    """

    page: Path
    line: int
    language: str
    text: str
    notes: list[str] = field(default_factory=list)
    output: str | None = None

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def needs_data(self) -> bool:
        return "needs: data" in self.notes

    def code(self, *, whole: bool = False):
        """Compiled, so that a traceback names the page and its line; abbreviated as its notes say, unless whole."""
        text = self.text
        for note in self.notes:
            if note.startswith("in tests:") and not whole:
                old, new = (part.strip() for part in note.removeprefix("in tests:").split("->"))
                assert old in text, f"{self.name}: {old!r} is not in the block"
                text = text.replace(old, new)
        tree = ast.parse(text, filename=str(self.page))
        ast.increment_lineno(tree, self.line)
        return compile(tree, str(self.page), "exec")


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, each Python block with the ``text`` block that follows it as its output."""
    found: list[Block] = []
    notes: list[str] = []
    open_block: Block | None = None
    body: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if open_block is not None:
            if fence and not fence[1]:
                open_block.text = "\n".join(body) + "\n"
                if open_block.language == "text" and found and found[-1].language == "python":
                    found[-1].output = open_block.text
                found.append(open_block)
                open_block, body = None, []
            else:
                body.append(line)
        elif fence:
            open_block, notes = Block(page, number, fence[1], "", notes), []
        elif note := _NOTE.match(line):
            notes.append(note[1])
        elif line.strip():
            notes = []
    assert open_block is None, f"{page}: the block of line {open_block and open_block.line} is not closed"
    return found


def same_output(want: str, got: str, *, within: float = 0.02) -> bool:
    """Same words, and numbers that agree within 2 %: what a page shows was printed on another machine."""

    def parts(text: str) -> tuple[list[str], list[float]]:
        words = _NUMBER.sub("#", text).split()
        return words, [float(n.replace(",", "").rstrip(".")) for n in _NUMBER.findall(text)]

    (words, numbers), (seen_words, seen) = parts(want), parts(got)
    if words != seen_words or len(numbers) != len(seen):
        return False
    return all(abs(a - b) <= within * max(abs(a), abs(b)) for a, b in zip(numbers, seen, strict=True))


def commands(block: Block) -> list[list[str]]:
    """Calls of stainseq in a shell block, also inside a loop, without comments and redirections."""
    text = re.sub(r"\d?>+\s*[^\s;|&]+", "", block.text.replace("\\\n", " "))
    found = []
    for line in text.splitlines():
        for part in re.split(r";|&&|\|\|?|\bdo\b", line):
            words = shlex.split(part, comments=True)
            if words and words[0] == "stainseq":
                found.append(words[1:])
    return found


def images(page: Path) -> list[str]:
    """Pictures that a page shows, as it names them."""
    return re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Files of this repository, and headings, that a page links to."""
    found = re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [f for f in found if "://" not in f and not f.startswith("mailto:")]
