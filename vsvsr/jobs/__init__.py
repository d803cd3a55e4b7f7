"""A film as a job: parts that begin where the filter starts afresh, kept on disk, joined when all are there."""
