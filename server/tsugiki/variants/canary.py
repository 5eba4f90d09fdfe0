"""Which users a canary version answers.

Owns the draw: a pure function of name, version, user and percentage, so that every server and every
restart agrees. Does not know records.
"""

import hashlib


def drawn(name: str, digest: str, user: str, percent: float) -> bool:
    """Whether this user is among the `percent` of users that the canary answers.

    The first 64 bits of sha256(name NUL digest NUL user) are the user's place. Users who are drawn
    at some percentage are drawn at every higher one. Another digest draws other users, so that
    nobody is everybody's canary.
    """
    text = "\0".join((name, digest, user)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") < percent / 100 * 2**64
