"""SRC of ``diffclip convert``: whatever holds a CLIP's weights, as a state dict in open_clip's layout."""

import ast
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from open_clip.constants import (
    HF_CONFIG_NAME,
    HF_SAFE_WEIGHTS_NAME,
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPENAI_DATASET_MEAN,
    OPENAI_DATASET_STD,
)
from open_clip.factory import parse_model_name
from open_clip.pretrained import get_pretrained_cfg

from diffclip_openclip.attention.v1 import DYNAMIC, LAMBDA_INIT
from diffclip_openclip.files import sha256
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
from diffclip_openclip.weights.directory import initial_state, read_config
from diffclip_openclip.weights.reference import from_reference

# the names of --preprocess
PREPROCESS: dict[str, dict[str, Any]] = {
    # facebookresearch/SLIP@c6faf5d:main.py, the transform of DiffCLIP and its baseline
    "slip": {
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "interpolation": "bilinear",
        "resize_mode": "shortest",
    },
    # what open_clip's trainer uses where nothing else is said
    "openai": {
        "mean": list(OPENAI_DATASET_MEAN),
        "std": list(OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


@dataclass(frozen=True)
class Source:
    """A CLIP to be converted.

    ``state_dict`` is in open_clip's layout; ``preprocess_cfg`` is None where the source does not say; ``sha256`` is the
    weight file's, if there is one; ``notes`` are facts that the user should know.
    """

    label: str
    sha256: str | None
    state_dict: StateDict
    architecture: Architecture
    preprocess_cfg: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)


def load_source(src: str, variant: str | None = None) -> Source:
    """Read SRC: a file, a directory in open_clip's form, or ``hf://owner/repo[@revision][/file]``.

    Args:
        variant: see :func:`~diffclip_openclip.weights.architecture.recognize`; for sources that do not say themselves.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not the weights of a model that this package knows; the message says what was found.
    """
    path, label = locate(src)
    if not path.is_dir():
        source = _from_file(path, variant)
    elif variant is None:
        source = _from_directory(path)
    else:
        raise ValueError(f"{src} says in its {HF_CONFIG_NAME} which variant it is; leave out --variant {variant}")
    if variant is not None and source.architecture.variant != variant:
        raise ValueError(f"--variant {variant} does not apply: {src} holds {source.architecture.tower}; leave it out")
    return replace(source, label=label)


def locate(src: str) -> tuple[Path, str]:
    """SRC as a path, which is in the hub's cache if SRC is on the hub, and in words; raises as ``hub.fetch``."""
    return hub.fetch(src) if src.startswith(hub.SCHEME) else (Path(src), src)


def _from_directory(folder: Path) -> Source:
    model_cfg, preprocess_cfg = read_config(folder)
    if "timm_model_name" not in model_cfg["vision_cfg"]:
        raise ValueError(
            f"{folder} holds a CLIP with open_clip's own image tower and plain attention; "
            f"`diffclip warm-start local-dir:{folder} OUT` makes it a differential one with the same outputs"
        )
    weights = folder / HF_SAFE_WEIGHTS_NAME
    return Source(
        str(folder), sha256(weights), read_checkpoint(weights), architecture_of(model_cfg, folder), preprocess_cfg
    )


def _from_file(path: Path, variant: str | None) -> Source:
    state_dict = read_checkpoint(path)
    digest = sha256(path)
    if _has(state_dict, "visual.blocks."):  # the authors' and SLIP's
        state_dict = from_reference(state_dict)
        architecture = recognize(state_dict, variant)
        if architecture.tower == "vit_small_patch16_224":  # facebookresearch/SLIP@d1de3e7:models.py, CLIP_VITS16
            raise ValueError(
                f"{path} has a plain ViT-S/16: SLIP's has 12 heads and timm's 6, which weights do not tell"
            )
        return Source(str(path), digest, state_dict, architecture, PREPROCESS["slip"])
    if _has(state_dict, "visual.trunk.blocks."):  # open_clip's, as our models have it
        architecture = _trained(path, state_dict, variant)
        if "logit_bias" in state_dict:  # trained with --siglip; the config's value is only where training starts
            architecture.model_cfg["init_logit_bias"] = float(state_dict["logit_bias"])
        return Source(str(path), digest, state_dict, architecture, preprocess_of_run(path))
    if _has(state_dict, "blocks."):  # timm's
        return _from_image_tower(str(path), digest, state_dict, variant)
    if "visual.conv1.weight" in state_dict:
        raise ValueError(
            f"{path} is a CLIP with OpenAI's image tower and plain attention; `diffclip warm-start NAME:{path} OUT` "
            "makes it a differential one with the same outputs"
        )
    raise ValueError(
        f"{path} is no CLIP in the authors', SLIP's, open_clip's or timm's layout; it holds {len(state_dict)} tensors, "
        f"among them {', '.join(sorted(state_dict)[:3])}"
    )


def _has(state_dict: StateDict, prefix: str) -> bool:
    """By any of its keys, so that what is missing is told by name."""
    return any(key.startswith(prefix) for key in state_dict)


def _from_image_tower(label: str, digest: str, state_dict: StateDict, variant: str | None) -> Source:
    """A timm ViT with ``DiffAttention`` becomes the image tower of a CLIP whose other weights are new."""
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
    trunk = {f"visual.trunk.{key}": tensor for key, tensor in state_dict.items() if key not in head}
    with tempfile.TemporaryDirectory() as folder:
        initial = initial_state(architecture, Path(folder))
    if missing := [key for key in initial if key.startswith("visual.trunk.") and key not in trunk]:
        raise ValueError(f"{label} lacks {len(missing)} tensors of {image['timm_model_name']}: {', '.join(missing)}")
    notes = ["only the image tower is the source's: projections, text tower and logit_scale are untrained"]
    if head:
        notes.append(f"left out: {', '.join(head)}")
    return Source(label, digest, initial | trunk, architecture, None, notes)


def _trained(path: Path, state_dict: StateDict, variant: str | None) -> Architecture:
    """Architecture of open_clip's training checkpoint, which the run's params.txt tells where there is one."""
    params = training_params(path)
    schema, name = parse_model_name(str(params.get("model")))
    if schema == "local-dir" and Path(name, HF_CONFIG_NAME).is_file():
        architecture = architecture_of(read_config(Path(name))[0], Path(name))
    elif schema is None and name.replace("/", "-") in model_names():  # as open_clip reads names
        architecture = packaged_architecture(name.replace("/", "-"))
    elif "model" in params and variant is None and any(key.endswith(".attn.lambda_q1") for key in state_dict):
        raise ValueError(
            f"the run's params.txt says that {path} is of {params['model']}, which cannot be found here, and weights "
            "do not tell lambda_init; add --variant static (0.8 in every layer) or --variant dynamic (DiffCLIP*)"
        )
    else:
        return recognize(state_dict, variant)
    if variant is not None:
        raise ValueError(f"the run's params.txt says that {path} is {name}; leave out --variant {variant}")
    if params.get("force_image_size") or params.get("force_context_length"):
        return recognize(state_dict, architecture.variant)
    return architecture


def preprocess_of_run(checkpoint: Path) -> dict[str, Any] | None:
    """How the images of open_clip's training run were normalised and resized; None where no params.txt tells."""
    params = training_params(checkpoint)
    schema, name = parse_model_name(str(params.get("model")))
    if schema == "local-dir" and Path(name, HF_CONFIG_NAME).is_file():
        base = read_config(Path(name))[1]
    elif schema is None and params:
        base = PREPROCESS["openai"] | (get_pretrained_cfg(name, str(params.get("pretrained"))) or {})
    else:
        return None
    given = {field: params.get(f"image_{field}") for field in PREPROCESS["openai"]}
    return {field: base[field] if value is None else value for field, value in given.items()}


def training_params(checkpoint: Path) -> dict[str, Any]:
    """What open_clip_train wrote beside ``checkpoints/`` (open_clip@v3.3.0:src/open_clip_train/main.py), or nothing."""
    folder = checkpoint.absolute().parent
    path = folder.parent / "params.txt"
    if folder.name != "checkpoints" or not path.is_file():
        return {}
    params = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(": ")
        try:
            params[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # text, which is written without quotes
            params[key] = value
    return params
