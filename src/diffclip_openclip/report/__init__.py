"""Show evaluation results as the paper's tables and figures, beside the paper's own numbers: ``diffclip report``.

Each module uses only those before it:

- ``paper``: score keys, means, and the paper's numbers
- ``evaluated_models``: result files, grouped into models
- ``comparison``: which model is compared with which, and what limits that
- ``table_layouts``, ``tables``, ``table_formats``: which numbers stand where; the filled tables; Markdown, CSV, HTML
- ``figures``, ``drawing``: what each figure shows; matplotlib
- ``page``: the HTML file
- ``command``: the work of the command
"""
