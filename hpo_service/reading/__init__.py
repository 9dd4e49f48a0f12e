"""Reads of the record, as bytes of JSON or of a table, for the reading process or a thread: nothing here writes.

Nothing here samples or trains either, so that the process stays small.
"""
