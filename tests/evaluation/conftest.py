"""What the evaluation's tests share: models, the paper's data sets in small, and the results of all of it."""

from pathlib import Path

import pytest
from support.common import made_once, run_host, script
from support.evaluation_data import SOME, arguments, write_directory, write_run

from diffclip_openclip.weights.loading import LoadedModel, load_model


@pytest.fixture(scope="session")
def some(suite, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("some")
    for name in SOME:
        (root / name).symlink_to(suite / name)
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    logs = made_once(tmp_path_factory, "evaluated-run", write_run)
    return logs / "a-run" / "checkpoints" / "epoch_2.pt"


@pytest.fixture(scope="session")
def directory(tmp_path_factory) -> Path:
    return write_directory(tmp_path_factory.mktemp("directories"))


@pytest.fixture(scope="session")
def spec(checkpoint) -> str:
    return f"DiffCLIP-nano,{checkpoint}"


@pytest.fixture(scope="session")
def loaded(spec) -> LoadedModel:
    return load_model(spec)


@pytest.fixture(scope="session")
def results(suite, spec, tmp_path_factory) -> Path:
    """The whole suite, by the installed command in one process."""

    def evaluate(folder: Path) -> None:
        run_host([script("diffclip"), "evaluate", *arguments(spec, suite, folder / "RESULTS")], folder)

    return made_once(tmp_path_factory, "results-of-the-suite", evaluate) / "RESULTS"
