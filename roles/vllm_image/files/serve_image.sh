#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Serves an image to the other nodes as a transient unit, until stopped or until its time is over.
#
# usage: serve_image.sh archive|registry ADDRESS PORT UNIT CACHE SECONDS IDLE ARCHIVE PYTHON
#   SECONDS  after which it ends in any case; IDLE, after which it ends when no client is connected
#   ADDRESS  under which the other nodes reach this host; the certificate is made out to it
#   CACHE    folder with image_transfer.py, the saved image, and docker-registry when it is not installed
set -eu
how=$1 address=$2 port=$3 unit=$4 cache=$5 seconds=$6 idle=$7 archive=$8 python=$9
run=/run/vllm-fleet/$unit storage=$cache/registry-$unit

if ! [ -d /run/systemd/system ]; then
  echo "this host has no systemd to run a transient unit under: set vllm_image_registry to a registry of yours, or vllm_image_build_host to localhost, from where the image is sent over SSH." >&2
  exit 1
fi
systemctl stop "$unit.service" 2>/dev/null || true
systemctl reset-failed "$unit.service" 2>/dev/null || true
rm -rf "$run" "$storage"
mkdir -p "${run%/*}"
mkdir -m 0700 "$run"

case $address in
*:* | *[0-9].[0-9]*.[0-9]*.[0-9]*) name="IP:$address" ;;
*) name="DNS:$address" ;;
esac
cat >"$run/openssl.cnf" <<CONFIG
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = vllm-fleet $unit
[extensions]
subjectAltName = $name
basicConstraints = critical, CA:TRUE
keyUsage = critical, digitalSignature, keyCertSign
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
CONFIG
umask 077
openssl req -x509 -config "$run/openssl.cnf" -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
  -keyout "$run/key" -out "$run/certificate" 2>"$run/openssl.log" || { cat "$run/openssl.log" >&2; exit 1; }
cat "$run/key" "$run/certificate" >"$run/pem"

case $how in
archive)
  # Under a name that goes with this unit; the next run saves anew before it comes here.
  mv "$cache/$archive" "$cache/$archive.served"
  set -- "$python" "$cache/image_transfer.py" serve "$cache/$archive.served" "$port" "$run/pem"
  ;;
registry)
  # The package would start a registry open to everyone as soon as it is installed, so it is only unpacked.
  program=$(command -v docker-registry || echo "$cache/docker-registry/usr/bin/docker-registry")
  if ! [ -x "$program" ]; then
    work=$(mktemp -d "$cache/docker-registry.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    apt-get download docker-registry >apt.log 2>&1 || { apt-get update && apt-get download docker-registry; } >apt.log 2>&1 || {
      cat apt.log >&2
      echo "the package docker-registry cannot be had here: set vllm_image_registry to a registry of yours, or vllm_image_distribution to archive." >&2
      exit 1
    }
    dpkg-deb --extract ./*.deb .
    rm -rf ./*.deb "$cache/docker-registry"
    mv "$work" "$cache/docker-registry"
    trap - EXIT
  fi
  mkdir -p "$storage"
  cat >"$run/registry.yml" <<CONFIG
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: "$storage"}
http:
  addr: ":$port"
  tls: {certificate: "$run/pem", key: "$run/pem", clientcas: ["$run/pem"]}
CONFIG
  set -- "$program" serve "$run/registry.yml"
  ;;
*)
  echo "'$how' is neither archive nor registry." >&2
  exit 1
  ;;
esac
exec systemd-run --quiet --collect --unit "$unit" --property "RuntimeMaxSec=$seconds" --property NoNewPrivileges=yes \
  --property "ExecStopPost=-/bin/rm -rf $run $storage $cache/$archive.served" -- \
  "$python" "$cache/image_transfer.py" guard "$port" "$idle" "$@"
