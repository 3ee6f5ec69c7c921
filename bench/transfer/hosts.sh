#!/bin/sh
# Simulates two hosts with two network namespaces. A veth pair connects the namespaces, and each namespace has an rxe
# device. Runs `transfer server` in one namespace and `transfer client ARGUMENT...` in the other namespace.
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

server=
said=

clean() {
	# The server may have ended already, because it ends after one client. So an error of kill is
	# ignored.
	[ -z "$server" ] || kill $server 2>/dev/null || true
	[ -z "$said" ] || rm -f "$said"
	for side in left right; do
		rdma link delete rxe_$side 2>/dev/null || true
		ip netns delete $side 2>/dev/null || true
	done
}
clean
trap clean EXIT

ip netns add left
ip netns add right
ip link add veth_left netns left type veth peer name veth_right netns right
for side in left right; do
	[ $side = left ] && host=1 || host=2
	ip -n $side address add 10.77.0.$host/24 dev veth_$side
	ip -n $side link set lo up
	ip -n $side link set veth_$side up
	ip netns exec $side rdma link add rxe_$side type rxe netdev veth_$side
done

# RoCE uses UDP port 4791, which is 12B7 in hexadecimal. The rxe of older kernels listens on this port only in the
# initial namespace.
if ! ip netns exec right grep -qi ':12b7 ' /proc/net/udp; then
	echo "hosts.sh: Linux $(uname -r): rxe does not listen in the namespace of its interface" >&2
	exit 77
fi

# Returns whether the namespace $1 is ready. $2 is the last number of the address. The interface
# needs some time to come up, and the GID of the rxe device needs some time to appear.
ready() {
	[ "$(ip netns exec $1 cat /sys/class/net/veth_$1/operstate)" = up ] &&
		grep -qs "0000:0000:0000:0000:0000:ffff:0a4d:000$2" /sys/class/infiniband/rxe_$1/ports/1/gids/*
}
tries=0
until ready left 1 && ready right 2; do
	tries=$((tries + 1))
	[ $tries -le 100 ] || break
	sleep 0.1
done

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
