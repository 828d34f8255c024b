"""Evaluate models by the paper's protocols: the work of ``diffclip evaluate`` and ``diffclip pope``.

``plan`` says what is measured on what, and ``runner`` does it. ``evaluator`` is the interface of the protocols, which
are a module each: ``zero_shot``, ``retrieval``, ``linear_probe``, ``few_shot``, ``mmvp``; ``features`` extracts what
two of them share. ``pope`` scores answers instead of a model. ``results`` writes and reads the files of all of them.
"""
