"""Publishing of sets of files, whole or not at all.

Files are staged under a temporary name, verified, then moved into place.
"""
