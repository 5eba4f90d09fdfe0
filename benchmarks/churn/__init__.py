"""Hundreds of variants under traffic while they are uploaded, replaced, rolled back and deleted.

`variants` makes the files, `answers` their known answers, `python -m benchmarks.churn` the run.
"""
