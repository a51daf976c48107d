"""Preparation of public sets in the form that people have: one module each.

Pictures stay where they are, and the rows name their places; only content of archives or binary
batches is written into shards. Each `prepare_…(source, out)` takes the folder as published and
writes sets below `out`.
"""
