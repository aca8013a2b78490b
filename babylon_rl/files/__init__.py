"""Publishing of files: staged under a temporary name, verified, then moved into place, so that a set appears whole or not at all."""
