#!/usr/bin/env bash
# Install Docker Engine, Compose, buildx and mmdebstrap on Debian; needs root. Leaves apt's own configuration alone.
set -euo pipefail

die() { echo "engine: $*" >&2; exit 2; }

[ "$(id -u)" = 0 ] || die "installing an engine needs root: found UID $(id -u); start a Docker engine that you may use"
release=$(. /etc/os-release && echo "${ID:-} ${VERSION_CODENAME:-}")
case $release in
  "debian bookworm" | "debian trixie") ;;
  *) die "an engine can be installed on Debian bookworm or trixie: found '$release'; install Docker Engine and its Compose and buildx plug-ins" ;;
esac

export DEBIAN_FRONTEND=noninteractive
configuration=$(mktemp -d)
trap 'rm -rf "$configuration"' EXIT
chmod 755 "$configuration"
apt=(apt-get -q -o "Dir::Etc::SourceParts=$configuration" -o "Dir::Etc::PreferencesParts=$configuration/pins"
  -o APT::Get::List-Cleanup=0 -o DPkg::Lock::Timeout=300)
cp -a /etc/apt/sources.list.d/. "$configuration"
mkdir -p "$configuration/pins"
cp -a /etc/apt/preferences.d/. "$configuration/pins"
if [ "$release" = "debian bookworm" ]; then
  # bookworm's own engine lacks the modern Dockerfile and compose file. From trixie come these four alone; they
  # run on bookworm's libc, containerd and runc.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Release: bookworm' | sed -n 1p)
  cat >"$configuration/trixie.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
  cat >"$configuration/pins/trixie" <<PINS
Package: docker.io docker-cli docker-compose docker-buildx
Pin: release n=trixie
Pin-Priority: 990

Package: *
Pin: release n=trixie
Pin-Priority: 100
PINS
fi
"${apt[@]}" update >/dev/null
"${apt[@]}" install -y --no-install-recommends \
  docker.io docker-cli docker-compose docker-buildx iptables mmdebstrap >/dev/null
