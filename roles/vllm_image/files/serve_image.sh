#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Serves an image to the other nodes as a transient unit, until stopped or until its time is over.
#
# usage: serve_image.sh archive|registry ADDRESS PORT UNIT CACHE SECONDS IDLE ARCHIVE PYTHON [PEER ...]
#   SECONDS  after which it ends in any case; IDLE, after which it ends when no client is connected
#   ADDRESS  under which the other nodes reach this host; the certificate is made out to it, and it is listened at
#            where it is this host's own
#   CACHE    folder with image_transfer.py and the saved image; what is done in it is done as its owner, as whom the
#            service runs: root runs nothing out of a user's folder
#   PEER     addresses or networks of the nodes that get the image; all others are turned away
# Prints the address to connect to from this host.
set -eu
how=$1 address=$2 port=$3 unit=$4 cache=$5 seconds=$6 idle=$7 archive=$8 python=$9
shift 9
run=/run/vllm-fleet/$unit storage=$cache/registry-$unit programs=/var/lib/vllm-fleet/programs
user=$(stat -c %u "$cache") group=$(stat -c %g "$cache")
as_owner() {
  if [ "$user" = 0 ]; then "$@"; else setpriv --reuid "$user" --regid "$group" --clear-groups "$@"; fi
}

if ! [ -d /run/systemd/system ]; then
  echo "this host has no systemd to run a transient unit under: set vllm_image_registry to a registry of yours, or vllm_image_build_host to localhost, from where the image is sent over SSH." >&2
  exit 1
fi
systemctl stop "$unit.service" 2>/dev/null || true
systemctl reset-failed "$unit.service" 2>/dev/null || true
rm -rf "$run"
# Of an older version, and root's: it stays beside.
as_owner rm -rf "$storage" 2>/dev/null || as_owner mv "$storage" "$storage.old.$$"
mkdir -p "${run%/*}"
chmod 0755 "${run%/*}" # the service's user comes through, whatever root's umask is
mkdir -m 0711 "$run"

case $address in
*:* | *[0-9].[0-9]*.[0-9]*.[0-9]*) name="IP:$address" ;;
*) name="DNS:$address" ;;
esac
# An own address alone, and not the loopback that a host's own name may stand for.
bind=$("$python" -I -c '
import ipaddress, socket, sys
own = set()
for family, _, _, _, place in socket.getaddrinfo(sys.argv[1], 0, type=socket.SOCK_STREAM):
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(place)
        except OSError:
            continue
        if not ipaddress.ip_address(place[0].partition("%")[0]).is_loopback:
            own.add(place[0])
# A name with several own addresses: nodes may know it by another one.
if len(own) == 1:
    print(*own)
' "$address" 2>/dev/null || true)
case $bind in *:*) endpoint="[$bind]:$port" ;; *) endpoint="$bind:$port" ;; esac
set -- "$@" localhost ${bind:+"$bind"}
allow=
for peer; do allow="$allow --property IPAddressAllow=$peer"; done

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
chown "$user" "$run/pem"

case $how in
archive)
  # Under a name that goes with this unit; the next run saves anew before it comes here.
  as_owner mv "$cache/$archive" "$cache/$archive.served"
  set -- "$python" "$cache/image_transfer.py" serve "$cache/$archive.served" "$port" "$run/pem" --bind "$bind"
  ;;
registry)
  # The package would start a registry open to everyone as soon as it is installed, so it is only unpacked.
  program=$(command -v docker-registry || echo "$programs/docker-registry/usr/bin/docker-registry")
  if ! [ -x "$program" ]; then
    mkdir -p -m 0755 "$programs"
    work=$(mktemp -d "$programs/docker-registry.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    apt-get download docker-registry >apt.log 2>&1 || { apt-get update && apt-get download docker-registry; } >apt.log 2>&1 || {
      cat apt.log >&2
      echo "the package docker-registry cannot be had here: set vllm_image_registry to a registry of yours, or vllm_image_distribution to archive." >&2
      exit 1
    }
    dpkg-deb --extract ./*.deb .
    rm -rf ./*.deb "$programs/docker-registry"
    chmod -R go=rX "$work"
    mv "$work" "$programs/docker-registry"
    trap - EXIT
  fi
  as_owner mkdir -p "$storage"
  cat >"$run/registry.yml" <<CONFIG
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: "$storage"}
http:
  addr: "$endpoint"
  tls: {certificate: "$run/pem", key: "$run/pem", clientcas: ["$run/pem"]}
CONFIG
  chmod 0644 "$run/registry.yml"
  set -- "$program" serve "$run/registry.yml"
  ;;
*)
  echo "'$how' is neither archive nor registry." >&2
  exit 1
  ;;
esac
# shellcheck disable=SC2086  the properties are words
systemd-run --quiet --collect --unit "$unit" --property "RuntimeMaxSec=$seconds" --property NoNewPrivileges=yes \
  --property "User=$user" --property "Group=$group" --property IPAddressDeny=any $allow \
  --property "ExecStopPost=-/bin/rm -rf $storage $cache/$archive.served" \
  --property "ExecStopPost=+-/bin/rm -rf $run" -- \
  "$python" "$cache/image_transfer.py" guard "$port" "$idle" "$@"
echo "${bind:-127.0.0.1}"
