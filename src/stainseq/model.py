"""The MODEL folder: what was learned, as JSON and safetensors that open for ever.

::

    MODEL/
      model.json            head, encoder (name, fingerprint, fields), genes, units, training slides, split, versions
      state.safetensors     the head fitted on everything
      fold-00.safetensors   ... and on everything but one fold, for out-of-fold predictions
      colour.safetensors    the colour baseline, where it was fitted; colour-00.safetensors for its folds
      training.parquet      id, slide, fold and position of every training region
      metrics.json          cross-validated scores

No pickle. `format_version` in model.json is the major version of this layout.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._files import check_folder
from .errors import FormatError, InputError, MissingError, StoreError
from .spec import fingerprint
from .store import files

if TYPE_CHECKING:
    import pandas as pd

MODEL_FORMAT = 1
State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """A trained predictor, in memory.

    Parameters
    ----------
    config
        model.json.
    state
        The head fitted on all training regions.
    folds
        The head fitted without each fold.
    training
        id, slide (position in ``config["slides"]``), fold, x_um, y_um of each training region.
    colour
        State and fold states of the colour baseline; empty when it was not fitted.
    metrics
        metrics.json.
    name
        Name of the folder that it was read from.
    """

    config: dict[str, Any]
    state: State
    folds: list[State]
    training: pd.DataFrame
    colour: list[State] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def genes(self) -> list[str]:
        """Names of the predicted genes, in the order of the predictions."""
        return list(self.config["genes"])

    @property
    def fingerprint(self) -> str:
        """Names this model's content."""
        return str(self.config["fingerprint"])

    def facts(self) -> dict[str, Any]:
        """Where its predictions come from, as every prediction carries it.

        Returns
        -------
        dict
            name, head, encoder, region, slides, patients and tissues that are known, n (training regions), n_genes,
            split, n_folds, notes, and ``cross_validation``: summary, baseline and ceiling of metrics.json.
        """
        config, slides = self.config, self.config["slides"]
        scores = {k: self.metrics[k] for k in ("summary", "baseline", "ceiling") if k in self.metrics}
        return {
            "name": self.name,
            "head": config["head"],
            "encoder": config["encoder"].get("name"),
            "region": config["region"],
            "slides": [str(s.get("slide", "?")) for s in slides],
            "patients": sorted({str(s["patient"]) for s in slides if s.get("patient_known")}),
            "tissues": sorted({str(s["tissue"]) for s in slides if s.get("tissue")}),
            "n": len(self.training),
            "n_genes": len(self.genes),
            "split": config["split"],
            "n_folds": config["n_folds"],
            "notes": list(config.get("notes", [])),
            "cross_validation": {**scores, "n_genes": len(self.metrics.get("genes", []))},
        }


def writable(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Refuse, before the work is done, a place where no model may be written.

    Parameters
    ----------
    path
        The model folder to be.
    overwrite
        Whether a model (and nothing else) may be replaced.

    Raises
    ------
    StoreError
        Something is there already (and is not a model, or `overwrite` is off), or the folder takes no files.
    """
    target = Path(path)
    is_model = (target / "model.json").is_file()
    if target.exists() and not (overwrite and is_model):
        what = "there is something already" if is_model else "there is something that is no model"
        fix = "choose another --out, or pass --overwrite" if is_model else "choose another --out"
        raise StoreError(what, where=target, fix=fix)
    check_folder(target)
    return target


def save(model: Model, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a model folder, staged beside its final name, which it takes in one step: the old one or the new is there.

    Raises
    ------
    StoreError
        Something is at `path` already (and is not a model, or `overwrite` is off).
    """
    from safetensors.numpy import save_file

    target = writable(path, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    old = staged.with_name(f"{staged.name}-old")
    try:
        staged.mkdir()
        states = {"state": model.state, **{f"fold-{i:02d}": s for i, s in enumerate(model.folds)}}
        for i, s in enumerate(model.colour):
            states["colour" if i == 0 else f"colour-{i - 1:02d}"] = s
        for name, state in states.items():
            save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, staged / f"{name}.safetensors")
        model.training.to_parquet(staged / "training.parquet", index=False)
        _write_json(staged / "model.json", model.config)
        _write_json(staged / "metrics.json", model.metrics)
        files.sync_tree(staged)
        with files.taking(staged, target, old=old):
            files.sync(target.parent)
    except OSError as e:
        raise StoreError(
            f"the model cannot be written ({e.strerror or e})", where=target, fix="free space or change --out"
        ) from e
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model folder.

    Raises
    ------
    MissingError
        There is no model at `path`.
    FormatError
        It is damaged, or written by a newer stainseq.
    """
    import pandas as pd
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(path)
    if not (folder / "model.json").is_file():
        raise MissingError("no model here", where=folder, fix="give the folder that `stainseq train --out` wrote")
    try:
        config = json.loads((folder / "model.json").read_text())
        if int(config["format_version"]) > MODEL_FORMAT:
            raise FormatError(
                f"model format {config['format_version']} is newer than this stainseq reads ({MODEL_FORMAT})",
                where=folder,
                fix="pip install --upgrade stainseq",
            )
        n_folds = int(config["n_folds"])
        state = load_file(folder / "state.safetensors")
        folds = [load_file(folder / f"fold-{i:02d}.safetensors") for i in range(n_folds)]
        names = ["colour", *(f"colour-{i:02d}" for i in range(n_folds))] if config.get("colour") else []
        colour = [load_file(folder / f"{n}.safetensors") for n in names]
        training = pd.read_parquet(folder / "training.parquet")
        metrics = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        if isinstance(e, FormatError):
            raise
        raise FormatError(
            f"the model is damaged ({e})", where=folder, fix="train it again or restore the folder"
        ) from e
    if content_fingerprint(config["genes"], state, training) != config["fingerprint"]:
        raise FormatError("the model's weights do not match its model.json", where=folder, fix="restore the folder")
    return Model(config, state, folds, training, colour, metrics, name=folder.resolve().name)


def content_fingerprint(genes: list[str], state: State, training: pd.DataFrame) -> str:
    """Fingerprint of what predictions depend on: genes, weights and training ids."""
    arrays = [x for k in sorted(state) for x in (k, np.ascontiguousarray(state[k]))]
    return fingerprint(genes, training["id"].astype(str).tolist(), training["fold"].astype(int).tolist(), *arrays)


def check_encoder(config: dict[str, Any], *, name: str, encoder_fingerprint: str, where: object) -> None:
    """Refuse features of another encoder, pooling, field of view or precision than the model learned from."""
    wanted = config["encoder"]
    if encoder_fingerprint != wanted["fingerprint"]:
        raise InputError(
            f"the model learned from encoder {wanted['name']!r} ({wanted['fingerprint'][:8]}), the features are of "
            f"{name!r} ({encoder_fingerprint[:8]})",
            where=where,
            fix=f"run `stainseq features SLIDE --encoder {wanted['name']}` with this version of stainseq",
        )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
