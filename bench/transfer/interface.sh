#!/bin/sh
# Makes an interface with the address 10.78.0.1, and an rxe device rxe_if on this interface. Runs the command, and then
# removes the interface and the device.
# Needs root, in a virtual machine.
#
# On older kernels (6.1) rxe does not report its interface, so librdmacm finds no route over lo. So
# the benchmark needs another interface with an address.
#
# Usage: interface.sh COMMAND [ARGUMENT...]

set -e
PATH=$PATH:/usr/sbin:/sbin

clean() {
	rdma link delete rxe_if 2>/dev/null || true
	ip link delete veth_if 2>/dev/null || true
}
clean
trap clean EXIT

ip link add veth_if type veth peer name veth_if_peer
ip address add 10.78.0.1/24 dev veth_if
ip link set veth_if up
ip link set veth_if_peer up
rdma link add rxe_if type rxe netdev veth_if
tries=0
until grep -qs '0000:0000:0000:0000:0000:ffff:0a4e:0001' /sys/class/infiniband/rxe_if/ports/1/gids/*; do
	tries=$((tries + 1))
	[ $tries -le 300 ]
	sleep 0.1
done
"$@"
