"""The embedded data set is whole, split as it says, and licensed as it says."""

import hashlib
import io
import json
import re
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from PIL import Image
from support.common import EMOJI, REPOSITORY

from diffclip_cli.main import build_parser

KEY = re.compile(r"(noto|twemoji|openmoji|fluent)_([0-9a-f-]+)(_label|_tags)?")
TRAIN = {"noto": "train/noto.tar", "twemoji": "train/twemoji.tar", "openmoji": "train-openmoji/openmoji.tar"}
CLASSIFICATION = ("unseen-vendor", "unseen-vendor-groups", "seen-vendors", "heldout-concepts")


@pytest.fixture(scope="module")
def metadata():
    return json.loads((EMOJI / "metadata.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def shards():
    """path -> key -> extension -> content."""
    contents = {}
    for path in sorted(EMOJI.rglob("*.tar")):
        samples = contents.setdefault(path.relative_to(EMOJI).as_posix(), {})
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                key, extension = member.name.split(".")
                assert extension not in samples.setdefault(key, {})
                samples[key][extension] = tar.extractfile(member).read()
    return contents


def _lines(path):
    return (EMOJI / path).read_text(encoding="utf-8").splitlines()


def test_files_are_those_of_the_metadata(metadata):
    files = {path.relative_to(EMOJI).as_posix(): path.read_bytes() for path in EMOJI.rglob("*") if path.is_file()}
    del files["metadata.json"]
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == {
        name: entry["sha256"] for name, entry in metadata["files"].items()
    }
    assert sum(map(len, files.values())) < 10e6


def test_counts(metadata, shards):
    counts = {path.removesuffix("/test/0.tar"): len(samples) for path, samples in shards.items()}
    assert counts == metadata["sample_counts"]
    for folder in ("train", "train-openmoji"):
        sizes = json.loads((EMOJI / folder / "sizes.json").read_text())
        assert sizes == {path.split("/")[-1]: counts[path] for path in TRAIN.values()}


def test_training_shards(metadata, shards):
    concepts = {concept["hexcode"]: concept for concept in metadata["concepts"]}
    for vendor, path in TRAIN.items():
        keys = list(shards[path])
        for label_key, tags_key in zip(keys[::2], keys[1::2], strict=True):
            name, hexcode, kind = KEY.fullmatch(label_key).groups()
            assert (name, kind, tags_key) == (vendor, "_label", f"{vendor}_{hexcode}_tags")
            assert not concepts[hexcode]["held_out"]
            label, tags = shards[path][label_key], shards[path][tags_key]
            assert label["webp"] == tags["webp"]
            assert label["txt"].decode() == concepts[hexcode]["label"]
            assert tags["txt"].decode()


def test_evaluation_never_saw_training_and_share_alike_stays_apart(shards):
    trained = {sample["webp"] for path in TRAIN.values() for sample in shards[path].values()}
    for path, samples in shards.items():
        if path.startswith("eval/"):
            images = {sample["webp"] for sample in samples.values()}
            assert (images <= trained) if "seen-vendors" in path else images.isdisjoint(trained)
        if not path.startswith("train-openmoji/"):
            assert not any(key.startswith("openmoji") for key in samples)
    assert _lines("train-openmoji/LICENSE.txt")[0].startswith("Attribution-ShareAlike 4.0 International")


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_classification_sets(name, metadata, shards):
    concepts = {concept["hexcode"]: concept for concept in metadata["concepts"]}
    classes, samples = _lines(f"eval/{name}/classnames.txt"), shards[f"eval/{name}/test/0.tar"]
    assert len(set(classes)) == len(classes)
    assert {int(sample["cls"]) for sample in samples.values()} == set(range(len(classes)))
    field = "group" if name.endswith("groups") else "label"
    for key, sample in samples.items():
        concept = concepts[KEY.fullmatch(key)[2]]
        assert classes[int(sample["cls"])] == concept[field]
        assert concept["held_out"] == (name == "heldout-concepts")
    assert _lines(f"eval/{name}/zeroshot_classification_templates.txt") == ["{c}"]


def test_retrieval_set(shards):
    captions = [sample["txt"].decode() for sample in shards["eval/retrieval/test/0.tar"].values()]
    assert len(set(captions)) == len(captions) == 500
    assert not any("\n" in caption for caption in captions)
    assert _lines("eval/retrieval/dataset_type.txt") == ["retrieval"]


def test_images_are_pictures(shards):
    for samples in shards.values():
        for sample in list(samples.values())[::150]:
            with Image.open(io.BytesIO(sample["webp"])) as image:
                assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (64, 64))
                assert len(image.getcolors(64 * 64)) > 1


@pytest.fixture
def emoji_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(EMOJI.parent))
    yield
    for name in ("build", "report", "quickstart", "compare", "comparison"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("emoji_scripts")
def test_report_has_the_splits_with_their_chance(shards):
    import report

    assert {split.name for split in report.SPLITS} == {path.name for path in (EMOJI / "eval").iterdir()}
    for split in report.SPLITS:
        samples = shards[f"eval/{split.name}/test/0.tar"]
        retrieval = split.task == "zeroshot_retrieval"
        candidates = len(samples) if retrieval else len(_lines(f"eval/{split.name}/classnames.txt"))
        assert f"{candidates:,} " in split.title
        for key, _, chance in split.metrics:
            k = int(re.search(r"\d+$", key)[0])
            assert chance == pytest.approx(k / candidates)


@pytest.mark.usefixtures("emoji_scripts")
def test_build_refuses_a_damaged_package_and_leaves_no_trace(tmp_path):
    pytest.importorskip("resvg_py", reason="needed to build the data set only: the examples extra")
    import build

    package = {"name": "a-package", "version": "1.0.0", "sha256": "0" * 64, "files": ".*", "licence": "MIT"}
    with pytest.raises(SystemExit, match=r"is missing: run `npm pack a-package@1\.0\.0`"):
        build.read_package(tmp_path, package)
    (tmp_path / "a-package-1.0.0.tgz").write_bytes(b"cut short")
    with pytest.raises(SystemExit, match=r"is damaged or not a-package@1\.0\.0"):
        build.read_package(tmp_path, package)


def _option(command, name):
    return command[len(command) - command[::-1].index(name)]


class _Commands:
    """Stand in for the processes of a comparison: notes each command, and makes the checkpoints that it would make."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.made, self.fails_at = [], fails_at

    def __call__(self, comparison, command, folder, lock) -> None:
        if len(self.made) == self.fails_at:
            raise RuntimeError("out of memory")
        self.made.append(command)
        if "open_clip_train.main" in command:
            epochs, often = int(_option(command, "--epochs")), int(_option(command, "--save-frequency"))
            checkpoints = folder / "checkpoints"
            checkpoints.mkdir(exist_ok=True)
            for epoch in {*range(often, epochs, often), epochs}:
                (checkpoints / f"epoch_{epoch}.pt").touch()
            if "--pretrained" in command:
                assert Path(_option(command, "--pretrained")).is_file()


@pytest.fixture
def comparison_of(tmp_path, monkeypatch, emoji_scripts):
    """Run compare.py with arguments, in which nothing is trained; return the commands that it ran."""
    import compare

    def run(*arguments, fails_at=None):
        commands = _Commands(fails_at)
        monkeypatch.setattr(compare.Comparison, "_run", lambda *arguments: commands(*arguments))
        monkeypatch.setattr(compare, "run", commands.made.append)
        monkeypatch.setattr(compare, "prepare_environment", lambda: None)
        monkeypatch.setattr(sys, "argv", ["compare.py", "--output", str(tmp_path), *arguments])
        try:
            compare.main()
        except SystemExit as end:
            return commands.made, str(end.code)
        return commands.made, ""

    return run


SETTINGS = ("--seeds", "3", "4", "--epochs", "6", "--points", "3")


def test_the_comparison_gives_all_models_the_same_budget(comparison_of, tmp_path):
    import compare

    commands, _ = comparison_of(*SETTINGS, "--", "--lr", "3e-3")
    trained = [command for command in commands if "open_clip_train.main" in command]
    names = [_option(command, "--name") for command in trained]
    assert names == [f"seed{seed}-{name}" for seed in (3, 4) for name in compare.ARMS]
    own = ("--model", "--name", "--seed", "--epochs", "--save-frequency", "--pretrained", "--logs")
    shared = {
        tuple(part for at, part in enumerate(command) if part not in own and command[at - 1] not in own)
        for command in trained
    }
    assert len(shared) == 1  # flags that are not a model's own
    assert {_option(command, "--lr") for command in trained} == {"3e-3"}
    for name, command in zip(names, trained, strict=True):
        arm = compare.ARMS[name.partition("-")[2]]
        assert _option(command, "--seed") == name[4]
        assert _option(command, "--epochs") == ("3" if arm.is_continued else "6")
        start = f"local-dir:{tmp_path}/runs/{name}/start" if arm.is_warm_started else arm.model
        assert _option(command, "--model") == start
    (warm, _) = (command for command in commands if "warm-start" in command)
    assert warm[2] == f"CLIP-nano-baseline,{tmp_path}/runs/seed3-baseline/checkpoints/epoch_6.pt"


def test_the_comparison_evaluates_and_reports_every_seed(comparison_of, tmp_path):
    import compare

    commands, _ = comparison_of(*SETTINGS)
    parsed = [build_parser().parse_args(command[1:]) for command in commands if command[0] == "diffclip"]
    curves, last = (
        [p for p in parsed if "dataset" in p and (len(p.dataset) == 1) is is_one] for is_one in (True, False)
    )
    assert {name for p in last for name in p.dataset} == {path.name for path in (EMOJI / "eval").iterdir()}
    for seed, at in ((3, 0), (4, 1)):
        for few, many in zip(curves[2 * at : 2 * at + 2], last[2 * at : 2 * at + 2], strict=True):
            assert few.output == many.output
            runs = [
                name for name, arm in compare.ARMS.items() if arm.is_continued == few.output.name.endswith("-continued")
            ]
            folders = [f"{compare.ARMS[name].model},{tmp_path}/runs/seed{seed}-{name}" for name in runs]
            assert few.model == folders
            assert [spec.rpartition("/checkpoints/epoch_")[0] for spec in many.model] == folders
    kept = {path.relative_to(tmp_path / "runs").parts[0] for path in tmp_path.glob("runs/*/checkpoints/*.pt")}
    assert len(list(tmp_path.glob("runs/*/checkpoints/*.pt"))) == len(kept) == 2 * len(compare.ARMS)
    reports = [p for p in parsed if "group" in p]
    assert [p.baseline for p in reports] == ["CLIP", "CLIP, continued"]
    assert sum(len(p.group) for p in reports) == 2 * len(compare.ARMS)
    assert "DiffCLIP†=* seed4-vision epoch_*" in reports[0].group


def test_a_comparison_of_some_arms_takes_more_later(comparison_of, tmp_path):
    def trained(commands):
        return [_option(command, "--name") for command in commands if "open_clip_train.main" in command]

    few, said = comparison_of(*SETTINGS, "--arms", "diffclip", "baseline")
    assert said == ""
    assert trained(few) == ["seed3-baseline", "seed3-diffclip", "seed4-baseline", "seed4-diffclip"]
    (reported,) = (command for command in few if command[1] == "report")  # none of continued runs
    assert {group.partition("=")[0] for group in reported if "=* seed" in group} == {"CLIP", "DiffCLIP"}
    again, _ = comparison_of(*SETTINGS, "--arms", "baseline", "diffclip")
    assert all(command[1] == "report" for command in again)
    more, _ = comparison_of(*SETTINGS)
    assert len(trained(more)) == 2 * 7
    assert json.loads((tmp_path / "runs" / "seed3" / "done").read_text()) == sorted(sys.modules["compare"].ARMS)
    fewer, _ = comparison_of(*SETTINGS, "--arms", "baseline", "v2")
    assert all(command[1] == "report" for command in fewer)


@pytest.mark.parametrize(
    ("arms", "lacks"),
    [(["v2"], "baseline"), (["baseline", "warm-v2"], "continued"), (["warm-v2"], "baseline, continued")],
)
def test_arms_without_what_they_are_compared_with_are_refused(arms, lacks, comparison_of, capsys):
    commands, said = comparison_of(*SETTINGS, "--arms", *arms)
    assert (commands, said) == ([], "2")
    assert f"the arms lack {lacks}, with which the others are compared" in capsys.readouterr().err


def test_an_interrupted_comparison_goes_on_where_it_stopped(comparison_of, tmp_path, monkeypatch):
    whole, _ = comparison_of(*SETTINGS, "--output", str(tmp_path / "whole"))
    first, said = comparison_of(*SETTINGS, fails_at=5)
    assert "out of memory" in said
    second, _ = comparison_of(*SETTINGS)
    shown = [[part.replace("/whole", "") for part in command] for command in whole]
    assert first + second == shown
    again, _ = comparison_of(*SETTINGS)
    assert all(command[1] == "report" for command in again)
    _, said = comparison_of(*SETTINGS, "--", "--lr", "1")
    assert "go on with those, or take another --output" in said
    monkeypatch.setattr(sys.modules["comparison"], "training_command", lambda *_: ["--batch-size", "1"])
    _, said = comparison_of(*SETTINGS)
    assert "go on with those" in said  # the quick start's settings are others by now


def test_a_second_comparison_in_the_same_folder_is_refused_before_it_starts_anything(comparison_of, tmp_path):
    with sys.modules["comparison"].locked(tmp_path):
        commands, said = comparison_of(*SETTINGS)
    assert commands == []
    assert "is in use by another process" in said


@pytest.mark.parametrize("content", ["settings.json", "runs/seed3-baseline/seconds.json"])
def test_a_comparison_that_is_killed_while_it_writes_goes_on(content, comparison_of, tmp_path, monkeypatch):
    class _Killed(BaseException):
        pass

    write = Path.write_text

    def killed(path, text, *arguments, **kwargs):
        if path.with_suffix(".json") != tmp_path / content:
            return write(path, text, *arguments, **kwargs)
        write(path, text[:3])
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(_Killed):
            comparison_of(*SETTINGS)
    assert comparison_of(*SETTINGS)[1] == ""


@pytest.mark.usefixtures("emoji_scripts")
def test_the_time_of_an_attempt_that_was_killed_is_not_known(tmp_path, monkeypatch):
    from comparison import Comparison

    comparison, seconds = Comparison(tmp_path, 4, 2, 2, []), tmp_path / "runs" / "seed0-baseline/seconds.json"
    seen = []
    monkeypatch.setattr(comparison, "_run", lambda *arguments: seen.append(json.loads(seconds.read_text())))
    comparison.train(0, "baseline")
    assert seen == [[None]]  # which stays if both are killed now
    assert json.loads(seconds.read_text()) == [pytest.approx(0, abs=1)]


@pytest.mark.usefixtures("emoji_scripts")
def test_a_comparison_that_fails_says_why(tmp_path, monkeypatch):
    """And not how the processes ended that were ended for it."""
    import compare

    comparison, is_started = compare.Comparison(tmp_path, 4, 2, 2, []), threading.Event()

    def train(seed, name):
        if name == compare.BASELINE:  # goes on until it is ended
            is_started.set()
            comparison._is_stopped.wait(10)
            raise RuntimeError("ended with exit status -15")
        assert is_started.wait(10)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(comparison, "train", train)
    with pytest.raises(RuntimeError, match="out of memory"):
        compare.start_all(comparison, [0, 1], jobs=2)


@pytest.mark.usefixtures("emoji_scripts")
def test_a_process_that_was_started_while_all_are_ended_is_ended(tmp_path, monkeypatch):
    import compare

    comparison, ended = compare.Comparison(tmp_path, 4, 2, 2, []), []

    class _Process:
        def __init__(self, *arguments, **kwargs):
            comparison.stop()

        def terminate(self):
            ended.append(self)

        def wait(self):
            return -15 if ended else 0

    monkeypatch.setattr(sys.modules["comparison"].subprocess, "Popen", _Process)
    with pytest.raises(RuntimeError, match="exit status -15"):
        comparison._run(["a command"], tmp_path, 0)


@pytest.mark.usefixtures("emoji_scripts")
def test_a_run_that_was_killed_as_it_ended_is_not_trained_anew(tmp_path, monkeypatch):
    import compare

    comparison = compare.Comparison(tmp_path, 4, 2, 2, [])
    monkeypatch.setattr(comparison, "_run", lambda *arguments: None)

    def killed(path, missing_ok=False):
        assert (path.parents[1] / "done").exists()  # without it the trainer would find no checkpoint to go on from

    monkeypatch.setattr(Path, "unlink", killed)
    comparison.train(0, "baseline")


def test_a_suites_folder_is_a_path_and_nothing_else(tmp_path, monkeypatch):
    """webdataset's opener would run the name in a shell."""
    sys.path.insert(0, str(REPOSITORY / "examples" / "emoji"))
    from paper_suite import SHARD, write_split

    monkeypatch.chdir(tmp_path)
    folder = Path("pipe:touch made; cat >", "100%d")
    write_split(folder, ({"cls": index} for index in range(SHARD + 1)))
    assert not Path("made").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["0.tar", "1.tar", "nshards.txt"]
    with tarfile.open(folder / "1.tar") as tar:
        assert tar.getnames() == [f"s{SHARD:07d}.cls"]
