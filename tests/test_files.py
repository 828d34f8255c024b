"""Outputs appear whole or not at all, and take the place of nothing but their like; JSON of others is bounded."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from support.folders import tree

from diffclip_openclip.files import Folder, check_place, parse_json, read_json, staged

BOX = Folder("a box", ("lid", "toys", "toys/*.txt"), mark="lid")


def _make_box(path: Path, content: str = "old") -> Path:
    (path / "toys").mkdir(parents=True)
    (path / "lid").write_text(content)
    (path / "toys" / "ball.txt").write_text(content)
    return path


def _refused(match: str, *arguments, folder: Path) -> None:
    before = tree(folder)
    with pytest.raises(FileExistsError, match=match):
        check_place(*arguments)
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("stray", "told"),
    [
        ("note.txt", "it has note.txt in it"),
        (".git", r"it has \.git in it"),
        ("toys/more", "it has toys/more in it"),
        ("toys/ball.md", r"it has toys/ball\.md in it"),
        ("toys/more/ball.txt", "it has toys/more in it"),
    ],
)
def test_a_directory_with_anything_else_in_it_stays(stray, told, tmp_path):
    box = _make_box(tmp_path / "box")
    check_place(box, True, BOX)
    (box / stray).parent.mkdir(exist_ok=True)
    (box / stray).write_text("mine")
    for overwrite in (False, True):  # that the option is no help is said at once
        _refused(f"box is not just a box: {told}", box, overwrite, BOX, folder=tmp_path)


def test_an_empty_folder_inside_is_something_else_too(tmp_path):
    (_make_box(tmp_path / "box") / "checkpoints").mkdir()
    _refused("it has checkpoints in it", tmp_path / "box", True, BOX, folder=tmp_path)


def test_a_directory_that_only_has_names_in_common_stays(tmp_path):
    (_make_box(tmp_path / "box") / "lid").unlink()
    _refused("box is not just a box: it has no lid", tmp_path / "box", True, BOX, folder=tmp_path)


def test_what_a_desktop_leaves_is_not_the_users(tmp_path):
    box = _make_box(tmp_path / "box")
    for folder in (box, box / "toys"):
        (folder / ".DS_Store").write_bytes(b"\0")
    check_place(box, True, BOX)
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / ".DS_Store").write_bytes(b"\0")
    check_place(tmp_path / "seen", False, BOX)


def test_an_old_output_needs_to_be_named_as_such(tmp_path):
    _refused("box exists; .* replace it with --overwrite", _make_box(tmp_path / "box"), False, BOX, folder=tmp_path)


def test_an_empty_directory_may_be_taken(tmp_path):
    (tmp_path / "box").mkdir()
    check_place(tmp_path / "box", False, BOX)
    with staged(tmp_path / "box") as new:
        _make_box(new, "new")
    assert tree(tmp_path / "box") == {"lid": b"new", "toys": None, "toys/ball.txt": b"new"}
    assert list(tmp_path.iterdir()) == [tmp_path / "box"]


def test_files_and_directories_do_not_take_each_others_place(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    _make_box(tmp_path / "box")
    for name in ("empty", "box"):
        _refused(f"{name} is a directory, which no file takes the place of", tmp_path / name, True, folder=tmp_path)
    _refused("file is a file, and a box is a directory", tmp_path / "file", True, BOX, folder=tmp_path)
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="box is a directory"), staged(tmp_path / "box", overwrite=True) as new:
        new.write_text("new")
    with pytest.raises(FileExistsError, match="file is a file"), staged(tmp_path / "file", overwrite=True) as new:
        new.mkdir()
    assert tree(tmp_path) == before


def test_what_is_read_stays(tmp_path):
    box = _make_box(tmp_path / "box")
    (tmp_path / "link").symlink_to(box / "toys" / "ball.txt")
    for path in (box, box / "toys" / "ball.txt", tmp_path / "link"):
        _refused("is what is read, and would go with the old", box, True, BOX, [path], folder=tmp_path)
    _refused("is what is read", box / "lid", True, None, [box / "lid"], folder=tmp_path)
    check_place(box, True, BOX, [tmp_path, tmp_path / "missing", tmp_path / "boxes"])


def test_the_working_directory_stays(tmp_path, monkeypatch):
    """Its shell would be left in a folder that is gone."""
    monkeypatch.chdir(_make_box(tmp_path / "box") / "toys")
    for path in (Path(".."), tmp_path / "box"):
        _refused("is the working directory or above it", path, True, BOX, folder=tmp_path)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    _make_box(tmp_path / "there" / "box")
    (tmp_path / "there" / "file").write_text("old")
    for name in ("box", "file"):
        (tmp_path / f"{name}.png").symlink_to(tmp_path / "there" / name)
    check_place(tmp_path / "box.png", True, BOX)
    with staged(tmp_path / "box.png", overwrite=True) as new:
        assert new.suffix == ".png"  # by which some writers choose a format
        _make_box(new, "new")
    with staged(tmp_path / "file.png", overwrite=True) as new:
        new.write_text("new")
    assert (tmp_path / "box.png").is_symlink()
    assert (tmp_path / "file.png").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["box.png", "file.png", "there"]
    assert (tmp_path / "there" / "file").read_text() == "new"
    assert tree(tmp_path / "there" / "box") == {"lid": b"new", "toys": None, "toys/ball.txt": b"new"}
    (tmp_path / "box.png" / "note.txt").write_text("mine")
    _refused(r"it has note\.txt in it", tmp_path / "box.png", True, BOX, folder=tmp_path)


@pytest.mark.parametrize("moves", [0, 1], ids=["the old away", "the new in"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_an_interruption_between_the_two_renames_loses_nothing(moves, done, tmp_path, monkeypatch):
    box, rename, calls = _make_box(tmp_path / "box"), Path.rename, []

    def interrupted(self, target):
        calls.append(self)
        if len(calls) - 1 == moves:
            if done:
                rename(self, target)
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged(box, overwrite=True) as new:
        _make_box(new, "new")
    assert list(tmp_path.iterdir()) == [box]
    assert (box / "toys" / "ball.txt").read_text() == ("new" if (moves, done) == (1, True) else "old")


def _stage(out, make, theirs=lambda: None, *arguments):
    """Make ``out``, with something done by somebody else in the meantime."""
    with staged(out, *arguments) as new:
        make(new)
        theirs()


def _make_file(path: Path, content: str = "new") -> None:
    path.write_text(content)


@pytest.mark.parametrize("make", [_make_box, _make_file])
@pytest.mark.parametrize("kind", ["file", "link", "folder", "in an empty folder"])
def test_what_comes_while_the_body_works_stays(kind, make, tmp_path):
    out, came = tmp_path / "out", tmp_path / "out" / "note.txt"
    if kind == "in an empty folder":
        out.mkdir()
    theirs = {
        "file": lambda: out.write_text("mine"),
        "link": lambda: out.symlink_to("elsewhere"),
        "folder": lambda: (out.mkdir(), came.write_text("mine")),
        "in an empty folder": lambda: came.write_text("mine"),
    }[kind]
    with pytest.raises(FileExistsError, match="out"):
        _stage(out, make, theirs)
    assert list(tmp_path.iterdir()) == [out]
    assert out.is_symlink() if kind == "link" else (out if kind == "file" else came).read_text() == "mine"


def test_what_comes_into_an_old_output_stays(tmp_path):
    box = _make_box(tmp_path / "box")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"it has note\.txt in it"):
        _stage(box, _make_box, lambda: (box / "note.txt").write_text("mine"), True, BOX)
    assert tree(tmp_path) == before | {"box/note.txt": b"mine"}


@pytest.mark.parametrize("make", [_make_box, _make_file])
def test_of_many_at_once_one_wins_and_the_others_are_told(make, tmp_path):
    barrier, won, lost = threading.Barrier(12), [], []

    def work(number):
        try:
            _stage(tmp_path / "out", lambda new: make(new, str(number)), barrier.wait)
            won.append(number)
        except FileExistsError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 11)
    assert all("came to be while this worked" in message for message in lost)
    assert (tmp_path / "out" / "lid" if make is _make_box else tmp_path / "out").read_text() == str(won[0])
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    _stage(tmp_path / "a", _make_file)
    with pytest.raises(FileExistsError, match="came to be"):
        _stage(tmp_path / "b", _make_file, lambda: (tmp_path / "b").write_text("mine"))
    assert tree(tmp_path) == {"a": b"new", "b": b"mine"}


def test_names_that_are_long_or_lead_in_a_circle(tmp_path):
    _stage(tmp_path / ("x" * 255), _make_file)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((ValueError, FileExistsError), match=r"circle|came to be"):
        _stage(tmp_path / "loop", _make_file)
    assert (tmp_path / "loop").is_symlink()


@pytest.mark.parametrize("name", ["\udcff", "a\udcff/out"])
def test_names_that_are_not_utf8(name, tmp_path):
    """Libraries in Rust do not write to them, and tell so by a traceback."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    before = tree(tmp_path)
    for ours in (None, BOX):
        with pytest.raises(ValueError, match=r"\\xff.* is not UTF-8"):
            check_place(tmp_path / name, True, ours)
        with pytest.raises(ValueError, match=r"\\xff.* is not UTF-8"):
            _stage(tmp_path / name, _make_box if ours else _make_file)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a":' * 100_000, "is nested too deeply"),
        ("[" * 100_000, "is nested too deeply"),
        ("[" * 102 + "]" * 102, "is nested deeper than 100 levels"),
        ('{"a":' * 102 + "0" + "}" * 102, "is nested deeper than 100 levels"),
        ("{", "is no JSON: Expecting property name"),
        ('{"a": 1' + " " * 9, "is no JSON"),
        ("", "is no JSON"),
        ("\ufeff", "is no JSON"),
        ("[1" + "0" * 400 + "]", r"1000000000\.\.\. has 401 digits, which is more than any float"),
        ("-" + "1" * 10_000, "has 10000 digits"),
        (r'{"a": "\ud800"}', "is no JSON: .*surrogates not allowed"),
        (b'{"a": "\xff"}', "is no text in UTF-8"),
        (b" " * 1001, "has more than 1,000 bytes"),
    ],
)
def test_json_that_is_refused(text, told, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"config\.json .*{told}"):
        read_json(path, largest=10**6 if len(text) > 1001 else 1000)


def test_json_that_is_read(tmp_path):
    """Whole numbers as transformers writes for "no limit", characters beyond the first plane, and a mark of UTF-8."""
    content = {"model_max_length": int(1e30), "least": -(10**307), "b": ["\U0001f600", 1e400, None, True], "c": [[[]]]}
    for ascii_alone in (True, False):
        (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=ascii_alone), encoding="utf-8-sig")
        assert read_json(tmp_path / "a.json") == content
    parse_json("[" * 100 + "]" * 100, "x")
