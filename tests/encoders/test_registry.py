"""The table of encoders: complete, consistent, and of the size that the published models have."""

from __future__ import annotations

import dataclasses
from importlib import import_module

import pytest
import torch

from stainseq import encoders, registry
from stainseq.encoders import description
from stainseq.encoders.build import FAMILIES
from stainseq.errors import AccessError, FormatError, InputError, MissingError

NAMES = encoders.spec_names()
TABLE = [
    "uni",
    "uni2-h",
    "virchow",
    "virchow2",
    "h-optimus-0",
    "h-optimus-1",
    "h0-mini",
    "gigapath",
    "gigapath-flash",
    "phikon",
    "phikon-v2",
    "conch",
    "conch-v1.5",
    "plip",
    "clip",
    "quiltnet-b-32",
    "quiltnet-b-16",
    "quiltnet-b-16-pmb",
    "biomedclip",
    "omiclip",
    "musk",
    "keep",
    "hibou-b",
    "hibou-l",
    "gpfm",
    "midnight-12k",
    "open-midnight",
    "kaiko-vits16",
    "kaiko-vits8",
    "kaiko-vitb16",
    "kaiko-vitb8",
    "kaiko-vitl14",
    "lunit-vits8",
    "lunit-vits16",
    "lunit-resnet50-bt",
    "lunit-resnet50-mocov2",
    "lunit-resnet50-swav",
    "ctranspath",
    "mstar",
    "rudolfv2-s",
    "rudolfv2-b",
    "rudolfv2",
    "genbio-pathfm",
    "vit-google",
    "resnet50-hest",
    "resnet50",
    "lite0",
    "lite2",
    "shell",
]
OWN = [n for n in NAMES if encoders.spec(n).family in FAMILIES]


def test_every_row_of_the_table_is_there() -> None:
    assert not set(TABLE) - set(NAMES)
    # The default may be several encoders joined by "+"; it is listed beside the single ones.
    listed = sorted({*NAMES, encoders.default_name()})
    assert registry.names("encoders") == listed
    assert registry.default("encoders") == encoders.default_name()
    assert {r["name"] for r in registry.describe("encoders")} == set(listed)


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_complete(name: str) -> None:
    s = encoders.spec(name)
    assert s.name == name
    for key in ("summary", "family", "licence", "citation", "pooling", "naming", "interpolation", "revision"):
        assert getattr(s, key), key
    assert s.interpolation in ("bilinear", "bicubic", "area")
    assert s.dtype in ("fp32", "fp16", "bf16")
    assert s.loader in description.LOADERS
    assert 0 < s.crop_pct <= 1
    assert 0 < len(s.fields_um) == len(s.mpp)
    assert all(0.1 < mpp < 2.1 for mpp in s.mpp)
    assert all(v > 0 for v in s.std)
    assert s.dim % len(s.fields_um) == 0
    if s.loader not in ("builtin", "shipped", "wheel", "local"):
        assert "/" in s.hub_id
        assert s.file_name
        assert s.page.endswith(s.hub_id)
    if s.loader in ("wheel", "package"):
        assert s.package
    if s.gated or "NC" in s.licence or "non-commercial" in s.licence:
        assert s.commercial is not True or s.licence in ("Apache-2.0", "BSD-3-Clause")
    description.needs(s)
    assert len(s.fingerprint()) == 32


def test_what_nothing_here_can_run_says_so_and_is_never_available() -> None:
    elsewhere = [n for n in NAMES if encoders.spec(n).loader == "elsewhere"]
    assert elsewhere == ["ctranspath", "genbio-pathfm"]
    rows = {r["name"]: r for r in registry.describe("encoders")}
    for name in elsewhere:
        assert not rows[name]["available"]
        assert rows[name]["needs"] == [
            f"its authors' code ({encoders.spec(name).page}): stainseq has no network for it"
        ]
        with pytest.raises(AccessError, match="no network for it"):
            encoders.load(name, device="cpu")
    # All others are built by a family of ours or by a loader that has code.
    made = {"hub", "builtin", "local", "shipped", "wheel", "timm", "transformers", "open_clip", "package"}
    assert {encoders.spec(n).loader for n in NAMES if n not in elsewhere} <= made


def test_fingerprints_tell_all_apart() -> None:
    prints = {encoders.spec(n).fingerprint() for n in NAMES}
    assert len(prints) == len(NAMES)
    s = encoders.spec("virchow2")
    for change in ({"pooling": "cls"}, {"dtype": "fp32"}, {"revision": "abc"}, {"input_px": 448}, {"mean": (0, 0, 0)}):
        assert dataclasses.replace(s, **change).fingerprint() != s.fingerprint()
    for change in ({"summary": "x"}, {"licence": "x"}, {"notes": "x"}):
        assert dataclasses.replace(s, **change).fingerprint() == s.fingerprint()


@pytest.mark.parametrize("name", OWN)
def test_parameters_and_widths(name: str) -> None:
    s = encoders.spec(name)
    module = import_module(f"stainseq.encoders.{FAMILIES[s.family]}")
    heavy = s.family in ("vit", "hipt")  # shapes alone: on the meta device nothing is computed
    with torch.device("meta" if heavy else "cpu"):
        net = module.build(s).eval()
        with torch.no_grad():
            x = torch.zeros(1, 3, s.input_px, s.input_px)
            vectors, tokens = net.vectors(x), net.tokens(x)
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert s.params_m is None or abs(millions - s.params_m) < 0.06
    assert vectors.shape == (1, s.dim // len(s.fields_um))
    assert tokens.shape[:3] == (1, *net.token_grid)
    if s.family == "vit":
        assert net.prefix == s.prefix_tokens


def test_names_can_be_joined() -> None:
    s = encoders.spec("lite0-multi2+shell+colour")
    assert s.fields_um == (112.0, 224.0)
    assert s.input_px == 224
    assert s.dim == 5696 + 486 + 42
    assert s.licence == "Apache-2.0 and MIT and BSD-3-Clause"
    assert s.commercial is True
    assert encoders.spec("uni+shell").commercial is False
    assert description.needs(encoders.spec("shell+uni+uni2-h")) == [
        *description.needs(encoders.spec("uni")),
        *[n for n in description.needs(encoders.spec("uni2-h")) if n not in description.needs(encoders.spec("uni"))],
    ]
    for wrong in ("shell+", "+shell", "shell+shell"):
        with pytest.raises(InputError, match="empty or repeated"):
            encoders.spec(wrong)
    with pytest.raises(MissingError, match="nothing"):
        encoders.spec("shell+nothing")


def test_faulty_descriptions_are_refused() -> None:
    facts = {"summary": "x", "family": "vit", "loader": "hub", "input_px": 224, "dim": 4, "pooling": "cls",
             "normalisation": "half", "licence": "x", "citation": "x"}  # fmt: skip
    assert description.parse("mine", facts).fields_um == (112.0,)
    for change, words in (
        ({"normalisation": "none-such"}, "normalisation"),
        ({"loader": "ftp"}, "loader"),
        ({"colour": 1}, "unknown field colour"),
    ):
        with pytest.raises(FormatError, match=words):
            description.parse("mine", {**facts, **change})
    with pytest.raises(FormatError, match="incomplete"):
        description.parse("mine", {k: v for k, v in facts.items() if k != "dim"})
