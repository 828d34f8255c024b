"""MMVP-VLM, Winoground, SugarCrepe: which choices count, and the means over them."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.common import read_tar, write_tar
from support.evaluation_data import measure, paper_subject

from diffclip_openclip.data.catalog import SUGAR_CREPE_KINDS
from diffclip_openclip.data.shards import read_shard
from diffclip_openclip.evaluation import choices
from diffclip_openclip.evaluation.evaluator import Compute


def test_a_pair_counts_only_if_both_texts_choose_their_own_image():
    """Of equal images the second is chosen, as by MMVP's script."""
    similarity = np.array(
        [
            [[2, 1], [1, 2]],
            [[2, 1], [2, 1]],
            [[1, 2], [1, 2]],
            [[1, 2], [2, 1]],
            [[1, 1], [1, 1]],
            [[2, 1], [1, 1]],
            [[1, 1], [1, 2]],
        ]
    )
    assert choices.prefers_own_image(similarity).tolist() == [True, False, False, False, False, True, False]


def test_mmvp_means_by_hand(loaded, suite, tmp_path):
    ((metrics, images, outcomes, _),) = measure(choices.MmvpVlm(), paper_subject(loaded, "mmvp", suite, tmp_path))
    assert images == {"test": 9 * 4 * 2}
    shares = metrics["patterns"]
    assert len(shares) == 9
    assert metrics["mean_9"] == pytest.approx(sum(shares.values()) / 9)
    seven = [share for name, share in shares.items() if name not in ("Quantity and Count", "Texts")]
    assert metrics["mean_7"] == pytest.approx(sum(seven) / 7)
    assert all(share * 4 == int(share * 4) for share in shares.values())  # four pairs each
    assert outcomes["pattern"].tolist() == [index for index in range(9) for _ in range(4)]
    assert outcomes["hit"].reshape(9, 4).mean(axis=1).tolist() == list(shares.values())


def test_mmvp_without_a_partner(loaded, suite, tmp_path):
    shutil.copytree(suite / "mmvp", tmp_path / "mmvp")
    shard = tmp_path / "mmvp" / "test" / "0.tar"
    write_tar(shard, read_tar(shard, 1000)[:-3])
    with pytest.raises(ValueError, match="questions 71 and 72 must be there"):
        measure(choices.MmvpVlm(), paper_subject(loaded, "mmvp", tmp_path, tmp_path / "memory"))


TEXTS = ("a red thing", "a thing", "something blue", "the sea", "grass", "night")


def _subject(loaded, root, name, entries, texts=None):
    """A data set of squares in several colours, each with its .json and .txt."""
    files = []
    for at, entry in enumerate(entries):
        drawing = io.BytesIO()
        colour = ((250, 20, 20), (20, 250, 20), (20, 20, 250), (0, 0, 0), (240, 240, 30), (255, 255, 255))[at % 6]
        Image.new("RGB", (48, 48), colour).save(drawing, "PNG")
        files += [(f"s{at}.png", drawing.getvalue()), (f"s{at}.json", json.dumps(entry).encode())]
        files += [(f"s{at}.txt", texts[at].encode())] if texts else []
    write_tar(root / name / "test" / "0.tar", files)
    (root / name / "test" / "nshards.txt").write_text("1\n")
    return paper_subject(loaded, name, root, root / "memory", Compute(workers=0, batch_size=4))


def _embeddings(loaded, subject, texts):
    (shard,) = subject.location.shards("test")
    images = torch.stack([image for (image,) in read_shard(shard, (), loaded.preprocess)])
    with torch.inference_mode():
        image = loaded.model.encode_image(images, normalize=True)
        text = loaded.model.encode_text(loaded.tokenizer(list(texts)), normalize=True)
    return (text @ image.t()).tolist()


def test_winoground_by_its_equations(loaded, tmp_path):
    entries = [{"pair": at // 2 + 5, "image": at % 2, "tag": "x"} for at in range(6)]
    subject = _subject(loaded, tmp_path, "winoground", entries, TEXTS)
    ((metrics, images, outcomes, _),) = measure(choices.Winoground(), subject)
    scores = _embeddings(loaded, subject, TEXTS)
    expected = []
    for first in (0, 2, 4):
        c0_i0, c0_i1 = scores[first][first : first + 2]
        c1_i0, c1_i1 = scores[first + 1][first : first + 2]
        expected.append((c0_i0 > c1_i0 and c1_i1 > c0_i1, c0_i0 > c0_i1 and c1_i1 > c1_i0))
    assert [tuple(map(bool, hits)) for hits in zip(outcomes["text"], outcomes["image"], strict=True)] == expected
    assert images == {"test": 6}
    assert metrics["group_score"] == pytest.approx(sum(map(all, expected)) / 3)
    assert metrics["text_score"] == pytest.approx(sum(text for text, _ in expected) / 3)


def test_winoground_without_a_partner(loaded, tmp_path):
    subject = _subject(loaded, tmp_path, "winoground", [{"pair": 3, "image": at} for at in (0, 2)], TEXTS)
    with pytest.raises(ValueError, match="both images of the pair 3 must be there"):
        measure(choices.Winoground(), subject)


def _asked(kind, caption, negative):
    return {"kind": kind, "id": "0", "caption": TEXTS[caption], "negative_caption": TEXTS[negative]}


def test_sugar_crepe_as_its_script_scores(loaded, tmp_path):
    kinds = list(SUGAR_CREPE_KINDS)
    entries = [[_asked(kind, at % 6, (at + 1) % 6) for kind in kinds[: 3 + at]] for at in range(5)]
    subject = _subject(loaded, tmp_path, "sugar_crepe", entries)
    ((metrics, images, outcomes, _),) = measure(choices.SugarCrepe(), subject)
    scores = _embeddings(loaded, subject, TEXTS)
    expected = {kind: [] for kind in kinds}
    for at, questions in enumerate(entries):
        for asked in questions:
            expected[asked["kind"]].append(scores[at % 6][at] > scores[(at + 1) % 6][at])
    assert metrics["kinds"] == {kind: pytest.approx(sum(hits) / len(hits)) for kind, hits in expected.items()}
    assert metrics["mean"] == pytest.approx(sum(metrics["kinds"].values()) / 7)
    assert images == {"test": 5}
    assert np.bincount(outcomes["kind"]).tolist() == [5, 5, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([{"kind": "add_obj"}], "the sample s0 is not of the form of this benchmark"),
        ([], "the sample s0 has no text"),
        ([_asked("other", 0, 1)], "the sample s0 has a question of the kind 'other'"),
    ],
)
def test_sugar_crepe_of_another_form(loaded, tmp_path, entry, message):
    with pytest.raises(ValueError, match=message):
        measure(choices.SugarCrepe(), _subject(loaded, tmp_path, "sugar_crepe", [entry]))
