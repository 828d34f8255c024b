"""Write the files by which transformers' ``AutoTokenizer`` and ``AutoImageProcessor`` prepare a model's inputs.

Both are stock classes of transformers, so that the files work without this package.

The tokenizer has the ids of open_clip's ``SimpleTokenizer``, padding included, for every text whose cleaning Unicode
rules can express. open_clip cleans texts by ftfy and by Python's HTML rules, which is more. Other ids are given to

- text that was decoded wrongly ("cafÃ©"), which ftfy repairs, and terminal escapes, which it removes;
- HTML entities other than the usual six, which open_clip decodes;
- "<start_of_text>" and "<end_of_text>" within a text, which open_clip takes for its special tokens;
- code points that are newer than one of the two libraries' Unicode tables.

The image processor has the pixels of open_clip's transform, with two exceptions.

- Of an image whose longer side is resized to 3, 7, 11, ... pixels more than the crop, torchvision, and so open_clip,
  rounds half a pixel up where transformers rounds it down: the crop lies one pixel further left or up.
- transformers converts palette and CMYK images to RGB before it resizes them, open_clip afterwards.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ftfy import chardata
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, SimpleTokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from diffclip_openclip.files import write_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
# It resizes by PIL, as open_clip does. AutoImageProcessor takes a CLIPImageProcessor that resizes by torchvision, which
# rounds grey levels in another place, also for the name CLIPImageProcessorPil.
IMAGE_PROCESSOR_TYPE = "PilBackend"

_START, _END = "<start_of_text>", "<end_of_text>"
_PADDING = "!"  # the token of id 0, with which open_clip fills up
# open_clip@v3.3.0:src/open_clip/tokenizer.py, SimpleTokenizer.pat, for lower case
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# "&amp;" comes first and twice, since open_clip decodes entities of entities
_ENTITIES = {"&amp;": "&", "&quot;": '"', "&#39;": "'", "&lt;": "<", "&gt;": ">", "&nbsp;": " "}
# ftfy's rules, each with the name of the function that has it (ftfy@v6.3:ftfy/fixes.py)
_CONTROLS = r"[\x{0}-\x{8}\x{b}\x{e}-\x{1f}\x{7f}\x{206a}-\x{206f}\x{feff}\x{fff9}-\x{fffc}]"  # remove_control_chars
_SINGLE_QUOTES, _DOUBLE_QUOTES = "[\u02bc\u2018-\u201b]", "[\u201c-\u201f]"  # uncurl_quotes


def hf_tokenizer(text_cfg: Mapping[str, Any], folder: Path | None) -> Any:
    """Return the tokenizer of transformers that open_clip takes for a model; None where it takes its own.

    No code that comes with a tokenizer is run.

    Args:
        text_cfg: of open_clip's config.
        folder: of the model, which may have the tokenizer's files.

    Raises:
        ValueError: the tokenizer needs code of its own.
        OSError: its files are neither there nor on the hub.
    """
    from transformers import AutoTokenizer  # takes long to import

    name = text_cfg.get("hf_tokenizer_name")
    if not name:
        return None
    own = folder is not None and any((folder / file).is_file() for file in TOKENIZER_FILES)
    return AutoTokenizer.from_pretrained(folder if own else name, trust_remote_code=False)


def write_tokenizer(folder: Path, text_cfg: Mapping[str, Any], tokenizer: Any = None) -> None:
    """Write the files for ``AutoTokenizer``: a tokenizer of transformers, or open_clip's usual one, 1.7 MB.

    ``tokenizer(texts, padding="max_length", truncation=True)`` then gives what open_clip's gives. No other tokenizer of
    open_clip's own is written.

    Args:
        text_cfg: of open_clip's config.
        tokenizer: as :func:`hf_tokenizer` gives it.
    """
    if tokenizer is not None:
        for path in map(Path, tokenizer.save_pretrained(folder)):
            if path.parent == folder and path.name not in TOKENIZER_FILES:
                path.unlink(missing_ok=True)  # what older versions of transformers read
        return
    if text_cfg.get("hf_tokenizer_name") or text_cfg.get("tokenizer_kwargs"):
        return
    backend, config = TOKENIZER_FILES
    (folder / backend).write_text(_backend(), encoding="utf-8")
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _PADDING,
        "split_special_tokens": True,  # so that an exclamation mark in a text is none of padding
        "model_max_length": text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH),
    }
    write_json(folder / config, settings)


def write_image_processor(folder: Path) -> None:
    """Write the file for ``AutoImageProcessor`` into a model directory, from its ``open_clip_config.json``.

    There is none for a way of resizing that ``CLIPImageProcessor`` does not have.
    """
    from diffclip_openclip.towers.vision import image_processor_from_open_clip  # imports transformers' model classes

    try:
        settings = image_processor_from_open_clip(folder).to_dict()
    except ValueError:
        return
    write_json(folder / IMAGE_PROCESSOR_FILE, settings | {"image_processor_type": IMAGE_PROCESSOR_TYPE})


@lru_cache
def _backend() -> str:
    """Return open_clip's vocabulary and rules in the form of the tokenizers library."""
    simple = SimpleTokenizer()
    model = BPE(vocab=simple.encoder, merges=list(simple.bpe_ranks), end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(_cleaning())
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}",
        pair=f"{_START} $A {_END} $B {_END}",
        special_tokens=[(_START, simple.sot_token_id), (_END, simple.eot_token_id)],
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (_PADDING, _START, _END)]
    )
    return tokenizer.to_str()


def _cleaning() -> list[Any]:
    """Return ``open_clip.tokenizer._clean_lower`` as far as Unicode rules can express it."""
    windows = {chr(byte): bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xA0)}  # fix_c1_controls
    characters = {old: new for old, new in windows.items() if new}
    wide = {chr(point): new for point, new in (chardata.LIGATURES | chardata.WIDTH_MAP).items()}
    replaced = [("&amp;", "&"), *_ENTITIES.items(), *characters.items(), *wide.items()]
    return [
        *(normalizers.Replace(old, new) for old, new in replaced),
        normalizers.Replace(Regex(_SINGLE_QUOTES), "'"),
        normalizers.Replace(Regex(_DOUBLE_QUOTES), '"'),
        normalizers.Replace(Regex(_CONTROLS), ""),
        normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς"),  # as str.lower has it at a word's end
        normalizers.NFC(),
        normalizers.Lowercase(),
    ]
