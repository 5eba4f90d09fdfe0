"""Variants as clients see them: files and memory joined, beside the base.

Owns: the cards of /v1/models and /v1/variants, and each version's text side. Reads snapshots only,
so that it may be asked on the event loop. Does not know how anything changes (variant_service.py).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tsugiki.codecs.metadata import Header
from tsugiki.engine.client import LoadTotals, TierInfo
from tsugiki.engine.open_requests import OpenRequests
from tsugiki.engine.request import VariantRef
from tsugiki.engine.variant_info import LoadTimes, ModelInfo, VariantInfo
from tsugiki.text.huggingface import HfTextSide
from tsugiki.text.tokenizer import TextSide
from tsugiki.variants.registry import Registry
from tsugiki.variants.residency import Residency, ResidencyInfo
from tsugiki.variants.version import Version


@dataclass(slots=True)
class VariantView:
    """Registry and residency together, beside the base."""

    base: ModelInfo
    base_text: HfTextSide
    registry: Registry
    residency: Residency  # only its snapshots: the rest is the engine thread's
    open_requests: OpenRequests
    _texts: dict[str, TextSide] = field(default_factory=dict)

    def text(self, variant: VariantRef) -> TextSide:
        """See EngineClient.text."""
        digest = variant.digest
        if digest is None:
            return self.base_text
        if digest not in self._texts:
            header = self.registry.resolve(f"{variant.name}@{digest}").header
            stated = None if header is None else header.text
            self._texts[digest] = self.base_text.for_variant(stated)
        return self._texts[digest]

    def tiers(self) -> tuple[TierInfo, ...]:
        """Host and device memory."""
        return tuple(TierInfo(**asdict(tier)) for tier in self.residency.stats())

    def loads(self) -> LoadTotals:
        """All loads so far."""
        return LoadTotals(**asdict(self.residency.loads))

    def introduce(self, header: Header) -> None:
        """Know the text side of a version that has no name yet."""
        self._texts[header.digest] = self.base_text.for_variant(header.text)

    def models(self) -> list[ModelInfo]:
        """See EngineClient.models."""
        states = self.residency.snapshot()
        return [self.base] + [
            self._model(version, states) for version in self.registry.versions() if version.active
        ]

    def variants(self) -> list[VariantInfo]:
        """See EngineClient.variants."""
        states = self.residency.snapshot()
        return [self._info(version, states) for version in self.registry.versions()]

    def now(self, version: Version) -> VariantInfo:
        """A version as it stands after a change."""
        known = [v for v in self.registry.versions() if v.name == version.name]
        current = next((v for v in known if v.digest == version.digest), version)
        return self._info(current, self.residency.snapshot())

    def forget(self, digest: str) -> None:
        """No name has this digest any more."""
        self._texts.pop(digest, None)

    def _info(self, version: Version, states: Mapping[str, ResidencyInfo]) -> VariantInfo:
        memory = states.get(version.digest, ResidencyInfo())
        return VariantInfo(
            name=version.name,
            digest=version.digest,
            codec=version.codec,
            bytes=version.bytes,
            ratio=version.ratio,
            state="failed" if version.error else memory.state,
            active=version.active,
            pinned=memory.pinned,
            references=self.open_requests.of(version.digest),
            resident_bytes=memory.resident_bytes,
            last_used=memory.last_used,
            load_ms=memory.load_ms,
            error=version.error or memory.error,
            coverage=_coverage(version),
            timings=_timings(memory),
            canary_percent=version.canary_percent,
            signed_by=version.signed_by,
        )

    def _model(self, version: Version, states: Mapping[str, ResidencyInfo]) -> ModelInfo:
        memory = states.get(version.digest, ResidencyInfo())
        return ModelInfo(
            id=version.name,
            parent=self.base.id,
            digest=version.digest,
            codec=version.codec,
            bytes=version.bytes,
            state="failed" if version.error else memory.state,
            created=version.created,
            max_model_len=self.base.max_model_len,
        )


def _timings(memory: ResidencyInfo) -> LoadTimes | None:
    spent = memory.timings
    return None if spent is None else LoadTimes(spent.read, spent.verify, spent.stage)


def _coverage(version: Version) -> Mapping[str, Any]:
    """How much of the base it changes, as counted when the file was verified."""
    counted = None if version.header is None else version.header.coverage
    return {} if counted is None else asdict(counted)


def names_of(registry: Registry, digest: str) -> list[str]:
    """The names that have a version of this digest."""
    return [version.name for version in registry.versions() if version.digest == digest]
