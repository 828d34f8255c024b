"""Measure what a model chooses between images, or between captions, that CLIP confuses: three benchmarks.

- MMVP-VLM: pairs of images, each with its text, by visual pattern. Source: paper, section 4.4;
  tsb0601/MMVP@7635005:scripts/evaluate_vlm.py.
- Winoground: pairs of images whose two captions have the same words. Source: arXiv 2204.03162, equations 1 to 3.
- SugarCrepe: an image's caption, and one that was made wrong. Source: RAIVNLab/sugar-crepe@0047054:main_eval.py.

Shape legend: P pairs, Q questions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffclip_openclip.data.catalog import MMVP_PAPER_PATTERNS, MMVP_PATTERNS, SUGAR_CREPE_KINDS, DataSet
from diffclip_openclip.data.layout import Location
from diffclip_openclip.evaluation.evaluator import Computed, Measurement, Reading, Subject, Variant
from diffclip_openclip.evaluation.features import Embedded, read_embedded

_KINDS = tuple(SUGAR_CREPE_KINDS)


class _Choice:
    """List the one result of each of the three."""

    def variants(self, data_set: DataSet, location: Location, seed: int) -> list[Variant]:
        """List the one result."""
        return [Variant()]


class MmvpVlm(_Choice):
    """Measure MMVP-VLM: a pair counts if each text prefers its own image to the other, so chance is 25 %."""

    READING = Reading("mmvp", ("txt", "json"), texts=lambda statement, _: [f"a photo of {statement.strip()}"])

    def score(self, subject: Subject, computed: Computed) -> Iterator[Measurement]:
        """Yield the share of pairs that count by pattern, and the means of these.

        The metrics are patterns (name -> share), mean_9 (over the benchmark's nine patterns) and mean_7 (over those of
        the paper's Figure 4); a mean is None where the data set lacks one of its patterns.

        Raises:
            ValueError: a question without its partner, or a pair of two patterns, or of an unknown one.
        """
        base = subject.location.base
        pairs, similarity = _pairs(computed, base, lambda entry: divmod(int(entry["qid"]) - 1, 2), _questions)
        patterns = [(first.get("pattern"), second.get("pattern")) for first, second in pairs.values()]
        for pair, (first, second) in zip(pairs, patterns, strict=True):
            if first != second or first not in MMVP_PATTERNS:
                raise ValueError(
                    f"{base}: {_questions(pair)} must be there and of one pattern of MMVP-VLM's; found {first!r} and "
                    f"{second!r}"
                )
        pattern = np.array([MMVP_PATTERNS.index(first) for first, _ in patterns])
        hit = prefers_own_image(similarity)
        shares = _shares(hit, pattern, MMVP_PATTERNS)
        means = {"mean_7": _mean(shares, MMVP_PAPER_PATTERNS), "mean_9": _mean(shares, MMVP_PATTERNS)}
        yield Measurement({"patterns": shares} | means, {"test": 2 * len(hit)}, {"hit": hit, "pattern": pattern})


class Winoground(_Choice):
    """Measure Winoground: chance is 25 % for texts and for images, and 16.7 % for both."""

    READING = Reading("winoground", ("txt", "json"), texts=lambda caption, _: [caption.strip()])

    def score(self, subject: Subject, computed: Computed) -> Iterator[Measurement]:
        """Yield text_score, image_score and group_score; equal similarities are wrong.

        Raises:
            ValueError: an image without its partner.
        """
        base = subject.location.base
        _, similarity = _pairs(computed, base, lambda entry: (int(entry["pair"]), int(entry["image"])), _images)
        own, other_image, other_text = _compared(similarity)
        text, image = (np.all(own > other, axis=1) for other in (other_text, other_image))
        outcomes = {"text": text, "image": image, "group": text & image}
        metrics = {f"{name}_score": float(hits.mean()) for name, hits in outcomes.items()}
        yield Measurement(metrics, {"test": 2 * len(text)}, outcomes)


class SugarCrepe(_Choice):
    """Measure SugarCrepe: a question counts if the image is nearer to its caption than to the wrong one."""

    READING = Reading(
        "sugar_crepe",
        ("json",),
        texts=lambda questions: [asked[name] for asked in questions for name in ("caption", "negative_caption")],
    )

    def score(self, subject: Subject, computed: Computed) -> Iterator[Measurement]:
        """Yield the share of questions that count by kind, and the mean of these; chance is 50 %.

        The metrics are kinds (name -> share) and mean, which is None where a kind is missing. The authors' script
        prints no mean.

        Raises:
            ValueError: a question of an unknown kind.
        """
        correct: list[bool] = []
        kinds: list[int] = []
        images = 0
        for embedded in _embedded(computed):
            images += len(embedded.samples)
            by_sample = zip(embedded.image.float().numpy(), _texts_of_samples(embedded), embedded.samples, strict=True)
            for image, text, (key, questions) in by_sample:
                similarity = text @ image
                correct += (similarity[::2] > similarity[1::2]).tolist()
                if unknown := {asked["kind"] for asked in questions} - set(_KINDS):
                    raise ValueError(
                        f"{subject.location.base}: the sample {key} has a question of the kind {unknown.pop()!r}; "
                        f"there are {', '.join(_KINDS)}"
                    )
                kinds += [_KINDS.index(asked["kind"]) for asked in questions]
        hit, kind = np.array(correct), np.array(kinds)
        shares = _shares(hit, kind, _KINDS)
        yield Measurement(
            {"kinds": shares, "mean": _mean(shares, _KINDS)}, {"test": images}, {"correct": hit, "kind": kind}
        )


def prefers_own_image(similarity_P22: np.ndarray) -> np.ndarray:
    """Tell of each pair whether both texts prefer their own image, (P,); similarity is (pair, text, image).

    An image as near as the other counts for the second text alone, as in MMVP's script, which takes the first image
    for what is preferred only where its probability is above 0.5.
    """
    own, other_image, _ = _compared(similarity_P22)
    first, second = own[:, 0] > other_image[:, 0], own[:, 1] >= other_image[:, 1]
    return np.asarray(first & second)


def _compared(similarity_P22: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return similarities (P, 2): of each text to its own image, to the other image, and of the other text to it."""
    own = np.diagonal(similarity_P22, axis1=1, axis2=2)
    other_image = np.diagonal(similarity_P22[:, :, ::-1], axis1=1, axis2=2)
    other_text = np.diagonal(similarity_P22[:, ::-1], axis1=1, axis2=2)
    return own, other_image, other_text


def _questions(pair: int) -> str:
    return f"questions {2 * pair + 1} and {2 * pair + 2}"


def _images(pair: int) -> str:
    return f"both images of the pair {pair}"


def _pairs(
    computed: Computed, base: str, place: Callable[[Any], tuple[int, int]], name: Callable[[int], str]
) -> tuple[dict[int, tuple[Any, Any]], np.ndarray]:
    """Put samples together two by two.

    Args:
        place: the number of a sample's pair and which of the two it is, 0 or 1, of its .json.
        name: the two samples of a pair in words.

    Returns:
        the .json of both samples by the pair's number, in order, and the similarities (pair, text, image).

    Raises:
        ValueError: a sample is alone, or its .json is of another form.
    """
    found: dict[int, dict[int, tuple[Any, Any, Any]]] = {}
    for embedded in _embedded(computed):
        text = _texts_of_samples(embedded)
        for image, (caption,), (key, _, entry) in zip(embedded.image.float(), text, embedded.samples, strict=True):
            try:
                pair, which = place(entry)
                found.setdefault(pair, {})[which] = (image.numpy(), caption, entry)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{base}: the .json of the sample {key} is not of this benchmark ({error!r})"
                ) from error
    if alone := [pair for pair, both in found.items() if both.keys() != {0, 1}]:
        raise ValueError(f"{base}: {name(min(alone))} must be there; there is one alone")
    ordered = [(found[pair][0], found[pair][1]) for pair in sorted(found)]
    similarity = [
        np.array([[text @ image for image in (first[0], second[0])] for text in (first[1], second[1])])
        for first, second in ordered
    ]
    return {pair: (found[pair][0][2], found[pair][1][2]) for pair in sorted(found)}, np.stack(similarity)


def _embedded(computed: Computed) -> Iterator[Embedded]:
    return map(read_embedded, computed["test"])


def _texts_of_samples(embedded: Embedded) -> list[np.ndarray]:
    """Return the embeddings of each sample's texts."""
    assert embedded.text is not None
    assert embedded.text_counts is not None
    return [part.float().numpy() for part in embedded.text.split(embedded.text_counts.tolist())]


def _shares(hits: np.ndarray, index: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return the share of hits by name, of those names that occur."""
    return {name: float(hits[index == at].mean()) for at, name in enumerate(names) if (index == at).any()}


def _mean(shares: Mapping[str, float], names: Sequence[str]) -> float | None:
    known = [shares[name] for name in names if name in shares]
    return sum(known) / len(known) if len(known) == len(names) else None
