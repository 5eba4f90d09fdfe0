"""Quality against bytes: ours and other delta codecs at equal honest sizes on real fine-tunes.

    python -m benchmarks.frontier --base demo --tuned ft/banking77 --data banking77.test.jsonl \\
        --calibration banking77.calibration.jsonl --out rows.jsonl      (resumable, run by run)
    python -m benchmarks.frontier.suite ...             (fine-tunes of six kinds, made and measured)
    python -m benchmarks.frontier.table rows.jsonl --plots FOLDER       (tables and plots)
    python -m benchmarks.frontier.entropy FILE...         (what a coder could save)
"""
