"""Fit pages that are written for GitHub to the documentation site."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\]\(\.\./([^)\s]+)\)")
_ROLE = re.compile(r":(?:class|data|func|meth|mod):<code>")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Lead links to files outside of docs/ into the repository."""
    return _OUTSIDE.sub(rf"]({config['repo_url']}/blob/main/\1)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Leave the names of Sphinx's roles away, which docstrings have before names."""
    return _ROLE.sub("<code>", html)
