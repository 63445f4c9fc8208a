#!/bin/sh
# Installs Trefoil from this tarball on a host with systemd, or removes it again.
#
#   ./install.sh             install or upgrade; edited settings are kept
#   ./install.sh --remove    stop it and take everything out of the kernel; settings stay
#   ./install.sh --purge     the same, and remove settings and state as well
#
# DESTDIR=DIR puts the files below DIR and starts nothing.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
dest=${DESTDIR:-}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

[ -n "$dest" ] || [ "$(id -u)" = 0 ] || fail "run as root, or set DESTDIR"

files() {
    (cd "$here/root" && find . -type f | sed 's|^\./||' | sort)
}

install_all() {
    files | while read -r file; do
        mode=644
        [ -x "$here/root/$file" ] && mode=755
        case $file in
            etc/*)
                if [ -e "$dest/$file" ]; then
                    cmp -s "$here/root/$file" "$dest/$file" && continue
                    echo "keeping /$file; the new one is beside it as /$file.new"
                    file_to=$file.new
                else
                    file_to=$file
                fi
                ;;
            *) file_to=$file ;;
        esac
        # To a name of its own first: a program that runs cannot be written to.
        mkdir -p "$dest/$(dirname "$file")"
        install -m "$mode" "$here/root/$file" "$dest/$file_to.next"
        mv -f "$dest/$file_to.next" "$dest/$file_to"
    done
    [ -z "$dest" ] || return 0
    [ -d /run/systemd/system ] || fail "the files are there; start \`trefoil run\` by your own means, systemd does not run here"
    journalctl --update-catalog
    # Both read what is new of the unit.
    systemctl enable trefoil.service
    systemctl restart trefoil.service
    systemctl --no-pager status trefoil.service
}

remove_all() {
    # Not when it was removed before and is only purged now.
    is_known=
    if [ -z "$dest" ] && [ -e /usr/lib/systemd/system/trefoil.service ]; then
        is_known=1
        systemctl disable --now trefoil.service 2>/dev/null || true
        if [ -x /usr/bin/trefoil ]; then
            /usr/bin/trefoil detach || rm -rf /sys/fs/bpf/trefoil
        fi
        rm -rf /run/trefoil
    fi
    files | while read -r file; do
        case $file in
            etc/*) [ "$1" = purge ] && rm -f "$dest/$file" "$dest/$file.new" ;;
            *) rm -f "$dest/$file" ;;
        esac
        (cd "$dest/" && rmdir -p --ignore-fail-on-non-empty "$(dirname "$file")") 2>/dev/null || true
    done
    [ "$1" = purge ] && rm -rf "$dest/var/lib/trefoil" "$dest/var/log/trefoil"
    [ -z "$is_known" ] || {
        systemctl daemon-reload
        journalctl --update-catalog
    }
}

case "${1:-}" in
    "") install_all ;;
    --remove) remove_all remove ;;
    --purge) remove_all purge ;;
    *) fail "unknown argument $1; there are --remove and --purge" ;;
esac
