"""Data parallel training: two gloo processes around the model and open_clip's ClipLoss, against one process.

open_clip's trainer cannot run two processes on CPU (its DDP call passes device_ids), hence a process group of our own.
"""

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

WORLD_SIZE, BATCH = 2, 4
# open_clip's ClipLoss: (local_loss, gather_with_grad)
LOSSES = [(False, False), (False, True), (True, False), (True, True)]


def _model_and_batch():
    torch.manual_seed(0)
    model = open_clip.create_model("DiffCLIP-nano", output_dict=True).double()
    images = torch.randn(WORLD_SIZE * BATCH, 3, 48, 48, dtype=torch.float64)
    texts = open_clip.get_tokenizer("DiffCLIP-nano")([f"emoji number {i}" for i in range(WORLD_SIZE * BATCH)])
    return model, images, texts


def _gradients(model, loss):
    loss.backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}


def _worker(rank, rendezvous, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD_SIZE)
    for local_loss, gather_with_grad in LOSSES:
        model, images, texts = _model_and_batch()
        model = DistributedDataParallel(model)
        mine = slice(rank * BATCH, (rank + 1) * BATCH)
        criterion = open_clip.ClipLoss(local_loss, gather_with_grad, rank=rank, world_size=WORLD_SIZE)
        gradients = _gradients(model, criterion(**model(images[mine], texts[mine])))
        torch.save(gradients, f"{results}/{rank}_{local_loss}_{gather_with_grad}.pt")
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data_parallel")
    mp.spawn(_worker, args=(folder / "rendezvous", folder), nprocs=WORLD_SIZE)
    return folder


@pytest.fixture(scope="module")
def whole_batch():
    model, images, texts = _model_and_batch()
    return _gradients(model, open_clip.ClipLoss()(**model(images, texts)))


@pytest.mark.parametrize(("local_loss", "gather_with_grad"), LOSSES)
def test_every_parameter_gets_the_right_gradient(local_loss, gather_with_grad, results, whole_batch):
    ranks = [torch.load(results / f"{rank}_{local_loss}_{gather_with_grad}.pt") for rank in range(WORLD_SIZE)]
    assert ranks[0].keys() == whole_batch.keys()
    for name, expected in whole_batch.items():
        assert ranks[0][name] is not None, name
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        if gather_with_grad:
            torch.testing.assert_close(
                ranks[0][name], expected, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )
    if not gather_with_grad:
        # features of the other process are constants, so some gradient is lost
        assert any(not torch.allclose(ranks[0][name], expected) for name, expected in whole_batch.items())
