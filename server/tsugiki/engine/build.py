"""Composes an engine from the settings: base, kernels, registry, residency, runner, thread.

Owns: the order of construction. With sizing.py the only place of the engine that knows ServeConfig.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from tsugiki.codecs import artifact
from tsugiki.codecs.base import ResidentVariant
from tsugiki.codecs.masks import MaskCache, drawn_by
from tsugiki.codecs.metadata import Header
from tsugiki.codecs.staging import Destination, stage_variant
from tsugiki.config import ServeConfig
from tsugiki.engine.admission import Admission, FinishRate
from tsugiki.engine.client import Machine
from tsugiki.engine.core import EngineCore
from tsugiki.engine.kv_blocks import BlockManager
from tsugiki.engine.local import LocalEngine
from tsugiki.engine.model_runner import ModelRunner, TorchModelRunner
from tsugiki.engine.open_requests import OpenRequests
from tsugiki.engine.prompt_lookup import PromptLookup
from tsugiki.engine.schedule import Limits
from tsugiki.engine.scheduler import Scheduler
from tsugiki.engine.sizing import Sizes, choose_sizes
from tsugiki.engine.thread import Commands, EngineThread, wake
from tsugiki.engine.variant_events import VariantEvents
from tsugiki.engine.variant_info import ModelInfo
from tsugiki.engine.variant_memory import VariantMemory
from tsugiki.engine.variant_service import ConvertAdapter, VariantService
from tsugiki.engine.variant_view import VariantView, names_of
from tsugiki.errors import ConfigError
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.device import choose_device
from tsugiki.model.fingerprint import derived_from
from tsugiki.model.kv_cache import allocate_kv_cache
from tsugiki.model.loader import BaseModel, load_base
from tsugiki.text.huggingface import HfTextSide, load_text_side
from tsugiki.variants.arena import Arena, page_rounded
from tsugiki.variants.directory_lock import DirectoryLock
from tsugiki.variants.loader import BackgroundLoader, Load, load_files
from tsugiki.variants.pace import Pace
from tsugiki.variants.registry import Registry
from tsugiki.variants.residency import Residency
from tsugiki.variants.store import claim
from tsugiki.variants.verification import Verify, verify_against
from tsugiki.variants.version import BaseIdentity
from tsugiki_kernels.errors import BackendUnavailable
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.select import Choice, choose
from tsugiki_kernels.variant_room import ReservesRoom, VariantRoom

# Of --variant-memory, for masks that no variant uses any more: another of their seed may come.
IDLE_SHARE = 0.125

ChooseKernels = Callable[
    [str, str, Path], Choice
]  # --kernels, device, where compiled ones are kept


def torch_runner(base: BaseModel, sizes: Sizes) -> ModelRunner:
    """The base's decoder over a KV cache of these sizes."""
    cache = allocate_kv_cache(
        base.architecture, sizes.num_blocks, sizes.block_size, base.dtype, base.device
    )
    return TorchModelRunner(base.decoder, cache)


def create_engine(
    config: ServeConfig,
    *,
    convert_adapter: ConvertAdapter | None = None,
    make_runner: Callable[[BaseModel, Sizes], ModelRunner] = torch_runner,
    choose_kernels: ChooseKernels = choose,
) -> LocalEngine:
    """The engine of these settings, everything loaded, not yet started.

    `make_runner` computes its steps (benchmarks put one without arithmetic here), with what
    `choose_kernels` gives (tests put kernels of another device's here).

    Raises:
        UnsupportedModel: the base cannot be served. ConfigError: settings that do not fit it.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    directory = claim(config.variants)  # first: a base takes seconds to load
    device = choose_device(config.device).type
    kernels = _kernels(config, device, choose_kernels)
    base = _base(config, device, kernels.kernels)
    text = load_text_side(base.path)
    sizes = choose_sizes(config, base)
    base_info = _base_info(config, base, sizes.max_model_len)
    registry = _registry(config, directory, base, text)
    events = VariantEvents(partial(names_of, registry))
    commands: Commands = SimpleQueue()
    scheduler = _scheduler(config, sizes)
    pace = Pace(lambda: bool(scheduler.running), lambda: core.counters.last_step_seconds)
    room = _room(kernels.kernels, config.variant_memory)
    load = _load(base, registry, pace)
    loader = BackgroundLoader(load, on_finished=lambda: commands.put(wake))
    residency = _residency(config, sizes, loader, events)
    core = EngineCore(scheduler, make_runner(base, sizes), residency, room=room)
    thread = EngineThread(core, commands)
    view = VariantView(base_info, text, registry, residency, OpenRequests())
    service = VariantService(
        view, VariantMemory(thread, view.open_requests), events, convert_adapter
    )
    return LocalEngine(
        core,
        thread,
        service,
        _admission(config, sizes),
        loader,
        _machine(base, kernels),
        watch_seconds=config.watch_seconds,
    )


def _kernels(config: ServeConfig, device: str, choose_kernels: ChooseKernels) -> Choice:
    try:
        return choose_kernels(config.kernels, device, config.cache_dir / "kernels")
    except BackendUnavailable as error:
        raise ConfigError(f"--kernels {config.kernels}: {error}") from error


def _base(config: ServeConfig, device: str, kernels: KernelBackend) -> BaseModel:
    path = resolve_base(config.base, config.cache_dir)
    return load_base(path, device, config.dtype, kernels, config.cache_dir)


def _registry(
    config: ServeConfig, directory: DirectoryLock | None, base: BaseModel, text: HfTextSide
) -> Registry:
    identity = _identity(config, base)
    verify = _verify_text_too(verify_against(identity), text)
    return Registry(
        config.variants,
        identity,
        verify=verify,
        reserved=[config.served_model_name or base.id],
        trusted_keys=config.trusted_keys,
        directory=directory,
    )


def _identity(config: ServeConfig, base: BaseModel) -> BaseIdentity:
    original = derived_from(base.config) if config.accept_derived else None
    if config.accept_derived and original is None:
        raise ConfigError(
            f"--accept-derived: config.json of {base.path} names no base that it was derived from "
            "(tsugiki.derived_from); leave the option out"
        )
    return BaseIdentity(base.fingerprint, base.layout, base.architecture.vocab_size, original)


def _machine(base: BaseModel, choice: Choice) -> Machine:
    dtype = str(base.dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    return Machine(choice.kernels.name, str(base.device), dtype, threads, choice.fallback)


def _base_info(config: ServeConfig, base: BaseModel, max_model_len: int) -> ModelInfo:
    return ModelInfo(
        id=config.served_model_name or base.id,
        parent=None,
        digest=base.fingerprint,
        codec=None,
        bytes=base.nbytes,
        state="ready",
        created=int((base.path / "config.json").stat().st_mtime),
        max_model_len=max_model_len,
    )


def _verify_text_too(verify: Verify, text: HfTextSide) -> Verify:
    def check(path: Path) -> Header:
        header = verify(path)
        text.for_variant(header.text)
        return header

    return check


def _load(base: BaseModel, registry: Registry, pace: Pace) -> Load:
    """File -> verified content -> resident form, each in an extent of its own.

    One loader thread runs it: a second one would only compete for the interpreter.
    """
    arena, kernels = Arena(), base.decoder.kernels

    def allocate(nbytes: int) -> Tensor:
        pace()
        return arena.allocate(nbytes)

    masks = MaskCache(drawn_by(kernels, base.device))
    place = Destination(
        base.layout,
        base.vector,
        base.dtype,
        kernels,
        masks,
        allocate,
        pace,
        base.index_of,
        base.factors_of,
    )

    def stage(content: artifact.Artifact) -> ResidentVariant:
        variant = stage_variant(content, place)
        return replace(variant, nbytes=page_rounded(variant.nbytes))

    return load_files(registry.path, stage, allocate, pace)


def _residency(
    config: ServeConfig, sizes: Sizes, loader: BackgroundLoader, events: VariantEvents
) -> Residency:
    return Residency(
        loader,
        config.variant_memory,
        host_bytes=sizes.host_variant_bytes,
        idle_bytes=int(IDLE_SHARE * config.variant_memory),
        on_transition=events.transition,
    )


def _room(kernels: KernelBackend, nbytes: int) -> VariantRoom | None:
    """One buffer for all variants, where the backend divides its memory itself."""
    try:
        return kernels.reserve(nbytes) if isinstance(kernels, ReservesRoom) else None
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"--variant-memory {nbytes} does not fit on the GPU beside the base; lower it ({error})"
        ) from error


def _admission(config: ServeConfig, sizes: Sizes) -> Admission:
    most = config.max_num_seqs + config.max_queued_requests
    return Admission(sizes.max_model_len, most, FinishRate())


def _scheduler(config: ServeConfig, sizes: Sizes) -> Scheduler:
    limits = Limits(
        config.max_num_seqs,
        config.max_num_batched_tokens,
        sizes.max_model_len,
        prefix_caching=config.prefix_caching,
        step_time_target=config.step_time_target_ms / 1000 or None,
    )
    lookup = PromptLookup() if config.prompt_lookup else None
    return Scheduler(BlockManager(sizes.num_blocks, sizes.block_size), limits, lookup)
