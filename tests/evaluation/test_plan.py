"""What would run: the order of jobs, and ``--dry-run``."""

import shutil

from support.evaluation_data import arguments

from diffclip_cli.main import main
from diffclip_openclip.evaluation.plan import plan


def test_plan_keeps_a_models_jobs_together(suite, spec, directory):
    specs = [spec, f"local-dir:{directory}", spec]
    jobs, missing = plan(specs, [str(suite)])
    assert [job.spec for job in jobs] == [specs[0]] * 18 + [specs[1]] * 18
    assert missing == []


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
