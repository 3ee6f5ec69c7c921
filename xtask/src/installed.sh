#!/bin/sh
# Checks the installed driver in a virtual machine. The root file system of the machine contains the driver. The kernel
# must not have loaded the driver yet.
#
# Usage: installed.sh VERSION PLACE
# VERSION is the driver's version. PLACE is the directory below /lib/modules/* that contains the module.

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
# The modules are loaded in the same way as during a boot. Some of the other modules in the list may be missing here, so
# errors are ignored.
if [ -x /lib/systemd/systemd-modules-load ]; then
	echo "loading with systemd-modules-load"
	/lib/systemd/systemd-modules-load
elif [ -x /etc/init.d/kmod ]; then
	echo "loading with /etc/init.d/kmod"
	/etc/init.d/kmod start
else
	echo "loading the modules of modules-load.d with modprobe"
	modprobe -a $(grep -hv '^#' /usr/lib/modules-load.d/ummunotify.conf)
fi

is "version" "$(cat $sys/version)" "$version"
path=$(readlink -f "$(modinfo -n ummunotify)")
is "module" "${path%.ko*}" "$(readlink -f "/lib/modules/$(uname -r)")/$place/ummunotify"
# O means that the module is not from the kernel's tree. E means that the module is unsigned, or signed with an unknown
# key. Both are expected here.
is "taint without O and E" "$(tr -d OE <$sys/taint)" ""
is "mode" "$(mode)" 444
setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "exec <$dev" || exit 1
echo "the user nobody may read"
! (exec >$dev) 2>/dev/null || { echo "root may write"; exit 1; }
echo "root may not write"

udevadm test --action=add /sys/class/misc/ummunotify 2>&1 | grep "$rules:[0-9]* .*MODE" ||
	{ echo "the mode is not from $rules"; exit 1; }
mkdir -p /run/udev/rules.d
sed 's/MODE="0444"/MODE="0440"/' /usr/lib/udev/rules.d/$rules >/run/udev/rules.d/$rules
udevadm control --reload
udevadm trigger --action=add /sys/class/misc/ummunotify
is "mode with a local udev rule" "$(mode)" 440
rm /run/udev/rules.d/$rules
udevadm control --reload

mkdir -p /run/modprobe.d
echo "options ummunotify max_user_regions=7" >/run/modprobe.d/ummunotify.conf
modprobe -r ummunotify && modprobe ummunotify || exit 1
is "max_user_regions with an option in modprobe.d" "$(cat $sys/parameters/max_user_regions)" 7
is "mode" "$(mode)" 444
modprobe -r ummunotify || exit 1
