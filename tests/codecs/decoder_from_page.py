"""A decoder of variant files written from docs/format.md alone: numpy and the standard library.

It shares no code with the project and reads to be compared with the page, not to be fast. `decode`
gives what every module says, in float32, and `digest` what the file's identity should be.
"""

import hashlib
import json
import struct
from typing import Any

import numpy as np

WIDTHS = {"F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1}
NUMPY = {"F32": "<f4", "I32": "<i4", "BF16": "<u2", "F16": "<f2", "I8": "i1", "U8": "u1"}
FLOATS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "i8"}
M32 = 2**32


class Refused(Exception):
    """The file breaks a rule of the page."""


def need(condition: bool, rule: str) -> None:
    if not condition:
        raise Refused(rule)


def canonical(value: Any) -> str:  # section 2; Python's json happens to be the reference
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


class File:
    def __init__(self, data: bytes) -> None:  # sections 1 to 3
        (length,) = struct.unpack_from("<Q", data)
        header = data[8 : 8 + length]
        parsed = json.loads(header)
        text = parsed.pop("__metadata__")["tsugiki"]
        order = sorted(parsed, key=lambda name: (-WIDTHS[parsed[name]["dtype"]], name))
        legal = '{"__metadata__":{"tsugiki":' + json.dumps(text, ensure_ascii=False) + "}"
        end = 0
        self.tensors: dict[str, bytes] = {}
        for name in order:
            dtype, (count,) = parsed[name]["dtype"], parsed[name]["shape"]
            begin, end = end, end + count * WIDTHS[dtype]
            entry = {"dtype": dtype, "shape": [count], "data_offsets": [begin, end]}
            legal += f',"{name}":' + json.dumps(entry, separators=(",", ":"))
            self.tensors[name] = data[8 + length + begin : 8 + length + end]
        raw = (legal + "}").encode()
        need(header == raw + b" " * (-(8 + len(raw)) % 8), "one legal header")
        need(len(data) == 8 + length + end, "the file ends where the last tensor ends")
        self.metadata = json.loads(text)
        need(canonical(self.metadata) == text, "canonical metadata")
        table = [[name, parsed[name]["dtype"], parsed[name]["shape"]] for name in sorted(parsed)]
        unsigned = {key: value for key, value in self.metadata.items() if key != "digest"}
        state = hashlib.sha256(canonical(unsigned).encode() + canonical(table).encode())
        for name in sorted(parsed):
            state.update(self.tensors[name])
        self.digest = "sha256:" + state.hexdigest()
        need(self.digest == self.metadata["digest"], "the digest")

    def decode(self) -> dict[str, dict[str, np.ndarray]]:
        """Module name -> its dense change (or values), bias and row ids, as far as it has them."""
        taken = dict.fromkeys(self.tensors, 0)
        found = {}
        for name in sorted(self.metadata["modules"]):
            module = self.metadata["modules"][name]
            shared = self.metadata["options"] if module["codec"] == self.metadata["codec"] else {}
            options = {**shared, **module["options"]}

            def part(label: str, dtype: str, shape: tuple[int, ...], codec=module["codec"]):
                blob, key = f"{codec}.{label}.{dtype}", dtype.upper()
                size = int(np.prod(shape)) * WIDTHS[key]
                raw = self.tensors[blob][taken[blob] : taken[blob] + size]
                taken[blob] += size
                values = np.frombuffer(raw, NUMPY[key])
                if key == "BF16":
                    values = (values.astype(np.uint32) << 16).view(np.float32)
                return values.reshape(shape)

            found[name] = CODECS[module["codec"]](name, tuple(module["shape"]), options, part)
        need(all(taken[n] == len(raw) for n, raw in self.tensors.items()), "no bytes left over")
        return found


def unpacked(row: np.ndarray, bits: int, count: int) -> np.ndarray:  # section 4, packed codes
    number = int.from_bytes(row.tobytes(), "little")
    return np.array([(number >> (i * bits)) % 2**bits for i in range(count)])


def f32(options: dict[str, Any], key: str) -> np.float32:
    return np.float32(float(options[key]))


def dense(name: str, shape: tuple[int, ...], options: dict[str, Any], part) -> dict:  # 5.1
    if options["mode"] == "none":
        return {}
    dtype = FLOATS[options["dtype"]]
    if options["mode"] == "rows":
        count = options["rows"]
        ids = part("ids", "i32", (count,))
        return {"ids": ids, "values": part("values", dtype, (count, shape[1])).astype(np.float32)}
    values = part("values", dtype, shape).astype(np.float32)
    return {"values": values * f32(options, "scale") if dtype == "i8" else values}


def philox(x: list[int], key: list[int]) -> list[int]:  # 5.2
    x, (k0, k1) = list(x), key
    for _ in range(10):
        p, q = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(q // M32) ^ x[1] ^ k0, q % M32, (p // M32) ^ x[3] ^ k1, p % M32]
        k0, k1 = (k0 + 0x9E3779B9) % M32, (k1 + 0xBB67AE85) % M32
    return x


def kept_columns(name: str, tile: int, columns: int, options: dict[str, Any]) -> list[int]:
    identity = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    key = [options["seed"] % M32, options["seed"] // M32]

    def word(c: int) -> int:
        return philox([c // 4, tile, identity % M32, identity // M32], key)[c % 4]

    kept: list[int] = []
    alpha, size = options["alpha"], options["group_size"]
    for begin in range(0, columns, size):
        group = range(begin, min(begin + size, columns))
        count = max(1, (2 * len(group) + alpha) // (2 * alpha))
        kept += sorted(group, key=lambda c: (word(c), c))[:count]
    return sorted(kept)


def bias(rows: int, options: dict[str, Any], part) -> dict:
    bits = options["bias_bits"]
    if bits == 0:
        return {}
    codes = unpacked(part("bias", "u8", (-(-rows * bits // 8),)), bits, rows)
    centred = (codes - 2 ** (bits - 1)).astype(np.float32)
    return {"bias": f32(options, "bias_scale") * centred}


def deltadq(name: str, shape: tuple[int, ...], options: dict[str, Any], part) -> dict:  # 5.2
    rows, columns = shape
    per_mask, per_step = options["rows_per_mask"], options["rows_per_step"]
    tiles = -(-rows // per_mask)
    kept = [kept_columns(name, t, columns, options) for t in range(tiles)]
    high = options["parts"].bit_length() - 1
    low = options["bits"] - high
    count = len(kept[0]) * per_mask

    def plane(label: str, bits: int) -> np.ndarray:
        if bits == 0:
            return np.zeros((tiles, count), int)
        stored = part(label, "u8", (tiles, -(-count * bits // 8)))
        return np.stack([unpacked(row, bits, count) for row in stored])

    codes = plane("codes", low) + plane("part", high) * 2**low
    step = part("step", "f16", (-(-rows // per_step),)).astype(np.float32) * f32(options, "gain")
    values = np.zeros(shape, np.float32)
    for r in range(rows):
        for j, c in enumerate(kept[r // per_mask]):
            code = codes[r // per_mask, j * per_mask + r % per_mask]
            values[r, c] = step[r // per_step] * (np.float32(code) - f32(options, "zero"))
    return {"values": values, **bias(rows, options, part)}


def bitdelta(name: str, shape: tuple[int, ...], options: dict[str, Any], part) -> dict:  # 5.3
    rows, columns = shape
    stored = part("signs", "u8", (rows, -(-columns // 8)))
    signs = np.stack([unpacked(row, 1, columns) for row in stored]).astype(np.float32) * 2 - 1
    scale = part("scale", "f16", (rows,)).astype(np.float32) * f32(options, "gain")
    return {"values": signs * scale[:, None], **bias(rows, options, part)}


def lora(name: str, shape: tuple[int, ...], options: dict[str, Any], part) -> dict:  # 5.4
    dtype, rank = FLOATS[options["dtype"]], options["rank"]
    a = part("a", dtype, (rank, shape[1])).astype(np.float32)
    b = part("b", dtype, (shape[0], rank)).astype(np.float32)
    return {"values": f32(options, "scale") * (b @ a)}


def sketch(name: str, shape: tuple[int, ...], options: dict[str, Any], part) -> dict:  # 5.5
    """v: what is added to the base's codebooks, [out, G, 2^b]."""
    width = options["value_bits"]
    if width == 0:
        return {}
    books = (shape[0], options["groups"], 2 ** options["bits"])
    count = books[1] * books[2]
    if width == 16:
        v = part("values", "f16", (shape[0], count)).astype(np.float32) * f32(options, "gain")
        return {"entries": v.reshape(books)}
    codes = part("codes", "u8", (shape[0], -(-count * width // 8)))
    step = part("step", "f16", (shape[0],)).astype(np.float32) * f32(options, "gain")
    plain = np.stack([unpacked(row, width, count) for row in codes]) - 2 ** (width - 1)
    return {"entries": (plain.astype(np.float32) * step[:, None]).reshape(books)}


def numbers(kind: str, bits: int, groups: list[int], count: int, options, part) -> np.ndarray:
    stored, gain = f"{kind}s", f32(options, f"{kind}_gain")
    if bits == 16:
        return part(stored, "f16", (len(groups),)).astype(np.float32) * gain
    codes = unpacked(part(stored, "u8", (-(-len(groups) * bits // 8),)), bits, len(groups))
    step = part(f"{kind}_steps", "f16", (count,)).astype(np.float32) * gain
    return step[groups] * (codes - (2**bits - 1) / 2).astype(np.float32)


def train(shape: tuple[int, ...], options: dict[str, Any], part) -> np.ndarray:
    modes = [tuple(map(int, pair.split("x"))) for pair in options["modes"].split(" ")]
    ranks = [1, *map(int, options["ranks"].split(" ")), 1]
    groups, first = [], 0
    for k, (a, b) in enumerate(modes):
        left, right = ranks[k], ranks[k + 1]
        for flat in range(left * a * b * right):
            groups.append(first + (flat // (a * b) if k == len(modes) - 1 else flat % right))
        first += left if k == len(modes) - 1 else right
    flat = numbers("core", options["core_bits"], groups, first, options, part)
    cores = []
    for k, (a, b) in enumerate(modes):
        size = ranks[k] * a * b * ranks[k + 1]
        cores.append(flat[:size].reshape(ranks[k], a, b, ranks[k + 1]))
        flat = flat[size:]
    values = np.zeros(shape, np.float32)
    for r in range(shape[0]):
        for c in range(shape[1]):
            row, column, product = r, c, np.ones((1, 1), np.float32)
            for core in reversed(cores):
                product = core[:, row % core.shape[1], column % core.shape[2]] @ product
                row, column = row // core.shape[1], column // core.shape[2]
            values[r, c] = product[0, 0]
    return values


def places(shape: tuple[int, ...], options: dict[str, Any], part) -> list[int]:
    kept = options["kept"]
    if options["pattern"] == "2:4":
        codes = unpacked(part("pairs", "u8", (-(-kept // 4),)), 4, kept // 2)
        return [4 * g + p for g, code in enumerate(codes) for p in (int(code) % 4, int(code) // 4)]
    bits = options["low_bits"]
    low = [0] * kept
    if bits:
        low = list(unpacked(part("low", "u8", (-(-kept * bits // 8),)), bits, kept))
    unary = unpacked(part("high", "u8", (options["high_bytes"],)), 1, 8 * options["high_bytes"])
    found, zeros, place = [], 0, -1
    for bit in unary:
        if not bit:
            zeros += 1
            continue
        place += 1 + zeros * 2**bits + int(low[len(found)])
        found.append(place)
        zeros = 0
    return found


def saten(name: str, shape: tuple[int, ...], options: dict[str, Any], part) -> dict:  # 5.7
    values = np.zeros(shape, np.float32)
    if options["modes"]:
        values = train(shape, options, part)
    if options["pattern"] != "none":
        found = places(shape, options, part)
        per_step = options["rows_per_step"]
        groups = [place // shape[1] // per_step for place in found]
        count = -(-shape[0] // per_step)
        entries = numbers("value", options["value_bits"], groups, count, options, part)
        values.reshape(-1)[found] += entries
    return {"values": values}


CODECS = {
    "dense": dense,
    "deltadq": deltadq,
    "bitdelta": bitdelta,
    "lora": lora,
    "sketch": sketch,
    "saten": saten,
}
