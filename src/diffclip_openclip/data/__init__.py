"""Data sets of other forms in the one layout that the evaluation reads; the work of ``diffclip data``.

``images``, ``writer`` (the layout) and ``names`` (class names, templates) carry one module for each form of source:
``torchvision_sets`` (with ``labelled``), ``folders``, ``karpathy`` and ``mmvp``. docs/data.md says which data set
comes from where.
"""
