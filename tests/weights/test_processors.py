"""What transformers prepares with a model directory's own files is what open_clip prepares."""

import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.common import EMOJI, plain_environment
from support.fuzz import few
from transformers import AutoImageProcessor, AutoTokenizer

from diffclip_cli.main import main
from diffclip_openclip.weights.processors import TOKENIZER_FILES, write_tokenizer

CONTEXT_LENGTH = 77
TEXTS = [
    *("a mug", "A MUG!", "!", "!!! wow !!", "", "   ", "two\tlamps\nand  a chair ", "it's we'll DON'T I'd", "x" * 300),
    *("don’t “quote” ‘this’", "ﬁne ﬂow", "ｆｕｌｌ　ｗｉｄｔｈ！", "café cafe\u0301 ÉTÉ", "ΟΔΟΣ ΣΑΣ", "İstanbul ẞ"),
    *("中文字符 日本語", "مرحبا", "हिन्दी", "😀", "👩\u200d🚀 on the 🌕", "🇩🇪🏳️\u200d🌈", "١٢٣ 12,345.67"),
    *("a&b &amp; &lt;b&gt; &quot;q&quot;", "a\x00b\x1fc\ufeff", "\x80 100", "a\u00a0b\u200bc"),
    *("word " * 300, "ab😀" * 100, "!" * 400),
    *(f"a photo of a {'very ' * count}mug" for count in (70, 71, 72, 73)),  # about the context length
]
# ids of these are others, as the module says; whoever mends one takes it out there, too
DIFFERENT = {"mojibake": "cafÃ©", "entity": "&copy; &eacute;", "special": "a <end_of_text> b", "escape": "\x1b[1mbold"}
ALPHABET = "abcXYZ 0129!?'’“”.,;:-_/()#\t\nßжЖあ漢😀🚀\u200d\ufe0f"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """transformers' and open_clip's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, {"context_length": CONTEXT_LENGTH})
    assert sum((folder / name).stat().st_size for name in TOKENIZER_FILES) < 2_000_000
    return AutoTokenizer.from_pretrained(folder), open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)


def _ids(tokenizer, texts):
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]


def test_ids_are_open_clips(tokenizers):
    theirs, ours = tokenizers
    for text in TEXTS:
        assert torch.equal(_ids(theirs, [text]), ours([text])), text
    assert torch.equal(_ids(theirs, TEXTS), ours(TEXTS))
    assert theirs.model_max_length == CONTEXT_LENGTH
    assert _ids(theirs, ["word " * 300])[0, -1] == theirs.eos_token_id == 49407


def test_ids_of_real_captions(tokenizers):
    theirs, ours = tokenizers
    names = [entry["label"] for entry in json.loads((EMOJI / "metadata.json").read_text())["concepts"]]
    classes = (EMOJI / "eval" / "unseen-vendor-groups" / "test").parent.glob("*.txt")
    texts = names + [line for path in classes for line in path.read_text().splitlines()]
    assert len(texts) > 100
    assert torch.equal(_ids(theirs, texts), ours(texts))


def test_ids_of_every_character(tokenizers):
    """Of those that both libraries' Unicode tables know: the lower ones, and every seventh of the others."""
    theirs, ours = tokenizers
    points = [*range(0x3000), *range(0x3000, 0x20000, 7)]
    known = [chr(point) for point in points if unicodedata.category(chr(point)) not in ("Cn", "Cs")]
    known.remove("\u0345")  # a mark that only Python has in lower case already
    texts = [f"a {character}b" for character in known]
    for text, ids in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert ids[1:-1] == ours.encode(text), ascii(text)


@few(150)
@given(texts=st.lists(st.text(ALPHABET, max_size=200), min_size=1, max_size=5))
def test_ids_of_random_texts(tokenizers, texts):
    theirs, ours = tokenizers
    assert torch.equal(_ids(theirs, texts), ours(texts))


@pytest.mark.parametrize("name", DIFFERENT)
def test_known_differences(tokenizers, name):
    theirs, ours = tokenizers
    assert not torch.equal(_ids(theirs, [DIFFERENT[name]]), ours([DIFFERENT[name]]))


def test_saved_again_it_is_the_same(tokenizers, tmp_path):
    theirs, ours = tokenizers
    theirs.save_pretrained(tmp_path)
    assert torch.equal(_ids(AutoTokenizer.from_pretrained(tmp_path), TEXTS), ours(TEXTS))
    assert theirs.decode(theirs("a mug!")["input_ids"], skip_special_tokens=True) == ours.decode(ours.encode("a mug!"))


def test_no_files_for_another_tokenizer(tmp_path):
    for text_cfg in ({"hf_tokenizer_name": "owner/repo"}, {"tokenizer_kwargs": {"clean": "canonicalize"}}):
        write_tokenizer(tmp_path, text_cfg)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module", params=["DiffCLIP-nano", "DiffCLIP-nano-vision", "DiffCLIP-V2-nano"])
def directory(request, tmp_path_factory) -> Path:
    """Also of a model whose text tower is open_clip's own."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(request.param).state_dict(), folder / "weights.pt")
    assert main(["convert", str(folder / "weights.pt"), str(folder / "OUT"), "--preprocess", "slip"]) == 0
    return folder / "OUT"


def test_a_directory_prepares_texts_as_open_clip(directory):
    ours = open_clip.get_tokenizer(f"local-dir:{directory}")
    assert type(ours) is open_clip.SimpleTokenizer  # as before there were files of transformers
    assert ours.context_length == 16
    assert torch.equal(_ids(AutoTokenizer.from_pretrained(directory), TEXTS), ours(TEXTS))


def _image(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_directory_prepares_images_as_open_clip(directory):
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    processor = AutoImageProcessor.from_pretrained(directory)
    sizes = [(48, 48), (96, 64), (64, 96), (640, 480), (500, 375), (20, 30), (49, 48), (48, 50), (33, 200), (52, 48)]
    for size in sizes:
        expected = preprocess(_image(*size))
        assert torch.equal(processor(_image(*size), return_tensors="pt")["pixel_values"][0], expected), size
    for mode in ("L", "RGBA"):
        image = _image(96, 64).convert(mode)
        assert torch.equal(processor(image, return_tensors="pt")["pixel_values"][0], preprocess(image)), mode


def test_the_crop_that_is_rounded_otherwise(directory):
    """51 - 48 = 3 pixels too many: torchvision leaves out two of them first, transformers one."""
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    processor = AutoImageProcessor.from_pretrained(directory)
    image = _image(51, 48)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(theirs[:, :, 1:], preprocess(image)[:, :, :-1])


def test_without_this_package_and_without_a_network(directory, tmp_path):
    code = (
        "import sys\n"
        "from transformers import AutoImageProcessor, AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(directory)!r})\n"
        f"processor = AutoImageProcessor.from_pretrained({str(directory)!r})\n"
        "assert 'diffclip_openclip' not in sys.modules\n"
        "print(type(tokenizer).__name__, type(processor).__name__, tokenizer('a mug')['input_ids'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=plain_environment(), capture_output=True, text=True
    )
    ids = open_clip.tokenize("a mug")[0, :4].tolist()
    assert done.stdout.split(maxsplit=2) == ["TokenizersBackend", "PilBackend", f"{ids}\n"], done.stderr


def test_no_image_processor_for_another_way_of_resizing(directory, tmp_path):
    folder = shutil.copytree(directory, tmp_path / "COPY")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "squash"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert main(["convert", str(folder), str(tmp_path / "OUT")]) == 0
    assert not (tmp_path / "OUT" / "preprocessor_config.json").exists()
    assert (tmp_path / "OUT" / "tokenizer.json").exists()
