"""Retrieval: recalls by brute force, and among fewer than ten."""

import math
import operator

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_retrieval
from support.common import read_tar, write_tar
from support.evaluation_data import LIMIT, measure, paper_subject

from diffclip_openclip.data.catalog import RETRIEVAL, DataSet
from diffclip_openclip.data.layout import locate
from diffclip_openclip.data.shards import read_shard
from diffclip_openclip.evaluation import retrieval
from diffclip_openclip.evaluation.evaluator import Compute, Subject


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16"])
def test_recall_by_brute_force(loaded, suite, tmp_path, precision):
    compute = Compute(workers=1, batch_size=1000, precision=precision)
    subject = paper_subject(loaded, "flickr8k", suite, tmp_path, compute)
    ((metrics, images, _, captions),) = measure(retrieval, subject)
    assert captions == {"test": 2 * 8 * LIMIT}
    assert images == {"test": 8 * LIMIT}
    (shard,) = subject.location.shards("test")
    samples = list(read_shard(shard, ("txt",), loaded.preprocess))
    owner = [i for i, (_, text) in enumerate(samples) for _ in text.splitlines()]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
        images = loaded.model.encode_image(torch.stack([image for image, _ in samples]), normalize=True)
        captions = [line for _, text in samples for line in text.splitlines()]
        texts = loaded.model.encode_text(loaded.tokenizer(captions), normalize=True)
        scores = (texts @ images.t()).tolist()
    columns = [list(column) for column in zip(*scores, strict=True)]

    def recall(k, rows, owns, ahead):
        """Share of rows of which one of their own is among the k best; ``ahead`` decides between equals."""
        hits = 0
        for row, own in zip(rows, owns, strict=True):
            others = [score for at, score in enumerate(row) if at not in own]
            hits += sum(ahead(score, max(row[at] for at in own)) for score in others) < k
        return hits / len(rows)

    captions_of = [[at for at, own in enumerate(owner) if own == i] for i in range(len(samples))]
    for k in (1, 5, 10):
        for kind, rows, owns in (("image", scores, [[i] for i in owner]), ("text", columns, captions_of)):
            value = metrics[f"{kind}_retrieval_recall@{k}"]
            least, most = (recall(k, rows, owns, ahead) for ahead in (operator.ge, operator.gt))
            assert 0 < least - 1e-6 < value < most + 1e-6
            assert least == most or precision != "fp32"  # in bfloat16 many scores are equal


def test_ranks_by_hand():
    """Two images: three captions of the first, one of the second; the first image and its third caption tie."""
    images, texts = torch.eye(2), torch.tensor([[0.0, 1.0], [0.6, 0.8], [0.7, 0.7], [0.1, 0.9]])
    owner = torch.tensor([0, 0, 0, 1])
    assert retrieval.ranks(texts, owner, images, torch.arange(2)).tolist() == [2, 2, 1, 1]
    assert retrieval.ranks(images, torch.arange(2), texts, owner).tolist() == [1, 2]
    equal = torch.ones(4, 2)
    assert retrieval.ranks(images, torch.arange(2), equal, owner).tolist() == [1, 4]
    assert retrieval.ranks(images, torch.tensor([0, 7]), equal, owner).tolist() == [1, 5]  # behind all


def test_recalls_are_clip_benchmarks(loaded, suite, tmp_path):
    compute = Compute(workers=0)
    subject = paper_subject(loaded, "flickr8k", suite, tmp_path, compute)
    ((metrics, _, outcomes, _),) = measure(retrieval, subject)
    (shard,) = subject.location.shards("test")
    samples = [(image, text.splitlines()) for image, text in read_shard(shard, ("txt",), loaded.preprocess)]
    batches = [(torch.stack([image for image, _ in samples]), [lines for _, lines in samples])]
    theirs = zeroshot_retrieval.evaluate(
        loaded.model, batches, loaded.tokenizer, device="cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    assert metrics == pytest.approx(theirs)
    assert np.bincount(outcomes["image_of_text"]).tolist() == [2] * 8 * LIMIT


@pytest.mark.parametrize(
    ("images", "captions", "known"), [(7, 2, (1, 5)), (3, 2, (1,)), (4, 3, (1,)), (10, 1, (1, 5, 10))]
)
def test_retrieval_among_fewer_than_ten(loaded, suite, tmp_path, images, captions, known):
    """Recall@10 of seven images is nothing."""
    files = read_tar(suite / "flickr8k" / "test" / "0.tar", 2 * images)
    texts = [(name, b"\n".join([data.splitlines()[0]] * captions)) for name, data in files if name.endswith("txt")]
    pictures = [file for file in files if not file[0].endswith("txt")]
    write_tar(tmp_path / "few" / "test" / "0.tar", sorted(pictures + texts))
    (tmp_path / "few" / "test" / "nshards.txt").write_text("1")
    location = locate("few", ["test"], [str(tmp_path)])
    few = DataSet("few", "few", (RETRIEVAL,), {"test": None})
    subject = Subject(
        loaded, few, location, location.shard_hashes(tmp_path), Compute(workers=0, batch_size=4), tmp_path
    )
    ((metrics, counts, _, _),) = measure(retrieval, subject)
    assert counts == {"test": images}
    finite = {name for name, value in metrics.items() if math.isfinite(value)}
    assert len(metrics) == 6
    assert finite == {f"{kind}_retrieval_recall@{k}" for kind in ("image", "text") for k in known}
