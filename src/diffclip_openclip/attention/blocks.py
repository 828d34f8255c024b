"""Divide the pairs of heads into blocks and share these out among threads, each of which computes alone.

torch divides each operator among its threads, and all wait for the slowest at its end. That is cheap in large operators
on a quiet machine. A block's operators are small, and a neighbour that takes a core away for a while stops all threads
each time. So a block belongs to one thread, which runs its operators undivided, and whoever has finished takes the
next block: threads wait for each other once a pass. torch's operators release Python's interpreter lock.

That needs cores that are free. By default OpenMP's threads spin for milliseconds after each operator, on the cores that
the workers are to compute on. So blocks are shared out only where these threads were told to sleep, and otherwise torch
divides each operator (benchmarks/README.md has both, measured).

Threads are started once for each number of them and kept. A forked process, such as a data loader's, starts its own.
"""

import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

Block = tuple[slice, slice]  # of samples and of pairs

# beyond it the interpreter lock, which calls of operators take for a few microseconds, would be short
MOST_WORKERS = 16
# share of the threads' time that may pass unused at the end, when no block is left
_MOST_IDLE = 0.1

_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _forget_pools() -> None:
    """Start anew in a forked process, which has the pools but not their threads."""
    global _pools_lock
    _pools.clear()
    _pools_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


def threads_sleep() -> bool:
    """Return whether OpenMP's threads were told to sleep while they wait, by a variable of GNU's or Intel's library."""
    policy = os.environ.get("OMP_WAIT_POLICY", "").strip().upper()
    return policy == "PASSIVE" or "0" in (os.environ.get("GOMP_SPINCOUNT"), os.environ.get("KMP_BLOCKTIME"))


@functools.lru_cache(maxsize=256)
def divide(B: int, P: int, fitting: int, threads: int, *, sleeping: bool) -> tuple[tuple[Block, ...], int]:
    """Divide the pairs of all samples into blocks.

    Args:
        B, P: samples, and pairs of heads of each.
        fitting: pairs that fit into a thread's share of the cache.
        threads: of torch.
        sleeping: as :func:`threads_sleep`.

    Returns:
        the blocks, each whole samples or pairs of one sample; and the number of workers that are to compute them. With
        one worker, each operator is divided among torch's threads: where these do not sleep, where all pairs fit into
        one block, where there are fewer pairs than threads, and beyond :data:`MOST_WORKERS`.
    """
    # macOS and Windows builds without OpenMP have one number of threads for the whole process
    alone = not sleeping or max(fitting, threads - 1) >= B * P or threads > MOST_WORKERS
    alone = alone or not torch.backends.openmp.is_available()
    workers = 1 if alone else threads
    if workers == 1:
        fitting *= threads
    sizes = [(samples, P) for samples in range(min(B, fitting // P), 0, -1)]
    sizes += [(1, pairs) for pairs in range(min(P - 1, max(fitting, 1)), 0, -1)]

    def is_even(size: tuple[int, int]) -> bool:
        """Tell whether workers finish at about the same time."""
        turns = -(-(-(-B // size[0]) * -(-P // size[1])) // workers)
        return (1 - _MOST_IDLE) * turns * workers * size[0] * size[1] <= B * P

    samples, pairs = sizes[0] if workers == 1 else next(filter(is_even, sizes), sizes[-1])
    blocks = itertools.product(range(0, B, samples), range(0, P, pairs))
    return tuple((slice(b, min(b + samples, B)), slice(p, min(p + pairs, P))) for b, p in blocks), workers


def largest(blocks: Sequence[Block]) -> int:
    """Return the pairs of the largest block, the first."""
    samples, pairs = blocks[0]
    return int((samples.stop - samples.start) * (pairs.stop - pairs.start))


def compute(
    work: Callable[[torch.Tensor, Block], None], blocks: Sequence[Block], buffers: Sequence[torch.Tensor]
) -> None:
    """Call ``work`` with each block, in as many threads as there are buffers; with one buffer, in the calling thread.

    Args:
        work: takes a buffer of its own and a block. It writes to places that no other block writes to.
    """
    left, inference = deque(blocks), torch.is_inference_mode_enabled()

    def work_off(buffer: torch.Tensor) -> None:
        # modes are each thread's own; autocast is off in a new one
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", enabled=False):
            while left:
                try:
                    block = left.popleft()
                except IndexError:  # another thread was faster
                    return
                work(buffer, block)

    if len(buffers) == 1:
        work_off(buffers[0])
        return
    pool = _pool(len(buffers))
    try:
        running = [pool.submit(work_off, buffer) for buffer in buffers]
    except RuntimeError:  # the interpreter is about to end and takes no work for threads
        work_off(buffers[0])
        return
    for future in running:
        future.result()


def _pool(workers: int) -> ThreadPoolExecutor:
    """Return the pool of that many threads, in each of which torch computes with one thread."""
    with _pools_lock:
        if workers not in _pools:
            pool = ThreadPoolExecutor(workers, thread_name_prefix="diffclip-attention")
            started, before = threading.Barrier(workers + 1), torch.get_num_threads()

            def start() -> None:
                torch.get_num_threads()  # the first operator or question in a thread sets it to the process's number
                torch.set_num_threads(1)
                started.wait()

            for _ in range(workers):
                pool.submit(start)
            started.wait()
            # also what threads that torch has not seen yet begin with, which the workers have set to 1
            torch.set_num_threads(before)
            _pools[workers] = pool
        return _pools[workers]
