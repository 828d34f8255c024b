"""Read images in a folder for each class, as the ImageNet sets come: ``diffclip data folder``."""

from collections.abc import Iterable
from pathlib import Path

from diffclip_openclip.data.annotations import some
from diffclip_openclip.data.catalog import imagenet_folders, templates
from diffclip_openclip.data.writer import CLASS_FOLDERS, Split, classification_metadata, classified
from diffclip_openclip.files import read_text


def convert(
    name: str,
    *,
    source: Path,
    root: Path,
    split: str = "test",
    classnames: Path | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write SOURCE/CLASS/IMAGE to ``root``/``name``/``split``, class by class.

    imagenet1k, imagenet_sketch, imagenet-a and imagenet-r have labels in the order of their WordNet ids; imagenetv2 has
    the numbers of its folders. Their class names are clip_benchmark's. Other data sets have labels in the order of
    their folders' names, which name the classes; a split that is written after another may lack some of its classes.
    Files beside the class folders, and names that begin with a dot, are passed over.

    Args:
        source: the folder of the class folders.
        classnames: a file of other class names, a line for each label.

    Raises:
        ValueError: class folders that are missing, unknown or empty, or ``classnames`` of another number of lines.
        FileNotFoundError: there is no ``source`` or ``classnames``.
    """
    target = Split(root, name, split, overwrite)
    if finished := target.finished():
        return finished
    classes = _classes(name, source)
    names = list(classes.values()) if classnames is None else _read_names(classnames, len(classes))
    labels = {folder: label for label, folder in enumerate(classes)}
    if classnames is None and (known := target.known_classes()) and set(names) < set(known):
        names, labels = known, {folder: known.index(folder) for folder in classes}
    images = [(path, label) for folder, label in labels.items() for path in _images(source / folder)]
    samples = (classified(path, label) for path, label in images)
    metadata = classification_metadata(names, templates(name))
    if classnames is not None:
        metadata[CLASS_FOLDERS] = "".join(f"{folder}\n" for folder in classes)
    return target.write(samples, len(images), metadata)


def _classes(name: str, source: Path) -> dict[str, str]:
    """Return the class folders with their class names, by label."""
    if not source.is_dir():
        raise FileNotFoundError(f"there is no folder {source}")
    found = {path.name for path in _visible(source) if path.is_dir()}
    if not found:
        raise ValueError(f"{source} has no folders; it must hold one for each class")
    known = imagenet_folders(name)
    if known is None:
        return {folder: folder for folder in sorted(found)}
    missing, unknown = sorted(known.keys() - found), sorted(found - known.keys())
    if missing or unknown:
        raise ValueError(
            f"{source} must hold the {len(known)} class folders of {name}; {len(missing)} are missing"
            f"{some(missing)} and {len(unknown)} are none of them{some(unknown)}"
        )
    return known


def _images(folder: Path) -> list[Path]:
    """List the images of a class folder, in the order of their names."""
    files = sorted(_visible(folder))
    if not files:
        raise ValueError(f"{folder} is empty; a class must have an image, or its folder be removed")
    nested = [path for path in files if path.is_dir()]
    if nested:
        raise ValueError(f"{nested[0]} is a folder in a class folder; images must lie in SOURCE/CLASS/")
    return files


def _visible(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _read_names(path: Path, count: int) -> list[str]:
    names = [line.strip() for line in read_text(path).removesuffix("\n").split("\n")]
    if len(names) != count or not all(names):
        raise ValueError(f"{path} must have {count} lines, a name for each class folder in order; it has {len(names)}")
    return names
