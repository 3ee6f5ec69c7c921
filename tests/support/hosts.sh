# Simulates two hosts, left and right, for a script that sources this file. Each host is a network namespace with an rxe
# device, rxe_left or rxe_right. A veth pair connects the namespaces. The address of left is 10.77.0.1, and that of right
# is 10.77.0.2. The script needs root, in a virtual machine.

# Removes the hosts. A run that was stopped may have left some of them, so missing ones are no error.
remove_hosts() {
	for side in left right; do
		rdma link delete rxe_$side 2>/dev/null || true
		ip netns delete $side 2>/dev/null || true
	done
}

# Adds the hosts, and waits until they are ready. Exits with 77 if this kernel's rxe cannot be used in a network
# namespace.
add_hosts() {
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

	# RoCE uses UDP port 4791, which is 12B7 in hexadecimal. The rxe of older kernels listens on this port only in
	# the initial namespace.
	if ! ip netns exec right grep -qi ':12b7 ' /proc/net/udp; then
		echo "hosts.sh: Linux $(uname -r): rxe does not listen in the namespace of its interface" >&2
		exit 77
	fi

	tries=0
	until is_ready left 1 && is_ready right 2; do
		tries=$((tries + 1))
		[ $tries -le 100 ] || break
		sleep 0.1
	done
}

# Returns whether the namespace $1 is ready. $2 is the last number of the address. The interface needs some time to come
# up, and the GID of the rxe device needs some time to appear.
is_ready() {
	[ "$(ip netns exec $1 cat /sys/class/net/veth_$1/operstate)" = up ] &&
		grep -qs "0000:0000:0000:0000:0000:ffff:0a4d:000$2" /sys/class/infiniband/rxe_$1/ports/1/gids/*
}
