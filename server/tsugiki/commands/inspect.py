"""`tsugiki inspect FILE`: what a variant file holds, byte for byte."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsugiki.codecs.artifact import Artifact


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tsugiki inspect`."""
    parser.description = "Show a variant file: codec, options, coverage, bytes, ratios, digest."
    parser.add_argument("file", type=Path, metavar="FILE", help="variant file")
    parser.add_argument(
        "--base", metavar="DIR", help="verify that it belongs to this base, or 'demo'"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable, every module")


def run(args: argparse.Namespace) -> int:
    """Verify the whole file, digest and values, then print."""
    from tsugiki.codecs import artifact

    content = artifact.read(args.file)
    verified = None if args.base is None else _verify_base(content, args.base)
    description = describe(content, verified)
    if args.json:
        print(json.dumps(description, indent=1, ensure_ascii=False))
    else:
        print(_render(str(args.file), description))
    return 0


def _verify_base(content: "Artifact", base: str) -> str:
    """The base's directory, after the file was found to belong to it.

    Raises:
        WrongBase, InvalidArtifact: it does not, or changes nothing or less than it declares.
    """
    from tsugiki.codecs.coverage import check_coverage, coverage
    from tsugiki.codecs.fit import check_base
    from tsugiki.compress.job import open_base
    from tsugiki.config import default_cache_dir
    from tsugiki.model.demo_base import resolve_base
    from tsugiki.model.fingerprint import base_fingerprint

    cache_dir = default_cache_dir()
    opened = open_base(resolve_base(base, cache_dir))
    check_base(content.header, base_fingerprint(opened.checkpoint, cache_dir), opened.layout)
    check_coverage(content.header.report, coverage(content.modules))
    return str(opened.checkpoint.path)


def describe(content: "Artifact", verified_base: str | None = None) -> dict[str, Any]:
    """Everything about a file as JSON values; `sections` sum to `bytes`."""
    from dataclasses import asdict

    from tsugiki.codecs.coverage import coverage
    from tsugiki.compress.report import file_paper_ratio, ratio, sections_of

    header, covered = content.header, coverage(content.modules)
    model = header.report.get("model_parameters")
    return {
        "format": header.format,
        "codec": header.codec,
        "role": header.role,
        "options": dict(header.options),
        "base": {**asdict(header.base), "verified": verified_base},
        "digest": header.digest,
        "bytes": header.file_bytes,
        "sections": sections_of(header),
        "coverage": asdict(covered),
        "honest_ratio": ratio(covered.parameters, header.file_bytes),
        "whole_model_ratio": None if model is None else ratio(model, header.file_bytes),
        "paper_ratio": file_paper_ratio(header),
        "text": header.text,
        "probe": header.probe,
        "report": dict(header.report),
        "created_by": header.created_by,
        "provenance": dict(header.provenance),
        "modules": {name: asdict(module) for name, module in header.modules.items()},
    }


def _render(path: str, d: dict[str, Any]) -> str:
    from tsugiki.compress.report import human_bytes, ratio_lines, shown_options

    base = d["base"]
    checked = f"verified against {base['verified']}" if base["verified"] else "not verified"
    lines = [
        f"{path}  {d['digest']}",
        f"  {d['format']}  {d['codec']} ({d['role']})  {shown_options(d['options'])}",
        f"  base      {base['id']} ({base['architecture']}) {base['fingerprint']}, {checked}",
        f"  made by   {d['created_by']}",
        *_coverage_lines(d["coverage"]),
        *_text_lines(d["text"]),
        _probe_line(d["probe"]),
        f"  size      {d['bytes']:,} bytes ({human_bytes(d['bytes'])})",
        *(f"    {name:<36} {size:>12,}" for name, size in d["sections"].items()),
        *ratio_lines(d["honest_ratio"], d["whole_model_ratio"], d["paper_ratio"]),
    ]
    return "\n".join(lines)


def _coverage_lines(c: dict[str, Any]) -> list[str]:
    def shown(counts: dict[str, int]) -> str:
        return ", ".join(f"{key} {count:,}" for key, count in counts.items()) or "nothing"

    return [
        f"  changes   {c['modules']} of {c['modules_declared']} tensors, "
        f"{c['parameters']:,} of {c['parameters_declared']:,} parameters",
        f"    by codec  {shown(c['by_codec'])}",
        f"    by part   {shown(c['by_part'])}",
    ]


def _probe_line(probe: dict[str, Any] | None) -> str:
    if probe is None:
        return "  probe     none"
    asked, expected = len(probe["prompt_ids"]), len(probe["greedy_ids"])
    return f"  probe     {expected} tokens after a prompt of {asked}"


def _text_lines(text: dict[str, Any] | None) -> list[str]:
    if text is None:
        return ["  text      as the base's"]
    template = "own chat template" if text["chat_template"] is not None else "the base's template"
    return [
        f"  text      {template}, end tokens {text['eos_token_ids']}, "
        f"{len(text['added_tokens'])} added tokens, vocabulary {text['vocab_size']}, "
        f"defaults {text['generation_defaults']}"
    ]
