"""Write and read model directories: open_clip's own form, with transformers' files beside it.

``open_clip_config.json`` and ``open_clip_model.safetensors`` are what open_clip's ``local-dir:`` and ``hf-hub:`` read.
``config.json`` is transformers' config of a differential text tower, which takes its weights from the same file. A
tokenizer and an image processor are there for transformers; see :mod:`~diffclip_openclip.weights.processors`.
Directories of earlier versions lack these two, and nothing that reads a directory asks for them.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import (
    HF_CONFIG_NAME,
    HF_SAFE_WEIGHTS_NAME,
    HF_WEIGHTS_NAME,
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPENAI_DATASET_MEAN,
    OPENAI_DATASET_STD,
)
from open_clip.factory import _find_checkpoint_in_dir
from timm.layers import to_2tuple
from transformers.utils import CONFIG_NAME

from diffclip_openclip.files import Folder, check_place, read_json, staged, write_json
from diffclip_openclip.models import TWIN
from diffclip_openclip.towers.configs import DiffCLIPTextConfig
from diffclip_openclip.towers.timm_vit import DEFAULT_CFG
from diffclip_openclip.weights.architecture import Architecture
from diffclip_openclip.weights.checkpoint import StateDict, save_safetensors
from diffclip_openclip.weights.foreign import (
    HOST_ERRORS,
    check_open_clip_config,
    check_runs_nothing,
    check_sizes,
    loading_errors,
    named_timm_place,
    timm_place,
)
from diffclip_openclip.weights.mapped import create_mapped
from diffclip_openclip.weights.processors import (
    IMAGE_PROCESSOR_FILE,
    IMAGE_PROCESSOR_TYPE,
    TOKENIZER_FILES,
    write_image_processor,
    write_tokenizer,
)

CARD = "README.md"
# what transformers reads beside the weights
TRANSFORMERS_FILES = (CONFIG_NAME, *TOKENIZER_FILES, IMAGE_PROCESSOR_FILE)
_TRANSFORMERS_CONFIGS = (CONFIG_NAME, "tokenizer_config.json", IMAGE_PROCESSOR_FILE, "processor_config.json")
MODEL_DIRECTORY = Folder(
    "a model directory",
    (
        *(HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, *TRANSFORMERS_FILES, CARD),
        *("onnx", "onnx/image.onnx", "onnx/text.onnx", "onnx/*.onnx.data"),  # what `diffclip export` adds
    ),
    mark=HF_CONFIG_NAME,
)

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


def preprocess_cfg_of(model: Any) -> dict[str, Any]:
    """Return the preprocessing that open_clip gave to a model."""
    settings = open_clip.get_model_preprocess_cfg(model)
    return {name: settings[name] for name in PREPROCESS["openai"]}


def write_directory(
    out: Path,
    *,
    state_dict: StateDict,
    architecture: Architecture,
    preprocess_cfg: dict[str, Any],
    card: str,
    tokenizer: Any = None,
    overwrite: bool = False,
    check: Callable[[Any], None] = lambda model: None,
) -> None:
    """Write a model directory to ``out``, once open_clip has loaded it back with every tensor in its place.

    Args:
        state_dict: in open_clip's layout. It is emptied once it is written: a model and its weights beside each other
            are more than needs to be in memory.
        preprocess_cfg: open_clip's.
        card: what README.md is to say.
        tokenizer: of transformers, as :func:`~diffclip_openclip.weights.processors.hf_tokenizer` gives it.
        check: is given the model that was loaded back, and raises to stop.

    Raises:
        FileExistsError, FileNotFoundError: as :func:`~diffclip_openclip.files.check_place`.
        ValueError: the weights do not fit the architecture, or are not finite.
        OSError: it could not be written, say because the disk is full.
    """
    check_place(out, overwrite, MODEL_DIRECTORY)
    with staged(out, overwrite, MODEL_DIRECTORY) as folder:
        folder.mkdir()
        _write_configs(folder, architecture, preprocess_cfg, place=folder)
        save_safetensors(state_dict, folder / HF_SAFE_WEIGHTS_NAME)
        (folder / CARD).write_text(card, encoding="utf-8")
        write_tokenizer(folder, architecture.model_cfg["text_cfg"], tokenizer)
        check(_verified(folder, state_dict))
        write_image_processor(folder)
        _write_configs(folder, architecture, preprocess_cfg, place=out.resolve())


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``model_cfg`` and ``preprocess_cfg`` of a directory in open_clip's form.

    Raises:
        FileNotFoundError: no ``open_clip_config.json`` there.
        ValueError: one that is not open_clip's, has values that no model was trained with, or would have code run.
    """
    config, beside = _whole_config(folder)
    return check_open_clip_config(config, folder / HF_CONFIG_NAME, beside=beside)


def _whole_config(folder: Path) -> tuple[Any, Any]:
    """Read ``open_clip_config.json`` and ``config.json``, and check what lies beside them for transformers."""
    path = folder / HF_CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"the directory {folder} has no {HF_CONFIG_NAME}; give a checkpoint file in it instead")
    for name in _TRANSFORMERS_CONFIGS:
        if (folder / name).is_file():
            beside = read_json(folder / name)
            check_runs_nothing(beside, folder / name)
            if isinstance(beside, dict) and beside.get("model_type") == DiffCLIPTextConfig.model_type:
                check_sizes(beside, folder / name)
    return read_json(path), read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else None


def check_places(folder: Path) -> None:
    """Refuse a directory whose own towers' config the hosts would not read, because its config names another place.

    Of a moved directory that place is gone. Of a copied one it is the original, whose lambda_init and activation
    open_clip would give to this one's weights.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_config`.
        ValueError: it names another place.
    """
    model_cfg, _ = read_config(folder)
    own = (folder / CONFIG_NAME).is_file()
    text = Path(model_cfg["text_cfg"].get("hf_model_name") or folder)
    image = timm_place(model_cfg)
    # a relative place of the text tower names packaged configs, or the hub's
    places = {"text": text if own and text.is_absolute() else folder, "image": Path(image or folder)}
    for tower, place in places.items():
        if not (place.is_dir() and place.samefile(folder)):
            raise ValueError(
                f"{folder} was moved or copied from {place}, and still has open_clip look there for its {tower} tower; "
                f"correct it with: diffclip convert {folder} {folder}"
            )


def placed_towers(model_cfg: dict[str, Any]) -> list[str]:
    """Return the towers of which a config names the place, "text" or "image", wrong once the directory is moved."""
    return ["text"] * ("hf_model_name" in model_cfg["text_cfg"]) + ["image"] * (timm_place(model_cfg) is not None)


def config_at(folder: Path, place: str) -> dict[str, Any]:
    """Return all of ``folder``'s ``open_clip_config.json``, with the towers at ``place`` if it names one.

    Args:
        place: the absolute path of a folder, or a repository on the hub.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_config`.
    """
    config: dict[str, Any]
    config, beside = _whole_config(folder)
    model_cfg, _ = check_open_clip_config(config, folder / HF_CONFIG_NAME, beside=beside)
    if "hf_model_name" in model_cfg["text_cfg"]:
        model_cfg["text_cfg"]["hf_model_name"] = place
    if timm_place(model_cfg):
        model_cfg["vision_cfg"]["timm_model_name"] = named_timm_place(place)
    return config


def write_place(folder: Path) -> None:
    """Set the place of the towers that ``folder``'s config names to ``folder``, for a directory that was moved."""
    with staged(folder / HF_CONFIG_NAME, overwrite=True) as new:
        write_json(new, config_at(folder, str(folder.resolve())))


def initial_state(architecture: Architecture, folder: Path) -> StateDict:
    """Return the state dict of a model as open_clip initialises it; ``folder`` is one to work in."""
    _write_configs(folder, architecture, {}, place=folder)
    # there are no weights to take the text tower from
    return dict(open_clip.create_model(f"local-dir:{folder}", pretrained_text=False).state_dict())


def tokenizer_of(name: str, model_cfg: dict[str, Any]) -> Any:
    """Return open_clip's tokenizer of a model; of one from transformers no code is run, nor a question asked for it.

    Args:
        name: any of open_clip's.
        model_cfg: of that model.

    Raises:
        ValueError: the tokenizer needs code of its own.
    """
    from_transformers = bool(model_cfg["text_cfg"].get("hf_tokenizer_name"))
    return open_clip.get_tokenizer(name, **{"trust_remote_code": False} if from_transformers else {})


def _write_configs(folder: Path, architecture: Architecture, preprocess_cfg: dict[str, Any], place: Path) -> None:
    model_cfg = architecture.model_cfg
    config: dict[str, Any] = {}  # of both towers: transformers and timm pass over each other's keys
    if architecture.text_config is not None:
        model_cfg = model_cfg | {"text_cfg": {**model_cfg["text_cfg"], "hf_model_name": str(place)}}
        config |= architecture.text_config | {"transformers_weights": HF_SAFE_WEIGHTS_NAME}
    if architecture.tower_arguments is not None:
        vision_cfg = {**model_cfg["vision_cfg"], "timm_model_name": named_timm_place(str(place))}
        model_cfg = model_cfg | {"vision_cfg": vision_cfg}
        image_size = to_2tuple(vision_cfg["image_size"])
        pretrained_cfg = DEFAULT_CFG | {"input_size": [3, *image_size]}
        config |= {"architecture": TWIN, "model_args": architecture.tower_arguments, "pretrained_cfg": pretrained_cfg}
        # transformers takes the file for timm's alone by this key, counts its classes, and asks it for the processor
        config["num_classes"] = 0
        if (folder / IMAGE_PROCESSOR_FILE).is_file():
            config["image_processor_type"] = IMAGE_PROCESSOR_TYPE
    if config:
        write_json(folder / CONFIG_NAME, config)
    write_json(folder / HF_CONFIG_NAME, {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})


def weights_file(folder: Path) -> Path:
    """Return the file with the weights of a directory in open_clip's form.

    Raises:
        FileNotFoundError: there is none.
    """
    if (path := _find_checkpoint_in_dir(folder)) is not None:  # open_clip's own, which knows more names
        return Path(path)
    raise FileNotFoundError(
        f"{folder} has neither {HF_SAFE_WEIGHTS_NAME} nor {HF_WEIGHTS_NAME}; copy the weights there"
    )


def _digest(key: str, tensor: torch.Tensor) -> bytes:
    """Hash a tensor's shape, and its values as a model in float32 has them; refuse those that are not finite."""
    if not tensor.isfinite().all():
        raise ValueError(f"{key} has {int((~tensor.isfinite()).sum())} values that are NaN or infinite")
    values = tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64).contiguous()
    digest = hashlib.blake2b(str(tuple(tensor.shape)).encode())
    digest.update(values.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # arrays are buffers
    return digest.digest()


def _verified(folder: Path, state_dict: StateDict) -> Any:
    """Load ``folder`` as a user does, and compare; ``state_dict`` is emptied."""
    # of any tensor that is left, the whole file that it is mapped from stays in memory
    digests = {key: _digest(key, tensor) for key, tensor in state_dict.items()}
    state_dict.clear()
    try:
        model = create_mapped(folder).eval()
    except HOST_ERRORS as error:  # torch's answer where keys or shapes do not fit, or to values of another type
        raise ValueError(f"the weights do not fit the architecture that they seem to have: {error}") from error
    with loading_errors("the tokenizer"):
        tokenizer = tokenizer_of(f"local-dir:{folder}", read_config(folder)[0])
    # transformers' may have tokens that no text is given
    if model.vocab_size < (words := getattr(tokenizer, "vocab_size", 0)):
        raise ValueError(
            f"token_embedding.weight has {model.vocab_size} rows; open_clip's tokenizer has {words} tokens"
        )
    if not model.logit_scale.exp().isfinite():
        raise ValueError(f"logit_scale is {model.logit_scale.item():g}, whose exponential is not finite")
    loaded = model.state_dict()
    for key, digest in digests.items():
        if _digest(key, loaded[key]) != digest:
            raise ValueError(f"{key} is another after loading it back")
    images = torch.randn(2, 3, *model.visual.image_size)
    tokens = tokenizer(["a photo of a mug", ""])
    with torch.no_grad(), loading_errors("the model"):
        features = (model.encode_image(images), model.encode_text(tokens))
    if not all(feature.isfinite().all() for feature in features):
        raise ValueError("the model's outputs are not finite")
    return model
