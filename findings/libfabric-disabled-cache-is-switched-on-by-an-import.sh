#!/usr/bin/env bash
# libfabric 1.17.0: a memory monitor that a program imports switches on a registration cache that
# the user has disabled.
#
# The user sets FI_MR_CACHE_MONITOR=disabled, which "disables memory caching" (the text of the
# setting). Then a program imports a monitor with `fi_open("mr_cache")`. The import succeeds, and the
# monitor becomes the default of every domain that is opened later. So these domains cache
# registrations. Open MPI imports such a monitor at start, so the setting has no effect below Open
# MPI. FI_MR_CACHE_MAX_COUNT=0 does have an effect, because a domain makes no cache then.
#
# Seen: libfabric1 1.17.0-3 of Debian 12. The log has "read string var mr_cache_monitor=disabled" and
# later "setting imported memory monitor as default", and the import returns 0.
#
# The script fails if the import is refused, or if the log has not both lines in this order.
set -euo pipefail

version=1.17.0-3
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

apt-get -o APT::Sandbox::User=root download -qq "libfabric1=$version" "libfabric-dev=$version" \
	libibverbs1 librdmacm1 libnuma1 libnl-3-200 libnl-route-3-200 libpsm2-2 libpsm-infinipath1 libuuid1 \
	libatomic1 2>/dev/null >/dev/null || { echo "the packages cannot be downloaded" >&2; exit 2; }
for package in ./*.deb; do
	dpkg-deb --extract "$package" root
done

cat > import.c <<'C'
#include <stdbool.h>
#include <stdio.h>
#include <rdma/fabric.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_ext.h>

static int start(struct fid_mem_monitor *monitor)
{
	return 0;
}

static void stop(struct fid_mem_monitor *monitor)
{
}

static int subscribe(struct fid_mem_monitor *monitor, const void *address, size_t length)
{
	return 0;
}

static void unsubscribe(struct fid_mem_monitor *monitor, const void *address, size_t length)
{
}

static bool valid(struct fid_mem_monitor *monitor, const void *address, size_t length)
{
	return true;
}

int main(void)
{
	static struct fi_ops_mem_monitor ops = { sizeof(ops), start, stop, subscribe, unsubscribe, valid };
	static struct fid_mem_monitor monitor = { .fid.fclass = FI_CLASS_MEM_MONITOR, .export_ops = &ops };
	struct fi_info *info;
	struct fid *cache;

	if (fi_getinfo(FI_VERSION(1, 13), NULL, NULL, 0, NULL, &info))
		return 2;
	fi_freeinfo(info);
	if (fi_open(FI_VERSION(1, 13), "mr_cache", NULL, 0, 0, &cache, NULL))
		return 2;
	int imported = fi_import_fid(cache, &monitor.fid, 0);

	printf("import: %d\n", imported);
	fi_close(cache);
	if (!imported)
		fi_close(&monitor.fid);
	return imported != 0;
}
C

libs=$(dirname "$(find root -name 'libfabric.so.1.*')")
cc -Wall -Wno-unused-parameter -O1 -Iroot/usr/include import.c "$libs"/libfabric.so.1 \
	-Wl,-rpath,"$libs" -Wl,--unresolved-symbols=ignore-in-shared-libs -o import
echo "libfabric1 $version"
status=0
LD_LIBRARY_PATH=$libs FI_MR_CACHE_MONITOR=disabled FI_LOG_LEVEL=info FI_LOG_SUBSYS=mr,core ./import >said 2>log || status=$?
grep -oE 'read string var mr_cache_monitor=.*|setting imported memory monitor as default' log | tee seen
cat said
printf '%s\n' 'read string var mr_cache_monitor=disabled' 'setting imported memory monitor as default' | cmp - seen
exit "$status"
