"""One runnable file per question; each prints a table and writes JSON under benchmarks/results/."""
