"""Which variants exist, where their bytes are, and how they get into memory."""
