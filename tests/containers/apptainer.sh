#!/usr/bin/env bash
# Apptainer where this machine has none; a link to this, called apptainer, is a program like the real one. Debian has it
# in sid alone, for a newer C library: so sid's own root is made beside the link, and entered with this machine's folders.
set -euo pipefail

root=$(dirname "$0")/sid
if [ ! -e "$root/usr/bin/apptainer" ]; then
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Release: $release" | sed -n 1p)
  # A mirror that was copied once has a sid whose time is over.
  mmdebstrap --quiet --variant=minbase --mode=root --include=apptainer,squashfuse \
    --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' sid "$root" "$mirror" >&2
  cp /etc/hosts /etc/resolv.conf "$root/etc"
  umask 022
  for each in /*/; do mkdir -p "$root$each"; done
fi
# In a namespace of users, as on a cluster, it needs no privilege that a container may lack. Building sets owners.
[ "${1:-}" = build ] || namespace=(--user --map-root-user)
# shellcheck disable=SC2016
exec unshare ${namespace[@]+"${namespace[@]}"} --mount bash -euc '
  root=$0 here=$PWD
  mount --rbind "$root" "$root"
  for each in /*/; do
    case $each in /bin/ | /boot/ | /etc/ | /lib*/ | /lost+found/ | /sbin/ | /usr/ | /var/) continue ;; esac
    mount --rbind "$each" "$root$each"
  done
  cd "$root"
  pivot_root . .
  umount --lazy .
  cd "$here"
  exec apptainer "$@"' "$root" "$@"
