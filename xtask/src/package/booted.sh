#!/bin/sh
# Uses the installed packages in a virtual machine, as README.Debian says.

fail() {
	echo "FAILED: $*"
	exit 1
}

udevadm control --ping 2>/dev/null || /lib/systemd/systemd-udevd --daemon
modprobe ummunotify || fail "modprobe ummunotify"
modprobe -a ib_uverbs rdma_rxe || fail "modprobe rdma_rxe"
ip link set lo up
rdma link add rxe0 type rxe netdev lo || fail "rdma link add"
tries=0
until grep -qs ACTIVE /sys/class/infiniband/rxe0/ports/1/state &&
	grep -qs '^0000:0000:0000:0000:0000:ffff:7f00:0001$' /sys/class/infiniband/rxe0/ports/1/gids/1; do
	tries=$((tries + 1))
	[ $tries -le 300 ] || fail "rxe0 is not active"
	sleep 0.1
done
udevadm settle --timeout=60
[ "$(stat -c %a /dev/ummunotify)" = 444 ] || fail "the mode of /dev/ummunotify"

regcache doctor || fail "regcache doctor"
regcache doctor --json >/tmp/json || fail "regcache doctor --json"
grep -q '"monitor": *"ummunotify"' /tmp/json || { cat /tmp/json; fail "the monitor is not the driver"; }
started=$(date +%s)
regcache repro --rounds 50 >/tmp/said || { cat /tmp/said; fail "regcache repro"; }
grep '^reuse:' /tmp/said
echo "regcache repro: $(($(date +%s) - started)) s"
grep -q '^reuse: device=rxe0 monitor=ummunotify naive_stale=50/50 regcache_stale=0/50$' /tmp/said || fail "stale bytes"
first && echo "first.c: ok" || fail "first.c"

# Runs two ranks of the MPI program over UCX with these further arguments of mpirun, and prints the wrong messages.
mpi() {
	OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 UCX_TLS=rc UCX_NET_DEVICES=rxe0:1 UCX_UD_VERBS_ETH_DGID_CHECK=n \
		mpirun -np 2 --oversubscribe --mca pml ucx --mca osc ^ucx --mca btl ^openib "$@" mpi raw 40 >/tmp/said 2>/tmp/complaints ||
		{ cat /tmp/said /tmp/complaints; fail "mpirun $*"; }
	sed -n 's/ kept=.*//; s/^wrong=//p' /tmp/said
}

own=$(mpi)
ours=$(mpi -x LD_PRELOAD="$(ls /usr/lib/*/regcache/libregcache-ucx.so)")
echo "Open MPI over UCX: $own messages are wrong with UCX's own monitor, $ours with regcache's"
[ "$own" != 0/40 ] || fail "UCX's own monitor notices raw system calls, so this test shows nothing"
[ "$ours" = 0/40 ] || fail "messages are wrong with regcache's monitor"

for version in 0.0.9 9.9.9; do
	rmmod ummunotify || fail "rmmod ummunotify"
	insmod /usr/local/lib/ummunotify-$version.ko || fail "insmod of the driver $version"
	udevadm settle --timeout=60
	regcache doctor | grep "version $version (the tool has version .*, and works with this driver)" ||
		fail "doctor does not name the driver's version $version"
	regcache repro --rounds 20 >/tmp/said || { cat /tmp/said; fail "regcache repro with the driver $version"; }
	grep '^reuse: device=rxe0 monitor=ummunotify naive_stale=20/20 regcache_stale=0/20$' /tmp/said ||
		fail "stale bytes with the driver $version"
done
