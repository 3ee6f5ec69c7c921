#!/bin/sh
# Checks the driver in a machine whose root file system has it installed and whose kernel has not loaded it.
# Usage: installed.sh VERSION PLACE: the driver's version, and the directory of /lib/modules/* with its module

version=$1
place=$2
dev=/dev/ummunotify
sys=/sys/module/ummunotify
rules=60-ummunotify.rules

is() {
	[ "$2" = "$3" ] || { echo "$1 is \"$2\" and not \"$3\""; exit 1; }
	echo "$1: $2"
}

mode() {
	udevadm settle
	stat -c %a $dev
}

udevadm control --ping 2>/dev/null || /lib/systemd/systemd-udevd --daemon

[ ! -e $sys ] || { echo "the driver is loaded already"; exit 1; }
# This loads modules as boot does. Other modules of the list may be missing here.
if [ -x /lib/systemd/systemd-modules-load ]; then
	echo "loading with systemd-modules-load"
	/lib/systemd/systemd-modules-load
elif [ -x /etc/init.d/kmod ]; then
	echo "loading with /etc/init.d/kmod"
	/etc/init.d/kmod start
else
	echo "loading what modules-load.d says with modprobe"
	modprobe -a $(grep -hv '^#' /usr/lib/modules-load.d/ummunotify.conf)
fi

is "version" "$(cat $sys/version)" "$version"
path=$(readlink -f "$(modinfo -n ummunotify)")
is "module" "${path%.ko*}" "$(readlink -f "/lib/modules/$(uname -r)")/$place/ummunotify"
# O: from outside the kernel's tree. E: unsigned, or signed with a key that this kernel does not know.
is "taint, but for O and E" "$(tr -d OE <$sys/taint)" ""
is "mode" "$(mode)" 444
setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "exec <$dev" || exit 1
echo "nobody may read"
! (exec >$dev) 2>/dev/null || { echo "root may write"; exit 1; }
echo "root may not write"

udevadm test --action=add /sys/class/misc/ummunotify 2>&1 | grep "$rules:[0-9]* .*MODE" ||
	{ echo "the mode is not from $rules"; exit 1; }
mkdir -p /run/udev/rules.d
sed 's/MODE="0444"/MODE="0440"/' /usr/lib/udev/rules.d/$rules >/run/udev/rules.d/$rules
udevadm control --reload
udevadm trigger --action=add /sys/class/misc/ummunotify
is "mode by a rule of one's own" "$(mode)" 440
rm /run/udev/rules.d/$rules
udevadm control --reload

mkdir -p /run/modprobe.d
echo "options ummunotify max_user_regions=7" >/run/modprobe.d/ummunotify.conf
modprobe -r ummunotify && modprobe ummunotify || exit 1
is "max_user_regions by modprobe.d" "$(cat $sys/parameters/max_user_regions)" 7
is "mode" "$(mode)" 444
modprobe -r ummunotify || exit 1
