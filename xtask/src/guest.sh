#!/bin/sh
# Runs in the virtual machine after boot. Loads the driver, makes the RDMA device rxe0, and runs command.sh. command.sh
# is in the directory of this script.
# The script reports to the host through files in the same directory:
#   setup.log  the output before the command
#   up         exists from shortly before the command starts
#   failed     the reason why the command could not be started
#   status     the command's exit status
#   overran    exists if the command was stopped at its time limit
#   dmesg.log  the kernel's messages at the end
#   leaks.log  the leaks that kmemleak suspects, if the kernel has kmemleak
# Usage: guest.sh SECONDS
# SECONDS is the time limit of the command.

run=$(dirname "$0")
limit=$1
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

# Writes the text $2 into the file $1 of the run directory. The host must never read an incomplete file, so the complete
# file is moved to its name.
tell() {
	printf '%s\n' "$2" >"$run/.$1"
	mv "$run/.$1" "$run/$1"
}

fail() {
	dmesg >"$run/dmesg.log"
	tell failed "$1"
	exit 1
}

# Prints the path of the device of the virtio port with this name.
port() {
	for dir in /sys/class/virtio-ports/*; do
		if [ "$(cat "$dir/name")" = "$1" ]; then
			echo "/dev/${dir##*/}"
			return
		fi
	done
}

# Returns whether RoCE works on lo. RoCE works when the port of rxe0 is active and index 1 of the port's GID table holds
# 127.0.0.1.
rxe0_is_ready() {
	port=/sys/class/infiniband/rxe0/ports/1
	grep -qs ACTIVE $port/state && grep -qs '^0000:0000:0000:0000:0000:ffff:7f00:0001$' $port/gids/1
}

exec </dev/null >"$run/setup.log" 2>&1

if [ -e "$run/ummunotify.ko" ]; then
	insmod "$run/ummunotify.ko" || fail "the driver could not be loaded"
	modprobe -a ib_uverbs rdma_ucm rdma_rxe || fail "the RDMA modules could not be loaded"
	ip link set lo up || fail "lo could not be brought up"
	rdma link add rxe0 type rxe netdev lo || fail "rxe0 could not be made"
	tries=0
	until rxe0_is_ready; do
		tries=$((tries + 1))
		[ $tries -le 300 ] || fail "rxe0 did not become active"
		sleep 0.1
	done
	# libibverbs may need the links in /dev/char to open a device. udev makes these links, so the script waits for udev.
	udevadm settle --timeout=60 || fail "udev did not settle"
fi

for cpu in /sys/devices/system/cpu/cpu[1-9]*; do
	[ -e "$cpu/online" ] || continue
	echo 1 >"$cpu/online" || fail "${cpu##*/} could not be brought up"
done

# /dev/stdout must lead to the command's own output. The command may open it several times, but a virtio port can be
# opened only once. So the output goes through pipes.
ln -sfn /proc/self/fd/1 /dev/stdout
ln -sfn /proc/self/fd/2 /dev/stderr
mkfifo /run/stdout
cat /run/stdout >"$(port xtask.stdout)" &
copiers=$!
stderr=$(port xtask.stderr)
if [ -n "$stderr" ]; then
	mkfifo /run/stderr
	cat /run/stderr >"$stderr" &
	copiers="$copiers $!"
else
	ln -s stdout /run/stderr
fi

tell up yes
started=$(date +%s)
timeout -k 10 "$limit" sh "$run/command.sh" >/run/stdout 2>/run/stderr
status=$?
if [ $status -eq 124 ] || [ $status -eq 137 ] && [ $(($(date +%s) - started)) -ge "$limit" ]; then
	tell overran yes
	# The kernel logs the tasks that are still blocked.
	echo w >/proc/sysrq-trigger
fi

# A copier ends when no process holds the write end of its pipe. A daemon that the command left running may hold the
# write end forever, so the wait for the copiers has a limit.
(
	sleep 20
	kill $copiers
) &
wait $copiers

# kmemleak does not report objects that are younger than 5 s, so the script waits before the scan.
leaks=/sys/kernel/debug/kmemleak
if [ -e $leaks ]; then
	sleep 6
	echo scan >$leaks
	echo scan >$leaks
	cat $leaks >"$run/leaks.log"
fi
dmesg >"$run/dmesg.log"
tell status $status
