"""What would run: the order of jobs, and ``--dry-run``."""

import shutil
from pathlib import Path

import pytest
from support.evaluation_data import arguments

from diffclip_cli.main import main
from diffclip_openclip.evaluation.plan import plan


def test_plan_keeps_a_models_jobs_together(suite, spec, directory):
    specs = [spec, f"local-dir:{directory}", spec]
    jobs, missing = plan(specs, [str(suite)])
    assert [job.spec for job in jobs] == [specs[0]] * 18 + [specs[1]] * 18
    assert missing == []


def test_a_runs_folder_is_all_of_its_checkpoints(suite, spec, tmp_path):
    name, _, checkpoint = spec.partition(",")
    run = tmp_path / "logs" / "a-run"
    shutil.copytree(Path(checkpoint).parents[1], run)
    for other in ("epoch_10.pt", "epoch_1.pt"):
        shutil.copy(run / "checkpoints" / "epoch_2.pt", run / "checkpoints" / other)
    for given in (str(run), str(run / "checkpoints"), f"{name},{run}"):
        jobs, _ = plan([given], [str(suite)], names=["mmvp"])
        assert [job.spec for job in jobs] == [f"{name},{run}/checkpoints/epoch_{at}.pt" for at in (1, 2, 10)]
        assert [job.provenance for job in jobs] == [
            {"run": "a-run", "epoch": at, "training_seed": 5} for at in (1, 2, 10)
        ]
    (run / "params.txt").unlink()
    with pytest.raises(ValueError, match="does not say its model"):
        plan([str(run)], [str(suite)], names=["mmvp"])


def test_zero_shot_on_the_probe_sets_where_it_is_asked_for(suite, spec):
    jobs, _ = plan([spec], [str(suite)], names=["pets"])
    assert jobs[0].data_set.tasks == ("linear_probe", "few_shot")
    jobs, missing = plan([spec], [str(suite)], tasks=["zeroshot_classification"])
    assert len(jobs) == 14
    assert missing == []
    assert {job.data_set.tasks for job in jobs} == {("zeroshot_classification",)}


def test_dry_run(suite, spec, tmp_path, capsys):
    shutil.copytree(suite / "pets", tmp_path / "data" / "pets")
    command_line = arguments(spec, tmp_path / "data", tmp_path / "RESULTS")
    assert main(["evaluate", *command_line, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{spec}: linear_probe, few_shot on pets ({tmp_path}/data/pets)"
    assert len(lines) == 18
    missing = "missing: dtd, splits train, val, test, for linear_probe, few_shot; `diffclip data` prepares it"
    assert f"{missing} (docs/data.md)" in lines
    assert not (tmp_path / "RESULTS").exists()


def test_dry_run_says_what_is_there(results, some, spec, capsys):
    assert main(["evaluate", *arguments(spec, some, results), "--dry-run", "--seed", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()[:5]
    found = {line.partition(" on ")[2].split()[0]: line.rpartition("data: ")[2] for line in lines}
    assert found["imagenet-r"] == "zeroshot_classification"
    assert f"; in {results}, if of the same weights and data: mmvp" in next(line for line in lines if "mmvp" in line)
    assert not any(found[name].startswith("linear") for name in ("dtd", "pets"))  # these have a seed
    assert main(["evaluate", *arguments(spec, some, results), "--dry-run", "--precision", "amp_bf16"]) == 0
    assert "if of the same" not in capsys.readouterr().out
