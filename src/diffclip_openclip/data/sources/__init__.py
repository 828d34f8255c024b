"""Read the forms in which data sets are published, a module each: the work of ``diffclip data``."""
