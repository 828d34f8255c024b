"""What tests of ``diffclip attend`` share: models, texts, and the data in a page."""

import json
import re

MODELS = ("CLIP-nano-baseline", "DiffCLIP-nano", "DiffCLIP-V2-nano")

TEXTS = ["a mug", "</script> costs $5 & $6"]


def page_data(html):
    """What the page's script element holds."""
    [content] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    return json.loads(content)
