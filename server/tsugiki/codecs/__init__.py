"""One file per method: writing and reading of the same format side by side."""
