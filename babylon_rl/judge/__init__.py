"""The group judge: scores of one hour's episodes relative to one another."""
