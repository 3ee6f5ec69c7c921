#!/usr/bin/env bash
# UCX 1.13.1: a hit in its registration cache waits for another thread's registration.
#
# `ucs_rcache_get` finds a cached region under a read lock. A miss holds the same lock for writing
# while it calls the device's `mem_reg`. So a hit of an unrelated range waits while another
# thread registers. A reader of the API expects that a hit is short, whatever other threads do. The
# lock is inside the cache, and the documentation of the API does not mention the device.
#
# Seen: libucx0 1.13.1-1 of Debian 12. One thread registers for 1000 ms. A hit of another range
# starts 100 ms later, and returns after about 900 ms. If no registration is under way, the hit
# returns in less than 1 ms.
#
# The script fails if a hit during a registration returns early, or if a hit alone is slow.
set -euo pipefail

version=1.13.1-1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

apt-get -o APT::Sandbox::User=root download -qq "libucx0=$version" "libucx-dev=$version" >/dev/null
for package in ./*.deb; do
	dpkg-deb --extract "$package" root
done

cat > hit.c <<'C'
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <ucs/memory/rcache.h>

enum { SMALL = 4096, LARGE = 1 << 20, REGISTER_MS = 1000, HEAD_START_MS = 100 };

static char *const small_range = (char *)0x100000000000, *const large_range = (char *)0x200000000000;
static ucs_rcache_t *cache;

static void sleep_ms(long ms)
{
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };
	nanosleep(&time, NULL);
}

static double milliseconds(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

/* A device that takes long to register a large range. Ranges are never touched. */
static ucs_status_t device_register(void *device, ucs_rcache_t *rcache, void *arg,
				    ucs_rcache_region_t *region, uint16_t flags)
{
	if (region->super.end - region->super.start >= LARGE)
		sleep_ms(REGISTER_MS);
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

/* Looks a range up, gives it back, and returns the time of both calls in ms. */
static double look_up(void *range, size_t length)
{
	double start = milliseconds();
	ucs_rcache_region_t *region;

	if (ucs_rcache_get(cache, range, length, 3, NULL, &region) != UCS_OK)
		return -1;
	ucs_rcache_region_put(cache, region);
	return milliseconds() - start;
}

static void *register_large(void *unused)
{
	look_up(large_range, LARGE);
	return NULL;
}

int main(void)
{
	static const ucs_rcache_ops_t device = { device_register, device_deregister, device_dump };
	ucs_rcache_params_t params = {
		.region_struct_size = sizeof(ucs_rcache_region_t),
		.alignment = UCS_RCACHE_MIN_ALIGNMENT,
		.max_alignment = SMALL,
		.ucm_event_priority = 1000,
		.ops = &device,
		.max_regions = 100,
		.max_size = SIZE_MAX,
		.max_unreleased = SIZE_MAX,
	};
	pthread_t other;

	if (ucs_rcache_create(&params, "finding", NULL, &cache) != UCS_OK)
		return 2;
	look_up(small_range, SMALL);
	double alone = look_up(small_range, SMALL);

	pthread_create(&other, NULL, register_large, NULL);
	sleep_ms(HEAD_START_MS);
	double meanwhile = look_up(small_range, SMALL);
	pthread_join(other, NULL);
	printf("hit alone: %.3f ms\nhit while another thread registers for %d ms: %.3f ms\n", alone,
	       REGISTER_MS, meanwhile);
	return alone >= 0 && alone < 50 && meanwhile > 500 ? 0 : 1;
}
C

libs=$(dirname "$(find root -name libucs.so)")
cc -Wall -Wno-unused-parameter -O1 -Iroot/usr/include hit.c -L"$libs" -lucs -lucm -lpthread \
	-Wl,-rpath,"$libs" -Wl,--unresolved-symbols=ignore-in-shared-libs -o hit
echo "libucx0 $version"
LD_LIBRARY_PATH=$libs ./hit
