"""Files of rows: which they are, what kind each is, and its rows as the file has them, batch by batch."""

from roma_ds.data.files.opening import open_rows
from roma_ds.data.files.places import Found, find_files, split_files
from roma_ds.data.files.table import Batch, RowFile, Unreadable

__all__ = ["Batch", "Found", "RowFile", "Unreadable", "find_files", "open_rows", "split_files"]
