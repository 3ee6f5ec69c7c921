# Functions for scripts that install the packages in a root file system.
set -eu

# Prints a message, and ends the script with a failure.
fail() {
	echo "FAILED: $*"
	exit 1
}

# Installs packages by name. The packages in the directory $1 come before those of Debian.
apt_from() {
	dir=$1
	shift
	echo "deb [trusted=yes] file:$dir ./" >/etc/apt/sources.list.d/trial.list
	apt-get -qq update
	apt-get -qq -y --no-install-recommends --allow-downgrades install "$@" >/tmp/apt.log 2>&1 || {
		cat /tmp/apt.log
		fail "apt-get install $*"
	}
}

# Makes the index of a directory of packages. The directory is writable only from outside, so the index and links to the
# packages are in a directory of their own, $2.
index() {
	mkdir -p "$2"
	(
		cd "$2"
		for deb in "$1"/*.deb; do
			ln -sf "$deb" .
			name=${deb##*/}
			dpkg-deb --field "$deb"
			echo "Filename: ./$name"
			echo "Size: $(stat -L -c %s "$deb")"
			echo "SHA256: $(sha256sum <"$deb" | cut -d ' ' -f 1)"
			echo
		done >Packages
	)
}

# Prints all paths of the root except those that each use of apt changes.
listing() {
	find / -xdev -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o -path /tmp -prune -o -path /mnt -prune \
		-o -path /opt -prune -o -path /var/lib/apt/lists -prune -o -path /var/cache -prune -o -path /var/log -prune \
		-o -print | grep -v '^/var/lib/dpkg/\(status\|available\|diversions\|statoverride\|triggers\|info$\|lock\)' | sort
}
