#!/usr/bin/env bash
# UCX 1.13.1: without its memory hooks, UCX has no registration cache. It prints no warning.
#
# With `UCX_MEM_MMAP_HOOK_MODE=none` UCX does not patch functions of libc. A reader of UCX's help
# ("none - don't set mmap hooks") expects a cache that may be stale, or a warning. Instead
# `ucs_rcache_create` fails, and UCX's transports then register the memory of each message. The only
# sign is a line of the log level `diag`, which is not shown by default.
#
# Seen: libucx0 1.13.1-1 of Debian 12. With the default mode the call returns "Success" and prints
# nothing. With the mode `none` it returns "Unsupported operation" and prints nothing. With
# `UCX_LOG_LEVEL=diag` it also prints that the event handler could not be installed.
#
# The script fails if a cache is created without hooks, or if UCX prints a warning.
set -euo pipefail

version=1.13.1-1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

apt-get -o APT::Sandbox::User=root download -qq "libucx0=$version" "libucx-dev=$version" >/dev/null
for package in ./*.deb; do
	dpkg-deb --extract "$package" root
done

cat > create.c <<'C'
#include <stdint.h>
#include <stdio.h>
#include <ucm/api/ucm.h>
#include <ucs/memory/rcache.h>

static ucs_status_t device_register(void *device, ucs_rcache_t *rcache, void *arg,
				    ucs_rcache_region_t *region, uint16_t flags)
{
	return UCS_OK;
}

static void device_deregister(void *device, ucs_rcache_t *rcache, ucs_rcache_region_t *region)
{
}

static void device_dump(void *device, ucs_rcache_t *rcache, ucs_rcache_region_t *region, char *text, size_t size)
{
	if (size)
		*text = 0;
}

/* Creates a cache as UCX's transports do. */
int main(void)
{
	static const ucs_rcache_ops_t device = { device_register, device_deregister, device_dump };
	ucs_rcache_params_t params = {
		.region_struct_size = sizeof(ucs_rcache_region_t),
		.alignment = UCS_RCACHE_MIN_ALIGNMENT,
		.max_alignment = 4096,
		.ucm_events = UCM_EVENT_VM_UNMAPPED,
		.ucm_event_priority = 1000,
		.ops = &device,
		.max_regions = 100,
		.max_size = SIZE_MAX,
		.max_unreleased = SIZE_MAX,
	};
	ucs_rcache_t *cache;

	puts(ucs_status_string(ucs_rcache_create(&params, "finding", NULL, &cache)));
	return 0;
}
C

libs=$(dirname "$(find root -name libucs.so)")
cc -Wall -Wno-unused-parameter -O1 -Iroot/usr/include create.c -L"$libs" -lucs -lucm \
	-Wl,-rpath,"$libs" -Wl,--unresolved-symbols=ignore-in-shared-libs -o create
export LD_LIBRARY_PATH=$libs

create() {
	timeout 30 env "$@" ./create 2>&1
}

echo "libucx0 $version"
default=$(create)
none=$(create UCX_MEM_MMAP_HOOK_MODE=none)
logged=$(create UCX_MEM_MMAP_HOOK_MODE=none UCX_LOG_LEVEL=diag)
printf 'default: %s\nnone: %s\nnone, log level diag: %s\n' "$default" "$none" "$logged"
[ "$default" = Success ]
[ "$none" = "Unsupported operation" ]
[[ $logged == *"failed to install UCM event handler"*"Unsupported operation" ]]
