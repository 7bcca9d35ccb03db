"""What the README and the docs show works as it stands: Python runs, commands exist, pictures and links are there.

``STAINSEQ_UPDATE_DOCS=1`` runs the blocks without their abbreviations and keeps the figures in docs/figures.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("stainseq_docs_blocks", Path(__file__).with_name("_blocks.py"))
_blocks = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _blocks
_spec.loader.exec_module(_blocks)

PAGES = {str(p.relative_to(_blocks.ROOT)): p for p in _blocks.PAGES}
PYTHON = [name for name, page in PAGES.items() if any(b.language == "python" for b in _blocks.blocks(page))]
SHELL = [
    pytest.param(words, id=f"{b.name} {' '.join(words)}"[:90])
    for page in PAGES.values()
    for b in _blocks.blocks(page)
    if b.language in ("bash", "sh", "shell", "console")
    for words in _blocks.commands(b)
]


def test_there_is_something_to_test():
    assert {"README.md", "docs/tutorial.md"} <= set(PYTHON)
    assert SHELL


@pytest.mark.slow
@pytest.mark.parametrize("name", PYTHON)
def test_python_runs(name, request, tmp_path, monkeypatch):
    """All Python blocks of a page, one after the other in one namespace, in an empty folder."""
    update = bool(os.environ.get("STAINSEQ_UPDATE_DOCS"))
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    page = PAGES[name]
    for block in (b for b in _blocks.blocks(page) if b.language == "python"):
        if block.needs_data:
            try:
                data = request.getfixturevalue("data_dir")
            except pytest.skip.Exception:
                continue
            monkeypatch.setenv("STAINSEQ_DATA", str(data))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block.code(whole=update), namespace)
        if block.output is not None:
            assert _blocks.same_output(block.output, printed.getvalue()), f"{block.name} printed\n{printed.getvalue()}"
    drawn = {p.name: p for p in tmp_path.glob("tutorial_*")}
    if update:
        for path in drawn.values():
            shutil.copy(path, _blocks.ROOT / "docs" / "figures" / path.name)
    shown = {Path(i).name for i in _blocks.images(page) if Path(i).name.startswith("tutorial_")}
    if not any(b.needs_data for b in _blocks.blocks(page)) or os.environ.get("STAINSEQ_DATA"):
        assert shown == set(drawn)
    assert set(drawn) <= shown


@pytest.mark.parametrize("words", SHELL)
def test_commands_exist(words):
    """Every command of a shell block parses: its name, its options, the number of its arguments."""
    from stainseq.cli._run import app

    known = [w if not w.startswith("$") else "x" for w in words]
    command, bound, _ = app().parse_args(known, print_error=False, exit_on_error=False)
    assert command is not None
    assert bound is not None


@pytest.mark.parametrize("name", PAGES)
def test_pictures_and_links_are_there(name):
    page = PAGES[name]
    for target in [*_blocks.images(page), *_blocks.links(page)]:
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), f"{name} names {target}"
        if anchor and file.suffix == ".md":
            text = file.read_text(encoding="utf-8")
            headings = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{name} names {target}"


def test_the_harness_sees_what_it_should(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n<!-- needs: data -->\n<!-- in tests: 200 -> 2 -->\n```python\nx = 200\nprint(x)\n```\n\n"
        "```text\n200\n```\n\n```bash\nfor s in a b; do stainseq info $s --json f > out; done  # said\n```\n"
    )
    monkeypatch.setattr(_blocks, "ROOT", tmp_path)
    python, text, shell = _blocks.blocks(page)
    assert python.needs_data
    assert python.output == text.text
    namespace = {}
    exec(python.code(), namespace)
    assert namespace["x"] == 2
    assert _blocks.commands(shell) == [["info", "$s", "--json", "f"]]
    page.write_text("```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as e:
        exec(_blocks.blocks(page)[0].code(), {})
    assert e.traceback[-1].lineno == 1  # counted from 0: line 2 of the page
    assert _blocks.same_output("a 1,000 b 0.50", "a 1001 b\n0.505")
    assert not _blocks.same_output("a 1", "a 2")
    assert not _blocks.same_output("a 1", "b 1")
