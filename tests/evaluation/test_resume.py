"""What is done is not done again: after an end, a kill, a change of the data."""

import shutil
import subprocess

import numpy as np
from support.common import plain_environment, run_host, script
from support.evaluation_data import arguments, metrics_of, of_some, result_files

from diffclip_cli.main import main
from diffclip_openclip.evaluation.results import read_outcomes


def test_running_again_does_nothing(results, suite, spec, capsys):
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    assert main(["evaluate", *arguments(spec, suite, results)]) == 0
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()} == before


def test_changed_data_and_broken_results_are_done_again(results, suite, spec, tmp_path):
    copy, data = shutil.copytree(results, tmp_path / "RESULTS"), tmp_path / "data"
    for name in ("pets", "flickr8k"):
        shutil.copytree(suite / name, data / name)
    (retrieval,) = copy.rglob("flickr8k.json")
    retrieval.write_text(retrieval.read_text()[:50])
    names = data / "pets" / "classnames.txt"
    names.write_text(names.read_text().upper())
    stamps = {path: path.stat().st_mtime_ns for path in copy.rglob("*.json")}
    assert main(["evaluate", *arguments(spec, data, copy)]) == 0
    changed = {
        path.relative_to(copy).as_posix().split("/", 1)[1]
        for path, at in stamps.items()
        if path.stat().st_mtime_ns != at
    }
    assert changed == {"zeroshot_retrieval/flickr8k.json", "linear_probe/pets.json", "few_shot/pets.json"}


def test_a_result_whose_outcomes_are_missing_or_anothers_is_done_again(results, some, spec, tmp_path):
    """As after a kill between the two files: outcomes are written first."""
    copy = shutil.copytree(results, tmp_path / "RESULTS")
    (retrieval,), (pairs,) = copy.rglob("flickr8k.json"), copy.rglob("mmvp.json")
    expected = {path: path.with_suffix(".npz").read_bytes() for path in (retrieval, pairs)}
    assert all(read_outcomes(path) for path in expected)
    retrieval.with_suffix(".npz").unlink()
    shutil.copy(retrieval.with_suffix(".json"), tmp_path / "kept.json")
    np.savez(pairs.with_suffix(".npz"), hit=np.zeros(36))
    assert [read_outcomes(path) for path in expected] == [None, None]
    assert main(["evaluate", *arguments(spec, some, copy), "--dataset=flickr8k", "--dataset=mmvp"]) == 0
    assert {path: path.with_suffix(".npz").read_bytes() for path in expected} == expected


def test_two_processes_give_what_one_does(results, some, spec, tmp_path):
    command = [script("torchrun"), "--nproc-per-node", "2", "--no-python", "--", script("diffclip"), "evaluate"]
    run_host([*command, *arguments(spec, some, tmp_path / "RESULTS")], tmp_path)
    assert metrics_of(tmp_path / "RESULTS") == of_some(metrics_of(results))


def test_killed_again_and_again_it_ends_the_same(results, some, spec, tmp_path):
    """SIGKILL after ever more results; each run goes on from what is there."""
    output = tmp_path / "RESULTS"
    command = [script("diffclip"), "evaluate", *arguments(spec, some, output)]
    expected = of_some(metrics_of(results))
    interrupted = 0
    for enough in (1, 3, 5):
        process = subprocess.Popen(
            command, cwd=tmp_path, env=plain_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(result_files(output)) < enough:
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
        process.kill()
        interrupted += process.wait() < 0
        assert len(result_files(output)) >= enough
    assert interrupted  # on a busy machine a later run may have ended first
    run_host(command, tmp_path)
    assert metrics_of(output) == expected
