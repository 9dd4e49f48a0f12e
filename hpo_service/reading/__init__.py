"""What is read of the record, as bytes of JSON or of a table, in a process beside the server: nothing here writes.

Nothing here samples or trains either, so that the process stays small.
"""
