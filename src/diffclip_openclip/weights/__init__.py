"""Weights in and out: checkpoints of any layout -> an open_clip model directory -> the hub and other libraries.

To read in this order: ``checkpoint`` (a file's tensors, safely), ``reference`` (key map of the authors' layout),
``architecture`` (which model they belong to), ``source`` (SRC: file, directory or hub), ``directory`` (OUT, verified),
``convert`` and ``warm_start`` (the two commands), ``hub`` (download and push), ``card`` (OUT's README.md).
"""
