"""The paper's evaluation: the work of ``diffclip evaluate`` and ``diffclip pope``.

To read in this order: ``suite`` and ``published`` (data sets, tasks and sizes), ``layout`` (where data lie),
``compute``, ``features``; the tasks ``zeroshot``, ``linear_probe``, ``few_shot``, ``mmvp``, ``pope``; ``results``
(files), ``plan`` (what is evaluated on what) and ``runner``.
"""
