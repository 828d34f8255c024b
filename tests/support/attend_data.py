"""Name models and texts for tests of ``diffclip attend``, and read the data in a page."""

import json
import re

MODELS = ("CLIP-nano-baseline", "DiffCLIP-nano", "DiffCLIP-V2-nano")

TEXTS = ["a mug", "</script> costs $5 & $6"]


def page_data(html):
    """Return what the page's script element holds."""
    [content] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    return json.loads(content)
