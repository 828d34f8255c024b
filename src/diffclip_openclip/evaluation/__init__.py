"""Evaluate models by the paper's protocols: the work of ``diffclip evaluate`` and ``diffclip pope``.

``plan`` says what is measured on what, and ``runner`` does it. ``evaluator`` is the interface of the protocols, which
are ``zero_shot``, ``retrieval``, ``linear_probe``, ``few_shot`` and ``choices``; ``features`` computes, shard by shard,
what they score. ``pope`` scores answers instead of a model. ``results`` writes and reads the files of all of them.
"""
