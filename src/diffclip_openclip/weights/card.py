"""Write the model card of a converted directory."""

from diffclip_openclip import __version__
from diffclip_openclip.weights.source import Source

_CARD = """---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags:
- clip
- open_clip
- diffclip
- differential-attention
---
# {title}

{what} with {parameters:,} parameters, in open_clip's form. Made by [diffclip_openclip](https://arxiv.org/abs/2503.06626)
{version} with `diffclip {command}` from `{label}`{checksum}.
{notes}
## Use

```bash
pip install diffclip-openclip
clip_benchmark eval --model local-dir:DIR --dataset cifar10 --task zeroshot_classification --output cifar10.json
```

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:DIR")
tokenizer = open_clip.get_tokenizer("local-dir:DIR")
```

`DIR` is this directory's absolute path; `hf-hub:owner/repo` in place of `local-dir:DIR` if it lies on the hub.
{moving}
Preprocessing: {preprocess}.

The weights are under the licence of their source.
"""

_MOVING = """
open_clip's config names the place of the text tower by an absolute path. After moving or copying this directory, run
`diffclip convert DIR DIR`, which corrects that one path. Without it, open_clip reads the text tower's config at the old
place, and fails where that is gone: "Repo id must be in the form ...".
"""


def model_card(source: Source, command: str) -> str:
    """Return a README.md with the source, its checksum and how to load the directory."""
    name = source.architecture.name
    preprocess = source.preprocess_cfg or {}
    notes = "".join(f"- {note}\n" for note in source.notes)
    return _CARD.format(
        title=name or "DiffCLIP",
        what=f"`{name}`" if name else f"A CLIP with the image tower `{source.architecture.tower}`",
        parameters=sum(tensor.numel() for tensor in source.state_dict.values()),
        version=__version__,
        command=command,
        label=source.label,
        checksum=f" (sha256 `{source.sha256}`)" if source.sha256 else "",
        notes=f"\n{notes}" if notes else "",
        moving=_MOVING if source.architecture.text_config else "",
        preprocess=", ".join(f"{key} {value}" for key, value in preprocess.items()),
    )
