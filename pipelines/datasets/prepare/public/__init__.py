"""Public sets as people have them, on a disk or in a bucket: one module each.

Pictures stay where they are, and the rows say where that is; only what lies inside of archives or
binary batches is written into shards.

Each `prepare_…(source, out)` takes the folder as published and returns the folders of the sets that
it wrote below `out`. It raises ConfigError if a set is there already, and SampleError if files are
missing or not as published.
"""
