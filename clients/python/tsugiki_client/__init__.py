"""A client for tsugiki servers: `Client` and `AsyncClient`, alike but for await.

with Client("http://127.0.0.1:8000") as client:
    print(client.chat("my-variant", [{"role": "user", "content": "Hello"}]).text)
"""

from tsugiki_client.async_client import AsyncClient
from tsugiki_client.client import Client
from tsugiki_client.errors import (
    AuthenticationFailed,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    InvalidVariant,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    ServerError,
    StorageFull,
    TsugikiClientError,
    Unavailable,
)
from tsugiki_client.results import HistoryEntry, Model, Reply, Variant, VariantEvent

__all__ = [
    "AsyncClient",
    "AuthenticationFailed",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "HistoryEntry",
    "InvalidRequest",
    "InvalidVariant",
    "Model",
    "NotFound",
    "Overloaded",
    "PayloadTooLarge",
    "PermissionDenied",
    "Reply",
    "ServerError",
    "StorageFull",
    "TsugikiClientError",
    "Unavailable",
    "Variant",
    "VariantEvent",
]
