"""The subcommands of ``diffclip``: arguments here, the work in the modules that they call.

These modules import nothing heavy, so that ``diffclip --help`` is quick.
"""
