"""Read files behind URLs: over HTTP by fsspec, from data sets on the Hugging Face Hub by huggingface_hub.

No address is expanded, chained or run as a command. The hub is recognised by its web addresses,
``https://huggingface.co/datasets/OWNER/NAME/tree/REVISION``, and by ``hf://datasets/OWNER/NAME``; reading it takes the
user's token, and tries again after a failure of the network.
"""

import re
from typing import Any, BinaryIO, cast

from huggingface_hub import HfFileSystem
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.utils import build_hf_headers

from diffclip_openclip.extras import require

URL_MARK = "://"  # what a URL has, and a path has not

_SCHEMES = ("http", "https", "hf")
_TIMEOUT = 30  # seconds without a connection, or without a byte
_HUB_FILE = re.compile(rf"{re.escape(ENDPOINT)}/datasets/([^/]+/[^/]+)/(?:tree|resolve)/([^/]+)/(.+)")


def file_address(base: str) -> str:
    """Return the address below which the files of ``base`` lie; for a web page on the hub it is another one."""
    on_hub = base.startswith(f"{ENDPOINT}/datasets/")
    return base.replace("/tree/", "/resolve/", 1) if on_hub else base


def read_remote_file(url: str, most: int) -> bytes | None:
    """Read a small file; None where it is not there, or where the server does not show it to this user.

    Args:
        most: the number of bytes after which reading ends.

    Raises:
        ValueError: a URL of another scheme than http, https and hf.
        ConnectionError: the server cannot be reached, or answers otherwise.
    """
    data = b""
    try:
        with open_remote(url) as file:
            while len(data) < most and (block := _read(file, url, most - len(data))):
                data += block
    except FileNotFoundError:
        return None
    return data


def open_remote(url: str) -> BinaryIO:
    """Open a file to be read once from its beginning to its end.

    Raises:
        ValueError: a URL of another scheme than http, https and hf.
        FileNotFoundError: the file is not there, or the server does not show it to this user.
        ConnectionError: the server cannot be reached, or answers otherwise.
    """
    file_system, path = _file_system(url)
    # With a size given, HTTP's file system does not ask for it first, in a request whose every failure is "not found".
    known = {} if isinstance(file_system, HfFileSystem) else {"size": 1}
    try:
        # Without blocks it is one request: a server need not know of ranges, and a shard is read in order anyway.
        return cast(BinaryIO, file_system.open(path, "rb", block_size=0, **known))
    except Exception as error:  # each client library has its own
        raise _translated(url, error) from error


def _read(file: BinaryIO, url: str, most: int) -> bytes:
    try:
        return file.read(most)
    except Exception as error:  # the hub's file system asks for the file at the first reading
        raise _translated(url, error) from error


def remote_state(url: str) -> tuple[str, list[str | None]]:
    """Return a file's address over HTTP, and what the server says of it: size, ETag and date.

    These change when the file's content does.

    Raises:
        FileNotFoundError, ConnectionError: as :func:`open_remote`.
    """
    # The hub, too, is asked by HTTP: what its file system calls a file's state would be another cache key.
    address = HfFileSystem().url(url) if url.startswith("hf://") else url
    headers = build_hf_headers() if address.startswith(f"{ENDPOINT}/") else {}
    try:
        answer = _http().info(address, headers=headers)
    except Exception as error:  # each client library has its own
        raise _translated(url, error) from error
    size = answer.get("size")
    return address, [None if size is None else str(size), answer.get("ETag"), answer.get("Last-Modified")]


def _file_system(url: str) -> tuple[Any, str]:
    """Return the file system for a URL, and the URL's path in it."""
    scheme = url.partition(URL_MARK)[0]
    if scheme not in _SCHEMES:
        raise ValueError(f"{url} cannot be read; give a folder, or a URL that begins with http://, https:// or hf://")
    if on_hub := _HUB_FILE.fullmatch(url):
        name, revision, path = on_hub.groups()
        return HfFileSystem(), f"datasets/{name}@{revision}/{path}"
    return (HfFileSystem(), url.removeprefix("hf://")) if scheme == "hf" else (_http(), url)


def _http() -> Any:
    require("reading data sets over HTTP", "eval", "fsspec", "aiohttp")
    import aiohttp
    import fsspec

    # A shard is read as fast as its images are decoded, so that there is no limit for the whole of it.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT, sock_read=_TIMEOUT)
    # trust_env: proxies of the environment. fsspec keeps one file system for each process and these arguments.
    return fsspec.filesystem("http", client_kwargs={"timeout": timeout, "trust_env": True})


def _status(error: Exception) -> int | None:
    """Return the HTTP status of a client library's error, where it has one."""
    answer = getattr(error, "response", None)  # of huggingface_hub
    return getattr(error, "status", None) or getattr(answer, "status_code", None)


def _translated(url: str, error: Exception) -> OSError:
    """Return the error that says in Python's terms why a file cannot be read."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status in (401, 403, 404):  # the hub's 401: no such repository
        return FileNotFoundError(f"there is no file {url}, or the server does not show it to you")
    if status:
        return ConnectionError(f"{url} answers {status} {getattr(error, 'message', '')}; try again later")
    return ConnectionError(f"{url} cannot be reached: {str(error) or type(error).__name__}")
