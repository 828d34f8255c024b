"""``diffclip data captions``: images with captions of one's own, from tables and JSON."""

import json

import pytest
from support.images import pictures, read_back, save

from diffclip_cli.main import main
from diffclip_openclip.data.sources import captions

PAIRS = [("b.jpg", "two"), ("a.jpg", 'one, "quoted"\u2028still one'), ("b.jpg", "more of two")]
FORMS = {
    "rows.csv": '\ufeffi,image,caption\r\n1,b.jpg,two\r\n2,a.jpg,"one, ""quoted""\u2028still one"\n3,b.jpg,more of two',
    "rows.tsv": 'image\tcaption\nb.jpg\ttwo\na.jpg\t"one, ""quoted""\u2028still one"\nb.jpg\tmore of two\n',
    "rows.jsonl": "\n".join(json.dumps({"image": i, "caption": c}, ensure_ascii=False) for i, c in PAIRS) + "\n\n",
    "rows.json": json.dumps(
        [{"image": "b.jpg", "caption": ["two", "more of two"]}, {"image": "a.jpg", "caption": PAIRS[1][1]}]
    ),
}


@pytest.fixture
def source(tmp_path):
    for name, picture in zip(("a.jpg", "b.jpg"), pictures(2), strict=True):
        save(tmp_path / "images" / name, picture)
    return tmp_path


def _convert(source, file, text, **options):
    (source / file).write_text(text, encoding="utf-8", newline="")
    return captions.convert("mine", annotations=source / file, images=source / "images", root=source, **options)


@pytest.mark.parametrize("file", FORMS)
def test_all_forms_give_the_same(source, file):
    """An image's captions are put together, in order, each on one line."""
    assert _convert(source, file, FORMS[file]) == [f"{source / 'mine' / 'test'}: 2 images in 1 shards"]
    read = [of_it for _, of_it in read_back(source, "mine", "test")]
    assert read == [["two", "more of two"], ['one, "quoted" still one']]


def test_other_titles_by_the_command(source):
    (source / "rows.csv").write_text("filepath,title\na.jpg,x\n")
    words = ["data", "captions", "mine", "--annotations", str(source / "rows.csv"), "--images", str(source / "images")]
    assert main([*words, "--data", str(source), "--image-key", "filepath", "--caption-key", "title"]) == 0
    assert [of_it for _, of_it in read_back(source, "mine", "test")] == [["x"]]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("rows.csv", "image,caption\na.jpg,x,y\n", r"rows\.csv, line 2: there must be 2 values"),
        ("rows.csv", "image,caption\na.jpg\n", r"rows\.csv, line 2: there must be 2 values"),
        ("rows.csv", "image,caption\na.jpg,x\nb.jpg,\n", r"b\.jpg has no caption"),
        ("rows.csv", "file,caption\na.jpg,x\n", r"line 2: expected .* found 'file', 'caption' \(--image-key"),
        ("rows.csv", "image,caption\n", "the source has no images"),
        ("rows.csv", 'image,caption\na.jpg,"x\n', r"rows\.csv, line \d: "),
        ("rows.json", '{"images": []}', "must be a list of objects"),
        ("rows.json", "[" * 100_000, r"rows\.json is no JSON"),
        ("rows.json", '[{"image": "a.jpg", "caption": [1]}]', "entry 1: expected an image's name"),
        ("rows.jsonl", '{"image": "a.jpg", "caption": "x"}\n3\n', r"rows\.jsonl, line 2: int is no JSON object"),
        ("rows.txt", "a.jpg x", r"must be a table \(\.csv, \.tsv\) or JSON"),
    ],
)
def test_bad_annotations(source, file, text, message):
    with pytest.raises(ValueError, match=message):
        _convert(source, file, text)
    assert not (source / "mine").exists()
