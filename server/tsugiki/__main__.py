"""`python -m tsugiki` is the `tsugiki` command."""

from tsugiki.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
