#!/bin/sh
# Writes a minimal root filesystem of this machine's own distribution as a tar, for `docker import`.
# Packages come from where this machine's apt gets them: same mirror, same proxy, same credentials.
#
# usage: build_base.sh SUITE PACKAGES OUTPUT [auto|mmdebstrap|debootstrap]
#   PACKAGES  comma separated
#   OUTPUT    the tar; it appears under this name only when it is complete
set -eu
suite=$1 packages=$2 output=$3 tool=${4:-auto}

work=$(mktemp -d "${TMPDIR:-/var/tmp}/vllm-fleet-base.XXXXXX")
trap 'rm -rf "$work" "$output.part"' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# Only the distribution's own repositories: a third party's that happens to use the same suite name has no part in
# the image. apt-get indextargets is apt's own reading of one-line and deb822 sources alike.
apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages' |
  awk -F'|' -v suite="$suite" '
    ($1 == "Debian" || $1 == "Ubuntu") && index($3, suite) == 1 && $3 !~ /backports/ && !seen[$0]++ {
      print "deb " $2 " " $3 " " $4 }' >"$work/sources.list"
if ! [ -s "$work/sources.list" ]; then
  echo "apt on this machine knows no Debian or Ubuntu repository for suite '$suite': run apt-get update, or set the suite to this machine's own." >&2
  exit 1
fi
echo "suite $suite from:"
cat "$work/sources.list"

if [ "$tool" = auto ]; then
  if command -v mmdebstrap >/dev/null; then tool=mmdebstrap; else tool=debootstrap; fi
fi

clean() {  # what a container never reads, and what belongs to this machine alone
  rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/* "$1"/usr/share/info/* \
    "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/*.deb "$1"/var/log/*.log \
    "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/apt/auth.conf "$1"/etc/apt/auth.conf.d/*
}

case $tool in
mmdebstrap)
  # mmdebstrap starts from a clean apt configuration: proxies and date checks have to be handed over.
  apt-config dump --format '%F "%v";%n' Acquire::http Acquire::https Acquire::Check-Valid-Until Acquire::Check-Date |
    grep -v '""' >"$work/apt.conf" || true
  cat >"$work/clean.sh" <<'HOOK'
#!/bin/sh
set -eu
rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/* "$1"/usr/share/info/* "$1"/var/log/*.log \
  "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/apt/auth.conf "$1"/etc/apt/auth.conf.d/*
HOOK
  chmod 755 "$work/clean.sh"
  set -- --variant=minbase --format=tar --include="$packages" --aptopt="$work/apt.conf" \
    --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Retries "3"' \
    --aptopt='Acquire::Languages "none"' --customize-hook="$work/clean.sh"
  if [ -s /etc/apt/auth.conf ] || ls /etc/apt/auth.conf.d/* >/dev/null 2>&1; then
    set -- "$@" --setup-hook='mkdir -p "$1/etc/apt" && cp -a /etc/apt/auth.conf* "$1/etc/apt/"'
  fi
  mmdebstrap "$@" "$suite" "$output.part" "$work/sources.list" </dev/null
  ;;
debootstrap)
  mirror=$(awk -v suite="$suite" '$3 == suite { print $2; exit }' "$work/sources.list")
  debootstrap --variant=minbase --include="$packages" "$suite" "$work/root" "$mirror"
  cp "$work/sources.list" "$work/root/etc/apt/sources.list"
  clean "$work/root"
  tar -C "$work/root" --numeric-owner --one-file-system -cf "$output.part" .
  ;;
*)
  echo "tool '$tool' is not one of auto, mmdebstrap, debootstrap." >&2
  exit 1
  ;;
esac
mv "$output.part" "$output"
echo "base filesystem: $(du -m "$output" | cut -f1) MB"
