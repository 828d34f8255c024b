"""The paper's evaluation: the work of ``diffclip evaluate`` and ``diffclip pope``.

To read in this order: ``suite`` (data sets and tasks), ``model`` and ``layout`` (what is evaluated on what),
``compute``, ``features``; the tasks ``zeroshot``, ``linear_probe``, ``few_shot``, ``mmvp``, ``pope``; ``results``
(files) and ``runner``.
"""
