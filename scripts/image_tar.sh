#!/usr/bin/env bash
# Write the image that .env names into one file, and say how another machine takes it: `make image-tar`.
# image_tar.sh [FILE]
set -euo pipefail
cd "$(dirname "$0")/.."

file=${1:-artifacts/triplet-kit.tar}
name=$(docker compose config | sed -n 's/^ *image: //p' | sed -n 1p)
case $name in
  sha256:*) # A name travels along where the image has one; the ID stays the same.
    name=$(docker image inspect --format "{{if .RepoTags}}{{index .RepoTags 0}}{{else}}$name{{end}}" "$name") ;;
esac
mkdir -p "$(dirname "$file")"
trap 'rm -f "$file.part"' EXIT
docker image save --output "$file.part" "$name" || { echo "image-tar: docker could not write $file" >&2; exit 2; }
mv "$file.part" "$file"
echo "image-tar: $name in $file, $(($(stat --format %s "$file") / 1000000)) MB; on the other machine, in a checkout:"
echo "  docker image load --input $(basename "$file")"
echo "  sed 's|^TRIPLET_IMAGE=.*|TRIPLET_IMAGE=$name|' .env.example >.env   # without GPUs: COMPOSE_FILE=compose.yaml there"
