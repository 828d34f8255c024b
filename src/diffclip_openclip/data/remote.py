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


def read_remote_text(url: str) -> str | None:
    """Read a text file; None where it is not there, or where the server does not show it to this user.

    Raises:
        ValueError: a URL of another scheme than http, https and hf.
        ConnectionError: the server cannot be reached, or answers otherwise.
    """
    file_system, path = _file_system(url)
    try:
        return str(file_system.cat_file(path).decode("utf-8"))
    except FileNotFoundError:
        return None
    except Exception as error:  # each client library has its own
        if _status(error) in (401, 403, 404):  # the hub answers 401 for a repository that does not exist
            return None
        raise _connection_error(url, error) from error


def open_remote(url: str) -> BinaryIO:
    """Open a file to be read once from its beginning to its end.

    Raises:
        ValueError: a URL of another scheme than http, https and hf.
        FileNotFoundError: the file is not there.
    """
    file_system, path = _file_system(url)
    # Without blocks it is one request: a server need not know of ranges, and a shard is read in order anyway.
    return cast(BinaryIO, file_system.open(path, "rb", block_size=0))


def remote_state(url: str) -> tuple[str, list[str | None]]:
    """Return a file's address over HTTP, and what the server says of it: size, ETag and date.

    These change when the file's content does.

    Raises:
        ConnectionError: the server cannot be reached, or has no such file.
    """
    # The hub, too, is asked by HTTP: what its file system calls a file's state would be another cache key.
    address = HfFileSystem().url(url) if url.startswith("hf://") else url
    headers = build_hf_headers() if address.startswith(f"{ENDPOINT}/") else {}
    try:
        answer = _http().info(address, headers=headers)
    except Exception as error:  # each client library has its own
        raise _connection_error(url, error) from error
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


def _connection_error(url: str, error: Exception) -> ConnectionError:
    if status := _status(error):
        return ConnectionError(f"{url} answers {status} {getattr(error, 'message', '')}; try again later")
    return ConnectionError(f"{url} cannot be reached: {error or type(error).__name__}")
