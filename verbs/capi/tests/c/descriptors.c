/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Tests a program that closes all descriptors, as a daemon does, and opens its own. The library
 * neither reads from them nor writes to them, and it closes none. Later caches work.
 */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { PIPES = 60, EVENTS = 20 };

static const char message[] = "a message of 32 bytes, all of it";

static void look_up(struct regcache *cache, char *memory)
{
	struct regcache_mr mr;
	int status = regcache_get(cache, memory, PAGE, 1, &mr);

	/* Without its descriptors, the cache retains nothing, or the lookup fails. */
	if (status == 0)
		IS(regcache_put(mr.guard), 0);
	else
		IS(status, -EBADF);
}

static void round_of(int events_first)
{
	struct fake fake[3] = { 0 };
	struct regcache *cache[3];
	struct regcache_mr mr;
	int pipes[PIPES][2], events[EVENTS], i, j;
	char *memory = pages(64), *own;
	uint64_t count;

	/* Two caches share a monitor. A drain of one cache also marks the entries of the other. */
	for (i = 0; i < 2; i++) {
		struct regcache_device device = device_of(&fake[i]);
		struct regcache_attr attr = { .size = sizeof attr, .monitor_of = i ? cache[0] : NULL };

		IS(regcache_create_for(&device, &attr, &cache[i]), 0);
		for (j = 0; j < 64; j++) {
			IS(regcache_get(cache[i], memory + j * PAGE, PAGE, 1, &mr), 0);
			IS(regcache_put(mr.guard), 0);
		}
	}
	usleep(20000);
	closefrom(3);
	/* A new cache gets the numbers that the others believe to have. */
	if (!events_first)
		cache[2] = cache_of(&fake[2]);
	for (i = 0; i < EVENTS; i++)
		IS((events[i] = eventfd(7, EFD_NONBLOCK)) >= 0, 1);
	for (i = 0; i < PIPES; i++) {
		IS(pipe2(pipes[i], O_NONBLOCK), 0);
		IS(write(pipes[i][1], message, 32), 32);
	}
	if (events_first)
		cache[2] = cache_of(&fake[2]);
	alarm(120);
	munmap(memory, 32 * PAGE);
	usleep(50000);
	for (i = 0; i < 2; i++)
		look_up(cache[i], memory + 40 * PAGE);
	munmap(memory + 32 * PAGE, 32 * PAGE);
	/* The new cache is not disturbed by the others: each change is seen. */
	for (i = 0; i < 50; i++) {
		own = pages(2);
		IS(regcache_get(cache[2], own, PAGE, 1, &mr), 0);
		unsigned int lkey = mr.lkey;
		IS(regcache_put(mr.guard), 0);
		IS(regcache_get(cache[2], own, PAGE, 1, &mr), 0);
		if (caches(cache[2]))
			IS(mr.lkey, lkey);
		IS(regcache_put(mr.guard), 0);
		look_up(cache[i % 2], own + PAGE);
		IS(mmap(own, 2 * PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == own, 1);
		look_up(cache[i % 2], own + PAGE);
		IS(regcache_get(cache[2], own, PAGE, 1, &mr), 0);
		IS(mr.lkey != lkey, 1);
		IS(regcache_put(mr.guard), 0);
		munmap(own, 2 * PAGE);
	}
	for (i = 0; i < 3; i++)
		IS(regcache_destroy(cache[i]), 0);
	for (i = 0; i < 3; i++)
		IS(fake[i].live, 0);
	for (i = 0; i < PIPES; i++) {
		char bytes[64];

		IS(read(pipes[i][0], bytes, 64), 32);
		IS(memcmp(bytes, message, 32), 0);
		IS(close(pipes[i][0]) || close(pipes[i][1]), 0);
	}
	for (i = 0; i < EVENTS; i++) {
		IS(read(events[i], &count, 8), 8);
		IS(count, 7);
		IS(close(events[i]), 0);
	}
}

int main(void)
{
	int i;

	for (i = 0; i < 4; i++)
		round_of(i % 2);
	puts("descriptors: ok");
	return 0;
}
