"""Check how a command ends: its status, its one line of error, and standard output that cannot be written to."""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.common import plain_environment

# diffclip with other work in the place of a report's
_WITH_WORK = """
import os, signal, sys, time
from diffclip_cli import evaluation, main

def work(arguments):
    {work}

evaluation._report = work
sys.exit(main.main(sys.argv[1:]))
"""
_HEARS_SIGHUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # also where nohup runs the tests
REPORT = ["report", "--paper-only", "--output", "REPORT"]
LINES = "return ['line'] * {}"


def _ended(work: str, folder: Path, *words: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run ``diffclip report`` with ``work`` as its body, or the command line ``words``."""
    command = [sys.executable, "-c", _HEARS_SIGHUP + _WITH_WORK.format(work=work), *(words or REPORT)]
    return subprocess.run(
        command, cwd=folder, env=plain_environment(), stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("work", "status", "message"),
    [
        ("return ['done']", 0, ""),
        ("raise ValueError('no\\n  good')", 2, "diffclip report: error: no good\n"),
        ("raise FileNotFoundError(2, 'not there', 'file')", 2, "diffclip report: error: [Errno 2] not there: 'file'\n"),
        ("import no_such_package", 2, "diffclip report: error: No module named 'no_such_package'\n"),
        ("raise OSError()", 2, "diffclip report: error: OSError\n"),
        ("raise ValueError('x' * 601)", 2, f"diffclip report: error: {'x' * 600} ... (--debug shows all)\n"),
        ("raise BrokenPipeError(32, 'upload broke off')", 2, "diffclip report: error: [Errno 32] upload broke off\n"),
        ("raise KeyboardInterrupt", 130, "diffclip report: interrupted\n"),
        ("raise MemoryError", 2, "diffclip report: error: the input is too large: MemoryError\n"),
        ("raise ValueError('a key \\x1b[2J \\x07')", 2, "diffclip report: error: a key \\x1b[2J \\x07\n"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", 128 + signal.SIGTERM, ""),
        ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(60)", 128 + signal.SIGHUP, ""),
    ],
)
def test_status_and_message(work, status, message, tmp_path):
    ended = _ended(work, tmp_path)
    assert (ended.returncode, ended.stderr) == (status, message)
    assert ended.stdout == ("done\n" if status == 0 else "")


def test_what_is_half_written_goes_whatever_ends_it_and_how_often(tmp_path):
    """A closed terminal sends SIGHUP, and systemd SIGTERM soon afterwards, while files are being removed."""
    work = """
    from pathlib import Path
    from diffclip_openclip.files import staged
    try:
        with staged(Path("OUT")) as new:
            new.write_text("half")
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        Path("ended").touch()
    """
    assert _ended(work, tmp_path).returncode == 128 + signal.SIGHUP
    assert [path.name for path in tmp_path.iterdir()] == ["ended"]


def test_nohup_is_heeded(tmp_path):
    work = "os.kill(os.getpid(), signal.SIGHUP); return ['done']"
    command = ["nohup", sys.executable, "-c", _WITH_WORK.format(work=work), *REPORT]
    ended = subprocess.run(command, cwd=tmp_path, env=plain_environment(), capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "done\n")


def test_results_give_a_terminal_no_commands(tmp_path):
    assert (
        _ended("return ['left out: \\x1b]0;title\\x07', 'a\\tb']", tmp_path).stdout
        == "left out: \\x1b]0;title\\x07\na\tb\n"
    )


def test_debug_shows_where_an_error_is_from(tmp_path):
    ended = _ended("raise ValueError('no good')", tmp_path, *REPORT, "--debug")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last)")
    assert ended.stderr.endswith("ValueError: no good\n")


@pytest.fixture
def unread() -> Iterator[int]:
    """Give a pipe that nobody reads any longer, as behind ``diffclip ... | true``."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("count", [1, 100_000], ids=["a line", "more than buffers hold"])
def test_nobody_need_read_about_what_is_done(count, unread, tmp_path):
    ended = _ended(LINES.format(count), tmp_path, stdout=unread)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["evaluate", "--help"]], ids=" ".join)
def test_nobody_need_read_an_answer(words, unread, tmp_path):
    ended = _ended("pass", tmp_path, *words, stdout=unread)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_error_has_its_status_whoever_reads(unread, tmp_path):
    ended = _ended("raise ValueError('no good')", tmp_path, stdout=unread)
    assert (ended.returncode, ended.stderr) == (2, "diffclip report: error: no good\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error(tmp_path):
    with open("/dev/full", "wb") as full:
        ended = _ended(LINES.format(1), tmp_path, stdout=full.fileno())
    assert ended.returncode == 2
    assert ended.stderr == "diffclip report: error: [Errno 28] No space left on device\n"


def test_standard_output_may_be_closed(tmp_path):
    command = ["bash", "-c", 'exec "$@" >&-', "bash", sys.executable, "-c", _WITH_WORK.format(work="return ['done']")]
    ended = subprocess.run([*command, *REPORT], cwd=tmp_path, env=plain_environment(), capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["diffclip_openclip", "evaluate", "--bad"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("diffclip_openclip", run_name="__main__")
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("diffclip evaluate: error: the following arguments are required")
