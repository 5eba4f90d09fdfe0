"""Container health: exit 0 when /health answers 200 on the port that the server was given."""

import os
import sys
import urllib.error
import urllib.request


def main() -> int:
    """Entry point."""
    url = f"http://127.0.0.1:{os.environ.get('TSUGIKI_PORT', '8000')}/health"
    try:
        with urllib.request.urlopen(url, timeout=4) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, TimeoutError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
