# Installs all packages in the copy of a virtual machine's root, so that DKMS builds the driver for the kernel KERNEL. The
# directory of the MPI program is /opt.

index /mnt /tmp/repo
apt_from /tmp/repo dkms "linux-headers-$KERNEL"
apt_from /tmp/repo regcache libregcache-dev ummunotify-dkms gcc pkg-config
# The running kernel is not that of the virtual machine, so the package's script may have built nothing for the latter.
dkms autoinstall -k "$KERNEL" >/tmp/dkms.log 2>&1 || { cat /tmp/dkms.log; fail "dkms autoinstall"; }
dkms status | tee /tmp/status
grep -q "^ummunotify/.*, $KERNEL, .*: installed" /tmp/status || fail "DKMS has not installed the driver"
cp /usr/share/doc/libregcache-dev/examples/* /tmp
cc -o /usr/local/bin/first /tmp/first.c $(pkg-config --cflags --libs regcache)
apt_from /tmp/repo libregcache-ucx libopenmpi-dev openmpi-bin
mpicc -rdynamic -o /usr/local/bin/mpi /opt/mpi.c

# Two other versions of the driver: an older one that lacks the newest call, and a newer one.
for version in 0.0.9 9.9.9; do
	cp -r /usr/src/ummunotify-[0-9]* "/tmp/$version"
	sed -i "s/^PACKAGE_VERSION=.*/PACKAGE_VERSION=\"$version\"/" "/tmp/$version/dkms.conf"
	if [ $version = 0.0.9 ]; then
		sed -i '/case UMMUNOTIFY_REGISTER_REGION2:/,/register_region2(file/d' "/tmp/$version/ummunotify.c"
	fi
	make -C "/lib/modules/$KERNEL/build" M="/tmp/$version" modules >/tmp/make.log 2>&1 ||
		{ cat /tmp/make.log; fail "the driver $version"; }
	cp "/tmp/$version/ummunotify.ko" "/usr/local/lib/ummunotify-$version.ko"
done
