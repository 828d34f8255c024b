"""Blocks of pairs and the threads that compute them: each pair once, and the same results in any order."""

import itertools
import os
import threading
import time

import pytest
import torch

from diffclip_openclip.attention import blocks
from diffclip_openclip.attention.cpu import attend_cpu

needs_openmp = pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch is built without OpenMP")


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("fitting", [1, 4, 6, 20, 1000])
@pytest.mark.parametrize(("B", "P"), [(1, 1), (5, 6), (8, 8), (3, 7)])
def test_every_pair_is_in_one_block(B, P, fitting, threads):
    found, workers = blocks.divide(B, P, fitting, threads, sleeping=True)
    pairs = [pair for b, p in found for pair in itertools.product(range(b.start, b.stop), range(p.start, p.stop))]
    assert sorted(pairs) == list(itertools.product(range(B), range(P)))
    sizes = [blocks.largest([block]) for block in found]
    assert blocks.largest(found) == max(sizes) <= fitting * (threads if workers == 1 else 1)
    assert workers in (1, threads)


@needs_openmp
@pytest.mark.parametrize(("B", "turns"), [(2, 1), (4, 2), (5, 5), (8, 4)])
def test_workers_finish_at_about_the_same_time(B, turns):
    found, workers = blocks.divide(B, 6, 6, 2, sleeping=True)
    assert workers == 2
    assert len(found) == 2 * turns


@pytest.mark.parametrize(("B", "fitting", "threads"), [(2, 12, 2), (1, 1, 8), (256, 6, blocks.MOST_WORKERS + 1)])
def test_threads_share_each_operator_where_blocks_are_too_few_or_workers_too_many(B, fitting, threads):
    assert blocks.divide(B, 6, fitting, threads, sleeping=True)[1] == 1


@pytest.mark.parametrize(
    ("variable", "value", "sleeping"),
    [
        ("OMP_WAIT_POLICY", "PASSIVE", True),
        ("OMP_WAIT_POLICY", " passive", True),
        ("OMP_WAIT_POLICY", "ACTIVE", False),
        ("GOMP_SPINCOUNT", "0", True),
        ("KMP_BLOCKTIME", "0", True),
        ("KMP_BLOCKTIME", "200", False),
    ],
)
def test_blocks_are_shared_out_only_where_openmps_threads_sleep(variable, value, sleeping, monkeypatch):
    """Threads that spin would take the workers' cores."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert not blocks.threads_sleep()
    monkeypatch.setenv(variable, value)
    assert blocks.threads_sleep() == sleeping
    assert blocks.divide(8, 6, 6, 2, sleeping=False)[1] == 1


def _inputs():
    torch.manual_seed(0)
    qkv, lambda_, weight = torch.randn(3, 40, 3 * 32), torch.tensor(0.7), torch.rand(16)
    return tuple(tensor.requires_grad_() for tensor in (qkv, lambda_, weight))


def _attend(inputs, pairs_of_a_block):
    return attend_cpu(*inputs, 4, 1e-5, True, torch.is_grad_enabled(), pairs_of_a_block * 2 * 40 * 40 * 4)[0]


@needs_openmp
@pytest.mark.usefixtures("two_threads")
def test_neither_the_division_nor_the_order_of_blocks_is_in_the_results():
    inputs, found = _inputs(), []
    for pairs in (1, 1, 2):
        out = _attend(inputs, pairs)
        found.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    for again in found[1:]:
        for first, tensor in zip(found[0], again, strict=True):
            torch.testing.assert_close(tensor, first, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(first, tensor) for first, tensor in zip(*found[:2], strict=True))


@needs_openmp
@pytest.mark.usefixtures("two_threads")
def test_modes_of_the_calling_thread_hold_in_the_others():
    inputs = _inputs()
    expected = _attend(inputs, 1).detach()
    with torch.inference_mode():
        assert torch.equal(_attend(inputs, 1), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_attend(inputs, 1), expected)


def _threads_of(work_of_a_block=lambda: None, count=8):
    """Each block's thread, and torch's number of threads there."""
    seen = []

    def work(_, block):
        work_of_a_block()
        seen.append((block, threading.current_thread().name, torch.get_num_threads()))

    blocks.compute(work, list(range(count)), [torch.empty(0), torch.empty(0)])
    assert sorted(block for block, *_ in seen) == list(range(count))
    return {name for _, name, _ in seen}, {number for *_, number in seen}


@needs_openmp
@pytest.mark.usefixtures("two_threads")
def test_each_worker_computes_alone():
    names, numbers = _threads_of(lambda: time.sleep(0.01))
    assert len(names) == 2
    assert threading.current_thread().name not in names
    assert numbers == {1}
    assert torch.get_num_threads() == 2
    new = []  # a thread that torch has not seen yet
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert new == [2]


@needs_openmp
@pytest.mark.usefixtures("two_threads")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own():
    _threads_of()
    child = os.fork()
    if child == 0:
        os._exit(0 if len(_threads_of(lambda: time.sleep(0.01))[0]) == 2 else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)


@needs_openmp
@pytest.mark.usefixtures("two_threads")
def test_errors_reach_the_caller():
    def fail():
        raise ValueError("this block")

    with pytest.raises(ValueError, match="this block"):
        _threads_of(fail)


@pytest.mark.usefixtures("two_threads")
def test_a_pool_that_takes_no_work_any_more_is_done_without(monkeypatch):
    """Python's pools refuse work from the moment on at which the main thread ends, while others may go on."""
    closed = blocks.ThreadPoolExecutor(2)
    closed.shutdown()
    monkeypatch.setitem(blocks._pools, 2, closed)
    names, _ = _threads_of()
    assert names == {threading.current_thread().name}
