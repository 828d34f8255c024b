"""diffclip data torchvision: small copies of the nine sets as torchvision lays them out, compared with torchvision."""

import io
import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from support.images import dots, number, pictures, pixels, read_back, save, tree
from torchvision.datasets import CIFAR10, CIFAR100, DTD, FGVCAircraft, Flowers102, Food101, OxfordIIITPet

from diffclip_openclip.data.catalog import class_names, find_data_set
from diffclip_openclip.data.sources.torchvision_sets import SETS, Labelled, cifar, convert, listed, write_splits


def _same(root: Path, name: str, split: str, expected) -> None:
    """The images and labels that clip_benchmark reads are those of a torchvision data set, in its order."""
    read = read_back(root, name, split)
    assert len(read) == len(expected)
    for (image, label), (own_image, own_label) in zip(read, expected, strict=True):
        assert (pixels(image), label) == (pixels(own_image), own_label)


def _classes(root: Path, name: str) -> list[str]:
    return (root / name / "classnames.txt").read_text(encoding="utf-8").splitlines()


def _dtd(folder: Path) -> Path:
    names = iter(enumerate(pictures(12)))
    for split in ("train", "val", "test"):
        lines = []
        for texture in ("zigzagged", "banded", "banded", "woven"):
            index, picture = next(names)
            save(folder / "dtd" / "dtd" / "images" / texture / f"{texture}_{index:04d}.jpg", picture)
            lines.append(f"{texture}/{texture}_{index:04d}.jpg\n")
        path = folder / "dtd" / "dtd" / "labels" / f"{split}1.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(lines))
    return folder


def test_dtd_and_its_official_splits(tmp_path):
    source = _dtd(tmp_path / "source")
    lines = convert("dtd", source=source, root=tmp_path)
    assert lines[0] == f"{tmp_path / 'dtd' / 'train'}: 4 images in 1 shards"
    assert lines[1].startswith("warning: the published dtd/train has 1,880 images")
    for split in ("train", "val", "test"):
        _same(tmp_path, "dtd", split, DTD(source, split=split))
        assert [label for _, label in read_back(tmp_path, "dtd", split)] == [2, 0, 0, 1]
    assert _classes(tmp_path, "dtd") == ["banded", "woven", "zigzagged"]
    templates = (tmp_path / "dtd" / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert templates[0] == "a photo of a {c} texture."
    before = tree(tmp_path)
    again = convert("dtd", source=tmp_path / "not there", root=tmp_path)  # complete splits do not need their source
    assert [line.split(" is there")[0] for line in again] == [
        str(tmp_path / "dtd" / split) for split in ("train", "val", "test")
    ]
    assert tree(tmp_path) == before


def test_split_with_other_classes_is_refused(tmp_path):
    source = _dtd(tmp_path / "source")
    (source / "dtd" / "dtd" / "labels" / "val1.txt").write_text("woven/woven_0003.jpg\n")
    with pytest.raises(FileExistsError, match=r"classnames\.txt says otherwise"):
        convert("dtd", source=source, root=tmp_path)
    assert not (tmp_path / "dtd" / "val").exists()


def test_aircraft_variants(tmp_path):
    folder = tmp_path / "source" / "fgvc-aircraft-2013b" / "data"
    splits = {"train": [("0000001", "F/A-18"), ("0000002", "707-320")], "val": [("0000003", "F/A-18")]}
    splits |= {"test": [("0000004", "707-320")]}
    images = iter(pictures(4))
    for split, rows in splits.items():
        for image, _ in rows:
            save(folder / "images" / f"{image}.jpg", next(images))
        text = "".join(f"{image} {variant}\n" for image, variant in rows)
        (folder / f"images_variant_{split}.txt").write_text(text)
    (folder / "variants.txt").write_text("707-320\nF/A-18\n")
    convert("fgvc_aircraft", source=tmp_path / "source", root=tmp_path)
    for split in splits:
        _same(tmp_path, "fgvc_aircraft", split, FGVCAircraft(tmp_path / "source", split=split))
    assert _classes(tmp_path, "fgvc_aircraft") == ["707-320", "F/A-18"]


def test_food101_with_words_for_names(tmp_path):
    folder = tmp_path / "source" / "food-101"
    names = {"train": {"ice_cream": ["ice_cream/2", "ice_cream/1"], "apple_pie": ["apple_pie/7"]}}
    names["test"] = {"apple_pie": ["apple_pie/8"], "ice_cream": ["ice_cream/3"]}
    images = iter(pictures(5))
    (folder / "meta").mkdir(parents=True)
    for split, classes in names.items():
        (folder / "meta" / f"{split}.json").write_text(json.dumps(classes))
        for files in classes.values():
            for file in files:
                save(folder / "images" / f"{file}.jpg", next(images))
    convert("food101", source=tmp_path / "source", root=tmp_path)
    for split in names:
        _same(tmp_path, "food101", split, Food101(tmp_path / "source", split=split))
    assert _classes(tmp_path, "food101") == ["apple pie", "ice cream"]


def test_pets_train_is_trainval_and_misnamed_files_are_read(tmp_path):
    folder = tmp_path / "source" / "oxford-iiit-pet"
    rows = {"trainval": ["american_bulldog_10 2 2 1", "Abyssinian_100 1 1 1"], "test": ["Abyssinian_2 1 1 1"]}
    rows["test"].append("american_bulldog_3 2 2 1")
    images = iter(pictures(4))
    (folder / "annotations").mkdir(parents=True)
    for split, lines in rows.items():
        (folder / "annotations" / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            form = "GIF" if "Abyssinian_2" in line else "JPEG"  # the real set has GIFs named .jpg
            save(folder / "images" / f"{line.split()[0]}.jpg", next(images), form)
    convert("pets", source=tmp_path / "source", root=tmp_path)
    _same(tmp_path, "pets", "train", OxfordIIITPet(tmp_path / "source", split="trainval"))
    _same(tmp_path, "pets", "test", OxfordIIITPet(tmp_path / "source", split="test"))
    assert _classes(tmp_path, "pets") == ["Abyssinian", "American Bulldog"]
    [packed] = [data for name, data in _members(tmp_path / "pets" / "train" / "0.tar") if name == "s0000001.jpg"]
    assert packed == (folder / "images" / "Abyssinian_100.jpg").read_bytes()


def _members(path: Path) -> list[tuple[str, bytes]]:
    import tarfile

    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


class _SmallFlowers(Flowers102):
    """The data set without the check sums of its lists."""

    _file_dict = {key: (name, None) for key, (name, _) in Flowers102._file_dict.items()}  # noqa: RUF012 - torchvision's own form


def test_flowers_labels_count_from_0(tmp_path):
    folder = tmp_path / "source" / "flowers-102"
    for index, picture in enumerate(pictures(6), 1):
        save(folder / "jpg" / f"image_{index:05d}.jpg", picture)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[102, 1, 2, 3, 77, 102]], dtype=np.uint8)})
    ids = {"trnid": [[6, 2]], "valid": [[1, 3]], "tstid": [[4, 5]]}
    savemat(folder / "setid.mat", {key: np.array(value, dtype=np.uint16) for key, value in ids.items()})
    write_splits("flowers", partial(listed, _SmallFlowers), source=tmp_path / "source", root=tmp_path)
    for split, labels in (("train", [101, 0]), ("val", [101, 1]), ("test", [2, 76])):
        _same(tmp_path, "flowers", split, _SmallFlowers(tmp_path / "source", split=split))
        assert [label for _, label in read_back(tmp_path, "flowers", split)] == labels
    assert _classes(tmp_path, "flowers") == class_names("flowers")


class _SmallCIFAR10(CIFAR10):
    """The data set without the check sums of its batches."""

    train_list = [["data_batch_1", None], ["data_batch_2", None]]  # noqa: RUF012 - torchvision's own form
    test_list = [["test_batch", None]]  # noqa: RUF012
    meta = CIFAR10.meta | {"md5": None}


class _SmallCIFAR100(CIFAR100):
    train_list = [["train", None]]  # noqa: RUF012
    test_list = [["test", None]]  # noqa: RUF012
    meta = CIFAR100.meta | {"md5": None}


@pytest.mark.parametrize(
    ("name", "dataset", "key", "meta"),
    [
        ("cifar10", _SmallCIFAR10, "labels", {"label_names": ["airplane", "automobile"]}),
        ("cifar100", _SmallCIFAR100, "fine_labels", {"fine_label_names": ["apple", "aquarium_fish"]}),
    ],
)
def test_cifar_batches(tmp_path, name, dataset, key, meta):
    folder = tmp_path / "source" / dataset.base_folder
    folder.mkdir(parents=True)
    images = iter(pictures(9))
    expected = {"train": [], "test": []}
    for split, batches in (("train", dataset.train_list), ("test", dataset.test_list)):
        for batch, _ in batches:
            arrays = [
                np.asarray(Image.open(io.BytesIO(next(images))).convert("RGB").resize((32, 32))) for _ in range(3)
            ]
            expected[split] += [(Image.fromarray(array), label) for array, label in zip(arrays, (1, 0, 1), strict=True)]
            data = np.stack([array.transpose(2, 0, 1).reshape(-1) for array in arrays])  # planes of red, green, blue
            (folder / batch).write_bytes(pickle.dumps({"data": data, key: [1, 0, 1], "coarse_labels": [5, 5, 5]}))
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps(meta))
    write_splits(name, partial(cifar, dataset), source=tmp_path / "source", root=tmp_path)
    for split in ("train", "test"):
        _same(tmp_path, name, split, expected[split])
    assert _classes(tmp_path, name) == next(iter(meta.values()))


# the folders of 101_ObjectCategories
CALTECH = """
accordion airplanes anchor ant BACKGROUND_Google barrel bass beaver binocular bonsai brain brontosaurus buddha
butterfly camera cannon car_side ceiling_fan cellphone chair chandelier cougar_body cougar_face crab crayfish
crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar elephant emu euphonium
ewer Faces Faces_easy ferry flamingo flamingo_head garfield gerenuk gramophone grand_piano hawksbill headphone
hedgehog helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop Leopards llama lobster lotus
mandolin mayfly menorah metronome minaret Motorbikes nautilus octopus okapi pagoda panda pigeon pizza platypus
pyramid revolver rhino rooster saxophone schooner scissors scorpion sea_horse snoopy soccer_ball stapler
starfish stegosaurus stop_sign strawberry sunflower tick trilobite umbrella watch water_lilly wheelchair
wild_cat windsor_chair wrench yin_yang
""".split()  # noqa: SIM905 - a list of 102 lines


def _numbered(path: Path, index: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (1, 1), (index >> 16, index >> 8 & 255, index & 255)).save(path, "PNG")
    return path


def test_caltech101_draws_30_of_each_class_and_tests_on_the_others(tmp_path):
    folder = tmp_path / "source" / "caltech101" / "101_ObjectCategories"
    count = 0
    labels = {}
    for label, name in enumerate(CALTECH):
        for image in range(1, 32 + label % 2):
            _numbered(folder / name / f"image_{image:04d}.jpg", count)
            labels[count] = label
            count += 1
    (folder / "BACKGROUND_Google" / "tmp").write_text("in the archive as well")
    lines = convert("caltech101", source=tmp_path / "source", root=tmp_path)
    train, test = (read_back(tmp_path, "caltech101", split) for split in ("train", "test"))
    assert len(train) == 3060
    assert not any("caltech101/train has" in line for line in lines)
    assert sum("drawn with seed 1234" in line for line in lines) == 1
    drawn, others = ([number(image) for image, _ in split] for split in (train, test))
    assert sorted(drawn + others) == list(range(count))
    assert all(labels[number(image)] == label for image, label in train + test)
    assert [label for _, label in train] == [label for label in range(102) for _ in range(30)]
    first = [index for index in drawn if labels[index] == 2]  # anchor's 31 images
    begin = min(index for index, label in labels.items() if label == 2)
    assert first != list(range(begin, begin + 30))  # drawn, not the first ones
    names = dict(zip(CALTECH, _classes(tmp_path, "caltech101"), strict=True))
    sample = {"airplanes": "airplane", "BACKGROUND_Google": "background", "Faces_easy": "centered face"}
    sample |= {
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
        "yin_yang": "yin and yang symbol",
        "car_side": "side of a car",
    }
    assert {folder: names[folder] for folder in sample} == sample
    convert("caltech101", source=tmp_path / "source", root=tmp_path / "again")
    assert tree(tmp_path / "again" / "caltech101") == tree(tmp_path / "caltech101")


def test_caltech101_that_is_not_whole(tmp_path):
    folder = tmp_path / "source" / "caltech101" / "101_ObjectCategories"
    for name in CALTECH[:-1]:
        _numbered(folder / name / "image_0001.jpg", 0)
    with pytest.raises(ValueError, match="101 class folders, Caltech-101 102"):
        convert("caltech101", source=tmp_path / "source", root=tmp_path)
    _numbered(folder / "yin_yang" / "image_0001.jpg", 0)
    with pytest.raises(ValueError, match="class 0 has 1 images, 31 or more"):
        convert("caltech101", source=tmp_path / "source", root=tmp_path)
    assert not (tmp_path / "caltech101").exists()


def _sun397(folder: Path, per_class: int) -> dict[str, tuple[int, int]]:
    """Images by their path in the lists, each with its number and label."""
    images = {}
    for label, name in enumerate(("/a/abbey", "/c/church/outdoor", "/c/control_room")):
        for _ in range(per_class):
            path = f"{name}/sun_{len(images):04d}.jpg"
            _numbered(folder / "SUN397" / path[1:], len(images))
            images[path] = (len(images), label)
    (folder / "SUN397" / "ClassName.txt").write_text("/a/abbey\n/c/church/outdoor\n/c/control_room\n")
    return images


def test_sun397_official_partition(tmp_path):
    images = _sun397(tmp_path / "source", 4)
    paths = list(images)
    lists = {"train": ("Training_01.txt", paths[3::-2]), "test": ("Testing_01.txt", paths[4::3])}
    (tmp_path / "source" / "Partitions").mkdir()
    for file, chosen in lists.values():
        (tmp_path / "source" / "Partitions" / file).write_bytes("\r\n".join(chosen).encode())
    convert("sun397", source=tmp_path / "source", root=tmp_path)
    for split, (_, chosen) in lists.items():
        read = [(number(image), label) for image, label in read_back(tmp_path, "sun397", split)]
        assert read == [images[path] for path in chosen]
    assert _classes(tmp_path, "sun397") == ["abbey", "church outdoor", "control room"]
    (tmp_path / "source" / "SUN397" / paths[4][1:]).unlink()
    with pytest.raises(FileNotFoundError, match=r"sun_0004\.jpg is missing, one of 1 that .*Testing_01"):
        convert("sun397", source=tmp_path / "source", root=tmp_path / "again")
    (tmp_path / "source" / "Partitions" / "Testing_01.txt").unlink()  # half of a partition is not mixed with a draw
    with pytest.raises(FileNotFoundError, match=r"Testing_01\.txt"):
        convert("sun397", source=tmp_path / "source", root=tmp_path / "more")


def test_sun397_without_lists_draws_50_and_50(tmp_path):
    images = _sun397(tmp_path / "source", 102)
    lines = convert("sun397", source=tmp_path / "source", root=tmp_path)
    assert sum("for the official partition unpack https://" in line for line in lines) == 1
    drawn = {}
    for split in ("train", "test"):
        read = [(number(image), label) for image, label in read_back(tmp_path, "sun397", split)]
        assert set(read) <= set(images.values())
        assert [label for _, label in read] == [label for label in range(3) for _ in range(50)]
        drawn[split] = {index for index, _ in read}
    assert len(drawn["train"] | drawn["test"]) == 300


@pytest.mark.parametrize("name", SETS)
def test_missing_source_says_what_to_do_and_makes_nothing(tmp_path, name):
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(FileNotFoundError, match=f"source does not hold {name} as torchvision unpacks it.*--download"):
        convert(name, source=source, root=tmp_path / "root")
    assert [path.name for path in tmp_path.rglob("*")] == ["source"]


def test_unknown_name_lists_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"'imagenet1k' is none of .*caltech101, dtd, .*food101"):
        convert("imagenet1k", source=tmp_path, root=tmp_path)


def test_missing_image_is_named(tmp_path):
    source = _dtd(tmp_path / "source")
    (source / "dtd" / "dtd" / "images" / "woven" / "woven_0003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no image .*woven_0003\.jpg"):
        convert("dtd", source=source, root=tmp_path)
    assert not (tmp_path / "dtd").exists()


def test_every_set_has_the_splits_of_the_suite(tmp_path):
    for name in SETS:
        splits = tuple(find_data_set(name).splits)
        opened = []

        def open_split(source, split, download, opened=opened):
            opened.append(split)
            return Labelled(["one"], [(dots(1)[0], 0)])

        write_splits(name, open_split, source=tmp_path, root=tmp_path / "root")
        assert tuple(opened) == splits
        assert {path.name for path in (tmp_path / "root" / name).iterdir() if path.is_dir()} == set(splits)
