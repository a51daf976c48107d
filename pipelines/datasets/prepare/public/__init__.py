"""Public sets as people have them, on a disk or in a bucket: one module each.

Pictures stay where they are, and the rows say where that is; only what lies inside of archives or
binary batches is written into shards.

Each `prepare_…(source, out)` takes the folder as published and writes sets below `out`.
"""
