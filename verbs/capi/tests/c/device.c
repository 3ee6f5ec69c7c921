/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Tests a cache on a device of callbacks: hits, misses, unmapped memory, revoked keys, nested
 * calls. */
#include "check.h"

#include <poll.h>
#include <unistd.h>

static struct regcache_stats stats_of(struct regcache *cache)
{
	struct regcache_stats stats;
	IS(regcache_query_stats(cache, &stats, sizeof stats), 0);
	return stats;
}

static void hits_and_misses(void)
{
	struct fake fake = { 0 };
	struct regcache *cache = cache_of(&fake);
	struct regcache_mr first, second;
	char *memory = pages(4);
	size_t held = 7;
	int kept = caches(cache);

	IS(regcache_get(cache, memory, 2 * PAGE, REGCACHE_REMOTE_WRITE, &first), 0);
	IS(fake.access, REGCACHE_REMOTE_WRITE | REGCACHE_LOCAL_WRITE);
	IS(first.lkey, 1);
	IS(first.rkey, 1001);
	IS(first.addr == memory && first.length == 2 * PAGE && first.registration != NULL, 1);
	/* A lookup of a part of the range is a hit, also with less access. */
	IS(regcache_get(cache, memory + 100, PAGE, REGCACHE_LOCAL_WRITE, &second), 0);
	IS(second.lkey, kept ? 1 : 2);
	IS(second.guard != first.guard, 1);
	IS(second.addr == (kept ? memory : memory + 100), 1);
	IS(regcache_put(second.guard), 0);
	/* A lookup with more access is a miss. */
	IS(regcache_get(cache, memory, PAGE, REGCACHE_REMOTE_READ, &second), 0);
	IS(second.lkey, kept ? 2 : 3);
	IS(regcache_put(second.guard), 0);
	/* A lookup with a flag that only the device knows is a miss. */
	IS(regcache_get(cache, memory, PAGE, REGCACHE_REMOTE_READ | 1 << 25, &second), 0);
	IS(second.lkey, kept ? 3 : 4);
	IS(regcache_put(second.guard), 0);
	IS(stats_of(cache).hits, kept);
	IS(stats_of(cache).misses, kept ? 3 : 4);

	/* A registration in use is deregistered when its last guard is put. */
	IS(regcache_invalidate(cache, memory, 1, 0, &held), 0);
	IS(held, 1);
	IS(regcache_flush(cache, 1, &held), 0);
	IS(held, 1);
	IS(fake.live, 1);
	IS(regcache_put(first.guard), 0);
	IS(fake.live, 0);
	IS(regcache_flush(cache, -1, &held), 0);
	IS(held, 0);
	IS(regcache_flush(cache, -1, NULL), 0);
	IS(regcache_destroy(cache), 0);
	munmap(memory, 4 * PAGE);
}

/* The dump of the cache has a line with this address and word. */
static void has_a_line(struct regcache *cache, const char *memory, const char *word)
{
	char text[4096] = "", address[32];
	int pipes[2];

	IS(pipe(pipes), 0);
	IS(regcache_dump(cache, pipes[1]), 0);
	close(pipes[1]);
	IS(read(pipes[0], text, sizeof(text) - 1) > 0, 1);
	close(pipes[0]);
	snprintf(address, sizeof(address), "%p ", (const void *)memory);
	char *line = strstr(text, address);

	IS(line != NULL && strstr(line, word) != NULL, 1);
	FAILS(regcache_dump(cache, pipes[1]), EBADF, "cannot be written");
}

static void memory_that_goes(void)
{
	struct fake fake = { 0 };
	struct regcache *cache = cache_of(&fake);
	struct regcache_mr mr;
	char *memory = pages(1), *again;
	int fd = regcache_fd(cache);

	if (!caches(cache)) {
		FAILS(regcache_fd(cache), EOPNOTSUPP, "nothing monitor");
		IS(regcache_destroy(cache), 0);
		munmap(memory, PAGE);
		return;
	}
	struct pollfd poll_of = { .fd = fd, .events = POLLIN };
	IS(fd >= 0, 1);
	IS(regcache_get(cache, memory, PAGE, 0, &mr), 0);
	IS(regcache_put(mr.guard), 0);
	IS(poll(&poll_of, 1, 0), 0);
	munmap(memory, PAGE);
	IS(poll(&poll_of, 1, 60000), 1);
	IS(fake.live, 1);
	IS(regcache_reap(cache), 0);
	IS(fake.live, 0);
	IS(poll(&poll_of, 1, 0), 0);

	again = mmap(memory, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	IS(again == memory, 1);
	IS(regcache_get(cache, memory, PAGE, 0, &mr), 0);
	IS(mr.lkey, 2);
	has_a_line(cache, memory, "cached");
	/*
	 * The memory is replaced while its registration is in use. A lookup before regcache_reap()
	 * must make a new registration.
	 */
	IS(mmap(memory, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory, 1);
	struct regcache_mr fresh;
	IS(regcache_get(cache, memory, PAGE, 0, &fresh), 0);
	IS(fresh.lkey, 3);
	IS(fake.live, 2);
	IS(regcache_put(mr.guard), 0);
	IS(fake.live, 1);
	IS(regcache_put(fresh.guard), 0);
	IS(stats_of(cache).invalidations, 2);
	IS(regcache_destroy(cache), 0);
	IS(fake.live, 0);
	munmap(memory, PAGE);
}

static void attributes(void)
{
	struct fake fake = { 0 }, other_fake = { 0 };
	struct regcache_device device = device_of(&fake), other_device = device_of(&other_fake);
	struct regcache_attr attr = { .size = sizeof attr, .flags = REGCACHE_REVOKE_REMOTE_KEYS | REGCACHE_NO_REAPER,
		.max_entries = 1, .granularity = PAGE };
	struct regcache *cache, *other;
	struct regcache_mr mr;
	char *memory = pages(2);

	IS(regcache_create_for(&device, &attr, &cache), 0);
	if (!caches(cache)) {
		IS(regcache_destroy(cache), 0);
		munmap(memory, 2 * PAGE);
		return;
	}
	/* With REGCACHE_REVOKE_REMOTE_KEYS, the put of the last guard deregisters. */
	IS(regcache_get(cache, memory, PAGE, REGCACHE_REMOTE_READ, &mr), 0);
	IS(regcache_put(mr.guard), 0);
	IS(fake.live, 0);
	/* With a granularity, the cache registers whole blocks. */
	IS(regcache_get(cache, memory + 5, 7, 0, &mr), 0);
	IS(mr.addr == memory && mr.length == PAGE, 1);
	IS(regcache_put(mr.guard), 0);
	IS(regcache_get(cache, memory + PAGE, 1, 0, &mr), 0);
	IS(regcache_put(mr.guard), 0);
	IS(fake.live, 1);
	IS(stats_of(cache).evictions, 1);

	/*
	 * Another cache shares the monitor of `cache`, and still works after `cache` is destroyed.
	 */
	attr.monitor_of = cache;
	IS(regcache_create_for(&other_device, &attr, &other), 0);
	IS(strcmp(regcache_monitor_name(other), regcache_monitor_name(cache)), 0);
	IS(regcache_get(other, memory + PAGE, 1, 0, &mr), 0);
	IS(regcache_put(mr.guard), 0);
	IS(regcache_destroy(cache), 0);
	IS(other_fake.live, 1);
	munmap(memory, 2 * PAGE);
	/*
	 * With userfaultfd, the monitor may process the event of munmap only after munmap has
	 * returned. So the loop waits for it.
	 */
	for (int i = 0; i < 60000 && other_fake.live; i++) {
		poll(NULL, 0, 1);
		IS(regcache_reap(other), 0);
	}
	IS(other_fake.live, 0);
	IS(regcache_destroy(other), 0);
}

static void calls_from_within(void)
{
	struct fake fake = { 0 };
	struct regcache *cache = cache_of(&fake);
	struct regcache_mr mr;
	char *memory = pages(1);

	fake.cache = cache;
	IS(regcache_get(cache, memory, PAGE, 0, &mr), 0);
	IS(fake.tried, -EDEADLK);
	IS(strstr(regcache_error(), "within reg_mr") != NULL, 1);
	fake.tried = 0;
	IS(regcache_flush(cache, 0, NULL), 0);
	/*
	 * The flush deregisters nothing, because a guard is held. The put of the guard deregisters.
	 */
	IS(fake.tried, 0);
	IS(regcache_put(mr.guard), 0);
	IS(fake.tried, -EDEADLK);
	fake.cache = NULL;

	/* If the device refuses to deregister, the registration is counted as leaked. */
	fake.refuses = EBUSY;
	IS(regcache_get(cache, memory, PAGE, 0, &mr), 0);
	IS(regcache_put(mr.guard), 0);
	IS(regcache_flush(cache, 0, NULL), 0);
	IS(stats_of(cache).leaked, 1 + (uint64_t)0);
	IS(regcache_destroy(cache), 0);
	munmap(memory, PAGE);
}

/* The reaper, which a cache has by default, deregisters unmapped memory. */
static void the_reaper(void)
{
	struct fake fake = { 0 };
	struct regcache_device device = device_of(&fake);
	struct regcache *cache;
	struct regcache_mr mr;
	char *memory = pages(1);
	int i;

	IS(regcache_create_for(&device, NULL, &cache), 0);
	IS(regcache_get(cache, memory, PAGE, 0, &mr), 0);
	IS(regcache_put(mr.guard), 0);
	munmap(memory, PAGE);
	for (i = 0; i < 60000 && fake.live; i++)
		poll(NULL, 0, 1);
	IS(fake.live, 0);
	IS(regcache_destroy(cache), 0);
}

int main(int argc, char **argv)
{
	struct fake fake = { 0 };
	struct regcache *cache = cache_of(&fake);
	if (argc > 1)
		IS(strcmp(regcache_monitor_name(cache), argv[1]), 0);
	printf("device: monitor %s\n", regcache_monitor_name(cache));
	IS(regcache_destroy(cache), 0);

	hits_and_misses();
	memory_that_goes();
	attributes();
	calls_from_within();
	the_reaper();
	puts("device: ok");
	return 0;
}
