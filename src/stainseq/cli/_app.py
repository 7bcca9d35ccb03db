"""The tree of commands. Their modules import nothing heavy, so that `stainseq --help` is instant."""

from __future__ import annotations

from typing import Any

import cyclopts

from .. import __version__
from . import about, analyse, learn, show, slides

app = cyclopts.App(
    name="stainseq",
    help="H&E histology joined with spatial transcriptomics. Every command has --help and --debug.",
    version=__version__,
    version_flags=["--version"],
    help_format="plaintext",
)
_GROUPS: dict[str, list[Any]] = {
    "The main job": [
        show.demo,
        slides.convert,
        learn.features,
        learn.train,
        learn.predict,
        learn.evaluate,
        show.report,
    ],
    "Slides": [slides.info, slides.tissue, slides.grid],
    "Genes and domains": [analyse.svg, analyse.domains, show.plot],
    "This installation": [about.list_, about.doctor],
}
for _position, (_title, _commands) in enumerate(_GROUPS.items()):
    _group = cyclopts.Group(_title, sort_key=_position)
    for _command in _commands:
        app.command(_command, name=_command.__name__.rstrip("_"), group=_group)
