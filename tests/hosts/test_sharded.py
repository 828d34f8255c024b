"""What wraps a model for training: FSDP2 by block and by leaf on two gloo ranks, with checkpointing, and EMA."""

from functools import partial
from importlib.util import find_spec

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.utils import ModelEmaV3
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from diffclip_openclip import DiffCLIPVisionConfig, DiffCLIPVisionModel

NAMES = ["DiffCLIP-nano", "DiffCLIP-V2-nano"]
UNITS = ["block", "leaf", *(["open_clip"] if find_spec("open_clip.task") else [])]  # its trainer's own, from 4 on
TOWERS = ["vit_nano_patch12_diffclip_48", "vit_nano_patch12_diffclip_v2_48"]
DTYPES = [torch.float32, torch.bfloat16]
WORLD_SIZE, BATCH = 2, 2


def _model_and_batch(name):
    torch.manual_seed(0)
    model = open_clip.create_model(name).double().train()
    images = torch.randn(WORLD_SIZE * BATCH, 3, 48, 48, dtype=torch.float64)
    return model, images, torch.randint(1, 49408, (WORLD_SIZE * BATCH, 16))


def _units(model, how):
    """The modules that are sharded on their own: blocks, or every leaf with parameters."""
    if how == "block":
        return [*model.visual.trunk.blocks, *model.text.transformer.layers]
    return [m for m in model.modules() if not list(m.children()) and list(m.parameters(recurse=False))]


def _loss(model, images, texts):
    image, text, _ = model(images, texts)
    return (image * text).sum()


def _gradients(model):
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in grads.items() if g is not None}


def _sharded_gradients(name, how, mesh, mine):
    model, images, texts = _model_and_batch(name)
    if how == "open_clip":
        from open_clip.task import CLIPTask

        CLIPTask(model, default_loss=False, verbose=False).prepare_fsdp(mesh)
        units = _units(model, "block")
        assert [m for m in model.modules() if isinstance(m, FSDPModule)] == [model, *units]
    else:
        model.set_grad_checkpointing(how == "block")
        for unit in _units(model, how):
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh, ignored_params={model.logit_scale})  # FSDP takes no scalars
    _loss(model, images[mine], texts[mine]).backward()
    return _gradients(model)


def _is_same_with_its_own_trunk(tower, dtype, mesh):
    """Whether a vision model gives the same after its blocks and then its trunk are sharded."""
    torch.manual_seed(0)
    model = DiffCLIPVisionModel._from_config(DiffCLIPVisionConfig(tower), dtype=dtype).eval()
    images = torch.randn(2, 3, 48, 48)
    expected = model(images, output_hidden_states=True)
    for block in model.trunk.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model.trunk, mesh=mesh)
    actual = model(images, output_hidden_states=True)
    pairs = zip(actual.hidden_states, expected.hidden_states, strict=True)
    return torch.equal(actual.pooler_output, expected.pooler_output) and all(torch.equal(a, b) for a, b in pairs)


def _worker(rank, rendezvous, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD_SIZE)
    mesh = init_device_mesh("cpu", (WORLD_SIZE,))
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    cases = {f"{name} {how}": partial(_sharded_gradients, name, how, mesh, mine) for name in NAMES for how in UNITS}
    cases |= {f"{t} {d}": partial(_is_same_with_its_own_trunk, t, d, mesh) for t in TOWERS for d in DTYPES}
    for case, run in cases.items():
        try:
            outcome = run()
        except Exception as error:  # one case's failure is not to be that of all
            outcome = f"{type(error).__name__}: {error}"
        torch.save(outcome, f"{results}/{rank} {case}.pt")
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    mp.spawn(_worker, args=(folder / "rendezvous", folder), nprocs=WORLD_SIZE)
    return folder


def test_open_clip_finds_the_blocks_of_both_towers_by_their_class():
    """Its trainer's FSDP2 shards what it finds, from open_clip 4 on."""
    for name in NAMES:
        model, _, _ = _model_and_batch(name)
        found = [m for m in model.modules() if isinstance(m, open_clip.transformer.ResidualAttentionBlock)]
        assert found == _units(model, "block")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", UNITS)
def test_sharded_gradients_are_those_of_the_whole_batch(how, name, results):
    """By block with checkpointing, by leaf, where no module finds another's parameters whole, and as open_clip does."""
    model, images, texts = _model_and_batch(name)
    (_loss(model, images, texts) / WORLD_SIZE).backward()
    expected, actual = _gradients(model), torch.load(results / f"0 {name} {how}.pt")
    assert not isinstance(actual, str), actual
    assert actual.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(actual[key], gradient, rtol=1e-8, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tower", TOWERS)
def test_a_vision_models_trunk_is_sharded_on_its_own(tower, dtype, results):
    """In bfloat16 too, which FSDP takes if all parameters of a unit have one dtype."""
    for rank in range(WORLD_SIZE):
        assert torch.load(results / f"{rank} {tower} {dtype}.pt") is True


@pytest.mark.parametrize("name", NAMES)
def test_moving_average_of_the_weights(name):
    model, images, texts = _model_and_batch(name)
    average = ModelEmaV3(model, decay=0.5)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _loss(model, images, texts).backward()
    optimizer.step()
    average.update(model, step=2)  # the first only copies
    for key, tensor in average.module.state_dict().items():
        torch.testing.assert_close(tensor, (before[key] + model.state_dict()[key]) / 2)
    assert torch.isfinite(average(images, texts)[0]).all()
