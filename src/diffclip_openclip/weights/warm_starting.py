"""Do the work of ``diffclip warm-start``: a trained CLIP as a DiffCLIP with V2 attention and the same embeddings.

:mod:`~diffclip_openclip.weights.twins` says what becomes of a model. Here it is decided without weights whether a model
has a twin. Then the weights are fetched, and the directory is written and compared with the source. Tensors are mapped
from their files, and source and twin are never in memory together, so that a model of 4 GB takes less than 6.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import load_checkpoint
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from diffclip_openclip.files import check_place, sha256
from diffclip_openclip.weights.card import model_card
from diffclip_openclip.weights.checkpoint import read_checkpoint
from diffclip_openclip.weights.directory import (
    MODEL_DIRECTORY,
    PREPROCESS,
    read_config,
    weights_file,
    write_directory,
)
from diffclip_openclip.weights.foreign import loading_errors
from diffclip_openclip.weights.hub import read_hub_config
from diffclip_openclip.weights.layouts import Layout, detect, from_reference
from diffclip_openclip.weights.loading import checked_config
from diffclip_openclip.weights.mapped import assign
from diffclip_openclip.weights.processors import hf_tokenizer
from diffclip_openclip.weights.runs import TrainingRun
from diffclip_openclip.weights.source import Source
from diffclip_openclip.weights.spec import ModelSpec, parse_spec, towers_folder
from diffclip_openclip.weights.twins import Layers, Twin, skeleton, twin_of

_LARGEST_IMAGE = 1 << 13  # pixels, far above every model's
_TOLERANCE = 1e-4  # of normalised embeddings in float32, where sums run in another order


def warm_start(
    src: str,
    out: Path,
    *,
    layers: str = "all",
    image_size: int | None = None,
    preprocess: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write a DiffCLIP with V2 attention that starts from SRC's function, and return what the user should know.

    Args:
        src: any form of the grammar in :mod:`~diffclip_openclip.weights.spec` that open_clip builds, with weights.
        out: the directory to make, as :func:`~diffclip_openclip.weights.directory.write_directory`.
        layers: as :class:`~diffclip_openclip.weights.twins.Layers` reads them.
        image_size: in pixels, to which SRC's position embedding is resized, as open_clip's ``--force-image-size`` does.
        preprocess: "slip" or "openai", where SRC does not say.

    Raises:
        ValueError: an unknown name or tag, a model of which nothing can have V2 attention, or embeddings that differ
            from SRC's.
        FileExistsError, FileNotFoundError, OSError: as :func:`write_directory`.
    """
    chosen, spec = Layers.parse(layers), parse_spec(src)
    if image_size is not None and not 1 <= image_size <= _LARGEST_IMAGE:
        raise ValueError(f"--force-image-size is {image_size}; it must be a number of pixels up to {_LARGEST_IMAGE}")
    inputs = [path for path in (spec.directory, spec.checkpoint) if path is not None]
    check_place(out, overwrite, MODEL_DIRECTORY, inputs=inputs)
    model_cfg, preprocess_cfg = _configs(spec)
    folder = towers_folder(spec.name, model_cfg)
    if folder is not None and "hf_model_name" in model_cfg["text_cfg"]:
        model_cfg["text_cfg"]["hf_model_name"] = str(folder)
    model = _sized_skeleton(spec, model_cfg, image_size)
    try:
        twin = twin_of(model, model_cfg, chosen, image_size=image_size, folder=folder)
    except ValueError as error:
        raise ValueError(f"{src} has no warm start: {error}") from error
    preprocess_cfg = PREPROCESS[preprocess] if preprocess is not None else preprocess_cfg
    if preprocess_cfg is None:
        raise ValueError(f"{src} does not say how its images were preprocessed; add --preprocess openai or slip")
    tokenizer = hf_tokenizer(model_cfg["text_cfg"], spec.directory)
    with loading_errors(spec):
        _load(model, spec)
        if image_size is not None and isinstance(model.visual, TimmModel):
            model.visual.set_input_size(image_size)
    same = _comparison(model, twin)
    source = Source(
        src,
        sha256(spec.checkpoint) if spec.checkpoint else None,
        twin.weights(model.state_dict()),
        twin.architecture,
        preprocess_cfg,
        notes=["Made to have the source's embeddings exactly; nothing was trained yet"],
    )
    del model
    differences: list[float] = []
    write_directory(
        out,
        state_dict=source.state_dict,
        architecture=twin.architecture,
        preprocess_cfg=preprocess_cfg,
        card=model_card(source, "warm-start"),
        tokenizer=tokenizer,
        overwrite=overwrite,
        check=lambda new: differences.append(same(new)),
    )
    name = twin.architecture.name or f"the twin of {spec}"
    return [
        f"{out} is {name}; its embeddings differ from {src}'s by {differences[0]:.1e} in float32",
        f"layers that became differential: {twin.chosen_layers()}",
        f"train on with: open_clip_train --model local-dir:{out.resolve()}",
    ]


def _configs(spec: ModelSpec) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the config of the source, and its preprocessing if anything says it; nothing but configs is fetched."""
    model_cfg = checked_config(spec)
    if spec.checkpoint is not None:
        state_dict = read_checkpoint(spec.checkpoint)
        layout = detect(state_dict)
        if "logit_bias" in state_dict:  # trained with --siglip; the config's value is only where training starts
            model_cfg["init_logit_bias"] = float(state_dict["logit_bias"])
        known = (
            PREPROCESS["slip"]
            if layout is Layout.AUTHORS
            else TrainingRun.of_checkpoint(spec.checkpoint).preprocess_cfg
        )
        return model_cfg, known
    if spec.pretrained:
        tag = open_clip.get_pretrained_cfg(spec.name, spec.pretrained)
        # open_clip takes a name's activation even where a tag's weights were trained with the other
        model_cfg["quick_gelu"] = model_cfg.get("quick_gelu", False) or tag.get("quick_gelu", False)
        settings = tag
    elif spec.directory is not None:
        settings = read_config(spec.directory)[1]
    else:
        settings = read_hub_config(spec.name.partition(":")[2])[1]
    whole = merge_preprocess_dict(asdict(PreprocessCfg()), settings)
    return model_cfg, {name: whole[name] for name in PREPROCESS["openai"]}


def _sized_skeleton(spec: ModelSpec, model_cfg: dict[str, Any], image_size: int | None) -> Any:
    """Return the source without weights, with the position embeddings that it is to have or that its weights have."""
    params = TrainingRun.of_checkpoint(spec.checkpoint).params if spec.checkpoint else {}
    if params.get("force_context_length"):
        model_cfg["text_cfg"]["context_length"] = params["force_context_length"]
    trained = params.get("force_image_size")
    trained = trained[0] if isinstance(trained, list | tuple) and len(trained) == 1 else trained
    if "timm_model_name" in model_cfg["vision_cfg"]:
        model = _skeleton(spec, model_cfg)
        if trained:
            model.visual.set_input_size(trained)
        return model
    if image_size or trained:
        model_cfg["vision_cfg"]["image_size"] = image_size or trained
    return _skeleton(spec, model_cfg)


def _skeleton(spec: ModelSpec, model_cfg: dict[str, Any]) -> Any:
    try:
        return skeleton(model_cfg)
    except ValueError as error:
        raise ValueError(f"{spec} has no warm start: {error}") from error


def _load(model: Any, spec: ModelSpec) -> None:
    """Load the weights in place of the skeleton's, mapped from their file where its format allows it."""
    if spec.checkpoint is not None:
        state_dict = read_checkpoint(spec.checkpoint)
        if detect(state_dict) is Layout.AUTHORS:
            state_dict = from_reference(state_dict, copy=False)
        state_dict = convert_to_custom_text_state_dict(state_dict)
        resize_pos_embed(state_dict, model)
        try:
            assign(model, lambda: model.load_state_dict(state_dict, assign=True))
        except RuntimeError as error:
            raise ValueError(f"{spec.checkpoint} does not hold the weights of {spec.name}: {error}") from error
        return
    if spec.pretrained:
        path = download_pretrained(open_clip.get_pretrained_cfg(spec.name, spec.pretrained))
    elif spec.directory is not None:
        path = str(weights_file(spec.directory))
    else:
        path = download_pretrained_from_hf(spec.name.partition(":")[2])
    # open_clip's own function, which knows many layouts, with one argument more where it loads
    model.load_state_dict = partial(model.load_state_dict, assign=True)
    assign(model, lambda: load_checkpoint(model, path))
    del model.load_state_dict


@torch.no_grad()
def _comparison(model: Any, twin: Twin) -> Callable[[Any], float]:
    """Return a function that compares another model's embeddings with those that ``model`` has now.

    It returns the largest difference of a component, of (B, embed_dim) and normalised, and raises ValueError if that is
    more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, *model.visual.image_size, generator=generator)
    tokens = torch.randint(1, model.vocab_size, (4, model.context_length), generator=generator)
    tokens[1, model.context_length // 2 :] = 0  # padding
    end_of_text = (twin.architecture.text_config or {}).get("eos_token_id") or model.vocab_size
    tokens[2:, model.context_length // 3] = min(end_of_text, model.vocab_size - 1)

    def embeddings(of: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return F.normalize(of.encode_image(images)), F.normalize(of.encode_text(tokens))

    expected = embeddings(model)

    @torch.no_grad()
    def compare(new: Any) -> float:
        found = embeddings(new)
        difference = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
        if not difference <= _TOLERANCE:
            raise ValueError(
                f"the new model's embeddings differ by {difference:.1e}: an option of the source is unsupported"
            )
        return difference

    return compare
