"""Show evaluation results as the paper's tables and figures, beside the paper's own numbers: ``diffclip report``.

Each module uses only those before it:

- ``uncertainty``: intervals, and tests of differences
- ``paper``: score keys, means, and the paper's numbers
- ``result_scores``, ``evaluated_models``: result files as scores; grouped into models, and training runs of one model
- ``comparison``: which model is compared with which, and how sure a difference is
- ``remarks``: what limits a comparison
- ``table_layouts``, ``table_notes``, ``tables``: which numbers stand where; what is to be said of them; filled tables
- ``table_formats``, ``latex``: Markdown, CSV, HTML; LaTeX
- ``figures``: what each figure shows
- ``styles``, ``bars``, ``radar``, ``curves``, ``drawing``: how series look; matplotlib's axes; the figures' files
- ``page``: the HTML file
- ``command``: the work of the command
"""
