"""The sizes by which a pool is written, and its source is read."""

from dataclasses import dataclass, fields

from dal.errors import SettingsError

_POWERS = ("shard_chunks", "field_rows", "picture_rows", "index_rows")


@dataclass(frozen=True)
class Sizes:
    """The sizes of what a build writes, reads and sorts at a time; the defaults suit pools of any size.

    They change no record, but for the last bits of encoded ones by their groups. A build that goes on, and an append,
    keep the chunks that the pool has; only the index of its ids is written again.

    Attributes
    ----------
    chunk_bytes : int
        Of a chunk of features, as they are stored. A chunk has a power of two of rows, at least one.
    max_files, shard_chunks : int
        Where an array would have more chunks than `max_files`, `shard_chunks` of them together are one file, or one
        object of a store. A build holds such a shard in memory.
    field_rows, picture_rows : int
        Of a chunk of ids or of a display field, and of a chunk of small pictures. They are looked up for single rows,
        and each look-up costs the decoding of a chunk: keep these chunks small.
    index_rows : int
        Of a chunk of the index of the ids.
    bucket_entries : int
        Ids that are sorted in memory at a time, 16 bytes each.
    block_bytes, block_rows : int
        Of the source, read at a time; of a table, as its columns are in memory.
    csv_block_bytes : int
        Of a CSV file, read at a time. No record of it may be longer, and the first block shows the types of columns.
    group_texts, group_pictures : int
        Records that an encoder is given together, in whole batches: texts are sorted by length in a group, pictures are
        decoded in memory. An interrupted build goes on with the same groups only.

    Raises
    ------
    SettingsError
        A size is no whole number from 1 on; or `shard_chunks` or a number of rows of a chunk is no power of two, by
        which the smaller chunks divide the larger ones.

    Examples
    --------
    >>> Sizes(chunk_bytes=4 * 2**20).shard_chunks
    16
    """

    chunk_bytes: int = 16 * 2**20
    max_files: int = 4096
    shard_chunks: int = 16
    field_rows: int = 2**12
    picture_rows: int = 2**8
    index_rows: int = 2**17
    bucket_entries: int = 2**20
    block_bytes: int = 16 * 2**20
    block_rows: int = 2**16
    csv_block_bytes: int = 4 * 2**20
    group_texts: int = 1024
    group_pictures: int = 64

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self)):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SettingsError(f"`{name}` must be a whole number from 1 on, got {value!r}")
            if name in _POWERS and value & (value - 1):
                raise SettingsError(f"`{name}` must be a power of two, got {value}; take {1 << value.bit_length()}")

    def rows_of_block(self, n_bytes: int, n_rows: int = 1) -> int:
        """Return the number of records to read at a time, where `n_rows` of them take `n_bytes`.

        Examples
        --------
        >>> Sizes().rows_of_block(4096), Sizes().rows_of_block(10**9), Sizes().rows_of_block(1)
        (4096, 1, 65536)
        """
        return min(self.block_rows, max(1, self.block_bytes * n_rows // max(1, n_bytes)))


SIZES = Sizes()
