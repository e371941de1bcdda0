#!/usr/bin/env bash
# Whether the model answers: 0 when /health says so.
set -euo pipefail
token=${STREAMPILOT_TOKEN:-}
exec curl --fail --silent --show-error --max-time 8 ${token:+-H "Authorization: Bearer ${token%%,*}"} \
    --output /dev/null "http://127.0.0.1:${STREAMPILOT_PORT:-6006}/health"
