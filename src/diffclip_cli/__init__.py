"""Read the arguments of the command ``diffclip`` and call the work in ``diffclip_openclip``.

This is a package of its own because ``import diffclip_openclip`` registers the models at once, and for that imports
torch, timm, transformers and open_clip, which takes seconds. Modules here import the standard library alone, so that
help, ``--version`` and a wrong argument answer at once. Each command imports its work when it runs.

``main`` has the parser, the exit status and what becomes of errors. ``arguments`` has what commands share. Each of the
other modules has a group of commands: their arguments, and the calls.
"""
