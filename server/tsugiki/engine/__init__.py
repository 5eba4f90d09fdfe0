"""Continuous batching: requests, scheduler, model runner, and the client that the API talks to."""
