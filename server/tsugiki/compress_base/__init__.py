"""Making a compressed base out of an ordinary one: what `--base` can serve in less memory."""
