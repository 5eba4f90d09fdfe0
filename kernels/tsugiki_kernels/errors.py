"""Errors of the kernels. They import nothing, so that every layer may catch them.

KernelError
  + BackendUnavailable    this machine or build cannot offer the backend that was asked for
    + CompileFailed       a compiler is there, but it rejected our sources
  + BadArgument           a tensor of the wrong dtype, shape, stride or device
"""


class KernelError(Exception):
    """Base of every error that the kernels raise on purpose."""


class BackendUnavailable(KernelError):
    """The message names the backend, what is missing, and what to do."""


class CompileFailed(BackendUnavailable):
    """The compiler's own words are in the message."""


class BadArgument(KernelError, ValueError):
    """The message names the argument, what was found and what was expected."""
