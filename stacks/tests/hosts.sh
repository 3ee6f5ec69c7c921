#!/bin/sh
# Runs an MPI program on two simulated hosts. Each host is a network namespace with an rxe device. A veth pair connects
# the namespaces. Half of the ranks run on each host.
#
# mpirun runs in the first namespace. It starts the ranks of the second one as it would on another host, but by
# `ip netns exec` in place of ssh.
#
# Exits with 77 if this kernel's rxe cannot be used in a network namespace.
#
# Needs root, in a virtual machine. Usage: hosts.sh RANKS_ON_EACH_HOST OPTION... -- PROGRAM ARGUMENT...
# The options are those of mpirun.

set -e
each=$1
shift
PATH=$PATH:/usr/sbin:/sbin
# The libraries that the ranks preload are not for the commands of this script.
preload=$LD_PRELOAD
unset LD_PRELOAD

dir=
clean() {
	[ -z "$dir" ] || rm -rf "$dir"
	for side in left right; do
		rdma link delete rxe_$side 2>/dev/null || true
		ip netns delete $side 2>/dev/null || true
	done
}
clean
trap clean EXIT
dir=$(mktemp -d)

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

# Returns whether the namespace $1 is ready. $2 is the last number of the address. The interface needs some time to come
# up, and the GID of the rxe device needs some time to appear.
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

# Each host has its own name, or mpirun takes the two for one.
cat >"$dir/agent" <<'AGENT'
#!/bin/sh
shift
exec ip netns exec right unshare --uts sh -c 'hostname right; exec sh -c "$*"' sh "$@"
AGENT
# Each rank uses the device of its own host.
cat >"$dir/rank" <<'RANK'
#!/bin/sh
for device in left right; do
	[ ! -e /sys/class/net/veth_$device ] || export UCX_NET_DEVICES=rxe_$device:1 FI_VERBS_IFACE=veth_$device
done
LD_PRELOAD=$REGCACHE_RANK_PRELOAD exec "$@"
RANK
chmod +x "$dir/agent" "$dir/rank"
export REGCACHE_RANK_PRELOAD="$preload"

options=
while [ "$1" != -- ]; do
	options="$options $1"
	shift
done
shift
# The options are words without spaces.
# shellcheck disable=SC2086
ip netns exec left unshare --uts sh -c 'hostname left; exec "$@"' sh \
	mpirun --host 10.77.0.1:$each,10.77.0.2:$each -np $((2 * each)) \
	--mca plm_rsh_agent "$dir/agent" --mca plm_ssh_agent "$dir/agent" \
	-x REGCACHE_RANK_PRELOAD $options "$dir/rank" "$@"
