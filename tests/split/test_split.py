"""Sets that share no pixel, against plain counting of pixels."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

import stainseq as ss
from stainseq.core import sets
from stainseq.errors import InputError, MissingError


@pytest.fixture(scope="module")
def big(make):
    """14 x 10 patches."""
    return make.dataset(name="big", width=64 + 192 * 14, height=64 + 192 * 10, n=400)


def pixels(slide, names) -> np.ndarray:
    """Which pixels of the slide the patches show."""
    frame = slide.shapes["patches"]
    shown = np.zeros((int(frame.y_px.max()) + 256, int(frame.x_px.max()) + 256), dtype=bool)
    for x, y in frame.loc[list(names), ["x_px", "y_px"]].to_numpy():
        shown[y : y + 256, x : x + 256] = True
    return shown


def test_shared_area_against_pixels():
    rng = np.random.default_rng(0)
    for _ in range(30):
        size = int(rng.integers(1, 40))
        first, second = (rng.integers(0, 90, (int(rng.integers(0, 12)), 2)) for _ in range(2))
        shown = np.zeros((2, 130, 130), dtype=bool)
        for k, corners in enumerate((first, second)):
            for x, y in corners:
                shown[k, y : y + size, x : x + size] = True
        expected = (shown[0].sum(), shown[1].sum(), (shown[0] & shown[1]).sum())
        assert sets.shared_area(first, second, size=size) == expected


def test_deal():
    sizes = np.array([50, 30, 20, 10, 10, 5, 5])
    names = np.array(list("abcdefg"))
    chosen = sets.deal(sizes, [0.6, 0.2, 0.2], names=names, seed=0)
    assert np.bincount(chosen, weights=sizes).tolist() == pytest.approx([78, 26, 26], abs=5)
    order = np.random.default_rng(1).permutation(7)
    assert np.array_equal(sets.deal(sizes[order], [0.6, 0.2, 0.2], names=names[order], seed=0), chosen[order])
    equal = {tuple(sets.deal(np.ones(9), [0.6, 0.2, 0.2], names=np.arange(9), seed=s)) for s in range(6)}
    assert len(equal) > 1
    assert sorted(sets.deal(np.array([100, 1, 1]), [0.6, 0.2, 0.2], names=np.arange(3), seed=0)) == [0, 1, 2]
    with pytest.raises(InputError, match="2 groups cannot make 3 sets"):
        sets.deal(np.ones(2), [0.6, 0.2, 0.2], names=np.arange(2))


def test_apart_against_all_pairs():
    rng = np.random.default_rng(2)
    corners, which = rng.integers(0, 300, (150, 2)), rng.integers(0, 3, 150)
    for gap in (0, 7):
        kept = sets.apart(corners, which, size=20, gap=gap, order=(2, 1, 0))
        near = np.abs(corners[:, None] - corners[None]).max(-1) < 20 + gap
        expected = which == 2
        expected |= (which == 1) & ~(near & expected).any(1)
        expected |= (which == 0) & ~(near & expected).any(1)
        assert np.array_equal(kept, expected)
        assert 0 < kept.sum() < 150


@pytest.mark.parametrize("buffer_um", [0.0, 32.0])
def test_blocks(big, buffer_um):
    """No pixel in two sets, the buffer between them, nothing lost, the classes counted once."""
    made = ss.tl.split(big, by="block", block_um=160, buffer_um=buffer_um)
    assert (made["unit"], made["leaks"]) == ("patch", [])
    every = [p for members in made["sets"].values() for p in members] + made["left_out"]
    assert sorted(every) == sorted(big.shapes["patches"].index)
    shown = {n: pixels(big, members) for n, members in made["sets"].items()}
    assert list(shown) == ["train", "valid", "test"]
    frame = big.shapes["patches"]
    for a, b in combinations(shown, 2):
        assert not (shown[a] & shown[b]).any()
        corners = [frame.loc[made["sets"][s], ["x_px", "y_px"]].to_numpy() for s in (a, b)]
        gap = np.abs(corners[0][:, None] - corners[1][None]).max(-1).min() - 256
        assert gap * 0.25 >= buffer_um
    assert sum(made["shares"].values()) == pytest.approx(1)
    obs = big.tables["counts_nuclei"]
    where = np.floor(obs.obsm["spatial"] / 0.25).astype(int)
    height, width = shown["train"].shape
    inside = (where >= 0).all(1) & (where[:, 0] < width) & (where[:, 1] < height)
    for part, classes in made["balance"].items():
        hit = inside.copy()
        hit[inside] = shown[part][where[inside, 1], where[inside, 0]]
        label = obs.obs["tangram.label"].to_numpy().astype(object)
        assert classes == {c: int((hit & (label == c)).sum()) for c in classes}


def test_blocks_seeds_and_refusals(big):
    one = ss.tl.split(big, by="block", block_um=160)
    assert ss.tl.split(big, by="block", block_um=160) == one
    assert ss.tl.split(big, by="block", block_um=160, seed=1)["sets"] != one["sets"]
    with pytest.raises(InputError, match="1 block of 5000 um cannot make 3 sets"):
        ss.tl.split(big, by="block", block_um=5000)
    with pytest.raises(InputError, match="buffer of 500 um leaves nothing of train"):
        ss.tl.split(big, by="block", block_um=160, buffer_um=500)
    two = ss.tl.split(big, by="block", block_um=160, fractions=(0.5, 0, 0.5))
    assert list(two["sets"]) == ["train", "test"]
    for wrong in ((0.5, 0.5), (0.5, 0.2, 0.2), (0, 0.5, 0.5)):
        with pytest.raises(InputError, match="give three that sum to 1"):
            ss.tl.split(big, by="block", fractions=wrong)


def test_published_split_leaks_and_says_how_much(big, tmp_path):
    """The rule of STHELAR: shares, stratified, and the pixels that its sets share, to the pixel."""
    made = ss.tl.split(big, compat=True, label_map="ct_1", out=tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == made
    assert [len(v) for v in made["sets"].values()] == [84, 28, 28]
    assert made["left_out"] == []
    shown = {n: pixels(big, members) for n, members in made["sets"].items()}
    assert {tuple(x["sets"]) for x in made["leaks"]} == set(combinations(shown, 2))
    for leak in made["leaks"]:
        a, b = (shown[s] for s in leak["sets"])
        assert leak["kind"] == "pixels"
        assert leak["pixels"] == (a & b).sum()
        assert leak["shared"] == pytest.approx((a & b).sum() / min(a.sum(), b.sum()))
        assert leak["shared"] > (0.5 if "train" in leak["sets"] else 0.1)
    with pytest.raises(InputError, match=r"train and valid share pixels of big \(\d\d\.\d%\).*--max-shared"):
        ss.tl.split(big, compat=True, max_shared=0.1, out=tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


def test_slides_and_patients(make, tmp_path):
    slides = [make.dataset(name=f"s{i}", n=20, seed=i, patient=f"p{i // 2}") for i in range(6)]
    made = ss.tl.split(slides)
    assert made["unit"] == "slide"
    assert sorted(s for members in made["sets"].values() for s in members) == [f"s{i}" for i in range(6)]
    assert {len(v) for v in made["sets"].values()} == {2}
    assert all(members[0][1:] == str(int(members[1][1:]) - 1) for members in made["sets"].values())
    assert made["leaks"] == []
    assert sum(sum(c.values()) for c in made["balance"].values()) <= 120
    allowed = [ss.tl.split(slides, by="slide", seed=s, max_shared=1) for s in range(5)]
    assert {x["kind"] for made in allowed for x in made["leaks"]} == {"patient"}
    seed = next(s for s, made in enumerate(allowed) if made["leaks"])
    with pytest.raises(InputError, match=r"share the patient of s\d and s\d.*split by patient"):
        ss.tl.split(slides, by="slide", seed=seed)
    with pytest.raises(InputError, match="2 slides cannot make 3 sets"):
        ss.tl.split(slides[:2], by="slide")
    del slides[0].attrs["stainseq"]["patient"]
    with pytest.raises(MissingError, match="no patient of s0"):
        ss.tl.split(slides)
    # The same picture under two names.
    copies = [make.dataset(name=f"c{i}", n=20, seed=9, patient=f"q{i}") for i in range(3)]
    with pytest.raises(InputError, match="share the picture of c"):
        ss.tl.split(copies)


def test_without_patches_or_labels(make):
    slides = [make.slide(name=f"v{i}", seed=i, cells=False) for i in range(4)]
    made = ss.tl.split(slides, by="slide", fractions=(0.5, 0.25, 0.25))
    assert made["sizes"] == {"train": 2, "valid": 1, "test": 1}
    assert made["balance"] == {}
    with pytest.raises(MissingError, match="no patches"):
        ss.tl.split(slides, by="block")


def test_command_and_export(big, make, tmp_path, capsys):
    """The file of the command is what export takes; sets are the same patches in every file."""
    from stainseq.cli import run

    store, out = tmp_path / "big.zarr", tmp_path / "s.json"
    slide = make.dataset(name="big", width=1216, height=832, n=60)
    del slide.shapes["patches"]
    ss.io.write(slide, store)
    assert run(["patches", str(store)]) == 0
    words = ["split", str(store), "--by", "block", "--block-um", "100", "--buffer-um", "0"]
    assert run([*words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "nothing is shared" in shown
    assert "Keratinocyte" in shown
    held = json.loads(out.read_text())
    folder = tmp_path / "folder"
    words = ["export", str(store), str(folder), "--to", "cellvit", "--split-file", str(out), "--option", "card=false"]
    assert run(words) == 0
    written = []
    for part, members in held["sets"].items():
        lines = (folder / f"cell_count_{part}.csv").read_text().splitlines()[1:]
        assert [line.split(",")[0] for line in lines] == [f"{m}.png" for m in members]
        written += members
    assert len((folder / "types.csv").read_text().splitlines()) == 1 + len(written)
    assert run(["split", str(store), "--compat", "--max-shared", "0", "--out", str(tmp_path / "t.json")]) == 1
    assert "share pixels" in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()
    assert run(["split", "--out", str(out)]) == 1
