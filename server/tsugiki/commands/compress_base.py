"""`tsugiki compress-base CODEC`: a base that is served in less memory."""

import argparse
from pathlib import Path

CODECS = ("sketch",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tsugiki compress-base`."""
    parser.description = (
        "Write a compressed base directory that `tsugiki serve --base` takes. sketch: an index of "
        "2 to 4 bits for every weight of the layers' linears, and small codebooks for each row."
    )
    parser.add_argument("codec", choices=CODECS, metavar="CODEC", help=" | ".join(CODECS))
    parser.add_argument("--base", required=True, metavar="DIR", help="base model, or 'demo'")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new directory")
    parser.add_argument("--bits", type=int, default=4, metavar="B", help="of an index, 2..4 (4)")
    parser.add_argument(
        "--groups", type=int, default=4, metavar="G", help="codebooks of a row: 1, 2, 4, 8 (4)"
    )
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="plain text, or JSONL; without it every input counts the same (much worse)",
    )
    group.add_argument("--sequences", type=int, default=64, metavar="N", help="of text (64)")
    group.add_argument("--sequence-tokens", type=int, default=512, metavar="N", help="(512)")
    group.add_argument("--damping", type=float, default=0.1, metavar="F", help="(0.1)")
    group.add_argument(
        "--power", type=float, default=2.0, metavar="P", help="of sensitivity in k-means (2)"
    )


def run(args: argparse.Namespace) -> int:
    """Compress and print the report."""
    from tsugiki.compress.progress import Progress
    from tsugiki.compress_base.job import SketchBaseJob, sketch_base
    from tsugiki.config import default_cache_dir
    from tsugiki.errors import ConfigError
    from tsugiki.model.demo_base import resolve_base
    from tsugiki.model.sketched import SketchSettings

    if args.sequences < 1 or args.sequence_tokens < 1 or not args.damping > 0:
        raise ConfigError("--sequences, --sequence-tokens and --damping must be above 0")
    cache = default_cache_dir()
    job = SketchBaseJob(
        base=resolve_base(args.base, cache),
        out=args.out,
        settings=SketchSettings(args.bits, args.groups),
        calibration=args.calibration,
        sequences=args.sequences,
        sequence_tokens=args.sequence_tokens,
        damping=args.damping,
        power=args.power,
        cache_dir=cache,
    )
    report = sketch_base(job, Progress())
    print(
        f"{args.out}: {report.linears} linears, {report.weights} weights in {report.nbytes} bytes "
        f"({report.bits_per_weight:.2f} bits per weight, codebooks {report.codebook_bytes} bytes "
        f"among them), relative error {report.relative_error:.4f}, {report.seconds:.0f} s"
    )
    return 0
