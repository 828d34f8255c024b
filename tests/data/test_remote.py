"""Data sets behind URLs: over HTTP from servers good and bad, and from the hub, read as local ones are."""

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from support.common import plain_environment, run_warm
from support.evaluation_data import locate_paper
from support.hub_stand_in import HubStandIn

from diffclip_openclip.data.layout import Shard, locate, shard_fingerprint
from diffclip_openclip.data.remote import read_remote_file
from diffclip_openclip.data.shards import batches, read_shard


class Web(http.server.SimpleHTTPRequestHandler):
    """A plain server, which knows of no ranges; some paths it answers badly."""

    cut = ""  # a path of which half is sent
    endless = ""  # a path that never ends
    status: dict[str, int] = {}  # noqa: RUF012 - reset by the fixture

    def do_GET(self):
        for part, status in self.status.items():
            if part in self.path:
                self.send_error(status)
                return
        if self.cut and self.path.endswith(self.cut):
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            return
        if self.endless and self.path.endswith(self.endless):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has had enough
                while True:
                    self.wfile.write(b"1" * 65_536)
            return
        super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def web(suite, monkeypatch) -> Iterator[str]:
    monkeypatch.setattr(Web, "cut", "")
    monkeypatch.setattr(Web, "endless", "")
    monkeypatch.setattr(Web, "status", {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Web, directory=suite)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _pixels(shard: Shard) -> list[tuple[list, int]]:
    return [(image.tolist(), label) for image, label in read_shard(shard, ("cls",), np.asarray)]


def _as_tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy())


def _batched(shards: list[Shard], workers: int) -> list[tuple]:
    given = batches(shards, ["cls"], _as_tensor, batch_size=7, workers=workers, pin_memory=False)
    return [(batch.shard, None if batch.images is None else batch.images.tolist(), batch.values) for batch in given]


def test_a_root_behind_http_is_read_as_a_local_one(web, suite):
    location = locate_paper("pets", f"{web}/{{dataset}}")
    local = locate_paper("pets", suite)
    assert location.base == f"{web}/pets"
    assert location.class_names == local.class_names
    assert location.class_names[0] == "bird"
    assert _pixels(location.shards("test")[0]) == _pixels(local.shards("test")[0])
    assert locate("nothing", ["test"], [web]) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_over_http_after_the_process_has(web, suite, workers):
    """The process has asked for the text files by then, so that workers inherit a client that they must not use."""
    location = locate_paper("dtd", web)
    names = ("train", "val")
    remote = _batched([location.shards(split)[0] for split in names], workers)
    local = _batched([locate_paper("dtd", suite).shards(split)[0] for split in names], 0)
    assert sorted(remote, key=lambda batch: batch[0]) == local


def test_a_remote_shards_hash_is_of_its_address_size_and_date(web, suite, tmp_path):
    """Cache keys of earlier versions: the headers that a server gives, in this order."""
    location = locate_paper("pets", web)
    first, again = (location.fingerprint(location.shard_hashes(tmp_path)) for _ in range(2))
    assert first == again
    shard = location.shards("test")[0]
    state = (suite / "pets" / "test" / "0.tar").stat()
    date = http.server.SimpleHTTPRequestHandler.date_time_string(None, int(state.st_mtime))
    fields = [str(state.st_size), None, date]
    assert shard_fingerprint(shard, tmp_path) == hashlib.sha256(repr((shard.address, fields)).encode()).hexdigest()
    assert not list(tmp_path.iterdir())


def test_a_shard_that_is_cut_off_is_an_error(web, monkeypatch):
    location = locate_paper("pets", web)
    monkeypatch.setattr(Web, "cut", "test/0.tar")
    with pytest.raises(ValueError, match=r"pets/test/0\.tar cannot be read"):
        _batched(location.shards("test"), 0)


@pytest.mark.parametrize("name", ["test/nshards.txt", "classnames.txt"])
def test_a_text_without_end_is_refused(web, monkeypatch, name):
    monkeypatch.setattr(Web, "endless", name)
    with pytest.raises(ValueError, match=rf"pets/{name} has more than 4,194,304 bytes"):
        locate_paper("pets", web)


def test_a_shard_that_a_server_refuses_is_named(web, monkeypatch):
    location = locate_paper("pets", web)
    monkeypatch.setattr(Web, "status", {"test/0.tar": 503})
    with pytest.raises(ValueError, match=r"pets/test/0\.tar cannot be read: .* answers 503"):
        _batched(location.shards("test"), 0)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_a_server_does_not_show_is_not_there(web, monkeypatch, status):
    monkeypatch.setattr(Web, "status", {"pets": status})
    assert locate_paper("pets", web) is None


def test_a_server_that_fails_is_named(web, monkeypatch):
    monkeypatch.setattr(Web, "status", {"pets": 503})
    with pytest.raises(ConnectionError, match=rf"{web}/pets/train/nshards\.txt answers 503 .*; try again later"):
        locate_paper("pets", web)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9/pets/train/nshards\.txt cannot be reached"):
        locate_paper("pets", "http://127.0.0.1:9")


@pytest.mark.parametrize("url", ["pipe://touch {}", "ftp://host/x", "file://{}", "simplecache::http://127.0.0.1:9/{}"])
def test_other_schemes_are_refused_and_nothing_is_run(tmp_path, url):
    with pytest.raises(ValueError, match="give a folder, or a URL that begins with http://, https:// or hf://"):
        read_remote_file(url.format(tmp_path / "made"), 10)
    assert not list(tmp_path.iterdir())


CODE = """
from diffclip_openclip.data.layout import locate
from diffclip_openclip.data.shards import read_shard
location = locate("pets", ["train", "test"], [ROOT])
if location is None:
    print("not there")
else:
    (shard,) = location.shards("test")
    print(location.class_names[0], len(list(read_shard(shard, ("cls",), lambda image: image))))
    print(location.fingerprint(location.shard_hashes("cache")))
"""


def test_a_data_set_on_the_hub(suite, tmp_path):
    """By its page's address and by hf://, the same; a private one with the user's token only."""
    files = {path.relative_to(suite / "pets").as_posix(): path for path in (suite / "pets").rglob("*.*")}
    printed = {}
    with HubStandIn(tmp_path / "hub") as hub:
        hub.add_repo("owner/wds_pets", files)
        hub.add_repo("owner/private_pets", files, private=True)
        page = f"{hub.endpoint}/datasets/owner/wds_{{dataset}}/tree/main"
        for root, token in (
            (page, ""),
            ("hf://datasets/owner/wds_{dataset}@main", ""),
            ("hf://datasets/owner/private_{dataset}", ""),
            ("hf://datasets/owner/private_{dataset}", hub.token),
            ("hf://datasets/owner/no_{dataset}", hub.token),
        ):
            environment = hub.environment(tmp_path / "home", token=token)
            printed[root, token] = run_warm(CODE.replace("ROOT", repr(root)), tmp_path, **environment).split()
    public, by_scheme, without_token, private, none = printed.values()
    assert public[:2] == private[:2] == ["bird", "60"]
    assert by_scheme == public
    assert without_token == none == ["not", "there"]


def test_the_hub_is_not_asked_offline(tmp_path):
    code = CODE.replace("ROOT", repr("hf://datasets/owner/wds_{dataset}"))
    code = f"try:\n    exec({code!r})\nexcept ConnectionError as error:\n    print(error)"
    assert plain_environment()["HF_HUB_OFFLINE"] == "1"
    assert "cannot be reached" in run_warm(code, tmp_path)
