"""The subcommands of ``diffclip``: arguments here, the work in the modules that they call, imported when they run."""
