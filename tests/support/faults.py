"""open_clip's unchanged trainer in processes that can be killed and starved; checkpoints that run something."""

import io
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from PIL import Image

PATIENCE = 300  # seconds, after which something hangs

# children start with the trainer imported, so that a test of many runs pays for that import once
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["open_clip_train.main"])


def _train(arguments: list[str], folder: str, log: str, file_limit: int) -> None:
    os.setsid()
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # what data loaders use where no fork server is
    if file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    from open_clip_train.main import main

    sys.exit(main(arguments) or 0)


class Training:
    """A run of the trainer in ``folder``, with all that it and its workers say in ``log``; none survives ``with``.

    ``file_limit``: bytes above which the kernel refuses to write to a file, as on a full disk.
    """

    def __init__(self, folder: Path, arguments: list[str], file_limit: int = 0) -> None:
        self._log = folder / f"{len(list(folder.glob('*.log')))}.log"
        self._log.touch()
        self._process = _context.Process(target=_train, args=(arguments, str(folder), str(self._log), file_limit))

    def __enter__(self) -> "Training":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def until(self, text: str, times: int = 1) -> None:
        """Wait until the log has ``text`` in it."""
        deadline = time.monotonic() + PATIENCE
        while self.log.count(text) < times:
            assert self._process.is_alive(), f"ended before {text!r}:\n{self.log[-6000:]}"
            assert time.monotonic() < deadline, f"no {text!r}:\n{self.log[-6000:]}"
            time.sleep(0.005)

    def ended(self) -> int:
        """Wait for the end; its exit status."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, f"hangs:\n{self.log[-6000:]}"
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL, to its workers too."""
        self._process.kill()
        self._process.join()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


class Payload:
    """Makes an empty file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def encoded(image: Image.Image, kind: str) -> bytes:
    """An image file's content; ``kind`` is Pillow's name of the format."""
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()
