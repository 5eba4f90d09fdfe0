"""Which users a canary version answers.

Owns the draw: a pure function of name, version, user and percentage, so that every server and every
restart agrees. Does not know records.
"""

import hashlib


def drawn(name: str, digest: str, user: str, percent: float) -> bool:
    """Whether this user is among the `percent` of users that the canary answers.

    sha256(name NUL digest NUL user) is read as a number in [0, 1). Users who are drawn at some
    percentage are drawn at every higher one. Another digest draws other users, so that nobody is
    everybody's canary.
    """
    text = "\0".join((name, digest, user)).encode(errors="surrogatepass")
    place = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
    return place * 100 < percent
