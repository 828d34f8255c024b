"""Write and read what became of each sample: the file NAME.npz beside a result's NAME.json.

Two results are of the same samples in the same order where their ``task``, ``dataset_sha256`` and ``seed`` are equal.
"""

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np

from diffclip_openclip.data.catalog import (
    FEW_SHOT,
    LINEAR_PROBE,
    MMVP,
    POPE,
    RETRIEVAL,
    SUGAR_CREPE,
    WINOGROUND,
    ZERO_SHOT,
)
from diffclip_openclip.files import kept, sha256

# The arrays in a file of outcomes by task, each with its type. An array has a number for each test sample, in the order
# of the shards and of the samples in them; those of retrieval differ in length, that of few-shot is by episode.
OUTCOMES: Mapping[str, Mapping[str, type[np.generic]]] = {
    # whether the label is the first, or among the first five; no ``correct5`` below five classes
    ZERO_SHOT: {"correct1": np.uint8, "correct5": np.uint8, "label": np.int32},
    # the rank, from 1, of the first caption that is the image's own, and of the image that is the caption's own;
    # ``image_of_text`` is the index of each caption's image
    RETRIEVAL: {"image_to_text_rank": np.int32, "text_to_image_rank": np.int32, "image_of_text": np.int32},
    LINEAR_PROBE: {"correct": np.uint8, "label": np.int32},
    FEW_SHOT: {"accuracy": np.float64},
    # by pair of images; ``pattern`` is an index in MMVP_PATTERNS
    MMVP: {"hit": np.uint8, "pattern": np.uint8},
    # by question; ``kind`` is an index in SUGAR_CREPE_KINDS
    SUGAR_CREPE: {"correct": np.uint8, "kind": np.uint8},
    # by pair: whether each image has its caption, each caption its image, and both
    WINOGROUND: {"text": np.uint8, "image": np.uint8, "group": np.uint8},
    # by question; whether the answer is right, and whether that is a yes
    POPE: {"correct": np.uint8, "label": np.uint8},
}


def write_outcomes(path: Path, task: str, outcomes: Mapping[str, np.ndarray]) -> str:
    """Write the outcomes of the result ``path`` and return their file's SHA-256; the same make the same bytes."""
    with kept(path.with_suffix(".npz")) as new:
        arrays = {name: np.asarray(outcomes[name], dtype) for name, dtype in OUTCOMES[task].items() if name in outcomes}
        np.savez_compressed(new, allow_pickle=False, **arrays)
        return sha256(new)


def load_outcomes(path: Path, expected_sha256: str | None) -> dict[str, np.ndarray] | None:
    """Return the arrays of :data:`OUTCOMES` of a result.

    Args:
        path: the result's JSON.
        expected_sha256: its ``outcomes_sha256``, of the file of outcomes that belongs to it.

    Returns:
        None where there are none: of a result of an earlier version, or without its file, or with another run's.
    """
    file = path.with_suffix(".npz")
    if expected_sha256 is None or not file.is_file():
        return None
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected_sha256:
        return None
    with np.load(BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)
