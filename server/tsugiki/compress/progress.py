"""How long work is shown: a bar on a terminal, one line per stage elsewhere; on standard error."""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")


class Progress:
    """Shows stages of a command; `quiet` shows nothing (tests, library use)."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()

    def stage(self, text: str) -> None:
        """Announce a stage that is not counted."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Say something while items are counted; a bar stays below it."""
        if self._terminal and not self._quiet:
            from tqdm import tqdm  # type: ignore[import-untyped]

            tqdm.write(text, file=sys.stderr)
        else:
            self.stage(text)

    def track(self, items: Iterable[Item], text: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items, counting them under `text`."""
        count = total if total is not None else len(items) if isinstance(items, Sized) else None
        if self._quiet:
            yield from items
        elif self._terminal:
            yield from self._bar(items, text, count)
        else:
            self.stage(f"{text} ({count})" if count is not None else text)
            yield from items

    def _bar(self, items: Iterable[Item], text: str, total: int | None) -> Iterator[Item]:
        from tqdm import tqdm

        yield from tqdm(items, desc=text, total=total, file=sys.stderr, leave=False)
