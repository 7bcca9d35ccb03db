"""Writers to foreign formats, one file each.

A writer is a module with ``FORMAT`` (`_format.Format`: what it takes and makes) and ::

    write(sdata, path, *, region, tables, facts, **options) -> list[Path]

`path` is where to write: a folder that is there and empty, or, where the format is a file, a name that is not. It lies
beside the final place and is moved there when all is written (`io.export`): a writer never overwrites, never cleans up.
"""
