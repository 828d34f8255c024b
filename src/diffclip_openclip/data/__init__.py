"""Find, read and write data sets in the one layout that the evaluation reads; nothing here knows of models.

Read ``catalog`` (the paper's data sets and their classes) first. ``layout`` says where a data set's files lie,
``remote`` opens those behind URLs, ``shards`` gives their samples and ``images`` their pixels. ``writer`` writes the
layout for ``sources``, which has a module for each form of ``diffclip data``.
"""
