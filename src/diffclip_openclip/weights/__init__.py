"""Weights in and out: checkpoints of any layout -> an open_clip model directory -> the hub and other libraries."""
