"""``diffclip data mmvp``: pairs of questions in order, with their patterns."""

import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from support.images import pictures, pixels, read_back, save

from diffclip_openclip.data.catalog import MMVP_PATTERNS
from diffclip_openclip.data.sources import mmvp


def _mmvp(folder: Path, rows: list[tuple[int, str, str]], images: str = "MLLM_VLM Images") -> Path:
    """Questions.csv as published, and an image for each question in the folder of its type."""
    (folder / images).mkdir(parents=True)
    text = "".join(f'{qid},{kind},"{statement}"\r\n' for qid, kind, statement in rows)
    (folder / "Questions.csv").write_bytes(b"\xef\xbb\xbf" + f"Question ID,Type,Statement\r\n{text}".encode())
    for (qid, kind, _), picture in zip(rows, pictures(len(rows)), strict=True):
        save(folder / images / kind / f"{qid}.jpg", picture)
    return folder


@pytest.mark.parametrize("images", ["MLLM_VLM Images", "MMVP_VLM_Images", "MLLM_VLM_Images"])
def test_mmvp_pairs_in_order_with_their_patterns(tmp_path, images):
    # types are the published folders' names; 240 questions precede Camera_Perspective
    rows = [(242, "Camera_Perspective", "seen, from below"), (241, "Camera_Perspective", "seen from above")]
    rows += [(1, "Orientation", "facing left"), (2, "Orientation", "facing right")]
    rows += [(30, "Orientation", "d"), (29, "Orientation", "c"), (31, "Presence", "a"), (32, "Presence", "b")]
    source = _mmvp(tmp_path / "source", rows, images)
    lines = mmvp.convert(source=source, root=tmp_path)
    assert "published mmvp/test has 270 images" in lines[1]
    with tarfile.open(tmp_path / "mmvp" / "test" / "0.tar") as tar:
        about = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
    first, second, last = MMVP_PATTERNS[0], MMVP_PATTERNS[1], MMVP_PATTERNS[8]
    assert about == [
        {"qid": qid, "pattern": pattern, "pair": pair}
        for qid, pattern, pair in [
            (1, first, 0),
            (2, first, 0),
            (29, first, 14),
            (30, first, 14),
            (31, second, 15),
            (32, second, 15),
            (241, last, 120),
            (242, last, 120),
        ]
    ]
    statements = {qid: [statement] for qid, _, statement in rows}
    kinds = {qid: kind for qid, kind, _ in rows}
    read = read_back(tmp_path, "mmvp", "test")
    for (image, statement), entry in zip(read, about, strict=True):
        assert statement == statements[entry["qid"]]
        with Image.open(source / images / kinds[entry["qid"]] / f"{entry['qid']}.jpg") as original:
            assert pixels(image) == pixels(original)


def test_mmvp_type_that_names_a_pattern_is_it(tmp_path):
    mmvp.convert(source=_mmvp(tmp_path / "source", [(1, "Texts", "a"), (2, "Texts", "b")]), root=tmp_path)
    assert b'"pattern": "Texts"' in (tmp_path / "mmvp" / "test" / "0.tar").read_bytes()


def test_mmvp_all_270_questions(tmp_path):
    kinds = [f"Type {index // 30}" for index in range(270)]
    rows = [(index + 1, kind, f"statement {index + 1}") for index, kind in enumerate(kinds)]
    lines = mmvp.convert(source=_mmvp(tmp_path / "source", rows), root=tmp_path)
    assert lines == [f"{tmp_path / 'mmvp' / 'test'}: 270 images in 1 shards"]
    with tarfile.open(tmp_path / "mmvp" / "test" / "0.tar") as tar:
        about = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
    assert [entry["pattern"] for entry in about] == [name for name in MMVP_PATTERNS for _ in range(30)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, "A", "x"), (2, "A", "y"), (2, "A", "z")], "has question 2 twice"),
        ([(1, "A", "x"), (2, "A", "y"), (4, "A", "z")], r"without partner \[4\]"),
        ([(2, "A", "x"), (3, "A", "y")], r"without partner \[2, 3\]"),
        ([(0, "A", "x"), (271, "A", "y"), (272, "A", "z")], "0 to 272"),
        ([(271, "A", "y"), (272, "A", "z")], "271 to 272"),
        ([(1, "A", "x"), (2, "A", " ")], "row 3: expected"),
        ([(1, "A", "x"), ("two", "A", "y")], "row 3: expected"),
        ([(1, "A", 'x","y')], "row 2: expected"),
        ([], "no images"),
    ],
)
def test_mmvp_bad_questions(tmp_path, rows, message):
    source = _mmvp(tmp_path / "source", rows)
    with pytest.raises(ValueError, match=message):
        mmvp.convert(source=source, root=tmp_path)
    assert not (tmp_path / "mmvp").exists()


@pytest.mark.parametrize("rows", [b"a" * 200_000, b"\xff"])
def test_mmvp_questions_that_are_no_table(tmp_path, rows):
    (tmp_path / "Questions.csv").write_bytes(rows)
    with pytest.raises(ValueError, match=r"Questions\.csv is no (table|text in UTF-8)"):
        mmvp.convert(source=tmp_path, root=tmp_path)


def test_mmvp_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Questions\.csv"):
        mmvp.convert(source=tmp_path, root=tmp_path)
    source = _mmvp(tmp_path / "source", [(1, "A", "x"), (2, "A", "y")])
    (source / "MLLM_VLM Images" / "A" / "2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no image .*A/2\.jpg"):
        mmvp.convert(source=source, root=tmp_path)
    (source / "MLLM_VLM Images").rename(source / "images")
    with pytest.raises(FileNotFoundError, match="'MLLM_VLM Images' or 'MMVP_VLM_Images'"):
        mmvp.convert(source=source, root=tmp_path)
    assert not (tmp_path / "mmvp").exists()
