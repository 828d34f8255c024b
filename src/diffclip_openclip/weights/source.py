"""Read SRC of ``diffclip convert``: whatever holds a CLIP's weights, as a state dict in open_clip's layout."""

import tempfile
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME

from diffclip_openclip.attention.v1 import DYNAMIC, LAMBDA_INIT
from diffclip_openclip.files import sha256
from diffclip_openclip.models import HALF_HEADS, KINDS, TOWERS, TRUNK, TWIN
from diffclip_openclip.registration import model_names
from diffclip_openclip.weights import hub
from diffclip_openclip.weights.architecture import (
    Architecture,
    architecture_of,
    packaged_architecture,
    recognize,
    recognize_image_tower,
    text_config_for,
)
from diffclip_openclip.weights.checkpoint import StateDict, read_checkpoint
from diffclip_openclip.weights.directory import PREPROCESS, initial_state, preprocess_cfg_of, read_config
from diffclip_openclip.weights.layouts import Layout, detect, from_reference
from diffclip_openclip.weights.runs import TrainingRun
from diffclip_openclip.weights.spec import ModelSpec, parse_source

_SHARDED = ".metadata"  # the file that a folder of torch.distributed.checkpoint always has


@dataclass(frozen=True)
class Source:
    """Hold a CLIP that is to be converted."""

    label: str  # where it is from; on the hub with its commit
    sha256: str | None  # the weight file's, if there is one
    state_dict: StateDict  # in open_clip's layout
    architecture: Architecture
    preprocess_cfg: dict[str, Any] | None  # open_clip's; None where the source does not say
    layout: Layout | None = None  # of the weight file; None where open_clip loaded the weights
    folder: Path | None = None  # the model directory that it is from or was trained from, if there is one
    notes: list[str] = field(default_factory=list)  # facts that the user should know


def load_source(src: str, variant: str | None = None) -> Source:
    """Read SRC.

    Args:
        src: any form of the grammar in :mod:`~diffclip_openclip.weights.spec` that has weights.
        variant: see :func:`~diffclip_openclip.weights.architecture.recognize`; for sources that do not say themselves.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not the weights of a model that this package knows; the message says what was found.
    """
    spec = parse_source(src)
    if spec.name:
        source = _from_named(spec, variant)
    else:
        on_hub = spec.pretrained.startswith(hub.SCHEME)
        path, label = hub.fetch(spec.pretrained) if on_hub else (Path(spec.pretrained), src)
        if (path / _SHARDED).is_file():
            raise ValueError(_gather(path))
        if path.is_dir() and variant is not None:
            raise ValueError(f"{src} says in its {HF_CONFIG_NAME} which variant it is; leave out --variant {variant}")
        source = replace(_from_directory(path) if path.is_dir() else _from_file(path, variant), label=label)
    if variant is not None and source.architecture.variant != variant:
        raise ValueError(f"--variant {variant} does not apply: {src} holds {source.architecture.tower}; leave it out")
    return source


def _from_directory(folder: Path) -> Source:
    model_cfg, preprocess_cfg = read_config(folder)
    if "timm_model_name" not in model_cfg["vision_cfg"] and "hf_model_name" not in model_cfg["text_cfg"]:
        raise ValueError(_only_warm_start(folder, f"local-dir:{folder}"))
    weights = folder / HF_SAFE_WEIGHTS_NAME
    state_dict = read_checkpoint(weights)
    architecture = architecture_of(model_cfg, folder)
    layout = detect(state_dict)
    return Source(str(folder), sha256(weights), state_dict, architecture, preprocess_cfg, layout, folder)


def _from_named(spec: ModelSpec, variant: str | None) -> Source:
    """Read weights of which the model was named, which is not to be told by their keys then."""
    model_cfg = open_clip.get_model_config(spec.name)
    if "timm_model_name" not in model_cfg["vision_cfg"]:
        raise ValueError(_only_warm_start(spec.name, str(spec)))
    if variant is not None:
        raise ValueError(f"{spec.name} says which variant it is; leave out --variant {variant}")
    if spec.checkpoint is not None:
        return replace(_from_file(spec.checkpoint, None, architecture_of(model_cfg)), label=str(spec))
    model = open_clip.create_model(spec.name, spec.pretrained)
    return Source(str(spec), None, dict(model.state_dict()), architecture_of(model_cfg), preprocess_cfg_of(model))


def _gather(folder: Path) -> str:
    return (
        f"{folder} is a sharded checkpoint (torch.distributed.checkpoint), as open_clip's trainer writes them with "
        f"--fsdp-checkpoint sharded. Its {_SHARDED} is a pickle that torch runs, so nothing of it was read. If it is "
        f"yours, gather it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pt, then "
        "diffclip convert FILE.pt OUT"
    )


def _only_warm_start(what: object, src: str) -> str:
    return (
        f"{what} is a CLIP with OpenAI's image tower and plain attention; `diffclip warm-start {src} OUT` makes it a "
        "differential one with the same outputs"
    )


def _from_file(path: Path, variant: str | None, named: Architecture | None = None) -> Source:
    """Read a checkpoint file, by its keys; ``named`` is the model that it was said to be of."""
    state_dict = read_checkpoint(path)
    digest, layout = sha256(path), detect(state_dict)
    if layout is Layout.AUTHORS:
        state_dict = from_reference(state_dict, copy=False)
        architecture = named or recognize(state_dict, variant)
        if architecture.tower == "vit_small_patch16_224":  # facebookresearch/SLIP@d1de3e7:models.py, CLIP_VITS16
            raise ValueError(
                f"{path} has a plain ViT-S/16: SLIP's has 12 heads and timm's 6, which weights do not tell"
            )
        return Source(str(path), digest, state_dict, architecture, PREPROCESS["slip"], layout)
    run = TrainingRun.of_checkpoint(path)
    if layout is Layout.OURS or (layout is Layout.OPENAI and _has_our_text_tower(run)):
        architecture = _trained(path, run, state_dict, variant, named)
        if "logit_bias" in state_dict:  # trained with --siglip; the config's value is only where training starts
            architecture.model_cfg["init_logit_bias"] = float(state_dict["logit_bias"])
        notes = [] if named or variant or _architecture_of_run(run) else _guesses(architecture)
        return Source(str(path), digest, state_dict, architecture, run.preprocess_cfg, layout, run.directory, notes)
    if layout is Layout.TIMM and named is None:
        return _from_image_tower(str(path), digest, state_dict, variant)
    if layout is Layout.OPENAI:
        raise ValueError(_only_warm_start(path, f"NAME,{path}"))
    raise ValueError(
        f"{path} is no CLIP in the authors', SLIP's, open_clip's or timm's layout; it holds {len(state_dict)} tensors, "
        f"among them {', '.join(sorted(state_dict)[:3])}"
    )


def _guesses(architecture: Architecture) -> list[str]:
    """Return what was taken for granted of a model that is recognized by its weights alone."""
    tower = TOWERS.get(architecture.tower)
    if tower is None or tower.kind != "plain" or tower.size not in KINDS["half_heads"].sizes:
        return []
    return [
        f"weights do not tell the number of heads: taken for the usual one; --variant {HALF_HEADS} takes half of it"
    ]


def _from_image_tower(label: str, digest: str, state_dict: StateDict, variant: str | None) -> Source:
    """Make a timm ViT with ``DiffAttention`` the image tower of a CLIP whose other weights are new."""
    if "blocks.0.attn.lambda_q1" not in state_dict:
        raise ValueError(
            f"{label} is a timm ViT without lambda_q1 in its attention; only image towers with DiffAttention "
            "(dual_lambda=False) can be converted"
        )
    # timm's DiffAttention has DiffCLIP*'s schedule and no other
    image = recognize_image_tower(state_dict, variant or "dynamic", "")
    lambda_init = LAMBDA_INIT if variant == "static" else DYNAMIC
    text_cfg, text_config, embed_dim = text_config_for(image["timm_model_name"], lambda_init)
    architecture = Architecture({"embed_dim": embed_dim, "vision_cfg": image, "text_cfg": text_cfg}, text_config)
    head = [key for key in state_dict if key.startswith(("head.", "fc_norm."))]
    trunk = {f"{TRUNK}{key}": tensor for key, tensor in state_dict.items() if key not in head}
    with tempfile.TemporaryDirectory() as folder:
        initial = initial_state(architecture, Path(folder))
    if missing := [key for key in initial if key.startswith(TRUNK) and key not in trunk]:
        raise ValueError(f"{label} lacks {len(missing)} tensors of {image['timm_model_name']}: {', '.join(missing)}")
    notes = ["only the image tower is the source's: projections, text tower and logit_scale are untrained"]
    if head:
        notes.append(f"left out: {', '.join(head)}")
    return Source(label, digest, initial | trunk, architecture, None, Layout.TIMM, notes=notes)


def _trained(
    path: Path, run: TrainingRun, state_dict: StateDict, variant: str | None, named: Architecture | None
) -> Architecture:
    """Return the architecture of open_clip's training checkpoint: as named, or as the run's params.txt tells."""
    architecture = named or _architecture_of_run(run)
    if architecture is None:
        if run.model and variant is None and any(key.endswith(".attn.lambda_q1") for key in state_dict):
            raise ValueError(
                f"the run's params.txt says that {path} is of {run.model}, which cannot be found here, and weights do "
                "not tell lambda_init; add --variant static (0.8 in every layer) or --variant dynamic (DiffCLIP*)"
            )
        return recognize(state_dict, variant)
    if variant is not None:
        raise ValueError(f"the run's params.txt says that {path} is {run.model}; leave out --variant {variant}")
    if run.has_other_sizes:
        warm = architecture.name is None or KINDS[architecture.kind].version == 2
        return _resized(architecture, run) if warm else recognize(state_dict, architecture.variant)
    return architecture


def _resized(architecture: Architecture, run: TrainingRun) -> Architecture:
    """Return an architecture with the sizes that the run was told to take."""
    architecture = deepcopy(architecture)
    if architecture.text_config is None and run.params.get("force_context_length"):
        architecture.model_cfg["text_cfg"]["context_length"] = run.params["force_context_length"]
    size = run.params.get("force_image_size")
    size = size[0] if isinstance(size, list | tuple) and len(size) == 1 else size
    if not size:
        return architecture
    vision_cfg = architecture.model_cfg["vision_cfg"]
    arguments = architecture.tower_arguments
    if KINDS[architecture.kind].version == 2:  # a tower whose name is of one size
        arguments = {"base": vision_cfg["timm_model_name"]}
        vision_cfg["timm_model_name"] = TWIN
    vision_cfg["image_size"] = size
    return replace(architecture, tower_arguments=arguments and arguments | {"img_size": size})


def _has_our_text_tower(run: TrainingRun) -> bool:
    """Return whether a run's model has our text tower, also beside open_clip's own image tower."""
    architecture = _architecture_of_run(run)
    return architecture is not None and architecture.text_config is not None


def _architecture_of_run(run: TrainingRun) -> Architecture | None:
    if run.directory is not None:
        return architecture_of(read_config(run.directory)[0], run.directory)
    name = str(run.model).replace("/", "-")  # as open_clip reads names
    return packaged_architecture(name) if name in model_names() else None
