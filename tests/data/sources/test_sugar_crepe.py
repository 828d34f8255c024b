"""``diffclip data sugar-crepe``: each image once, with its questions of all kinds."""

import json

import pytest
from support.common import read_tar
from support.images import pictures, save

from diffclip_openclip.data.catalog import SUGAR_CREPE_KINDS, size_warning
from diffclip_openclip.data.sources import sugar_crepe


@pytest.fixture
def source(tmp_path):
    """The authors' seven files, each with a question about its own image and one about a common image."""
    for index, (kind, picture) in enumerate(zip(SUGAR_CREPE_KINDS, pictures(len(SUGAR_CREPE_KINDS)), strict=True)):
        save(tmp_path / "val2017" / f"{index}.jpg", picture)
        asked = {
            str(key): {
                "filename": f"{image}.jpg",
                "caption": f"{kind} yes {key}.\n\n",
                "negative_caption": f"no {key} ",
            }
            for key, image in enumerate((index, 0))
        }
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{kind}.json").write_text(json.dumps(asked))
    return tmp_path


def _convert(source):
    return sugar_crepe.convert(source=source / "data", images=source / "val2017", root=source)


def test_questions_lie_with_their_images(source):
    lines = _convert(source)
    assert lines[1:] == size_warning("sugar_crepe", "test", 7)
    assert "has 1,560 images" in lines[1]
    assert (source / "sugar_crepe" / "dataset_type.txt").read_text() == "image_caption_selection\n"
    files = read_tar(source / "sugar_crepe" / "test" / "0.tar", 14)
    lists = [json.loads(data) for name, data in files if name.endswith(".json")]
    assert [data for name, data in files if name.endswith(".jpg")] == [
        (source / "val2017" / f"{index}.jpg").read_bytes() for index in range(7)
    ]
    first = {"kind": "add_obj", "id": "0", "caption": "add_obj yes 0.", "negative_caption": "no 0"}
    assert lists[0][0] == first
    assert [question["kind"] for question in lists[0]] == ["add_obj", *SUGAR_CREPE_KINDS]
    assert [[question["kind"] for question in asked] for asked in lists[1:]] == [[k] for k in SUGAR_CREPE_KINDS][1:]
    assert sum(SUGAR_CREPE_KINDS.values()) == 7_511


@pytest.mark.parametrize("text", ["{", "[]", '{"0": 1}', '{"0": {"filename": "0.jpg", "caption": "x"}}'])
def test_other_files(source, text):
    (source / "data" / "swap_att.json").write_text(text)
    with pytest.raises(ValueError, match=r"swap_att\.json"):
        _convert(source)
    (source / "data" / "swap_att.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"swap_att\.json"):
        _convert(source)
    assert not (source / "sugar_crepe").exists()
