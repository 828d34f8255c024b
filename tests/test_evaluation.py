"""diffclip evaluate: models, places, features, tasks and results, on the emoji as the paper's data sets."""

import http.server
import json
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import plain_environment, read_tar, run_host, script, write_tar
from evaluation_data import build_suite

from diffclip_openclip.cli import main
from diffclip_openclip.evaluation import mmvp, runner, zeroshot
from diffclip_openclip.evaluation.compute import Compute
from diffclip_openclip.evaluation.features import backbone, extract, read_shard
from diffclip_openclip.evaluation.layout import Place, fingerprint, locate
from diffclip_openclip.evaluation.model import load_model
from diffclip_openclip.evaluation.suite import DATA_SETS, DataSet, find_data_set

LIMIT = 10  # images a class


@pytest.fixture(scope="session")
def suite(tmp_path_factory) -> Path:
    return build_suite(tmp_path_factory.mktemp("suite") / "data", LIMIT)


SOME = ("dtd", "flickr8k", "imagenet-r", "mmvp", "pets")  # every task, by fewer data sets


@pytest.fixture(scope="session")
def some(suite, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("some")
    for name in SOME:
        (root / name).symlink_to(suite / name)
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A run's checkpoint as open_clip's trainer writes it, of random weights."""
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("logs") / "a-run"
    (run / "checkpoints").mkdir(parents=True)
    path = run / "checkpoints" / "epoch_2.pt"
    state_dict = open_clip.create_model("DiffCLIP-nano").state_dict()
    torch.save({"epoch": 2, "name": "a-run", "state_dict": state_dict}, path)
    (run / "params.txt").write_text("image_mean: [0.1, 0.2, 0.3]\nimage_std: None\nmodel: DiffCLIP-nano\n")
    return path


@pytest.fixture(scope="session")
def spec(checkpoint) -> str:
    return f"DiffCLIP-nano,{checkpoint}"


@pytest.fixture(scope="session")
def loaded(spec):
    return load_model(spec)


@pytest.fixture(scope="session")
def results(suite, spec, tmp_path_factory) -> Path:
    """The whole suite, by the installed command in one process."""
    output = tmp_path_factory.mktemp("results") / "RESULTS"
    run_host([script("diffclip"), "evaluate", *_arguments(spec, suite, output)], output.parent)
    return output


def _arguments(spec, data, output) -> list[str]:
    return ["--model", spec, "--data", str(data), "--suite", "paper", "--output", str(output), "--workers", "1"]


def _files(results: Path) -> list[Path]:
    """Result files; a killed process leaves hidden folders with what it was writing."""
    return list(results.glob("[!.]*/[!.]*/[!.]*.json"))


def _metrics(results: Path) -> dict[str, dict]:
    """Every result's identity and metrics, without what differs between runs."""
    found = {}
    for path in _files(results):
        entry = json.loads(path.read_text())
        found[str(path.relative_to(results))] = {k: v for k, v in entry.items() if k not in ("seconds", "date")}
    return found


def _of_some(metrics: dict[str, dict]) -> dict[str, dict]:
    return {path: entry for path, entry in metrics.items() if entry["dataset"] in SOME}


class TestModel:
    def test_preprocessing_is_the_runs(self, loaded):
        assert loaded.preprocess_cfg["mean"] == [0.1, 0.2, 0.3]
        assert loaded.preprocess_cfg["size"] == (48, 48)
        assert loaded.label == "DiffCLIP-nano a-run epoch_2"

    def test_hash_follows_weights_architecture_and_preprocessing(self, loaded, checkpoint, tmp_path):
        same = shutil.copytree(checkpoint.parents[1], tmp_path / "copy") / "checkpoints" / "epoch_2.pt"
        assert load_model(f"DiffCLIP-nano,{same}").sha256 == loaded.sha256
        hashes = {loaded.sha256, load_model(f"DiffCLIP-nano-dynamic,{checkpoint}").sha256}  # lambda_init is no weight
        (tmp_path / "copy" / "params.txt").unlink()
        hashes.add(load_model(f"DiffCLIP-nano,{same}").sha256)
        state = torch.load(checkpoint, weights_only=True)
        state["state_dict"]["logit_scale"] += 1
        torch.save(state, same)
        hashes.add(load_model(f"DiffCLIP-nano,{same}").sha256)
        assert len(hashes) == 4

    @pytest.mark.parametrize(
        ("spec", "error", "message"),
        [
            ("DiffCLIP-nan", ValueError, "near: DiffCLIP-nano"),
            ("DiffCLIP-nano", ValueError, "names no weights; give DiffCLIP-nano,CHECKPOINT"),
            ("DiffCLIP-nano,none.pt", FileNotFoundError, "neither a file nor a pretrained tag"),
            ("ViT-B-32,laion9", FileNotFoundError, "its tags: openai"),
            ("local-dir:/none", FileNotFoundError, "no directory /none"),
            ("local-dir:/tmp,openai", ValueError, "brings its own weights"),
        ],
    )
    def test_names_that_lead_nowhere(self, spec, error, message):
        with pytest.raises(error, match=message):
            load_model(spec)

    def test_weights_of_another_model(self, checkpoint, tmp_path):
        with pytest.raises(ValueError, match="cannot be loaded; are these weights that model's"):
            load_model(f"CLIP-nano-baseline,{checkpoint}")
        cut = tmp_path / "cut.pt"
        cut.write_bytes(checkpoint.read_bytes()[:100_000])
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_model(f"DiffCLIP-nano,{cut}")


class TestLayout:
    def test_first_root_that_has_all_splits(self, suite, tmp_path):
        (tmp_path / "dtd" / "test").mkdir(parents=True)
        (tmp_path / "dtd" / "test" / "nshards.txt").write_text("1\n")
        write_tar(tmp_path / "dtd" / "test" / "0.tar", [("a.png", b"")])
        dtd = find_data_set("dtd")
        assert locate(dtd, [str(tmp_path)]) is None
        assert locate(dtd, [str(tmp_path), str(suite)]).base == f"{suite}/dtd"
        assert locate(dtd, [f"{suite}/{{dataset}}"]).shards == {"train": 1, "val": 1, "test": 1}

    def test_shards_that_nshards_promises(self, suite, tmp_path):
        shutil.copytree(suite / "pets", tmp_path / "pets")
        (tmp_path / "pets" / "test" / "nshards.txt").write_text("2\n")
        with pytest.raises(ValueError, match=r"lacks 1\.tar; its nshards\.txt says 2 shards"):
            locate(find_data_set("pets"), [str(tmp_path)])
        (tmp_path / "pets" / "test" / "nshards.txt").write_text("two\n")
        with pytest.raises(ValueError, match="holds 'two'; it must be the number of shards"):
            locate(find_data_set("pets"), [str(tmp_path)])

    def test_the_hubs_addresses_for_text_and_for_shards(self):
        place = Place("https://huggingface.co/datasets/clip-benchmark/wds_dtd/tree/main", {"test": 1})
        assert (
            place.shard("test", 0) == "https://huggingface.co/datasets/clip-benchmark/wds_dtd/resolve/main/test/0.tar"
        )

    def test_fingerprint_follows_content_only(self, suite, tmp_path):
        copy = shutil.copytree(suite / "pets", tmp_path / "a" / "pets")
        pets, memory = find_data_set("pets"), tmp_path / "memory"

        def value():
            return fingerprint(locate(pets, [str(copy.parent)]), memory)

        first = value()
        assert first == fingerprint(locate(pets, [str(suite)]), tmp_path / "other")
        (copy / "test" / "0.tar").touch()
        assert value() == first
        names = copy / "classnames.txt"
        names.write_text(names.read_text().replace("bird", "brid"))
        second = value()
        shard = copy / "test" / "0.tar"
        shard.write_bytes(shard.read_bytes()[:-10_240] + b"\1" * 10_240)
        assert len({first, second, value()}) == 3

    def test_a_root_behind_http(self, suite, loaded, tmp_path):
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=suite)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            root = f"http://127.0.0.1:{server.server_port}/{{dataset}}"
            place = locate(find_data_set("pets"), [root])
            assert place.class_names[0] == "bird"
            assert locate(DataSet("nothing", "", (), ("test",)), [root]) is None
            remote = extract(loaded, place, "test", Compute(workers=0), tmp_path)
            assert fingerprint(place, tmp_path) == fingerprint(place, tmp_path)
            server.shutdown()
        local = extract(loaded, locate(find_data_set("pets"), [str(suite)]), "test", Compute(), tmp_path)
        assert torch.equal(remote.features, local.features)


class TestFeatures:
    def test_backbones_end_before_the_projection(self, loaded):
        images = torch.randn(2, 3, 48, 48)
        with torch.no_grad(), backbone(loaded.model) as encode:
            features = encode(images)
            assert features.shape == (2, 128)
            torch.testing.assert_close(loaded.model.visual.head(features), loaded.model.encode_image(images))

    def test_openais_tower_and_its_projection_stays(self):
        model = open_clip.create_model("ViT-B-32").eval()
        images = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            before = model.encode_image(images)
            with backbone(model) as encode:
                features = encode(images)
            assert features.shape == (1, 768)
            assert torch.equal(model.encode_image(images), before)
            torch.testing.assert_close(features @ model.visual.proj, before)

    def test_a_shard_is_extracted_once_and_workers_change_nothing(self, loaded, suite, tmp_path):
        place = locate(find_data_set("cifar100"), [str(suite)])
        first = extract(loaded, place, "train", Compute(workers=0, batch_size=7), tmp_path)
        assert len(first.labels) == 11 * LIMIT
        (kept,) = (tmp_path / "features").rglob("*.safetensors")
        state = kept.stat().st_mtime_ns
        again = extract(loaded, place, "train", Compute(workers=2), tmp_path)
        assert kept.stat().st_mtime_ns == state
        assert torch.equal(again.features, first.features)
        other = extract(loaded, place, "train", Compute(workers=2), tmp_path / "other")
        torch.testing.assert_close(other.features, first.features, atol=1e-5, rtol=1e-5)
        assert torch.equal(other.labels, first.labels)

    def test_samples_in_several_shards_keep_their_order(self, loaded, suite, tmp_path):
        files = read_tar(suite / "pets" / "test" / "0.tar", 1000)
        for part in range(3):
            write_tar(
                tmp_path / "pets" / "test" / f"{part}.tar", files[part * 20 : part * 20 + 20 if part < 2 else None]
            )
        (tmp_path / "pets" / "test" / "nshards.txt").write_text("3")
        shutil.copytree(suite / "pets" / "train", tmp_path / "pets" / "train")
        pets = find_data_set("pets")
        whole = extract(loaded, locate(pets, [str(suite)]), "test", Compute(workers=0), tmp_path / "a")
        parts = extract(loaded, locate(pets, [str(tmp_path)]), "test", Compute(workers=2), tmp_path / "b")
        assert torch.equal(parts.labels, whole.labels)
        torch.testing.assert_close(parts.features, whole.features, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_broken_shard_is_named_and_nothing_of_it_kept(self, loaded, suite, tmp_path, workers):
        shutil.copytree(suite / "pets", tmp_path / "pets")
        shard = tmp_path / "pets" / "test" / "0.tar"
        files = read_tar(shard, 1000)
        write_tar(shard, [(name, data[:100] if name.endswith("5.webp") else data) for name, data in files])
        place = locate(find_data_set("pets"), [str(tmp_path)])
        with pytest.raises(ValueError, match=r"pets/test/0\.tar cannot be read"):
            extract(loaded, place, "test", Compute(workers=workers), tmp_path / "memory")
        assert not list((tmp_path / "memory").rglob("*.safetensors"))
        write_tar(shard, [(name, data) for name, data in files if not name.endswith("3.cls")])
        with pytest.raises(ValueError, match=r"lacks an image .* or \.cls"):
            extract(loaded, place, "test", Compute(workers=workers), tmp_path / "memory")


class TestTasks:
    def test_zero_shot_is_clip_benchmarks(self, loaded, suite, checkpoint, tmp_path):
        """The same numbers as its command, which takes a data set's own templates."""
        root = shutil.copytree(suite / "imagenet-r", tmp_path / "imagenet-r")
        plain = shutil.copy(checkpoint, tmp_path / "plain.pt")  # clip_benchmark does not read params.txt
        ours = zeroshot.classify(
            load_model(f"DiffCLIP-nano,{plain}"),
            locate(find_data_set("imagenet-r"), [str(tmp_path)]),
            Compute(),
            tmp_path / "memory",
        )
        for name, templates in zeroshot.TEMPLATES.items():
            (root / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
            command = [script("clip_benchmark"), "eval", "--model", "DiffCLIP-nano", "--pretrained", str(plain)]
            command += ["--dataset", "wds/imagenet-r", "--dataset_root", str(root), "--output", f"{name}.json"]
            command += ["--task", "zeroshot_classification", "--no_amp", "--num_workers", "1"]
            run_host(command, tmp_path)
            assert json.loads((tmp_path / f"{name}.json").read_text())["metrics"] == pytest.approx(ours[name])
        assert {name: len(templates) for name, templates in zeroshot.TEMPLATES.items()} == {
            "openai-80": 80,
            "paper-7": 7,
        }

    def test_a_label_beyond_the_class_names(self, loaded, suite, tmp_path):
        shutil.copytree(suite / "imagenet-r", tmp_path / "imagenet-r")
        (tmp_path / "imagenet-r" / "classnames.txt").write_text("a\nb\n")
        with pytest.raises(ValueError, match=r"its classnames\.txt 2 lines"):
            zeroshot.classify(loaded, locate(find_data_set("imagenet-r"), [str(tmp_path)]), Compute(), tmp_path)

    def test_recall_by_brute_force(self, loaded, suite):
        place = locate(find_data_set("flickr8k"), [str(suite)])
        metrics = zeroshot.retrieve(loaded, place, Compute(workers=1))
        samples = list(read_shard(place.shard("test", 0), ("txt",), loaded.preprocess))
        owner = [i for i, (_, text) in enumerate(samples) for _ in text.splitlines()]
        with torch.no_grad():
            images = loaded.model.encode_image(torch.stack([image for image, _ in samples]), normalize=True)
            captions = [line for _, text in samples for line in text.splitlines()]
            texts = loaded.model.encode_text(loaded.tokenizer(captions), normalize=True)
        scores = (texts @ images.t()).tolist()
        for k in (1, 5, 10):
            found = [sum(s > row[i] for s in row) < k for row, i in zip(scores, owner, strict=True)]
            assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(sum(found) / len(found))
            hits = 0
            for i in range(len(samples)):
                column = [row[i] for row in scores]
                best = max(score for score, own in zip(column, owner, strict=True) if own == i)
                hits += sum(score > best for score in column) < k
            assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(hits / len(samples))

    def test_a_pair_counts_only_if_both_texts_choose_their_own_image(self):
        similarity = torch.tensor(
            [[[2, 1], [1, 2]], [[2, 1], [2, 1]], [[1, 2], [1, 2]], [[1, 2], [2, 1]], [[1, 1], [1, 1]]]
        )
        assert mmvp.pair_hits(similarity.float()).tolist() == [True, False, False, False, False]

    def test_mmvp_means_by_hand(self, loaded, suite):
        metrics = mmvp.evaluate(loaded, locate(find_data_set("mmvp"), [str(suite)]), Compute())
        shares = metrics["patterns"]
        assert len(shares) == 9
        assert metrics["mean_9"] == pytest.approx(sum(shares.values()) / 9)
        seven = [share for name, share in shares.items() if name not in ("Quantity and Count", "Texts")]
        assert metrics["mean_7"] == pytest.approx(sum(seven) / 7)
        assert all(share * 4 == int(share * 4) for share in shares.values())  # four pairs each

    def test_mmvp_without_a_partner(self, loaded, suite, tmp_path):
        shutil.copytree(suite / "mmvp", tmp_path / "mmvp")
        shard = tmp_path / "mmvp" / "test" / "0.tar"
        write_tar(shard, read_tar(shard, 1000)[:-3])
        with pytest.raises(ValueError, match="questions 71 and 72 must be there"):
            mmvp.evaluate(loaded, locate(find_data_set("mmvp"), [str(tmp_path)]), Compute())


class TestCommand:
    def test_every_task_has_its_result(self, results):
        entries = _metrics(results)
        expected = sum(2 if task == "zeroshot_classification" else 1 for d in DATA_SETS for task in d.tasks)
        assert len(entries) == expected == 32
        for entry in entries.values():
            assert entry["label"] == "DiffCLIP-nano a-run epoch_2"
            assert entry.keys() >= {"dataset", "model", "pretrained", "task", "metrics", "language", "versions", "seed"}
            assert len(entry["checkpoint_sha256"]) == len(entry["dataset_sha256"]) == 64
            values = [v for v in entry["metrics"].values() if isinstance(v, float)]
            assert values or entry["task"] == "mmvp"
        probes = [entry["metrics"] for entry in entries.values() if entry["task"] == "linear_probe"]
        assert all(0 < metrics["accuracy"] <= 1 for metrics in probes)

    def test_the_report_of_it_has_every_cell(self, results, tmp_path):
        assert main(["report", str(results), "--output", str(tmp_path / "REPORT")]) == 0
        for table in ("table1", "table2", "zero_shot", "mmvp", "recall"):
            lines = (tmp_path / "REPORT" / "tables" / f"{table}.md").read_text().splitlines()
            ours = [line for line in lines if "| DiffCLIP-nano a-run epoch_2 |" in line]
            assert ours, table
            assert not any("–" in line for line in ours)
        assert "a-run" in (tmp_path / "REPORT" / "index.html").read_text()

    def test_running_again_does_nothing(self, results, suite, spec, capsys):
        before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
        assert main(["evaluate", *_arguments(spec, suite, results)]) == 0
        assert {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()} == before

    def test_changed_data_and_broken_results_are_done_again(self, results, suite, spec, tmp_path):
        copy, data = shutil.copytree(results, tmp_path / "RESULTS"), tmp_path / "data"
        for name in ("pets", "flickr8k"):
            shutil.copytree(suite / name, data / name)
        (retrieval,) = copy.rglob("flickr8k.json")
        retrieval.write_text(retrieval.read_text()[:50])
        names = data / "pets" / "classnames.txt"
        names.write_text(names.read_text().upper())
        stamps = {path: path.stat().st_mtime_ns for path in copy.rglob("*.json")}
        assert main(["evaluate", *_arguments(spec, data, copy)]) == 0
        changed = {
            path.relative_to(copy).as_posix().split("/", 1)[1]
            for path, at in stamps.items()
            if path.stat().st_mtime_ns != at
        }
        assert changed == {"zeroshot_retrieval/flickr8k.json", "linear_probe/pets.json", "few_shot/pets.json"}

    def test_two_processes_give_what_one_does(self, results, some, spec, tmp_path):
        command = [script("torchrun"), "--nproc-per-node", "2", "--no-python", "--", script("diffclip"), "evaluate"]
        run_host([*command, *_arguments(spec, some, tmp_path / "RESULTS")], tmp_path)
        assert _metrics(tmp_path / "RESULTS") == _of_some(_metrics(results))

    def test_killed_again_and_again_it_ends_the_same(self, results, some, spec, tmp_path):
        """SIGKILL after ever more results; each run goes on from what is there."""
        output = tmp_path / "RESULTS"
        command = [script("diffclip"), "evaluate", *_arguments(spec, some, output)]
        expected = _of_some(_metrics(results))
        interrupted = 0
        for enough in (1, 3, 5):
            process = subprocess.Popen(
                command, cwd=tmp_path, env=plain_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while process.poll() is None and len(_files(output)) < enough:
                try:
                    process.wait(0.01)
                except subprocess.TimeoutExpired:
                    continue
            process.kill()
            interrupted += process.wait() < 0
            assert len(_files(output)) >= enough
        assert interrupted  # on a busy machine a later run may have ended first
        run_host(command, tmp_path)
        assert _metrics(output) == expected

    def test_dry_run(self, suite, spec, tmp_path, capsys):
        shutil.copytree(suite / "pets", tmp_path / "data" / "pets")
        arguments = _arguments(spec, tmp_path / "data", tmp_path / "RESULTS")
        assert main(["evaluate", *arguments, "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{spec}: linear_probe, few_shot on pets ({tmp_path}/data/pets)"
        assert len(lines) == 18
        missing = "missing: dtd, splits train, val, test, for linear_probe, few_shot; `diffclip data` prepares it"
        assert f"{missing} (docs/data.md)" in lines
        assert not (tmp_path / "RESULTS").exists()

    def test_no_data_at_all(self, spec, tmp_path, capsys):
        assert main(["evaluate", *_arguments(spec, tmp_path, tmp_path / "RESULTS")]) == 2
        assert "has none of the paper's data sets; see docs/data.md" in capsys.readouterr().err

    def test_a_failure_does_not_stop_the_others(self, suite, spec, tmp_path, capsys):
        for name in ("pets", "mmvp", "flickr8k"):
            shutil.copytree(suite / name, tmp_path / "data" / name)
        write_tar(tmp_path / "data" / "pets" / "train" / "0.tar", [("a.webp", b"no image"), ("a.cls", b"0")])
        assert main(["evaluate", *_arguments(spec, tmp_path / "data", tmp_path / "RESULTS")]) == 2
        assert "1 of 3 failed" in capsys.readouterr().err
        assert {path.stem for path in (tmp_path / "RESULTS").rglob("*.json")} == {"mmvp", "flickr8k"}

    def test_bfloat16_is_another_result(self, results, suite, spec, tmp_path):
        shutil.copytree(suite / "flickr8k", tmp_path / "data" / "flickr8k")
        copy = shutil.copytree(results, tmp_path / "RESULTS")
        assert main(["evaluate", *_arguments(spec, tmp_path / "data", copy), "--precision", "amp_bf16"]) == 0
        (path,) = copy.rglob("flickr8k.json")
        entry, before = json.loads(path.read_text()), json.loads(next(results.rglob("flickr8k.json")).read_text())
        assert (entry["precision"], before["precision"]) == ("amp_bf16", "fp32")
        for key, value in before["metrics"].items():
            assert abs(entry["metrics"][key] - value) < 0.15


def test_plan_keeps_a_models_jobs_together(suite):
    jobs, missing = runner.plan(["a", "b", "a"], [str(suite)])
    assert [job.spec for job in jobs] == ["a"] * 18 + ["b"] * 18
    assert missing == []


def test_packages_of_the_extra_are_named(tmp_path):
    code = (
        "import sys; sys.modules['webdataset'] = None\n"
        "from diffclip_openclip.cli import main\n"
        "main(['evaluate', '--model', 'a', '--data', 'b', '--output', 'c'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "needs webdataset" in done.stderr
    assert "pip install 'diffclip-openclip[eval]'" in done.stderr
