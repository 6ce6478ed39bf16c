"""Corpora: fetched, read in whatever form they have, and written as the tables of `records`.

What all of it raises: InputError, where the content of a file cannot be used, with file and row;
DownloadError, where a file cannot be fetched; ResourceError, where the disk is full or the system
does not let us read a file, which says nothing about its content. When one is raised, no table or
archive is left half-written.
"""
