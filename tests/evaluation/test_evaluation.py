"""diffclip evaluate: models, places, features, tasks and results, on the emoji as the paper's data sets."""

import http.server
import json
import math
import operator
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from clip_benchmark.datasets.builder import build_dataset
from PIL import Image
from support.common import EMOJI, plain_environment, read_tar, run_host, run_python, script, write_tar
from support.evaluation_data import build_suite
from support.hub_stand_in import HubStandIn

from diffclip_cli.main import main
from diffclip_openclip.evaluation import mmvp, zeroshot
from diffclip_openclip.evaluation.compute import Compute
from diffclip_openclip.evaluation.features import backbone, extract, read_shard
from diffclip_openclip.evaluation.layout import Place
from diffclip_openclip.evaluation.layout import locate as locate_splits
from diffclip_openclip.evaluation.plan import plan
from diffclip_openclip.evaluation.suite import DATA_SETS, ZERO_SHOT, find_data_set
from diffclip_openclip.explain.views import read_image
from diffclip_openclip.report.entries import our_entries
from diffclip_openclip.report.models import read_models
from diffclip_openclip.report.paper import load_paper
from diffclip_openclip.weights.directory import write_place
from diffclip_openclip.weights.loading import load_model
from diffclip_openclip.weights.spec import ModelSpec, architecture_of_spec, parse_spec

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
def directory(tmp_path_factory) -> Path:
    """A model directory of other weights and another lambda_init."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("directories")
    torch.save(open_clip.create_model("DiffCLIP-nano-dynamic").state_dict(), folder / "weights.pt")
    command = ["convert", str(folder / "weights.pt"), str(folder / "DYNAMIC"), "--preprocess", "slip"]
    assert main([*command, "--variant", "dynamic"]) == 0
    return folder / "DYNAMIC"


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
    return ["--model", spec, "--data", str(data), "--output", str(output), "--workers", "1"]


def locate(data_set, roots) -> Place | None:
    return locate_splits(data_set.name, data_set.splits, roots)


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
        (tmp_path / "copy" / "params.txt").unlink()
        hashes = {loaded.sha256, load_model(f"DiffCLIP-nano,{same}").sha256}
        hashes.add(load_model(f"DiffCLIP-nano-dynamic,{same}").sha256)  # lambda_init is no weight
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
            ("local-dir:/tmp,openai", ValueError, "local-dir:/tmp brings its own weights; leave out 'openai'$"),
            ("hf-hub:a/b,openai", ValueError, "hf-hub:a/b brings its own weights; leave out 'openai'$"),
            ("local-dir:", ValueError, "Empty path"),
            ("/tmp", ValueError, "no model '/tmp'; it is a directory, so give local-dir:/tmp"),
            (__file__, ValueError, f"it is a file, so give the model that it is of, too: NAME,{__file__}"),
            ("hf://a/b", ValueError, "no model 'hf://a/b'; give hf-hub:a/b if .* diffclip convert hf://a/b DIR"),
            ("./DiffCLIP-nano", ValueError, r"no model '\./DiffCLIP-nano'; near: DiffCLIP-nano"),
        ],
    )
    def test_names_that_lead_nowhere(self, spec, error, message):
        with pytest.raises(error, match=message):
            parse_spec(spec)
        with pytest.raises(error, match=message):
            load_model(spec)

    @pytest.mark.parametrize("place", ["OUT", "OUT/", "./OUT/.", "{}/OUT/", "my, OUT"])
    def test_a_directory_is_called_by_its_name(self, directory, place, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("OUT", "my, OUT"):
            shutil.copytree(directory, name)
            write_place(Path(name))
        spec = f"local-dir:{place.format(tmp_path)}"
        assert parse_spec(spec).label == load_model(spec).label == place.strip("./").rpartition("/")[2]

    def test_a_checkpoint_behind_a_directory(self, directory, checkpoint):
        """Of a run that started from it, say."""
        with pytest.raises(ValueError, match="brings its own weights") as error:
            parse_spec(f"local-dir:{directory},{checkpoint}")
        assert f"name its architecture, DiffCLIP-nano-dynamic,{checkpoint}; or make" in str(error.value)
        assert f"diffclip convert {checkpoint} DIR" in str(error.value)

    def test_a_directory_that_was_copied_or_moved(self, directory, tmp_path):
        """open_clip would take the text tower's lambda_init from the original."""
        copy = shutil.copytree(directory, tmp_path / "copy")
        with pytest.raises(ValueError, match=f"copied from .*diffclip convert {copy} {copy}"):
            load_model(f"local-dir:{copy}")
        write_place(copy)
        assert load_model(f"local-dir:{copy}").sha256 == load_model(f"local-dir:{directory}").sha256
        copy.rename(tmp_path / "moved")
        with pytest.raises(ValueError, match="moved"):
            load_model(f"local-dir:{tmp_path / 'moved'}")

    def test_a_directory_without_weights(self, directory, tmp_path):
        copy = shutil.copytree(directory, tmp_path / "copy")
        write_place(copy)
        (copy / "open_clip_model.safetensors").unlink()
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_model(f"local-dir:{copy}")

    def test_a_runs_checkpoint_by_another_name_than_the_runs(self, checkpoint, directory, tmp_path):
        run = shutil.copytree(checkpoint.parents[1], tmp_path / "run")
        path, params = run / "checkpoints" / "epoch_2.pt", run / "params.txt"
        with pytest.raises(ValueError, match=r"is of DiffCLIP-nano, not of DiffCLIP-nano-dynamic; name that model"):
            load_model(f"DiffCLIP-nano-dynamic,{path}")
        params.write_text(f"model: local-dir:{directory}\n")
        parse_spec(f"DiffCLIP-nano-dynamic,{path}")  # the directory's architecture
        for name, wrong in {
            f"local-dir:{directory}": "DiffCLIP-nano",
            "local-dir:/gone": "DiffCLIP-nano-dynamic",  # nothing tells whether it is
            "hf-hub:owner/model": "DiffCLIP-nano",
            "my-own": "DiffCLIP-nano",
        }.items():
            params.write_text(f"model: {name}\n")
            with pytest.raises(ValueError, match=f"is of {name}, not of {wrong}; .*diffclip convert"):
                parse_spec(f"{wrong},{path}")
        params.write_text("model: ViT-B/32\n")
        parse_spec(f"ViT-B-32,{path}")

    def test_architecture_is_that_of_the_weights(self, directory, loaded, tmp_path):
        assert loaded.architecture == "DiffCLIP-nano"
        assert load_model(f"local-dir:{directory}").architecture == "DiffCLIP-nano-dynamic"
        other = shutil.copytree(directory, tmp_path / "other")
        config = json.loads((other / "config.json").read_text()) | {"intermediate_size": 64}
        (other / "config.json").write_text(json.dumps(config))
        assert architecture_of_spec(ModelSpec(f"local-dir:{other}")) is None

    def test_architecture_of_a_model_on_the_hub(self, directory, tmp_path):
        with HubStandIn(tmp_path / "hub") as hub:
            environment = hub.environment(tmp_path / "home", token=hub.token)
            run_host([script("diffclip"), "push", str(directory), "owner/repo"], tmp_path, **environment)
            code = (
                "from diffclip_openclip.weights.loading import load_model\n"
                "model = load_model('hf-hub:owner/repo')\n"
                "print(model.architecture, model.label, model.sha256)"
            )
            printed = run_python(code, tmp_path, **environment).split()
        assert printed[-3:] == ["DiffCLIP-nano-dynamic", "repo", load_model(f"local-dir:{directory}").sha256]

    def test_weights_of_another_model(self, checkpoint, tmp_path):
        bare = shutil.copy(checkpoint, tmp_path / "bare.pt")
        with pytest.raises(ValueError, match="cannot be loaded; are these weights that model's"):
            load_model(f"CLIP-nano-baseline,{bare}")
        cut = tmp_path / "cut.pt"
        cut.write_bytes(checkpoint.read_bytes()[:100_000])
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_model(f"DiffCLIP-nano,{cut}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "the batch size is 0; it must be 1 or more"),
        ({"workers": -1}, "there are to be -1 workers"),
        ({"device": "mps"}, "torch finds no device 'mps' here"),
    ],
)
def test_settings_that_cannot_be(settings, message, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        Compute(**settings)


class TestLayout:
    def test_first_root_that_has_all_splits(self, suite, tmp_path):
        (tmp_path / "dtd" / "test").mkdir(parents=True)
        (tmp_path / "dtd" / "test" / "nshards.txt").write_text("1\n")
        write_tar(tmp_path / "dtd" / "test" / "0.tar", [("a.png", b"")])
        dtd = find_data_set("dtd")
        assert locate(dtd, [str(tmp_path)]) is None
        assert locate(dtd, [str(tmp_path), str(suite)]).base == f"{suite}/dtd"
        assert locate(dtd, [f"{suite}/{{dataset}}"]).shards == {"train": 1, "val": 1, "test": 1}

    def test_braces_in_a_root(self, suite, tmp_path):
        (tmp_path / "{y}").symlink_to(suite)
        root = str(tmp_path / "{y}")
        assert locate(find_data_set("dtd"), [f"{root}/{{dataset}}"]).base == f"{root}/dtd"

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
            return locate(pets, [str(copy.parent)]).fingerprint(memory)

        first = value()
        assert first == locate(pets, [str(suite)]).fingerprint(tmp_path / "other")
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
            assert locate_splits("nothing", ["test"], [root]) is None
            remote = extract(loaded, place, "test", Compute(workers=0), tmp_path)
            assert place.fingerprint(tmp_path) == place.fingerprint(tmp_path)
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

    def test_images_are_clip_benchmarks_and_the_ones_that_attend_shows(self, tmp_path):
        """But for greys of 16 bits, which Pillow's own conversion clips."""
        rng = np.random.default_rng(0)
        greys = Image.fromarray(np.array([[0, 257 * 100, 257 * 200, 65535]], dtype=np.uint16))
        pictures = [greys] + [
            Image.fromarray(rng.integers(0, 256, (5, 4, channels), dtype=np.uint8).squeeze())
            for channels in (4, 2, 3, 1)
        ]
        files = []
        for index, picture in enumerate(pictures):
            picture.save(tmp_path / f"{index}.png")
            files += [(f"{index}.png", (tmp_path / f"{index}.png").read_bytes()), (f"{index}.cls", b"0")]
        write_tar(tmp_path / "one" / "test" / "0.tar", files)
        (tmp_path / "one" / "test" / "nshards.txt").write_text("1")
        (tmp_path / "one" / "classnames.txt").write_text("a\n")
        (tmp_path / "one" / "zeroshot_classification_templates.txt").write_text("{c}\n")
        shard = str(tmp_path / "one" / "test" / "0.tar")
        ours = [np.asarray(image).tolist() for image, _ in read_shard(shard, ("cls",), lambda image: image)]
        theirs = build_dataset("wds/one", str(tmp_path / "one"), lambda image: image, "test")
        assert ours[1:] == [np.asarray(image).tolist() for image, _ in theirs][1:]
        assert ours[0] == [[[grey] * 3 for grey in (0, 100, 200, 255)]]
        assert ours == [np.asarray(read_image(tmp_path / f"{index}.png")).tolist() for index in range(5)]

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
        ours, count = zeroshot.classify(
            load_model(f"DiffCLIP-nano,{plain}"),
            locate(find_data_set("imagenet-r"), [str(tmp_path)]),
            Compute(),
            tmp_path / "memory",
        )
        assert count == LIMIT * len((root / "classnames.txt").read_text().splitlines())
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

    @pytest.mark.parametrize("precision", ["fp32", "amp_bf16"])
    def test_recall_by_brute_force(self, loaded, suite, precision):
        place = locate(find_data_set("flickr8k"), [str(suite)])
        compute = Compute(workers=1, batch_size=1000, precision=precision)
        metrics, count = zeroshot.retrieve(loaded, place, compute)
        assert count == 8 * LIMIT
        samples = list(read_shard(place.shard("test", 0), ("txt",), loaded.preprocess))
        owner = [i for i, (_, text) in enumerate(samples) for _ in text.splitlines()]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
            images = loaded.model.encode_image(torch.stack([image for image, _ in samples]), normalize=True)
            captions = [line for _, text in samples for line in text.splitlines()]
            texts = loaded.model.encode_text(loaded.tokenizer(captions), normalize=True)
            scores = (texts @ images.t()).tolist()
        columns = [list(column) for column in zip(*scores, strict=True)]

        def recall(k, rows, owns, ahead):
            """Share of rows of which one of their own is among the k best; ``ahead`` decides between equals."""
            hits = 0
            for row, own in zip(rows, owns, strict=True):
                others = [score for at, score in enumerate(row) if at not in own]
                hits += sum(ahead(score, max(row[at] for at in own)) for score in others) < k
            return hits / len(rows)

        captions_of = [[at for at, own in enumerate(owner) if own == i] for i in range(len(samples))]
        for k in (1, 5, 10):
            for kind, rows, owns in (("image", scores, [[i] for i in owner]), ("text", columns, captions_of)):
                value = metrics[f"{kind}_retrieval_recall@{k}"]
                least, most = (recall(k, rows, owns, ahead) for ahead in (operator.ge, operator.gt))
                assert 0 < least - 1e-6 < value < most + 1e-6
                assert least == most or precision != "fp32"  # in bfloat16 many scores are equal

    @pytest.mark.parametrize(
        ("images", "captions", "known"), [(7, 2, (1, 5)), (3, 2, (1,)), (4, 3, (1,)), (10, 1, (1, 5, 10))]
    )
    def test_retrieval_among_fewer_than_ten(self, loaded, suite, tmp_path, images, captions, known):
        """Recall@10 of seven images is nothing."""
        files = read_tar(suite / "flickr8k" / "test" / "0.tar", 2 * images)
        texts = [(name, b"\n".join([data.splitlines()[0]] * captions)) for name, data in files if name.endswith("txt")]
        pictures = [file for file in files if not file[0].endswith("txt")]
        write_tar(tmp_path / "few" / "test" / "0.tar", sorted(pictures + texts))
        (tmp_path / "few" / "test" / "nshards.txt").write_text("1")
        place = locate_splits("few", ["test"], [str(tmp_path)])
        metrics, count = zeroshot.retrieve(loaded, place, Compute(workers=0, batch_size=4))
        assert count == images
        finite = {name for name, value in metrics.items() if math.isfinite(value)}
        assert len(metrics) == 6
        assert finite == {f"{kind}_retrieval_recall@{k}" for kind in ("image", "text") for k in known}

    def test_a_pair_counts_only_if_both_texts_choose_their_own_image(self):
        similarity = torch.tensor(
            [[[2, 1], [1, 2]], [[2, 1], [2, 1]], [[1, 2], [1, 2]], [[1, 2], [2, 1]], [[1, 1], [1, 1]]]
        )
        assert mmvp.pair_hits(similarity.float()).tolist() == [True, False, False, False, False]

    def test_mmvp_means_by_hand(self, loaded, suite):
        metrics, count = mmvp.evaluate(loaded, locate(find_data_set("mmvp"), [str(suite)]), Compute())
        assert count == 9 * 4 * 2
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
            assert entry.keys() >= {
                "dataset",
                "model",
                "pretrained",
                "task",
                "metrics",
                "language",
                "versions",
                "images",
            }
            assert ("seed" in entry) == (entry["task"] in ("linear_probe", "few_shot"))
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

    def test_dry_run_says_what_is_there(self, results, some, spec, capsys):
        assert main(["evaluate", *_arguments(spec, some, results), "--dry-run", "--seed", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()[:5]
        found = {line.partition(" on ")[2].split()[0]: line.rpartition("data: ")[2] for line in lines}
        assert found["imagenet-r"] == "zeroshot_classification"
        assert f"; in {results}, if of the same weights and data: mmvp" in next(
            line for line in lines if "mmvp" in line
        )
        assert not any(found[name].startswith("linear") for name in ("dtd", "pets"))  # these have a seed
        assert main(["evaluate", *_arguments(spec, some, results), "--dry-run", "--precision", "amp_bf16"]) == 0
        assert "if of the same" not in capsys.readouterr().out

    @pytest.mark.parametrize("wrong", ["NOSUCH", "local-dir:{},x", "DiffCLIP-nano-dynamic,{}/checkpoints/epoch_2.pt"])
    @pytest.mark.parametrize("more", [[], ["--dry-run"]])
    def test_a_wrong_model_is_told_before_anything_runs(self, some, spec, checkpoint, wrong, more, tmp_path, capsys):
        arguments = _arguments(spec, some, tmp_path / "RESULTS")
        assert main(["evaluate", *arguments, *more, "--model", wrong.format(checkpoint.parents[1])]) == 2
        captured = capsys.readouterr()
        assert "diffclip evaluate: error: " in captured.err
        assert captured.out == ""
        assert not (tmp_path / "RESULTS").exists()

    def test_a_model_that_cannot_be_loaded_does_not_stop_the_others(self, suite, spec, checkpoint, tmp_path, capsys):
        for name in ("mmvp", "flickr8k"):
            shutil.copytree(suite / name, tmp_path / "data" / name)
        cut = tmp_path / "cut.pt"
        cut.write_bytes(checkpoint.read_bytes()[:100_000])
        arguments = _arguments(f"DiffCLIP-nano,{cut}", tmp_path / "data", tmp_path / "RESULTS")
        assert main(["evaluate", *arguments, "--model", spec]) == 2
        captured = capsys.readouterr()
        assert "2 of 4 failed" in captured.err
        assert f"{cut} cannot be loaded" in captured.err
        assert captured.out.count("failed: ") == 1
        assert {path.stem for path in _files(tmp_path / "RESULTS")} == {"mmvp", "flickr8k"}

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

    def test_bfloat16_and_another_seed_are_other_results(self, results, some, spec, tmp_path, capsys):
        copy = shutil.copytree(results, tmp_path / "RESULTS")
        before = {path: path.read_bytes() for path in _files(copy)}
        assert main(["evaluate", *_arguments(spec, some, copy), "--seed", "1"]) == 0
        assert {path: path.read_bytes() for path in before} == before
        new = {path.relative_to(path.parents[1]).as_posix() for path in _files(copy) if path not in before}
        assert new == {f"{task}/{name}_seed1.json" for task in ("linear_probe", "few_shot") for name in ("dtd", "pets")}
        arguments = [*_arguments(spec, some, copy), "--precision", "amp_bf16"]
        assert main(["evaluate", *arguments, "--dataset", "flickr8k", "--dataset", "imagenet-r"]) == 0
        assert {path: path.read_bytes() for path in before} == before
        other = {path.stem: json.loads(path.read_text()) for path in copy.glob("*/*/*_amp_bf16.json")}
        assert sorted(other) == ["flickr8k_amp_bf16", "imagenet-r_openai-80_amp_bf16", "imagenet-r_paper-7_amp_bf16"]
        assert {entry["precision"] for entry in other.values()} == {"amp_bf16"}
        assert all("seed" not in entry for entry in other.values())
        assert main(["report", str(copy), "--output", str(tmp_path / "REPORT")]) == 0
        table = (tmp_path / "REPORT" / "tables" / "table1.md").read_text()
        assert "| DiffCLIP-nano a-run epoch_2 (fp32, seed 0) |" in table
        assert "| DiffCLIP-nano a-run epoch_2 (fp32, seed 1) |" in table
        table = (tmp_path / "REPORT" / "tables" / "table2.md").read_text()
        assert "| DiffCLIP-nano a-run epoch_2 (amp_bf16) |" in table

    def test_bfloat16_gives_nearly_the_same_features(self, loaded, suite, tmp_path):
        place = locate(find_data_set("pets"), [str(suite)])
        exact, rounded = (
            extract(loaded, place, "test", Compute(workers=0, precision=precision), tmp_path).features
            for precision in ("fp32", "amp_bf16")
        )
        assert not torch.equal(exact, rounded)
        assert ((exact - rounded).norm() / exact.norm()).item() < 0.02  # bfloat16 has 8 bits

    def test_results_say_how_much_of_the_data_there_was(self, results, some, spec, tmp_path, capsys):
        entries = {entry["task"] + entry["dataset"]: entry for entry in _metrics(results).values()}
        assert entries["few_shotdtd"]["images"].keys() == {"train", "val", "test"}
        assert entries["linear_probepets"]["images"].keys() == {"train", "test"}
        assert entries["zeroshot_retrievalflickr8k"]["images"] == {"test": 8 * LIMIT}
        assert entries["mmvpmmvp"]["images"] == {"test": 72}
        assert main(["evaluate", *_arguments(spec, some, results), "--task", "mmvp"]) == 0
        (line,) = filter(None, capsys.readouterr().out.splitlines())
        assert line.endswith("; warning: not of the published size (test 72 images instead of 270)")
        assert main(["report", str(results), "--output", str(tmp_path / "REPORT")]) == 0
        assert "not of the published size: caltech101, " in capsys.readouterr().out

    def test_a_converted_model_has_its_family_in_the_report(self, directory, suite, tmp_path):
        shutil.copytree(suite / "mmvp", tmp_path / "data" / "mmvp")
        arguments = _arguments(f"local-dir:{directory}/", tmp_path / "data", tmp_path / "RESULTS")
        assert main(["evaluate", *arguments]) == 0
        (path,) = _files(tmp_path / "RESULTS")
        assert path.parts[-3].startswith("DYNAMIC-")
        (entry,) = our_entries(read_models(tmp_path / "RESULTS"), load_paper())
        assert (entry.name, entry.family) == ("DYNAMIC", "DiffCLIP*")


class TestOwnData:
    """Data sets that the paper does not have."""

    @pytest.fixture
    def data(self, suite, tmp_path) -> Path:
        """Folders: mine (train, test, its own templates), plain (test), captions; and one of the paper's."""
        root = tmp_path / "data"
        shutil.copytree(suite / "pets", root / "mine")
        (root / "mine" / "zeroshot_classification_templates.txt").write_text("an emoji of {c}\na {c}\n")
        shutil.copytree(suite / "imagenet-r", root / "plain")
        (root / "plain" / "zeroshot_classification_templates.txt").unlink()
        shutil.copytree(suite / "flickr8k", root / "captions")
        shutil.copytree(suite / "mmvp", root / "mmvp")
        return root

    def _run(self, spec, data, output, *options) -> dict[str, dict]:
        assert main(["evaluate", *_arguments(spec, data, output), *options]) == 0
        return {path.relative_to(path.parents[1]).as_posix(): json.loads(path.read_text()) for path in _files(output)}

    def test_by_the_tasks_that_their_layout_allows(self, spec, loaded, data, checkpoint, tmp_path):
        named = [f"--dataset={name}" for name in ("mine", "plain", "captions", "mmvp")]
        found = self._run(spec, data, tmp_path / "RESULTS", *named)
        assert sorted(found) == [
            "few_shot/mine.json",
            "linear_probe/mine.json",
            "mmvp/mmvp.json",
            "zeroshot_classification/mine_own.json",
            "zeroshot_classification/plain_openai-80.json",
            "zeroshot_retrieval/captions.json",
        ]
        assert found["linear_probe/mine.json"]["images"].keys() == {"train", "test"}
        # clip_benchmark on the same folder, whose own templates it takes
        plain = shutil.copy(checkpoint, tmp_path / "plain.pt")
        ours = self._run(f"DiffCLIP-nano,{plain}", data, tmp_path / "BARE", "--dataset", "mine", "--task", ZERO_SHOT)
        command = [script("clip_benchmark"), "eval", "--model", "DiffCLIP-nano", "--pretrained", str(plain)]
        command += ["--dataset", "wds/mine", "--dataset_root", str(data / "mine"), "--output", "theirs.json"]
        run_host([*command, "--task", ZERO_SHOT, "--no_amp", "--num_workers", "1"], tmp_path)
        theirs = json.loads((tmp_path / "theirs.json").read_text())["metrics"]
        assert list(ours) == ["zeroshot_classification/mine_own.json"]
        assert ours["zeroshot_classification/mine_own.json"]["metrics"] == pytest.approx(theirs)

    def test_other_templates_are_other_data(self, spec, data, tmp_path):
        options = ("--dataset", "mine", "--task", ZERO_SHOT)
        (first,) = self._run(spec, data, tmp_path / "RESULTS", *options).values()
        (data / "mine" / "zeroshot_classification_templates.txt").write_text("no {c}\n")
        (second,) = self._run(spec, data, tmp_path / "RESULTS", *options).values()
        assert first["dataset_sha256"] != second["dataset_sha256"]

    def test_folders_that_diffclip_data_made(self, spec, tmp_path):
        for split in ("train", "test"):
            for index, (name, data) in enumerate(read_tar(EMOJI / "eval" / "retrieval" / "test" / "0.tar", 120)[::2]):
                path = tmp_path / "source" / split / "abcde"[index % 5] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            source = str(tmp_path / "source" / split)
            target = ["--split", split, "--data", str(tmp_path / "D")]
            assert main(["data", "folder", "my-images", "--source", source, *target]) == 0
        found = self._run(spec, tmp_path / "D", tmp_path / "RESULTS", "--dataset", "my-images")
        assert len(found) == 3
        probe = found["linear_probe/my-images.json"]
        assert probe["images"] == {"train": 60, "test": 60}
        assert 0 < probe["metrics"]["accuracy"] <= 1

    def test_the_rest_of_data_and_of_tasks_is_left_alone(self, spec, data, tmp_path, capsys):
        found = self._run(spec, data, tmp_path / "RESULTS")
        assert list(found) == ["mmvp/mmvp.json"]
        assert "missing: pets" in capsys.readouterr().out
        found = self._run(
            spec, data, tmp_path / "RESULTS", "--dataset", "mine", "--dataset", "dtd", "--task", "few_shot"
        )
        assert sorted(found) == ["few_shot/mine.json", "mmvp/mmvp.json"]
        out = capsys.readouterr().out
        assert "missing: dtd, splits train, val, test, for few_shot" in out
        assert "imagenet" not in out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--dataset", "nothing"], "has no data set 'nothing' with a split test"),
            (["--dataset", "../data/mine"], "'../data/mine' is no name of a data set"),
            (["--dataset", "dtd"], "has none of the data sets and tasks that are named"),
            (["--dataset", "mine", "--task", "mmvp"], "has none of the data sets and tasks that are named"),
            (["--dataset", "bare"], "has no classnames.txt, no split train, and no captions"),
            (["--dataset", "braces"], "'a {x} {c}' must have {c} for the class, and no other braces"),
        ],
    )
    def test_what_cannot_be_evaluated(self, spec, data, options, message, tmp_path, capsys):
        for name in ("bare", "braces"):
            shutil.copytree(data / "plain", data / name)
        (data / "bare" / "classnames.txt").unlink()
        (data / "braces" / "zeroshot_classification_templates.txt").write_text("a {x} {c}\n")
        assert main(["evaluate", *_arguments(spec, data, tmp_path / "RESULTS"), *options]) == 2
        assert message in capsys.readouterr().err
        assert not _files(tmp_path / "RESULTS")


def test_plan_keeps_a_models_jobs_together(suite, spec, directory):
    specs = [spec, f"local-dir:{directory}", spec]
    jobs, missing = plan(specs, [str(suite)])
    assert [job.spec for job in jobs] == [specs[0]] * 18 + [specs[1]] * 18
    assert missing == []


def test_packages_of_the_extra_are_named(tmp_path):
    code = (
        "import sys; sys.modules['webdataset'] = None\n"
        "from diffclip_cli.main import main\n"
        "main(['evaluate', '--model', 'a', '--data', 'b', '--output', 'c'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "needs webdataset" in done.stderr
    assert "pip install 'diffclip-openclip[eval]'" in done.stderr
