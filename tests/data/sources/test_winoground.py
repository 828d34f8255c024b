"""``diffclip data winoground``: both images of each example with their captions, from either published form."""

import json

import pytest
from support.common import read_tar
from support.images import pictures, read_back, save

from diffclip_openclip.data.sources import winoground

TAGS = {"tag": "Noun", "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": "Object"}


def _examples(count):
    return [
        {"id": i, "image_0": f"ex_{i}_img_0", "image_1": f"ex_{i}_img_1", "caption_0": f"a b {i}\u2028", **TAGS}
        | {"caption_1": f"b a {i}"}
        for i in range(count)
    ]


def _as_lines(folder, examples):
    for example, drawn in zip(examples, zip(*[iter(pictures(2 * len(examples)))] * 2, strict=True), strict=True):
        for image in (0, 1):
            save(folder / "images" / f"{example[f'image_{image}']}.png", drawn[image], "PNG")
    (folder / "examples.jsonl").write_text("".join(f"{json.dumps(e, ensure_ascii=False)}\n" for e in examples), "utf-8")


def _as_parquet(folder, examples):
    arrow = pytest.importorskip("pyarrow", reason="only the Parquet form needs it; it is in the extra dev")
    parquet = pytest.importorskip("pyarrow.parquet")
    _as_lines(folder, examples)
    for example in examples:
        for image in (0, 1):
            path = folder / "images" / f"{example[f'image_{image}']}.png"
            example[f"image_{image}"] = {"bytes": path.read_bytes(), "path": path.name}
    (folder / "examples.jsonl").unlink()
    parquet.write_table(arrow.Table.from_pylist(examples), folder / "test-00000-of-00001.parquet")


@pytest.mark.parametrize("write", [_as_lines, _as_parquet])
def test_both_images_with_their_captions(tmp_path, write):
    write(tmp_path / "source" / "data", _examples(2))
    lines = winoground.convert(source=tmp_path / "source", root=tmp_path)
    assert "published winoground/test has 800 images" in lines[1]
    files = dict(read_tar(tmp_path / "winoground" / "test" / "0.tar", 12))
    about = [json.loads(data) for name, data in files.items() if name.endswith(".json")]
    assert about == [{"pair": pair, "image": image, **TAGS} for pair in (0, 1) for image in (0, 1)]
    assert [data for name, data in files.items() if name.endswith(".png")] == [
        (tmp_path / "source" / "data" / "images" / f"ex_{pair}_img_{image}.png").read_bytes()
        for pair in (0, 1)
        for image in (0, 1)
    ]
    read = [captions for _, captions in read_back(tmp_path, "winoground", "test")]
    assert read == [["a b 0"], ["b a 0"], ["a b 1"], ["b a 1"]]


def test_bad_examples(tmp_path):
    with pytest.raises(FileNotFoundError, match="download facebook/winoground"):
        winoground.convert(source=tmp_path, root=tmp_path)
    for examples, message in (
        (_examples(1) * 2, "line 2: the example 0 is there twice"),
        ([{key: value for key, value in _examples(1)[0].items() if key != "caption_1"}], "line 1 is not of the form"),
        ([_examples(1)[0] | {"id": "x"}], "line 1 is not of the form"),
    ):
        _as_lines(tmp_path, examples)
        with pytest.raises(ValueError, match=message):
            winoground.convert(source=tmp_path, root=tmp_path)
    assert not (tmp_path / "winoground").exists()
