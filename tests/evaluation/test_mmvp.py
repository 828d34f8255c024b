"""MMVP-VLM: which pairs count, and the means over patterns."""

import shutil

import pytest
import torch
from support.common import read_tar, write_tar
from support.evaluation_data import paper_subject

from diffclip_openclip.evaluation import mmvp


def test_a_pair_counts_only_if_both_texts_choose_their_own_image():
    similarity = torch.tensor(
        [[[2, 1], [1, 2]], [[2, 1], [2, 1]], [[1, 2], [1, 2]], [[1, 2], [2, 1]], [[1, 1], [1, 1]]]
    )
    assert mmvp.pair_hits(similarity.float()).tolist() == [True, False, False, False, False]


def test_mmvp_means_by_hand(loaded, suite, tmp_path):
    ((metrics, images, outcomes),) = mmvp.run(paper_subject(loaded, "mmvp", suite, tmp_path))
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
        list(mmvp.run(paper_subject(loaded, "mmvp", tmp_path, tmp_path / "memory")))
