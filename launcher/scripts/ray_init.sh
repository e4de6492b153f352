#!/bin/sh
# ray_init.sh leader|worker: the pod script of a LeaderWorkerSet group. A script and not a link, because
# `bash ray_init.sh ...` has to work as well. The program lies beside it, or on PATH.
here=$(dirname -- "$(readlink -f -- "$0")")
for mobula in "$here/mobula" "$here/../bin/mobula" "$(command -v mobula)" /opt/mobula/bin/mobula; do
  if [ -n "$mobula" ] && [ -x "$mobula" ]; then
    exec "$mobula" ray_init.sh "$@"
  fi
done
echo "ray_init.sh: there is no mobula beside this script ($here) nor on PATH" >&2
exit 127
