"""Read SugarCrepe's questions, which of two captions is an image's: ``diffclip data sugar-crepe``.

Source: RAIVNLab/sugar-crepe@0047054:data/*.json and main_eval.py; the images are COCO's val2017.
"""

import json
from pathlib import Path

from diffclip_openclip.data.annotations import read_list
from diffclip_openclip.data.catalog import SUGAR_CREPE, SUGAR_CREPE_KINDS
from diffclip_openclip.data.layout import SELECTION, TYPE
from diffclip_openclip.data.writer import Sample, Split, one_line


def convert(*, source: Path, images: Path, root: Path, overwrite: bool = False) -> list[str]:
    """Write the images of ``source``'s questions to ``root``/sugar_crepe/test, each once.

    A sample is an image and the list of its questions (``.json``), each ``{"kind", "id", "caption",
    "negative_caption"}``: ``kind`` is the name of the authors' file without its ending, ``id`` the question's in it.
    The 7,511 questions are about 1,560 images, which stand in the order of their first question. A caption becomes one
    line; CLIP's tokenizers take the same tokens from it.

    Args:
        source: the folder of the authors' seven JSON files.
        images: COCO's folder val2017.

    Raises:
        ValueError: a file of another form.
        FileNotFoundError: a file that is missing.
    """
    target = Split(root, SUGAR_CREPE, "test", overwrite)
    if finished := target.finished():
        return finished
    questions: dict[str, list[dict[str, str]]] = {}
    for kind in SUGAR_CREPE_KINDS:
        path = source / f"{kind}.json"
        try:
            for key, entry in read_list(path).items():
                captions = {name: one_line(entry[name]) for name in ("caption", "negative_caption")}
                questions.setdefault(str(entry["filename"]), []).append({"kind": kind, "id": key} | captions)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not of the form of SugarCrepe's files ({error!r})") from error
    samples = [Sample(images / name, {"json": json.dumps(asked).encode("ascii")}) for name, asked in questions.items()]
    return target.write(samples, len(samples), {TYPE: f"{SELECTION}\n"})
