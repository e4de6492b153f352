#!/bin/bash
# Runs a command in a network namespace of its own with only a loopback interface, so that tests use fixed ports such
# as 8000 whatever else runs on this machine:  tests/e2e/in_netns.sh COMMAND [ARG...]
# As root plainly; else in a user namespace, where the command sees itself as root.
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(--map-root-user)
exec unshare --net "${as_root[@]}" -- bash -c 'ip link set lo up && exec "$@"' in_netns "$@"
