"""The codecs of the frontier by name."""

from collections.abc import Mapping

from benchmarks.frontier import calibrated_peers, peers, stored
from benchmarks.frontier.approximation import Method
from benchmarks.frontier.zero_bin import zero_bin
from benchmarks.saten import forms as saten

SIZES = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03, 0.016)  # honest bits per parameter
ONCE = frozenset(  # not random
    ("bitdelta", "bitdelta-gain", "svd-mixed", "magnitude", "deltazip", "lora", *saten.methods())
)
PEERS = ("svd-mixed", "dare", "darex-q", "deltazip", "magnitude", "ultradelta")  # plain torch
STORED_PEERS = ("paper-deltadq", "bitdelta", "bitdelta-gain", "lora")  # packed, on the CPU


def methods() -> Mapping[str, Method]:
    """Every codec; new ones for each fine-tune, since some keep decompositions."""
    return {
        "ours": stored.ours(),
        "ours-even": stored.ours(even=True),
        "ours-1bit": stored.ours(bits=1),
        "ours-2bit": stored.ours(bits=2),
        "ours-bias3": stored.ours(bias_bits=3),
        "ours-bias4": stored.ours(bias_bits=4),
        "ours-rows64": stored.ours(rows_per_mask=64),
        "zero-bin-0.6": zero_bin(0.6),
        "zero-bin-1.0": zero_bin(1.0),
        "paper-deltadq": stored.paper_deltadq,
        "bitdelta": stored.bitdelta,
        "bitdelta-gain": stored.bitdelta_gain,
        "svd-mixed": peers.MixedSvd(),
        "dare": peers.dare,
        "darex-q": calibrated_peers.darex_q,
        "deltazip": calibrated_peers.deltazip,
        "magnitude": peers.magnitude,
        "ultradelta": peers.ultradelta,
        "lora": stored.lora,
        **saten.methods(),
    }
