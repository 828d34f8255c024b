"""Fetch weights from the Hugging Face hub and push model directories to it, over ``huggingface_hub`` alone."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME
from transformers.utils import CONFIG_NAME

from diffclip_openclip.files import read_json
from diffclip_openclip.weights.checkpoint import read_checkpoint
from diffclip_openclip.weights.directory import CARD, TRANSFORMERS_FILES, config_at
from diffclip_openclip.weights.foreign import check_open_clip_config, named_timm_place

SCHEME = "hf://"
AUTHORS_FILE = "checkpoint_best.pt"  # in each of the authors' repositories
_MODEL_FILES = [HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, CONFIG_NAME]


def fetch(src: str) -> tuple[Path, str]:
    """Download ``hf://owner/repo[@revision][/file]``; return a path in the hub's cache, and the source with its commit.

    The revision is a branch, tag or commit, with slashes as ``%2F``; without it, the default branch. Without a file:
    the repository's model directory if it is in open_clip's form, else its ``checkpoint_best.pt``. A download whose
    connection is cut is taken up again within the call, and starts over in another one. ``HF_HUB_OFFLINE=1`` serves
    from the cache.

    Raises:
        ValueError: not of that form.
        FileNotFoundError: no such repository, revision or file, or one that needs a login.
        ConnectionError: the hub cannot be reached, and the cache does not have it.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?", src)
    if match is None:
        raise ValueError(f"{src} is not of the form hf://owner/repo, with @revision or /file after it where wanted")
    repo_id, revision, file = match.groups()
    revision = revision and unquote(revision)
    with _one_line_errors(repo_id):
        path = Path(hf_hub_download(repo_id, file, revision=revision)) if file else _fetch_model(repo_id, revision)
    commit = re.search(r"snapshots/(\w+)", path.as_posix())
    name = "" if path.is_dir() else f"/{file or path.name}"
    return path, f"{SCHEME}{repo_id}{name}" + (f" at {commit[1]}" if commit else "")


def _fetch_model(repo_id: str, revision: str | None) -> Path:
    folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=_MODEL_FILES))
    if (folder / HF_CONFIG_NAME).is_file():
        return folder
    try:
        return Path(hf_hub_download(repo_id, AUTHORS_FILE, revision=revision))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError as error:
        names = HfApi().list_repo_files(repo_id, revision=revision)
        weights = [name for name in names if name.endswith((".pt", ".pth", ".safetensors"))]
        place = f"{SCHEME}{repo_id}" + (f"@{quote(revision, safe='')}" if revision else "")
        raise FileNotFoundError(
            f"{place} has neither {HF_CONFIG_NAME} nor {AUTHORS_FILE}; name one of its files: "
            + (", ".join(f"{place}/{name}" for name in weights) or "it has no .pt, .pth or .safetensors")
        ) from error


def read_hub_config(repo_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``model_cfg`` and ``preprocess_cfg`` of a repository in open_clip's form, from the cache or fetched.

    Raises:
        FileNotFoundError, ConnectionError: as :func:`fetch`.
        ValueError: as :func:`~diffclip_openclip.weights.directory.read_config`.
    """
    with _one_line_errors(repo_id):
        config, beside = read_json(Path(hf_hub_download(repo_id, HF_CONFIG_NAME))), None
        if _timm_model_name(config) == named_timm_place(repo_id):
            beside = read_json(Path(hf_hub_download(repo_id, CONFIG_NAME)))
    return check_open_clip_config(config, f"{SCHEME}{repo_id}/{HF_CONFIG_NAME}", beside=beside)


def _timm_model_name(config: Any) -> Any:
    try:
        return config["model_cfg"]["vision_cfg"]["timm_model_name"]
    except (KeyError, TypeError):  # there is none, or the config is not open_clip's
        return None


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a converted directory as one commit, and return the commit's address.

    ``hf-hub:owner/repo`` then loads it. In the repository's ``open_clip_config.json`` the text tower's place is the
    repository itself.

    Raises:
        FileNotFoundError: ``folder`` is no converted directory.
        ValueError: ``repo_id`` is not of the form owner/repo, or a file is a link or not what its name says.
        PermissionError: no token, or one that may not write there.
    """
    missing = [name for name in (HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} is no converted model, it lacks {' and '.join(missing)}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"{repo_id} is not of the form owner/repo")
    config = config_at(folder, repo_id)
    operations = [CommitOperationAdd(HF_CONFIG_NAME, json.dumps(config, indent=2).encode())]
    for name in (HF_SAFE_WEIGHTS_NAME, *TRANSFORMERS_FILES, CARD):
        if (folder / name).is_file():
            _check_pushed(folder / name)
            operations.append(CommitOperationAdd(name, folder / name))
    with _one_line_errors(repo_id):
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.create_commit(repo_id, operations, commit_message="Add model").commit_url)


def _check_pushed(path: Path) -> None:
    """Refuse what is not what its name says, since a push shows it to everybody.

    Raises:
        ValueError: a link, which may lead to anything, or no weights, no JSON or no text.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link to {path.resolve()}, which would be uploaded; put a copy in its place")
    if path.suffix == ".safetensors":
        read_checkpoint(path)
    elif path.suffix == ".json":
        read_json(path)
    else:
        path.read_text(encoding="utf-8")


@contextmanager
def _one_line_errors(repo_id: str) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo_id} is no repository of the hub: {error}") from error
    except GatedRepoError as error:
        raise PermissionError(
            f"{SCHEME}{repo_id} is gated; ask for access on its page, then log in with: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no {SCHEME}{repo_id}, or it is private and needs a token; log in with: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{SCHEME}{repo_id} has no such revision; name a branch, tag or commit, with slashes as %2F: {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ConnectionError(f"{SCHEME}{repo_id} is not in the cache, and the hub cannot be reached") from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{SCHEME}{repo_id} has no such file; {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"the hub refuses to write to {repo_id} ({status}); log in with a token that may: hf auth login"
            ) from error
        raise ConnectionError(f"the hub answered {status} for {SCHEME}{repo_id}; try again later") from error
    except HTTPError as error:
        raise ConnectionError(f"the hub cannot be reached for {SCHEME}{repo_id}: {error}") from error
