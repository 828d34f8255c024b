"""Use the package as users get it: from a wheel or an editable install, with the hosts' own commands."""

import email
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from support.common import REPOSITORY, plain_environment, run_host, run_python, train_arguments
from support.installed import Environment, new_environment
from twine.commands.check import check as twine_check

from diffclip_openclip import __version__, model_names

MODELS = model_names()
STARTUP_FILE = "diffclip_openclip_autoload.pth"


def _build(*arguments: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments, str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """Build the wheel from the sdist, so that both are tested, and return their folder."""
    folder = tmp_path_factory.mktemp("dist")
    _build("--outdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def wheel(distributions) -> Path:
    return next(distributions.glob("*.whl"))


@pytest.fixture(scope="module", params=["wheel", "editable"])
def environment(request, tmp_path_factory, wheel) -> Environment:
    environment = new_environment(tmp_path_factory.mktemp(request.param) / "venv")
    environment.install(request.param, wheel, REPOSITORY)
    return environment


def _contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel_has_everything_and_nothing_else(wheel, tmp_path):
    contents = _contents(wheel)
    source = REPOSITORY / "src"
    modules = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    data = {"py.typed", "explain/page.html", "report/page.html", "report/paper.json"}
    data |= {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "model_configs").rglob("*.json")}
    assert contents == modules | {f"diffclip_openclip/{name}" for name in data} | {STARTUP_FILE}
    _build("--wheel", "--outdir", str(tmp_path))
    assert _contents(next(tmp_path.glob("*.whl"))) == contents


def test_an_index_takes_both_and_shows_the_readme(distributions, wheel):
    assert not twine_check([str(path) for path in distributions.iterdir()], strict=True)
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    readme = metadata.get_payload()
    assert "](https://raw.githubusercontent.com/OWNER/diffclip_openclip/main/docs/quickstart.png)" in readme
    assert "](https://github.com/OWNER/diffclip_openclip/blob/main/docs/install.md)" in readme
    assert not re.findall(r"\]\((?!https://)", readme)
    urls = {url.partition(", ")[0] for url in metadata.get_all("Project-URL")}
    assert urls == {"Repository", "Documentation", "Issues", "Changelog", "Paper"}


def test_the_sdist_has_the_tests_and_what_they_read(distributions):
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "tests/conftest.py",
        "docs/index.md",
        "examples/emoji/data/metadata.json",
        "Makefile",
        "mkdocs.yml",
    } <= names
    assert not any(name.startswith((".venv", "site/", "runs/")) for name in names)


def test_models_are_known_without_an_import_of_ours(environment, tmp_path):
    code = (
        "import json, open_clip\n"
        "model, train, val = open_clip.create_model_and_transforms('DiffCLIP-nano')\n"
        "tokens = open_clip.get_tokenizer('DiffCLIP-nano')(['a banana'])\n"
        "import diffclip_openclip\n"
        "print(json.dumps([open_clip.list_models(), list(model.encode_text(tokens).shape), list(tokens.shape),\n"
        "      diffclip_openclip.__file__, diffclip_openclip.__version__]))"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    output = run_python(code, tmp_path, environment.python, TMPDIR=str(scratch)).splitlines()[-1]
    assert not list(scratch.iterdir())
    names, text_shape, token_shape, file, version = json.loads(output)
    assert set(MODELS) <= set(names)
    assert text_shape[0] == 1
    assert token_shape == [1, model_config("DiffCLIP-nano")["text_cfg"]["context_length"]]
    assert version == __version__
    expected = environment.site_packages if "wheel" in str(environment.root) else REPOSITORY / "src"
    assert Path(file).is_relative_to(expected.resolve())


def test_the_command_answers_without_the_hosts(environment, tmp_path):
    """Only its own package is imported, so that it answers at once."""
    command = [environment.python, "-X", "importtime", str(environment.bin / "diffclip"), "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=plain_environment(), capture_output=True, text=True, check=True)
    assert done.stdout == f"{__version__}\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "diffclip_cli.main" in imported
    assert imported.isdisjoint({"diffclip_openclip", "open_clip", "timm", "torch", "transformers"})


def model_config(name: str) -> dict:
    return json.loads((REPOSITORY / "model_configs" / f"{name}.json").read_text())


def _train_arguments(shard: Path, epochs: int) -> list[str]:
    saving = ["--save-most-recent", "--save-frequency", "0", "--resume", "latest"]
    return [*train_arguments(shard), "--epochs", str(epochs), "--precision", "fp32", *saving]


def _train_until_killed(environment: Environment, arguments: list[str], folder: Path, checkpoint: Path) -> None:
    with (folder / "killed.log").open("wb") as log:
        process = subprocess.Popen(
            [environment.python, "-m", "open_clip_train.main", *arguments],
            cwd=folder,
            env=plain_environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 300
        while not checkpoint.is_file():
            assert process.poll() is None, (folder / "killed.log").read_text()[-6000:]
            assert time.monotonic() < deadline, "no checkpoint after 5 minutes"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _epoch(checkpoint: Path) -> int:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"]


@pytest.fixture(scope="module")
def checkpoint(environment, train_shard, tmp_path_factory) -> Path:
    """Train with the unchanged trainer, kill it, and resume under torchrun with the console script."""
    folder = tmp_path_factory.mktemp("training")
    checkpoint = folder / "logs" / "run" / "checkpoints" / "epoch_latest.pt"
    _train_until_killed(environment, _train_arguments(train_shard, epochs=1000), folder, checkpoint)
    done = _epoch(checkpoint)
    command = [environment.python, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--no-python", "--"]
    command += [str(environment.bin / "open_clip_train"), *_train_arguments(train_shard, epochs=done + 1)]
    output = run_host(command, folder).stdout
    assert "=> resuming checkpoint" in output
    assert f"Start epoch {done - 1}" not in output
    assert f"Start epoch {done}" in output
    assert _epoch(checkpoint) == done + 1
    return checkpoint


# the other tests train in an editable install
@pytest.mark.parametrize("environment", ["wheel", pytest.param("editable", marks=pytest.mark.slow)], indirect=True)
def test_train_kill_resume_and_benchmark(environment, checkpoint, eval_root, tmp_path):
    for name, task, metrics in (
        ("groups", "zeroshot_classification", {"acc1", "acc5", "mean_per_class_recall"}),
        ("retrieval", "zeroshot_retrieval", {"image_retrieval_recall@5", "text_retrieval_recall@5"}),
    ):
        command = [environment.python, "-m", "clip_benchmark.cli", "eval", "--model", "DiffCLIP-nano"]
        command += ["--pretrained", str(checkpoint), "--dataset", f"wds/{name}", "--dataset_root"]
        command += [str(eval_root / name), "--task", task, "--num_workers", "0", "--output", f"{name}.json"]
        run_host(command, tmp_path)
        results = json.loads((tmp_path / f"{name}.json").read_text())["metrics"]
        assert results.keys() == metrics
        assert all(0 <= value <= 1 for value in results.values())


@pytest.mark.parametrize("source", ["wheel", "editable"])
def test_uninstall_leaves_nothing(source, wheel, tmp_path):
    environment = new_environment(tmp_path / "venv")
    before = {path.name for path in environment.site_packages.iterdir()}
    environment.install(source, wheel, REPOSITORY)
    assert {path.name for path in environment.site_packages.iterdir()} > before | {STARTUP_FILE}
    environment.pip("uninstall", "--yes", "diffclip-openclip")
    assert {path.name for path in environment.site_packages.iterdir() if path.name != "__pycache__"} == before
    assert not any((environment.bin / name).exists() for name in ("diffclip", "open_clip_train"))
    assert run_python("print('starts')", tmp_path, environment.python) == "starts\n"
