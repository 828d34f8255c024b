"""Measure speed and memory of models beside each other: ``diffclip bench``."""
