"""Read the forms in which data sets are published, a module each: the work of ``diffclip data``.

Each module has a function ``convert``, which writes splits below ``root``, the folder of all data sets, and returns
lines to show. A split that is complete stays, and its source is not looked at, unless ``overwrite`` is given. Beside
the errors that it documents, ``convert`` raises those of :meth:`~diffclip_openclip.data.writer.Split.write`.
"""
