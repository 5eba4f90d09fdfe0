"""One file with the machine code of every architecture, as drivers take it (nvFatbin, CUDA 13).

Owns: the calls into NVIDIA's library. Knows nothing of sources.
"""

import ctypes
from collections.abc import Mapping

from tsugiki_kernels.errors import BackendUnavailable


def pack(cubins: Mapping[str, bytes], ptx: Mapping[str, bytes]) -> bytes:
    """A fatbin of cubins by "sm_90" and of PTX by "compute_120".

    Raises:
        BackendUnavailable: the library is not installed, or it refuses what it is given.
    """
    library = _library()
    handle = ctypes.c_void_p()
    options = (ctypes.c_char_p * 1)(b"-64")
    _call(library, "nvFatbinCreate", ctypes.byref(handle), options, ctypes.c_size_t(len(options)))
    try:
        for name, code in cubins.items():
            _call(library, "nvFatbinAddCubin", handle, code, _size(code), _number(name), b"tsugiki")
        for name, code in ptx.items():
            text = code.rstrip(b"\0") + b"\0"
            arguments = (handle, text, _size(text), _number(name), b"tsugiki", None)
            _call(library, "nvFatbinAddPTX", *arguments)
        size = ctypes.c_size_t()
        _call(library, "nvFatbinSize", handle, ctypes.byref(size))
        packed = ctypes.create_string_buffer(size.value)
        _call(library, "nvFatbinGet", handle, packed)
        return packed.raw
    finally:
        library.nvFatbinDestroy(ctypes.byref(handle))


def _library() -> ctypes.CDLL:
    try:
        from cuda import pathfinder

        found = pathfinder.load_nvidia_dynamic_lib("nvfatbin")
    except (ImportError, RuntimeError) as error:
        raise BackendUnavailable(
            f"building CUDA kernels ahead of time needs nvFatbin: pip install 'tsugiki[cuda]' "
            f"({error})"
        ) from error
    return ctypes.CDLL(found.abs_path)


def _size(code: bytes) -> ctypes.c_size_t:
    return ctypes.c_size_t(len(code))


def _number(architecture: str) -> bytes:
    """ "sm_90" -> "90"."""
    return architecture.partition("_")[2].encode()


def _call(library: ctypes.CDLL, name: str, *arguments: object) -> None:
    status = getattr(library, name)(*arguments)
    if status:
        library.nvFatbinGetErrorString.restype = ctypes.c_char_p
        message = library.nvFatbinGetErrorString(status).decode()
        raise BackendUnavailable(f"{name}: {message}")
