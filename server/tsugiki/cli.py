"""The `tsugiki` command: a subcommand is a function in tsugiki.commands, imported when it is called."""


def main() -> int:
    """Entry point."""
    return 0
