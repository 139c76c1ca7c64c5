#!/usr/bin/env bash
# Make a stand-in for the CUDA base where no registry can be reached: base.sh TAG. Debian trixie from this machine's
# own mirror, with the user `ubuntu` at UID 1000 that Ubuntu 24.04 has. Its Python is 3.13, while all other tests run by
# the machine's own. It has no CUDA; cuda_base.Dockerfile adds this machine's.
set -euo pipefail

release=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Release: $release" | sed -n 1p)
# Downloads in the image trust what this machine trusts.
trusted=/etc/ssl/certs/ca-certificates.crt
[ ! -w /dev/shm ] || export TMPDIR=/dev/shm  # some thousand small files, synchronised one by one
mmdebstrap --quiet --variant=minbase --mode=root --include=ca-certificates \
  --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/man/*' \
  --customize-hook="cp $trusted \"\$1\"$trusted" \
  --customize-hook='chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash ubuntu' \
  trixie - "$mirror" |
  docker import --change "ENV SSL_CERT_FILE=$trusted" - "$1" >/dev/null
