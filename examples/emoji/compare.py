"""Does it learn better? All models at equal budget, several seeds:  python examples/emoji/compare.py

Trains the paper's four models, two controls and V2 with the quick start's settings, then goes on from each trained
baseline: as it is, and warm-started as V2. `diffclip evaluate` scores every seed's checkpoints, and `diffclip report
--group` compares the models seed by seed: OUTPUT/report and OUTPUT/report-continued. benchmarks/README.md says how
long it took.

It may be interrupted at any time: the same command goes on where it stopped. Seeds come one after another, so that what
is stopped early has complete ones. Options for the trainer follow behind `--`, the same for all models.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from comparison import ARMS, BASELINE, Comparison, locked
from quickstart import EPOCHS, prepare_environment, run
from tqdm import tqdm


def start_all(comparison: Comparison, seeds: list[int], jobs: int) -> None:
    """Train and evaluate, seed by seed, ``jobs`` processes at a time.

    Raises:
        RuntimeError: a process failed; the others are ended.
    """
    futures: list[Future[None]] = []
    with tqdm(total=len(seeds) * (len(comparison.arms) + 1), unit="run") as bar, ThreadPoolExecutor(jobs) as pool:

        def add(work: Callable[[], None], name: str, needed: Iterable[Future[None]] = ()) -> Future[None]:
            futures.append(pool.submit(_work, work, list(needed), lambda: _show(bar, name)))
            return futures[-1]

        for seed in seeds:
            runs: dict[str, Future[None]] = {}
            for name in comparison.arms:
                needed = [runs[BASELINE]] if ARMS[name].is_continued else []
                runs[name] = add(partial(comparison.train, seed, name), f"seed {seed} {name}", needed)
            add(partial(comparison.evaluate, seed), f"seed {seed}", runs.values())
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:  # its error is the reason; processes that are ended for it have errors, too
                future.result()
        finally:
            if any(not future.done() or future.exception() for future in futures):
                comparison.stop()
                pool.shutdown(cancel_futures=True)


def _work(work: Callable[[], None], needed: list[Future[None]], show: Callable[[], None]) -> None:
    for future in needed:  # they were submitted before, so they are done or in another thread
        future.result()
    work()
    show()


def _show(bar: Any, name: str) -> None:
    bar.update()
    bar.set_postfix_str(f"last: {name}")


def report(comparison: Comparison, seeds: list[int]) -> None:
    """Compare the models over the seeds that are complete."""
    for results, names in comparison.results().items():
        folder = results.with_name(results.name.replace("results", "report"))
        command = ["diffclip", "report", str(results), "--output", str(folder), "--overwrite"]
        command += ["--baseline", ARMS[names[0]].title]
        command += [part for group in comparison.groups(names, seeds) for part in ("--group", group)]
        run(command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="at least two; default: 0 to 4")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=ARMS,
        default=list(ARMS),
        metavar="ARM",
        help=f"models to compare, of {', '.join(ARMS)}; default: all. More may follow later in the same OUTPUT",
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s, the quick start's")
    parser.add_argument("--continued-epochs", type=int, help="from the trained baseline on; default: half of --epochs")
    parser.add_argument("--points", type=int, default=6, help="checkpoints that are evaluated; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/compare"), help="default: %(default)s")
    parser.add_argument("--report-only", action="store_true", help="train nothing, and compare the complete seeds")
    parser.add_argument("trainer", nargs="*", metavar="-- TRAINER OPTIONS", help="of open_clip_train, for all models")
    args = parser.parse_args()
    if len(args.seeds) < 2:
        parser.error(f"--seeds has {len(args.seeds)}; a spread needs at least two")

    continued_epochs = args.continued_epochs or -(-args.epochs // 2)
    try:
        comparison = Comparison(
            args.output.resolve(), args.epochs, continued_epochs, args.points, args.trainer, args.arms
        )
    except ValueError as error:
        parser.error(str(error))
    prepare_environment()
    comparison.check_settings()
    if not args.report_only:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with locked(comparison.output):
                start_all(comparison, args.seeds, args.jobs)
        except KeyboardInterrupt:
            sys.exit("interrupted; the same command goes on")
        except RuntimeError as error:
            sys.exit(str(error))
    complete = [seed for seed in args.seeds if comparison.is_complete(seed)]
    if len(complete) < 2:
        sys.exit(f"complete are {len(complete)} seeds; a comparison needs at least two")
    report(comparison, complete)


if __name__ == "__main__":
    main()
