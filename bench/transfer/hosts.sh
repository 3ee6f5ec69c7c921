#!/bin/sh
# Runs `transfer server` on one of two simulated hosts and `transfer client ARGUMENT...` on the other one
# (tests/support/hosts.sh).
#
# Exits with the status of the client. Exits with 77 if this kernel's rxe cannot be used in a
# network namespace.
#
# Needs root, in a virtual machine:
#     cargo xtask vm --kernel 7.3 -- sh bench/transfer/hosts.sh target/release/transfer --move 1024
# Usage: hosts.sh TRANSFER [ARGUMENT...]

set -e
transfer=$1
shift
PATH=$PATH:/usr/sbin:/sbin
. "$(dirname "$0")/../../tests/support/hosts.sh"

server=
said=

clean() {
	# The server may have ended already, because it ends after one client. So an error of kill is
	# ignored.
	[ -z "$server" ] || kill $server 2>/dev/null || true
	[ -z "$said" ] || rm -f "$said"
	remove_hosts
}
clean
trap clean EXIT

add_hosts
said=$(mktemp)
ip netns exec right "$transfer" server 10.77.0.2:18515 --clients 1 >"$said" &
server=$!
until grep -q listening "$said"; do
	kill -0 $server 2>/dev/null || exit 1
	sleep 0.1
done
ip netns exec left "$transfer" client 10.77.0.2 "$@"
wait $server
server=
