"""Nobody is answered by a version that has not answered its own probe.

Owns: which version is asked when: an upload before it is kept, a known version before a name means
it, an operator's file before it replaces a version that answers, or before its first request. Lives
on the event loop. Does not know how a probe is replayed (probe.py) or what the calls that come here
change (variant_service.py, local.py).
"""

import asyncio
from functools import partial

from tsugiki.codecs.metadata import Header
from tsugiki.engine.probe import Probe, Probes
from tsugiki.engine.request import VariantRef
from tsugiki.engine.variant_view import VariantView
from tsugiki.variants.trial import Trial, TrialOf
from tsugiki.variants.version import Version


class ProbeGate:
    """Versions with their probes."""

    def __init__(self, view: VariantView) -> None:
        self.probes = Probes()
        self._view = view

    def proven(self, variant: VariantRef) -> bool:
        """Whether a version may answer at once; else `prove` it first.

        Raises:
            ProbeFailed: it was asked before. ModelNotFound: it was deleted.
        """
        if variant.digest is None or self.probes.passed(variant.digest):
            return True
        return self.probes.settled(variant.digest, self._probe(variant))

    async def prove(self, variant: VariantRef) -> None:
        """Have a version answer its probe, unless it has.

        Raises:
            ProbeFailed, Overloaded, Unavailable: see Probes.prove. ModelNotFound: it was deleted.
        """
        await self.probes.prove(variant, self._probe(variant))

    async def prove_again(self, version: Version) -> None:
        """The same, an earlier failure forgiven.

        Raises:
            ProbeFailed, Overloaded, Unavailable: see Probes.prove.
        """
        if version.header is not None:  # else it is unreadable, and so not served
            ref = VariantRef(version.name, version.digest)
            await self.probes.prove(ref, version.header.probe, again=True)

    def trials(self, tried: set[str]) -> TrialOf:
        """What the registry's worker thread calls, see Registry.put and rescan: a file answers its
        probe before it is kept, so that nothing on disk is to be undone when it fails. The digests
        that this brings into memory are added to `tried`."""
        loop = asyncio.get_running_loop()

        async def ask(name: str, header: Header) -> None:
            tried.add(header.digest)
            self._view.introduce(header)
            ref = VariantRef(name, header.digest)
            await self.probes.prove(ref, header.probe, again=True, log=False)

        def trial(name: str, header: Header) -> None:
            if header.probe is not None and not self.probes.passed(header.digest):
                asyncio.run_coroutine_threadsafe(ask(name, header), loop).result()

        def trial_of(name: str) -> Trial:
            return partial(trial, name)

        return trial_of

    def _probe(self, variant: VariantRef) -> Probe | None:
        header = self._view.registry.resolve(f"{variant.name}@{variant.digest}").header
        return None if header is None else header.probe
