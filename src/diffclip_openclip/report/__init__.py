"""Evaluation results as the paper's tables and figures, beside the paper's own numbers: ``diffclip report``.

Modules, each using those before it only: ``scores`` (keys, means), ``paper`` and ``results`` (the two sources of
numbers), ``models`` (results put together), ``entries`` (what is compared with what), ``checks`` (the paper's
arithmetic), ``layouts``, ``tables``, ``render`` (Markdown, CSV, HTML), ``figures``, ``styles``, ``bars``, ``radar``,
``draw``, ``remarks``, ``provenance``, ``page``, ``command``.
"""
