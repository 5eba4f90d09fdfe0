"""kill -9 at random moments: what was acknowledged is there, and nothing half-done is visible."""
