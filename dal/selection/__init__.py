"""Selection: the order of records, strategies, candidates, and the choice of a batch among them.

Pure functions of values. Randomness comes from hashes of the row (`order.row_hash`), never from a generator that walks,
so that the order in which rows arrive cannot change the batch.
"""
