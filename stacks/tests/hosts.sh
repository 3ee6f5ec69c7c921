#!/bin/sh
# Runs an MPI program on two simulated hosts (tests/support/hosts.sh). Half of the ranks run on each host.
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
. "$(dirname "$0")/../../tests/support/hosts.sh"

dir=
clean() {
	[ -z "$dir" ] || rm -rf "$dir"
	remove_hosts
}
clean
trap clean EXIT
dir=$(mktemp -d)

add_hosts

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
printf '10.77.0.%d slots='"$each"'\n' 1 2 >"$dir/hosts"
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
	mpirun --hostfile "$dir/hosts" -np $((2 * each)) \
	--mca plm_rsh_agent "$dir/agent" --mca plm_ssh_agent "$dir/agent" \
	-x REGCACHE_RANK_PRELOAD $options "$dir/rank" "$@"
