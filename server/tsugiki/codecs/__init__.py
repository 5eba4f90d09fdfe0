"""One file per method: writing and reading of the same format side by side.

`CODECS` is the explicit table: adding a method is adding its file and one entry here.
"""

from tsugiki.codecs import bitdelta, caldera, deltadq, dense, lora, saten, sketch
from tsugiki.codecs.base import Codec

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        bitdelta.CODEC,
        caldera.CODEC,
        deltadq.CODEC,
        dense.CODEC,
        lora.CODEC,
        saten.CODEC,
        sketch.CODEC,
    )
}
