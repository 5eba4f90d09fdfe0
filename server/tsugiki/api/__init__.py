"""HTTP only: routes, schemas, SSE, errors, keys. Never reaches torch."""
