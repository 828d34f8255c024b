"""Read how a model and its weights are named: one grammar for every command.

========================================  ==============================================================================
``NAME``                                  one of open_clip's models, without weights: for ``bench``
``NAME,TAG``                              with the weights of one of its pretrained tags
``NAME,FILE``                             with a checkpoint file
``RUN``, ``NAME,RUN``                     with each checkpoint of a run of ``open_clip_train``, by its folder
``local-dir:DIR``, ``DIR``                a model directory, such as ``convert`` writes
``hf-hub:OWNER/REPO``                     a model directory on the hub
``FILE``                                  a checkpoint file of which the keys tell the model
``hf://OWNER/REPO[@REVISION][/FILE]``     a checkpoint file or model directory on the hub, of which the keys tell
========================================  ==============================================================================

``evaluate``, ``attend``, ``bench`` and ``warm-start`` have open_clip build the model, so it must be named: they take
all but the last two. ``convert`` and ``lambdas`` read the weights themselves and take all that has weights. A run is
several models, and so is for ``evaluate``, and by its folder for ``lambdas``.

A name comes before a path of the same name only for ``bench``: the others need weights, which a bare name has not. The
path of a directory may have commas in it. Models are checked here, before anything is loaded; only the hub's
repositories are not looked for.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import hf_hub_download
from open_clip.constants import HF_CONFIG_NAME
from open_clip.factory import HF_HUB_PREFIX, LOCAL_DIR_PREFIX, parse_model_name
from transformers.utils import CONFIG_NAME

from diffclip_openclip.weights.architecture import Architecture, architecture_of
from diffclip_openclip.weights.directory import check_places, read_config
from diffclip_openclip.weights.foreign import timm_place
from diffclip_openclip.weights.hub import SCHEME, read_hub_config
from diffclip_openclip.weights.runs import TrainingRun


@dataclass(frozen=True)
class ModelSpec:
    """Describe a model and its weights."""

    name: str  # open_clip's: NAME, local-dir:DIR or hf-hub:OWNER/REPO; empty where the keys tell the model
    pretrained: str = ""  # a tag, a checkpoint file or an hf:// address; empty where the name says all

    def __str__(self) -> str:
        """Return it as it is written."""
        return ",".join(filter(None, (self.name, self.pretrained)))

    @property
    def checkpoint(self) -> Path | None:
        """Return the checkpoint file, if that is what holds the weights."""
        return Path(self.pretrained) if self.pretrained and Path(self.pretrained).is_file() else None

    @property
    def directory(self) -> Path | None:
        """Return the model directory, if that is what holds the weights."""
        schema, place = parse_model_name(self.name)
        return Path(place) if schema == "local-dir" else None

    @property
    def has_weights(self) -> bool:
        """Return whether weights are named, too."""
        return bool(self.pretrained) or parse_model_name(self.name)[0] is not None

    @property
    def label(self) -> str:
        """Return the name in tables: of the model or directory, and of the checkpoint's run and file if it has one."""
        if self.directory is not None:
            return self.directory.resolve().name
        if self.checkpoint is None:
            return " ".join(filter(None, (self.name.rpartition("/")[2], self.pretrained)))
        run = TrainingRun.of_checkpoint(self.checkpoint).name
        return " ".join(filter(None, (self.name, run if run != self.name else "", self.checkpoint.stem)))


def parse_spec(text: str, *, needs_weights: bool = True) -> ModelSpec:
    """Read a model that open_clip is to build: any form of the grammar but ``FILE`` and ``hf://``.

    Args:
        needs_weights: refuse a bare ``NAME``, and take it for a directory where there is one.

    Raises:
        ValueError: a name or tag that open_clip does not know, no weights, or weights that the run that they are from
            says to be another model's.
        FileNotFoundError: a directory or checkpoint file that is not there.
    """
    name, comma, pretrained = text.partition(",")
    is_name = name.replace("/", "-") in open_clip.list_models()
    if text and Path(text, HF_CONFIG_NAME).is_file() and (needs_weights or not is_name):
        text = f"{LOCAL_DIR_PREFIX}{text}"
    if text.startswith(LOCAL_DIR_PREFIX):
        found = ModelSpec(text)
        _check_directory(found)
        return found
    if parse_model_name(name)[0] is not None:
        if pretrained:
            raise ValueError(_own_weights(name, pretrained))
        return ModelSpec(name)
    found = ModelSpec(_known_name(name), pretrained)
    if needs_weights or comma:
        _check_pretrained(found)
    _check_run(found)
    return found


def parse_run(text: str) -> dict[int, ModelSpec]:
    """Read a run, ``RUN`` or ``NAME,RUN``, and return its models by epoch; none where the text names no run.

    Raises:
        ValueError: nothing tells the model, or it is another one than the run's.
        FileNotFoundError: the run has no checkpoint.
    """
    name, _, place = text.rpartition(",")
    run = TrainingRun.at(Path(place)) if place else None
    if run is None or not run.is_there:
        return {}
    if not (name or run.model):
        raise ValueError(f"{text} does not say its model, as it has no params.txt; name it, too: NAME,{text}")
    return {epoch: parse_spec(f"{name or run.model},{file}") for epoch, file in run.checkpoints().items()}


def parse_source(text: str) -> ModelSpec:
    """Read weights that are to be converted: any form of the grammar that has weights.

    A path is not looked for, since whoever reads it says best what is wrong with it.

    Raises:
        ValueError, FileNotFoundError: as :func:`parse_spec`.
    """
    if text.startswith(LOCAL_DIR_PREFIX):
        return ModelSpec("", text.removeprefix(LOCAL_DIR_PREFIX))
    if text.startswith(HF_HUB_PREFIX):
        return ModelSpec("", f"{SCHEME}{text.removeprefix(HF_HUB_PREFIX)}")
    is_name = text.partition(",")[0].replace("/", "-") in open_clip.list_models()
    return parse_spec(text) if is_name and not Path(text).exists() else ModelSpec("", text)


def config_of(name: str) -> dict[str, Any] | None:
    """Return open_clip's config of any of its names, checked where it is not its own; None for an unknown name.

    What is on the hub is read from its cache, or fetched.

    Raises:
        FileNotFoundError, ConnectionError: a directory or repository that is not there.
        ValueError: a config that is refused; see :mod:`~diffclip_openclip.weights.foreign`.
    """
    schema, place = parse_model_name(name)
    if schema is None:
        model_cfg: dict[str, Any] | None = open_clip.get_model_config(name)
        return model_cfg
    return (read_config(Path(place)) if schema == "local-dir" else read_hub_config(place))[0]


def architecture_of_spec(spec: ModelSpec) -> str | None:
    """Return open_clip's name of the architecture; None where no model of this package is like that directory's.

    What is on the hub is read from its cache, or fetched.
    """
    schema, _ = parse_model_name(spec.name)
    if schema is None:
        return spec.name
    architecture = _architecture(spec.name)
    return architecture.name if architecture else None


def _check_directory(spec: ModelSpec) -> None:
    directory = spec.directory
    assert directory is not None
    if not directory.is_dir():
        parts = str(directory).split(",")
        for count in range(1, len(parts)):
            if Path(head := ",".join(parts[:count])).is_dir():
                raise ValueError(_own_weights(f"{LOCAL_DIR_PREFIX}{head}", ",".join(parts[count:])))
        raise FileNotFoundError(f"there is no directory {directory}, which {spec.name} names")
    check_places(directory)


def _own_weights(name: str, pretrained: str) -> str:
    message = f"{name} brings its own weights; leave out {pretrained!r}"
    if not Path(pretrained).is_file():
        return message
    local = name.startswith(LOCAL_DIR_PREFIX)
    architecture = (architecture_of_spec(ModelSpec(name)) if local else None) or "NAME"
    return (
        f"{message}. To take that checkpoint instead, name its architecture, {architecture},{pretrained}; or make a "
        f"directory of it: diffclip convert {pretrained} DIR"
    )


def _known_name(typed: str) -> str:
    known = open_clip.list_models()
    if (name := typed.replace("/", "-")) in known:
        return name
    before_colon, _, behind_colon = typed.partition(":")
    if before_colon.replace("/", "-") in known:
        hint = f"weights are named behind a comma: {before_colon},{behind_colon or 'WEIGHTS'}"
    elif TrainingRun.at(Path(typed)).is_there:
        hint = f"it is a run's folder, so give one of its checkpoints: NAME,{typed}/.../epoch_1.pt"
    elif Path(typed).is_dir():
        hint = f"it is a directory, so give {LOCAL_DIR_PREFIX}{typed}"
    elif Path(typed).is_file():
        hint = f"it is a file, so give the model that it is of, too: NAME,{typed}"
    elif typed.startswith(SCHEME):
        hint = (
            f"give {HF_HUB_PREFIX}{typed.removeprefix(SCHEME)} if it is in open_clip's form, or make a directory of "
            f"it: diffclip convert {typed} DIR"
        )
    else:
        near = difflib.get_close_matches(name, known, n=3)
        hint = (f"near: {', '.join(near)}; " if near else "") + "open_clip.list_models() lists all"
    raise ValueError(f"open_clip knows no model {typed!r}; {hint}")


def _check_pretrained(spec: ModelSpec) -> None:
    tags = open_clip.list_pretrained_tags_by_model(spec.name)
    known = f"its tags: {', '.join(tags)}" if tags else "it has no pretrained tags"
    if not spec.pretrained:
        raise ValueError(f"{spec.name} names no weights; give {spec.name},CHECKPOINT or a tag of open_clip ({known})")
    if spec.pretrained not in tags and spec.checkpoint is None:
        raise FileNotFoundError(f"{spec.pretrained!r} is neither a file nor a pretrained tag of {spec.name} ({known})")


def _check_run(spec: ModelSpec) -> None:
    """Refuse another name than the run's: lambda_init is no weight, so that the weights would load all the same."""
    trained = TrainingRun.of_checkpoint(spec.checkpoint).model if spec.checkpoint else None
    if trained is None or trained.replace("/", "-") == spec.name:
        return
    run_architecture = None if trained.startswith(HF_HUB_PREFIX) else _architecture(trained)
    if run_architecture is None or run_architecture != _architecture(spec.name):
        raise ValueError(
            f"the run's params.txt says that {spec.pretrained} is of {trained}, not of {spec.name}; name that model, "
            f"or make a directory of the checkpoint: diffclip convert {spec.pretrained} DIR"
        )


def _architecture(name: str) -> Architecture | None:
    """Return the architecture of any of open_clip's names.

    It is None where there is none of that name, or where its text tower is neither ours nor open_clip's.
    """
    schema, place = parse_model_name(name)
    if schema == "local-dir" and not Path(place, HF_CONFIG_NAME).is_file():
        return None
    try:
        model_cfg = config_of(name)
        if model_cfg is None:
            return None
        return architecture_of(model_cfg, towers_folder(name, model_cfg))
    except (ValueError, OSError):
        return None


def towers_folder(name: str, model_cfg: dict[str, Any]) -> Path | None:
    """Return the folder with the config of a model's own towers, fetched if it is on the hub; None if not known.

    Args:
        name: any of open_clip's.
        model_cfg: open_clip's config of it.
    """
    schema, place = parse_model_name(name)
    on_hub = model_cfg["text_cfg"].get("hf_model_name") or timm_place(model_cfg)
    if schema == "hf-hub" and on_hub:
        return Path(hf_hub_download(on_hub, CONFIG_NAME)).parent
    return Path(place) if schema == "local-dir" and Path(place, CONFIG_NAME).is_file() else None
