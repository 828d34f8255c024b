"""A stand-in for the Hugging Face Hub on loopback: the endpoints that huggingface_hub uses for model repositories.

Data sets are read by the same endpoints, and share the models' names.

Unchanged hosts talk to it from subprocesses::

    with HubStandIn(tmp_path / "hub") as hub:
        hub.add_repo("owner/repo", {"config.json": b"{}"})
        run_python(code, tmp_path, **hub.environment(tmp_path / "home", token=hub.token))

Not spoken: writing data sets, spaces, branches, pull requests, the xet protocol.
"""

import base64
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import yaml

LFS_SUFFIXES = {".bin", ".ckpt", ".npz", ".onnx", ".parquet", ".pt", ".pth", ".safetensors", ".tar", ".zip"}
LFS_SIZE = 10 * 2**20


class Request(NamedTuple):
    """A line of the log; ``range`` is the Range header."""

    method: str
    path: str
    range: str | None


@dataclass(frozen=True)
class Blob:
    """Content of a file, in the stand-in's folder under its SHA-256."""

    path: Path
    size: int
    git_oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.path.name if self.lfs else self.git_oid

    def describe(self, git_key: str, sha256_key: str) -> dict[str, Any]:
        lfs = {"lfs": {sha256_key: self.etag, "size": self.size, "pointerSize": 134}} if self.lfs else {}
        return {git_key: self.git_oid, "size": self.size} | lfs


@dataclass
class Repo:
    """``commits`` holds the files of each commit; the last one is the branch main."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return next(reversed(self.commits))


@dataclass
class Reply:
    content: Any = b""  # what is not bytes goes out as JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818  an answer of the hub, not an error of this code
    """The hub's way to say no: a status, and the headers that huggingface_hub makes its exceptions from."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply({"error": message}, status, headers)


class Call(NamedTuple):
    """A request on its way to one of the hub's methods."""

    headers: Message
    query: dict[str, list[str]]
    body: bytes
    authorized: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class HubStandIn:
    """Serves while used as a context manager. ``cut_after["owner/repo/file"] = N`` closes the connection once, after
    N bytes of that file; ``lfs=False`` takes every upload as a regular file, the one way in for clients with xet on."""

    def __init__(self, folder: Path, token: str = "hf_test", user: str = "tester", lfs: bool = True):
        self.folder, self.token, self.user, self.lfs = folder, token, user, lfs
        self.requests: list[Request] = []
        self.cut_after: dict[str, int] = {}
        self._repos: dict[str, Repo] = {}
        self._uploads: dict[str, str] = {}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "HubStandIn":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str = "") -> dict[str, str]:
        """Variables for a client, on top of its other ones; by default it has no token."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # a client that has hf_xet installed uploads LFS files with it, whatever the hub announces
            "HF_HUB_DISABLE_XET": "1" if self.lfs else "0",
            "NO_PROXY": "127.0.0.1",
        }

    def add_repo(self, name: str, files: Mapping[str, bytes | Path], private: bool = False) -> None:
        blobs = {}
        for path, source in files.items():
            data = source.read_bytes() if isinstance(source, Path) else source
            blobs[path] = self._store(data, self._is_lfs(path, len(data)))
        self._repos[name] = Repo(private)
        self._commit(name, blobs)

    def files(self, name: str) -> dict[str, bytes]:
        repo = self._repos[name]
        return {path: blob.path.read_bytes() for path, blob in repo.commits[repo.head].items()}

    def answer(self, method: str, path: str, query: str, headers: Message, body: bytes) -> Reply:
        try:
            if (credentials := headers.get("Authorization")) not in (None, f"Bearer {self.token}"):
                raise Refused(401, "Invalid credentials in Authorization header")
            call = Call(headers, parse_qs(query), body, credentials is not None)
            for methods, pattern, route in ROUTES:
                if method in methods.split() and (match := pattern.fullmatch(path)):
                    return route(self, call, **{key: unquote(part) for key, part in match.groupdict().items() if part})
            raise Refused(404, f"{method} {path} is not spoken by the stand-in")
        except Refused as refused:
            return refused.reply

    def _is_lfs(self, path: str, size: int) -> bool:
        return self.lfs and size > 0 and (PurePosixPath(path).suffix in LFS_SUFFIXES or size > LFS_SIZE)

    def _store(self, data: bytes, lfs: bool) -> Blob:
        path = self.folder / hashlib.sha256(data).hexdigest()
        if not path.exists():  # another thread may be reading it
            path.write_bytes(data)
        return Blob(path, len(data), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), lfs)

    def _commit(self, name: str, files: dict[str, Blob]) -> str:
        commits = self._repos[name].commits
        tree = sorted((path, blob.etag) for path, blob in files.items())
        commit = hashlib.sha1(json.dumps([name, len(commits), tree]).encode()).hexdigest()
        commits[commit] = files
        return commit

    def _repo(self, call: Call, name: str, write: bool) -> Repo:
        """The repository, if the caller may know of it, or change it."""
        repo = self._repos.get(name)
        if not call.authorized and (write or repo is None or repo.private):
            # the hub sends no code here: the client makes its RepositoryNotFoundError from an https:// address
            raise Refused(401, "Invalid username or password.", "RepoNotFound")
        if repo is None:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repo

    def _revision(self, call: Call, name: str, revision: str, write: bool = False) -> tuple[str, dict[str, Blob]]:
        """The commit a revision stands for, and its files; to write, the revision must be the branch."""
        repo = self._repo(call, name, write)
        commit = repo.head if revision == "main" else revision
        if commit not in repo.commits or (write and revision != "main"):
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repo.commits[commit]

    def whoami(self, call: Call) -> Reply:
        if not call.authorized:
            raise Refused(401, "Invalid username or password.")
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return Reply({"type": "user", "name": self.user, "fullname": self.user, "orgs": [], "auth": access})

    def create(self, call: Call) -> Reply:
        if not call.authorized:
            raise Refused(401, "Invalid username or password.")
        if call.json.get("type", "model") != "model":
            raise Refused(400, "the stand-in holds models only")
        name = f"{call.json.get('organization') or self.user}/{call.json['name']}"
        url = {"url": f"{self.endpoint}/{name}", "name": name}
        with self._lock:
            if name in self._repos:
                return Reply(url | {"error": "You already created this model repo"}, 409)
            self.add_repo(name, {}, private=call.json.get("visibility") == "private")
        return Reply(url)

    def validate_yaml(self, call: Call) -> Reply:
        """Of a model card: metadata should be there, and must be a YAML mapping."""
        matter = re.match(r"---\r?\n(.*?)\r?\n---", call.json["content"], re.DOTALL)
        if matter is None:
            return Reply({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        try:
            error = "" if isinstance(yaml.safe_load(matter[1]), dict) else "the metadata is no mapping"
        except yaml.YAMLError as problem:
            error = str(problem)
        return Reply({"errors": [{"message": error}] if error else [], "warnings": []}, 400 if error else 200)

    def preupload(self, call: Call, name: str, revision: str) -> Reply:
        _, files = self._revision(call, name, revision, write=True)
        answers = []
        for file in call.json["files"]:
            mode = "lfs" if self._is_lfs(file["path"], file["size"]) else "regular"
            known = {"oid": files[file["path"]].etag} if file["path"] in files else {}
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return Reply({"files": answers})

    def lfs_batch(self, call: Call, name: str) -> Reply:
        """Where to put the contents that are not here yet: addresses that need no token, as signed ones."""
        self._repo(call, name, write=True)
        objects = []
        for wanted in call.json["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not (self.folder / wanted["oid"]).exists():
                key = uuid.uuid4().hex
                self._uploads[key] = wanted["oid"]
                answer["actions"] = {"upload": {"href": f"{self.endpoint}/upload/{key}"}}
            objects.append(answer)
        return Reply({"transfer": "basic", "objects": objects})

    def lfs_upload(self, call: Call, key: str) -> Reply:
        if self._uploads.get(key) != hashlib.sha256(call.body).hexdigest():
            raise Refused(400, "unknown address, or content of another SHA-256")
        self._store(call.body, lfs=True)
        return Reply()

    def commit(self, call: Call, name: str, revision: str) -> Reply:
        """Apply a commit: a header and operations, one JSON object a line."""
        if "create_pr" in call.query:
            raise Refused(400, "the stand-in has no pull requests")
        with self._lock:
            head, files = self._revision(call, name, revision, write=True)
            files = dict(files)
            for line in call.body.splitlines():
                operation = json.loads(line)
                self._apply(operation["key"], operation["value"], files, head)
            commit = self._commit(name, files)
        return Reply({"success": True, "commitOid": commit, "commitUrl": f"{self.endpoint}/{name}/commit/{commit}"})

    def _apply(self, key: str, value: dict[str, Any], files: dict[str, Blob], head: str) -> None:
        path = value.get("path", "")
        if key == "header":
            if value.get("parentCommit", head) != head:
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
        elif key == "file":
            files[path] = self._store(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if not (content := self.folder / value["oid"]).exists():
                raise Refused(400, f"the content of {path} was not uploaded")
            files[path] = self._store(content.read_bytes(), lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [file for file in files if file == path or file.startswith(path.rstrip("/") + "/")]
            if not gone:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            for file in gone:
                del files[file]
        else:
            raise Refused(400, f"unknown operation {key}")

    def info(self, call: Call, name: str, revision: str = "main") -> Reply:
        commit, files = self._revision(call, name, revision)
        more = "blobs" in call.query
        siblings = [
            {"rfilename": path} | (blob.describe("blobId", "sha256") if more else {}) for path, blob in files.items()
        ]
        names = {"id": name, "modelId": name, "author": name.split("/")[0]}
        return Reply(names | {"sha": commit, "private": self._repos[name].private, "siblings": siblings, "tags": []})

    def tree(self, call: Call, name: str, revision: str, folder: str = "") -> Reply:
        commit, files = self._revision(call, name, revision)
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in files.items():
            if not path.startswith(prefix):
                continue
            for parent in reversed(PurePosixPath(path).parents):
                if str(parent).startswith(prefix) and str(parent) != ".":
                    oid = hashlib.sha1(str(parent).encode()).hexdigest()
                    entries[str(parent)] = {"type": "directory", "path": str(parent), "oid": oid, "size": 0}
            entries[path] = {"type": "file", "path": path} | blob.describe("oid", "oid")
        if prefix and not entries:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound", X_Repo_Commit=commit)
        deep = call.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        return Reply([entry for path, entry in entries.items() if deep or "/" not in path.removeprefix(prefix)])

    def paths_info(self, call: Call, name: str, revision: str) -> Reply:
        """Describe those of the asked-for files that are there."""
        _, files = self._revision(call, name, revision)
        is_form = call.headers.get("Content-Type") == "application/x-www-form-urlencoded"
        asked = parse_qs(call.body.decode())["paths"] if is_form else call.json["paths"]
        return Reply(
            [{"type": "file", "path": path} | files[path].describe("oid", "oid") for path in asked if path in files]
        )

    def resolve(self, call: Call, name: str, revision: str, path: str) -> Reply:
        """A file, or what a Range header asks of it. The hub redirects to a content network for LFS files."""
        commit, files = self._revision(call, name, revision)
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit)
        blob = files[path]
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
        data = blob.path.read_bytes()
        if not (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))):
            return Reply(data, 200, headers)
        start, end = int(asked[1]), min(int(asked[2] or blob.size), blob.size - 1)
        if start >= blob.size:
            raise Refused(416, "Range Not Satisfiable", Content_Range=f"bytes */{blob.size}")
        return Reply(data[start : end + 1], 206, headers | {"Content-Range": f"bytes {start}-{end}/{blob.size}"})


KIND = "(?:models|datasets)"  # one set of names for both
NAME = r"(?P<name>[^/]+(?:/[^/]+)?)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = [
    ("GET", re.compile("/api/whoami-v2"), HubStandIn.whoami),
    ("POST", re.compile("/api/repos/create"), HubStandIn.create),
    ("POST", re.compile("/api/validate-yaml"), HubStandIn.validate_yaml),
    ("POST", re.compile(f"/api/models/{NAME}/preupload/{REVISION}"), HubStandIn.preupload),
    ("POST", re.compile(f"/{NAME}[.]git/info/lfs/objects/batch"), HubStandIn.lfs_batch),
    ("PUT", re.compile("/upload/(?P<key>[0-9a-f]+)"), HubStandIn.lfs_upload),
    ("POST", re.compile(f"/api/models/{NAME}/commit/{REVISION}"), HubStandIn.commit),
    ("GET", re.compile(f"/api/{KIND}/{NAME}/tree/{REVISION}(?:/(?P<folder>.+))?"), HubStandIn.tree),
    ("POST", re.compile(f"/api/{KIND}/{NAME}/paths-info/{REVISION}"), HubStandIn.paths_info),
    ("GET", re.compile(f"/api/{KIND}/{NAME}(?:/revision/{REVISION})?"), HubStandIn.info),
    ("GET HEAD", re.compile(f"(?:/datasets)?/{NAME}/resolve/{REVISION}/(?P<path>.+)"), HubStandIn.resolve),
]


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        self.hub.requests.append(Request(self.command, unquote(path), self.headers.get("Range")))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.hub.answer(self.command, path, query, self.headers, body)
        body = reply.content if isinstance(reply.content, bytes) else json.dumps(reply.content).encode()
        self.send_response(reply.status)
        kind = "application/octet-stream" if isinstance(reply.content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        file = re.sub("/resolve/[^/]+", "", unquote(path)).strip("/")
        cut = self.hub.cut_after.pop(file, None)
        self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815  http.server's names

    def log_message(self, *_: object) -> None:
        pass
