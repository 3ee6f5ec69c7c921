#!/busybox sh
# The first process of the guest. It loads the module if there is one. It runs the kselftest as root, with its output on the
# second serial port, and as another user, with its output on the third. Then it stops the machine.

/busybox mkdir -p /proc /sys /dev /tmp
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sysfs /sys
/busybox mount -t devtmpfs devtmpfs /dev
exec >/dev/console 2>&1

if [ -e /ummunotify.ko ]; then
	/busybox insmod /ummunotify.ko || echo "init: the module cannot be loaded"
fi
/selftest >/dev/ttyS1 2>&1
/busybox mkdir -p /etc
echo "nobody:x:65534:65534::/:/" >/etc/passwd
/busybox start-stop-daemon -S -q -c nobody -x /selftest >/dev/ttyS2 2>&1
if [ -e /ummunotify.ko ]; then
	/busybox rmmod ummunotify && /busybox insmod /ummunotify.ko && /busybox rmmod ummunotify &&
		echo "init: the module can be removed" || echo "WARNING: the module cannot be removed"
fi
echo "init: done"
# The last bytes must have left the serial ports.
/busybox sleep 1
/busybox reboot -f
