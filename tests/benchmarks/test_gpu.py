"""The command for GPUs, each section in reduced form on the CPU: candidates agree, runs resume, origins are told."""

import json
import subprocess
import sys
import time

import gpu
import gpu_attention
import gpu_models
import pytest
import torch

CPU = ["--device", "cpu", "--reduced", "--rounds", "2"]


@pytest.fixture
def figures(tmp_path):
    """Runs sections and returns their cells."""

    def run(*sections):
        assert gpu.main([*CPU, "--output", str(tmp_path), "--section", *sections]) == 0
        return json.loads((tmp_path / "gpu.json").read_text())["sections"]

    return run


HERE = [name for name, candidate in gpu_attention.CANDIDATES.items() if candidate.missing("cpu") is None]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", HERE)
def test_candidates_are_explicit_maps(name, is_causal):
    layer, candidate = gpu_attention.Layer(7, 4, 2, is_causal, 4), gpu_attention.CANDIDATES[name]
    assert gpu_attention.error(layer, candidate, "cpu", torch.float64, candidate.trains) < 1e-12


def test_one_call_is_two_calls():
    layer = gpu_attention.Layer(9, 8, 3, num_heads=6)
    q, k, v = layer.inputs("cpu", torch.float64)
    for is_causal in (False, True):
        results = []
        for run in (gpu_attention.two_calls, gpu_attention.one_call):
            out = run(q, k, v, is_causal)
            results.append([out, *torch.autograd.grad(out.sin().sum(), (q, k, v))])
        for two, one in zip(*results, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_attention(figures):
    cells = figures("attention")["attention"]
    assert len(cells) == 2
    for cell in cells.values():
        assert list(cell["rows"]) == list(gpu_attention.CANDIDATES)
        for name, row in cell["rows"].items():
            if name in HERE:
                assert row["error"] < 1e-5
                assert row["forward"] > 0
            else:
                assert "needs" in row["skipped"]
        assert cell["rows"]["(b) one call, cuDNN"] == {"skipped": "needs CUDA"}


def test_a_candidate_that_fails_is_named_and_the_others_are_timed(monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel\nfor it")

    monkeypatch.setitem(gpu_attention.CANDIDATES, "(e) maps", gpu_attention.Candidate(fail))
    layer = gpu_attention.Layer(5, 4, 1, num_heads=2)
    rows = gpu_attention.measure(layer, device="cpu", dtype=torch.float32, rounds=1)
    assert rows["(e) maps"] == {"skipped": "RuntimeError: no kernel"}
    assert rows["(a) two calls"]["forward and backward"] > 0


def test_models(figures):
    rows = figures("models")["models"]["nano"]["rows"]
    assert len(rows) == len(gpu_models.models_of("nano")) * 2
    assert rows["CLIP-nano-baseline, forward"]["ratio"] == 1.0
    assert all(isinstance(row["meets the targets"], bool) for row in rows.values())


def test_memory_that_is_short_is_named(monkeypatch):
    def fail(*_, **__):
        raise ValueError("cannot run: out of memory")

    monkeypatch.setattr(gpu_models.measure, "bench", fail)
    rows = gpu_models.compare_models(("a", "b"), gpu_models.measure.Setting(), 2)
    assert rows["train step"] == {"skipped": "cannot run: out of memory"}


def test_tests(figures, monkeypatch):
    asked = []

    def answer(*arguments):
        asked.append(arguments)
        printed = "test_cuda.py::a\ntest_cuda.py::b\n" if "--collect-only" in arguments else "FAILED a\n1 failed"
        return subprocess.CompletedProcess(arguments, int("--collect-only" not in arguments), printed, "")

    monkeypatch.setattr(gpu_models, "_pytest", answer)
    cells = figures("tests")["tests"]
    assert asked[-1][-2:] == ("test_cuda.py::a", "test_cuda.py::b")
    assert cells["tests 1 to 2"]["rows"]["pytest"] == {"summary": "1 failed", "passed": False, "failed": "FAILED a"}
    features = [row for name, cell in cells.items() if "float32" in name for row in cell["rows"].values()]
    assert len(features) == 2 * len(gpu_models.models_of("nano"))
    assert all(row["passed"] for row in features)


def test_training(figures, monkeypatch):
    started = []
    monkeypatch.setattr(gpu_models, "_finish", lambda command, seconds: started.append(command))
    assert list(figures("training")["training"]) == ["seeds 0 and 1", "seeds 0 to 2"]
    assert started[1][1].endswith("compare.py")
    assert started[1][started[1].index("--seeds") + 1 :][:3] == ["0", "1", "2"]


def test_a_command_that_takes_too_long_ends_with_what_it_started(tmp_path):
    log = tmp_path / "log"
    child = f"import time\nwhile True: open({str(log)!r}, 'a').write('x'); time.sleep(0.02)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    with pytest.raises(subprocess.TimeoutExpired):
        gpu_models._finish([sys.executable, "-S", "-c", parent], 1.0)
    time.sleep(0.1)
    size = log.stat().st_size
    time.sleep(0.2)
    assert log.stat().st_size == size > 0


def test_resumes_and_says_where_figures_are_from(tmp_path, monkeypatch, capsys):
    counts = {"a": 0, "b": 0}

    def count(name):
        counts[name] += 1
        return {"row": {"n": counts[name]}}

    cells = {name: lambda name=name: count(name) for name in counts}
    monkeypatch.setattr(gpu, "SECTIONS", {"models": lambda options: cells})
    command = [*CPU, "--output", str(tmp_path), "--section", "models"]
    assert gpu.main([*command, "--minutes", "0"]) == gpu.UNFINISHED
    cells["late"] = cells.pop("b")
    assert gpu.main(command) == gpu.main(command) == 0
    assert counts == {"a": 1, "b": 1}
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert {"commit", "date", "rows"} == written["sections"]["models"]["a"].keys()
    assert written["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "| a | row | n 1 |" in (tmp_path / "gpu.md").read_text()
    written["machine"]["device"] = "another"
    (tmp_path / "gpu.json").write_text(json.dumps(written))
    assert gpu.main(command) == 2
    assert "name another folder with --output" in capsys.readouterr().err
