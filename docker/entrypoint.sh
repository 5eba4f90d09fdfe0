#!/bin/sh
# Runs `tsugiki "$@"` as PID 1's child. A public bind needs keys: /run/secrets/tsugiki_keys (or the file
# named by TSUGIKI_API_KEY_FILE). Without keys the server refuses to start unless told --insecure.
set -eu
if [ "${1:-serve}" = "serve" ] && [ -z "${TSUGIKI_API_KEY_FILE:-}" ] && [ -r /run/secrets/tsugiki_keys ]; then
  export TSUGIKI_API_KEY_FILE=/run/secrets/tsugiki_keys
fi
exec tsugiki "$@"
