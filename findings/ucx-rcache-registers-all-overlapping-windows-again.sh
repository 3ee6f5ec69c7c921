#!/usr/bin/env bash
# UCX 1.13.1: its registration cache registers all overlapping windows again with each new one.
#
# If a lookup misses and its range overlaps a cached region, `ucs_rcache_get` destroys that region.
# It then registers one region for both ranges. So a window that slides over a buffer makes the
# region longer with each step, and each step registers the whole region. The number of pages that
# the device registers is quadratic in the number of steps. A reader expects each step to register
# one window. The parameters limit the number and the total size of regions, not the length of one.
#
# Seen: libucx0 1.13.1-1 of Debian 12. A window of 2 pages makes 256 steps of one page. The device
# registers 256 times, 33 152 pages in all, and one region of 257 pages is left. If the window makes
# steps of 2 pages, the windows do not overlap. Then the device registers 512 pages.
#
# The script fails if the numbers of registrations or pages differ.
set -euo pipefail

version=1.13.1-1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

apt-get -o APT::Sandbox::User=root download -qq "libucx0=$version" "libucx-dev=$version" >/dev/null
for package in ./*.deb; do
	dpkg-deb --extract "$package" root
done

cat > windows.c <<'C'
#include <stdint.h>
#include <stdio.h>
#include <ucs/memory/rcache.h>

enum { PAGE = 4096, WINDOW = 2 * PAGE, STEPS = 256 };

struct totals {
	long registrations, pages, left;
};

static struct totals totals;

static long pages_of(const ucs_rcache_region_t *region)
{
	return (region->super.end - region->super.start) / PAGE;
}

/* A device that only counts. Ranges are never touched. */
static ucs_status_t count_registration(void *device, ucs_rcache_t *rcache, void *arg,
				       ucs_rcache_region_t *region, uint16_t flags)
{
	totals.registrations++;
	totals.pages += pages_of(region);
	totals.left += pages_of(region);
	return UCS_OK;
}

static void count_deregistration(void *device, ucs_rcache_t *rcache, ucs_rcache_region_t *region)
{
	totals.left -= pages_of(region);
}

static void describe(void *device, ucs_rcache_t *rcache, ucs_rcache_region_t *region, char *text, size_t size)
{
	if (size)
		*text = 0;
}

/* Slides a window over memory in an empty cache. Returns what the device has counted. */
static struct totals slide(size_t step)
{
	static const ucs_rcache_ops_t device = { count_registration, count_deregistration, describe };
	ucs_rcache_params_t params = {
		.region_struct_size = sizeof(ucs_rcache_region_t),
		.alignment = UCS_RCACHE_MIN_ALIGNMENT,
		.max_alignment = PAGE,
		.ucm_event_priority = 1000,
		.ops = &device,
		.max_regions = 10000,
		.max_size = SIZE_MAX,
		.max_unreleased = SIZE_MAX,
	};
	char *memory = (char *)0x100000000000;
	ucs_rcache_t *cache;
	ucs_rcache_region_t *region;

	totals = (struct totals){ 0, 0, 0 };
	if (ucs_rcache_create(&params, "finding", NULL, &cache) != UCS_OK)
		return totals;
	for (int i = 0; i < STEPS; i++)
		if (ucs_rcache_get(cache, memory + i * step, WINDOW, 3, NULL, &region) == UCS_OK)
			ucs_rcache_region_put(cache, region);
	struct totals seen = totals;
	ucs_rcache_destroy(cache);
	return seen;
}

int main(void)
{
	struct totals overlapping = slide(PAGE), separate = slide(WINDOW);

	printf("%d windows of 2 pages, steps of 1 page: %ld registrations of %ld pages, %ld pages left\n", STEPS,
	       overlapping.registrations, overlapping.pages, overlapping.left);
	printf("%d windows of 2 pages, steps of 2 pages: %ld registrations of %ld pages, %ld pages left\n", STEPS,
	       separate.registrations, separate.pages, separate.left);
	int same = overlapping.registrations == STEPS && overlapping.pages == STEPS * (STEPS + 3) / 2 &&
		   overlapping.left == STEPS + 1;
	return same && separate.registrations == STEPS && separate.pages == 2 * STEPS ? 0 : 1;
}
C

libs=$(dirname "$(find root -name libucs.so)")
cc -Wall -Wno-unused-parameter -O1 -Iroot/usr/include windows.c -L"$libs" -lucs -lucm -lpthread \
	-Wl,-rpath,"$libs" -Wl,--unresolved-symbols=ignore-in-shared-libs -o windows
echo "libucx0 $version"
LD_LIBRARY_PATH=$libs ./windows
