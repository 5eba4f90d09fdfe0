"""Client of a tsugiki server: httpx and the standard library only."""
