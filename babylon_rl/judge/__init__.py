"""The group judge: scores of an hour's episodes against one another."""
