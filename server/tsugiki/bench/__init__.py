"""A load generator for OpenAI-compatible servers: `tsugiki bench`, and a library for benchmarks.

`workload` decides what is asked, `arrivals` when, `client` asks, `session` runs warm-up and
measurement, `statistics` sums up, `report` shows. Knows HTTP alone: nothing of our own server.
"""
