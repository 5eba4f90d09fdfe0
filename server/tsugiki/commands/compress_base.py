"""`tsugiki compress-base CODEC`: a base that is served in less memory."""

import argparse
from pathlib import Path

from tsugiki.config import DEVICES

CODECS = ("sketch", "caldera", "saten")
# The codec's own flags; another codec's flag is a mistake and is refused, not ignored.
FLAGS: dict[str, tuple[str, ...]] = {
    "sketch": ("groups", "power", "device"),
    "caldera": ("rank", "factor_bits", "iterations", "device"),
    "saten": ("bits_per_weight", "modes", "core_bits", "value_bits", "keep_embedding"),
}
BITS = {"sketch": 4, "caldera": 2, "saten": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tsugiki compress-base`."""
    parser.description = (
        "Write a compressed base directory that `tsugiki serve --base` takes. sketch: an index of "
        "2 to 4 bits for every weight of the layers' linears, and small codebooks for each row. "
        "caldera: a lattice code of 2 to 4 bits for every weight, and low-rank factors of 4 bits. "
        "saten: a tensor train and sparse entries for every matrix, ranks and densities chosen by "
        "error per byte. Interrupted, caldera and saten go on when the same command is given again."
    )
    parser.add_argument("codec", choices=CODECS, metavar="CODEC", help=" | ".join(CODECS))
    parser.add_argument("--base", required=True, metavar="DIR", help="base model, or 'demo'")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new directory")
    parser.add_argument(
        "--bits", type=int, metavar="B", help="of a weight, 2..4 (sketch 4, caldera 2)"
    )
    sketch = parser.add_argument_group("sketch")
    sketch.add_argument(
        "--groups", type=int, metavar="G", help="codebooks of a row: 1, 2, 4, 8 (4)"
    )
    sketch.add_argument("--power", type=float, metavar="P", help="of sensitivity in k-means (2)")
    caldera = parser.add_argument_group("caldera")
    caldera.add_argument("--rank", type=int, metavar="K", help="of the factors, 0: none (32)")
    caldera.add_argument("--factor-bits", type=int, metavar="B", help="4, 8 or 16 (4)")
    caldera.add_argument(
        "--iterations", type=int, metavar="N", help="of lattice and factors in turns (6)"
    )
    _add_saten_arguments(parser)
    parser.add_argument(
        "--device",
        choices=DEVICES,
        help="sketch, caldera: where it is computed (auto: a GPU where torch sees one)",
    )
    group = parser.add_argument_group("calibration (sketch, caldera)")
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="plain text, or JSONL; without it every input counts the same (much worse)",
    )
    group.add_argument("--sequences", type=int, default=64, metavar="N", help="of text (64)")
    group.add_argument("--sequence-tokens", type=int, default=512, metavar="N", help="(512)")
    group.add_argument("--damping", type=float, default=0.1, metavar="F", help="(0.1)")


def _add_saten_arguments(parser: argparse.ArgumentParser) -> None:
    saten = parser.add_argument_group("saten")
    saten.add_argument(
        "--bits-per-weight", type=float, metavar="F", help="of all matrices together (4)"
    )
    saten.add_argument("--modes", metavar="M", help="low-rank, matrix, vector, auto (low-rank)")
    saten.add_argument("--core-bits", type=int, metavar="B", help="4, 8 or 16 (8)")
    saten.add_argument("--value-bits", type=int, metavar="B", help="4, 8 or 16 (4)")
    saten.add_argument(
        "--keep-embedding", action="store_true", default=None, help="as it is, uncompressed"
    )


def run(args: argparse.Namespace) -> int:
    """Compress and print the report."""
    from tsugiki.commands.flags import refuse_foreign_flags
    from tsugiki.errors import ConfigError

    refuse_foreign_flags(args, FLAGS)
    if args.sequences < 1 or args.sequence_tokens < 1 or not args.damping > 0:
        raise ConfigError("--sequences, --sequence-tokens and --damping must be above 0")
    args.bits = BITS[args.codec] if args.bits is None else args.bits
    print({"sketch": _sketch, "caldera": _caldera, "saten": _saten}[args.codec](args))
    return 0


def _sketch(args: argparse.Namespace) -> str:
    from tsugiki.compress.progress import Progress
    from tsugiki.compress_base.job import SketchBaseJob, sketch_base
    from tsugiki.config import default_cache_dir
    from tsugiki.model.demo_base import resolve_base
    from tsugiki.model.device import choose_device
    from tsugiki.model.sketched import SketchSettings

    cache = default_cache_dir()
    job = SketchBaseJob(
        base=resolve_base(args.base, cache),
        out=args.out,
        settings=SketchSettings(args.bits, 4 if args.groups is None else args.groups),
        calibration=args.calibration,
        sequences=args.sequences,
        sequence_tokens=args.sequence_tokens,
        damping=args.damping,
        power=2.0 if args.power is None else args.power,
        cache_dir=cache,
        device=choose_device(args.device or "auto"),
    )
    report = sketch_base(job, Progress())
    return (
        f"{args.out}: {report.linears} linears, {report.weights} weights in {report.nbytes} bytes "
        f"({report.bits_per_weight:.2f} bits per weight, codebooks {report.codebook_bytes} bytes "
        f"among them), relative error {report.relative_error:.4f}, {report.seconds:.0f} s"
    )


def _caldera(args: argparse.Namespace) -> str:
    from tsugiki.compress.progress import Progress
    from tsugiki.compress_base.base import CalibrationText
    from tsugiki.compress_base.caldera import Settings
    from tsugiki.compress_base.caldera_job import CalderaBaseJob, caldera_base
    from tsugiki.config import default_cache_dir
    from tsugiki.model.demo_base import resolve_base
    from tsugiki.model.device import choose_device

    cache = default_cache_dir()
    names = ("bits", "rank", "factor_bits", "iterations")
    asked = {name: getattr(args, name) for name in names}
    text = args.calibration and CalibrationText(
        args.calibration, args.sequences, args.sequence_tokens
    )
    job = CalderaBaseJob(
        base=resolve_base(args.base, cache),
        out=args.out,
        settings=Settings(**{name: value for name, value in asked.items() if value is not None}),
        calibration=text,
        damping=args.damping,
        cache_dir=cache,
        device=choose_device(args.device or "auto"),
    )
    report = caldera_base(job, Progress())
    return (
        f"{args.out}: {len(report.linears)} linears, {report.weights} weights in {report.nbytes} "
        f"bytes ({report.bits_per_weight:.3f} bits per weight, {report.model_bits:.2f} of the "
        f"whole model), relative error of outputs {report.error:.4f}, {report.seconds:.0f} s"
    )


def _saten(args: argparse.Namespace) -> str:
    from tsugiki.compress.progress import Progress
    from tsugiki.compress_base.saten_job import SatenBaseJob, saten_base
    from tsugiki.config import default_cache_dir
    from tsugiki.model.demo_base import resolve_base

    cache = default_cache_dir()
    asked = {name: getattr(args, name) for name in ("modes", "core_bits", "value_bits")}
    job = SatenBaseJob(
        base=resolve_base(args.base, cache),
        out=args.out,
        bits_per_weight=4.0 if args.bits_per_weight is None else args.bits_per_weight,
        options={name: value for name, value in asked.items() if value is not None},
        embedding=not args.keep_embedding,
        cache_dir=cache,
    )
    report = saten_base(job, Progress())
    return (
        f"{args.out}: {report.matrices} matrices, {report.weights} weights in {report.nbytes} "
        f"bytes ({report.bits_per_weight:.3f} bits per weight), relative error "
        f"{report.relative_error:.4f}, {report.seconds:.0f} s"
    )
