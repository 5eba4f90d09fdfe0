"""`tsugiki compress CODEC`: a fine-tune and its base into a variant file."""

import argparse
from pathlib import Path
from typing import Any

from tsugiki.commands.flags import add_device, refuse_foreign_flags

CODECS = ("deltadq", "lora", "bitdelta", "saten", "sketch", "caldera")
# The codec's own flags; another codec's flag is a mistake and is refused, not ignored.
FLAGS: dict[str, tuple[str, ...]] = {
    "deltadq": ("alpha", "bits", "parts", "group_size", "rows_per_mask", "seed", "paper"),
    "lora": ("rank",),
    "bitdelta": (),
    "saten": (
        "modes",
        "rank",
        "relative_error",
        "pattern",
        "density",
        "core_bits",
        "value_bits",
    ),
    "sketch": ("value_bits",),
    "caldera": ("rank", "factor_bits"),
}
# DeltaDQ as published (arXiv 2410.08666): a mask for each row, min-max codes of 4 bits in 8 parts.
PAPER = {
    "alpha": 8,
    "bits": 4,
    "parts": 8,
    "rows_per_mask": 1,
    "grid": "minmax",
    "gain_matching": False,
    "bias_bits": 0,
}
AUTO = ("auto", "auto-attention")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tsugiki compress`."""
    parser.description = (
        "Write a variant file: what a fine-tune changes in its base, compressed. Without "
        "--target-ratio, --max-bytes or --max-kl deltadq uses alpha 16 and 1 bit (about 200x). "
        "auto takes the codec whose file is the smallest within --max-kl."
    )
    parser.add_argument("codec", choices=CODECS, metavar="CODEC", help=" | ".join(CODECS))
    parser.add_argument("--base", required=True, metavar="DIR", help="base model, or 'demo'")
    parser.add_argument(
        "--tuned", required=True, type=Path, metavar="DIR", help="fine-tune, or a PEFT adapter"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="x.safetensors")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the full report as JSON")
    parser.add_argument(
        "--probe",
        type=int,
        metavar="N",
        help="store a self-test that servers replay: a prompt and up to N greedy tokens; 0: none "
        "(default 16, where the base is below 1e9 parameters or --calibration is given)",
    )
    _add_size_arguments(parser)
    _add_calibration_arguments(parser)
    _add_codec_arguments(parser)
    add_device(parser)


def _add_size_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("size")
    group.add_argument(
        "--target-ratio", type=float, metavar="R", help="best quality at an honest ratio of R"
    )
    group.add_argument("--max-bytes", metavar="N", help="best quality within N (bytes, 2MB, 1MiB)")
    group.add_argument(
        "--max-kl",
        type=float,
        metavar="X",
        help="smallest file within a KL of X nats per answer token from the fine-tune, measured on "
        "the half of --calibration that is not calibrated with; runs the model at about 8 sizes",
    )


def _add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--calibration", type=Path, metavar="FILE", help="JSONL of prompt and answer, or messages"
    )
    group.add_argument(
        "--calibration-examples", type=int, default=64, metavar="N", help="use N (default 64)"
    )


def _add_codec_arguments(parser: argparse.ArgumentParser) -> None:
    deltadq = parser.add_argument_group("deltadq")
    deltadq.add_argument("--alpha", type=int, metavar="A", help="keep 1 of A entries (16)")
    deltadq.add_argument("--bits", type=int, metavar="K", help="bits of a kept entry, 1..8 (1)")
    deltadq.add_argument("--parts", type=int, metavar="M", help="separate quantization (1)")
    deltadq.add_argument(
        "--group-size",
        metavar="H",
        help="entries of a dropout group, or auto | auto-attention (about 64)",
    )
    deltadq.add_argument(
        "--rows-per-mask", type=int, metavar="R", help="rows that share a mask (16; paper: 1)"
    )
    deltadq.add_argument("--seed", type=int, metavar="N", help="of the masks (0)")
    deltadq.add_argument(
        "--paper", action="store_true", default=None, help="the published recipe's settings"
    )
    rank = parser.add_argument_group("lora, caldera, saten")
    rank.add_argument(
        "--rank",
        type=int,
        metavar="R",
        help="lora: taken from a full fine-tune (16); caldera: (32); "
        "saten: of a train's bonds, 0 for none (8)",
    )
    _add_saten_arguments(parser)
    sketch = parser.add_argument_group("sketch (onto a base of compress-base sketch)")
    sketch.add_argument(
        "--value-bits",
        type=int,
        metavar="B",
        help="of a codebook entry's change: 4, 8 or 16 (8); saten: of a sparse entry (4)",
    )

    caldera = parser.add_argument_group("caldera (onto a base of compress-base caldera)")
    caldera.add_argument("--factor-bits", type=int, metavar="B", help="4, 8 or 16 (4)")


def _add_saten_arguments(parser: argparse.ArgumentParser) -> None:
    saten = parser.add_argument_group("saten (tensor train and sparse entries; also --rank)")
    saten.add_argument(
        "--modes",
        metavar="M",
        help="factors of the train: low-rank, matrix, vector, auto (tries them), or pairs such as "
        "'24x24 24x24' (low-rank)",
    )
    saten.add_argument(
        "--relative-error", type=float, metavar="E", help="of the train, instead of a rank"
    )
    saten.add_argument(
        "--pattern", choices=("none", "free", "2:4"), help="of the sparse entries (free)"
    )
    saten.add_argument(
        "--density", type=float, metavar="D", help="of free entries: 0.02 keeps 1 of 50 (0.02)"
    )
    saten.add_argument("--core-bits", type=int, metavar="B", help="of cores: 4, 8 or 16 (8)")


def run(args: argparse.Namespace) -> int:
    """Compress and print the report."""
    from tsugiki.compress.pipeline import compress
    from tsugiki.compress.progress import Progress
    from tsugiki.compress.report import render

    report = compress(job_of(args), Progress())
    if args.report is not None:
        report.write(args.report)
    print(render(report))
    return 0


def job_of(args: argparse.Namespace) -> Any:
    """The job that parsed arguments describe.

    Raises:
        ConfigError: a flag of another codec, or a bad value.
    """
    from tsugiki.compress.job import CompressJob
    from tsugiki.config import default_cache_dir
    from tsugiki.model.demo_base import resolve_base
    from tsugiki.model.device import choose_device
    from tsugiki.setting_values import parse_size

    refuse_foreign_flags(args, FLAGS)
    options, group_size = _codec_options(args)
    base = resolve_base(args.base, default_cache_dir())
    if args.codec == "sketch":
        options |= _sketch_of(base)
    if args.codec == "caldera":
        _require_backbone(base)
    return CompressJob(
        codec=args.codec,
        base=base,
        tuned=args.tuned,
        out=args.out,
        options=options,
        group_size=group_size,
        calibration=args.calibration,
        calibration_examples=args.calibration_examples,
        max_bytes=None if args.max_bytes is None else parse_size(args.max_bytes),
        target_ratio=args.target_ratio,
        max_kl=args.max_kl,
        cache_dir=default_cache_dir(),
        probe=args.probe,
        device=choose_device(args.device),
    )


def _sketch_of(base: Path) -> dict[str, int]:
    """How the linears of a base are sketched."""
    from tsugiki.errors import ConfigError
    from tsugiki.model.checkpoint import open_checkpoint
    from tsugiki.model.sketched import SketchSettings

    settings = open_checkpoint(base).form
    if not isinstance(settings, SketchSettings):
        raise ConfigError(
            f"--base {base} is not sketched; run `tsugiki compress-base sketch` first"
        )
    return settings.stored()


def _require_backbone(base: Path) -> None:
    from tsugiki.errors import ConfigError
    from tsugiki.model.caldera import CalderaSettings
    from tsugiki.model.checkpoint import open_checkpoint

    if not isinstance(open_checkpoint(base).form, CalderaSettings):
        raise ConfigError(
            f"--base {base} has no lattice backbone; run `tsugiki compress-base caldera` first"
        )


def _codec_options(args: argparse.Namespace) -> tuple[dict[str, Any], str | None]:
    """The codec's options as asked for, and how the group size is to be chosen."""
    from tsugiki.compress.budget import group_size_of
    from tsugiki.errors import ConfigError

    given = {name: getattr(args, name) for name in FLAGS[args.codec]}
    options: dict[str, Any] = dict(PAPER) if given.pop("paper", None) else {}
    options |= {name: value for name, value in given.items() if value is not None}
    group = options.get("group_size")
    if group in AUTO:
        del options["group_size"]
        sized = (args.target_ratio, args.max_bytes, args.max_kl)
        if any(goal is not None for goal in sized) and "alpha" not in options:
            raise ConfigError(f"--group-size {group} needs --alpha when the size chooses the rest")
        return options, group
    if group is not None:
        if not str(group).isdigit():
            raise ConfigError(f"--group-size {group!r}: a number, or one of {', '.join(AUTO)}")
        options["group_size"] = int(group)
    elif args.paper and args.calibration is not None:  # as the paper chooses it
        return options, AUTO[1]
    elif options.get("alpha", 0) > 0:
        options["group_size"] = group_size_of(options["alpha"])
    return options, None
