/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Tests forked children. In a child, the parent's caches return errors and new caches work. The
 * parent's caches are not affected.
 */
#include "check.h"

#include <sys/wait.h>
#include <unistd.h>

static struct regcache *parents;
static struct regcache_pool *parents_pool;
static char *memory;
static atomic_int stop;

static void *look_up(void *unused)
{
	(void)unused;
	while (!stop) {
		struct regcache_mr mr;
		IS(regcache_get(parents, memory, PAGE, 0, &mr), 0);
		IS(regcache_put(mr.guard), 0);
	}
	return NULL;
}

static void child(struct fake *fake, struct regcache_guard *guard)
{
	struct regcache_device device = device_of(fake);
	struct regcache_attr attr = { .size = sizeof attr, .monitor_of = parents };
	struct regcache_pool *own_pool;
	uint64_t bytes;
	struct fake own_fake = { 0 };
	struct regcache_mr mr;
	struct regcache_stats stats;
	struct regcache *own;
	int live = fake->live, i;

	FAILS(regcache_get(parents, memory, PAGE, 0, &mr), ESTALE, "parent process");
	FAILS(regcache_invalidate(parents, memory, PAGE, 0, NULL), ESTALE, "parent process");
	FAILS(regcache_flush(parents, 0, NULL), ESTALE, "parent process");
	FAILS(regcache_reap(parents), ESTALE, "parent process");
	FAILS(regcache_dump(parents, STDERR_FILENO), ESTALE, "parent process");
	FAILS(regcache_destroy(parents), ESTALE, "parent process");
	FAILS(regcache_create_for(&device, &attr, &own), ESTALE, "parent process");
	FAILS(regcache_get_if_cached(parents, memory, PAGE, 0, &mr), ESTALE, "parent process");
	FAILS(regcache_get_unretained(parents, memory, PAGE, 0, &mr), ESTALE, "parent process");
	FAILS(regcache_set_max_bytes(parents, 0), ESTALE, "parent process");
	FAILS(regcache_set_max_entries(parents, 0), ESTALE, "parent process");
	FAILS(regcache_pool_set_max_bytes(parents_pool, 0), ESTALE, "parent process");
	FAILS(regcache_pool_bytes(parents_pool, &bytes), ESTALE, "parent process");
	FAILS(regcache_pool_destroy(parents_pool), ESTALE, "parent process");
	attr.monitor_of = NULL;
	attr.pool = parents_pool;
	FAILS(regcache_create_for(&device, &attr, &own), ESTALE, "parent process");
	IS(regcache_query_stats(parents, &stats, sizeof stats), 0);
	IS(stats.hits + stats.misses, 0);
	/* The child can put its copy of the guard once. */
	IS(regcache_put(guard), 0);
	FAILS(regcache_put(guard), EBADF, "put already");
	IS(fake->live, live);

	own_pool = pool_of(PAGE);
	own = cache_in(own_pool, &own_fake);
	for (i = 0; i < 100; i++) {
		IS(regcache_get(own, memory, PAGE, 0, &mr), 0);
		IS(mr.guard != guard, 1);
		IS(regcache_put(mr.guard), 0);
	}
	IS(bytes_in(own_pool), caches(own) * PAGE);
	IS(regcache_destroy(own), 0);
	IS(regcache_pool_destroy(own_pool), 0);
	IS(own_fake.live, 0);
}

/* Before a fork, the library deregisters the memory that no guard holds. A child that shares the
 * parent's memory needs no such preparation. */
static void idle_memory_is_given_up(void)
{
	struct fake fake = { 0 };
	struct regcache *cache = cache_of(&fake);
	struct regcache_mr mr, held;
	char *own = pages(10);
	int i, idle, status;

	IS(regcache_get(cache, own, PAGE, 0, &held), 0);
	for (i = 1; i < 10; i++) {
		IS(regcache_get(cache, own + i * PAGE, PAGE, 0, &mr), 0);
		IS(regcache_put(mr.guard), 0);
	}
	idle = caches(cache) * 9;
	IS(fake.live, 1 + idle);
	pid_t pid = vfork();
	if (pid == 0) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	IS(waitpid(pid, &status, 0), pid);
	IS(system("true"), 0);
	IS(fake.live, 1 + idle);
	pid = fork();
	if (pid == 0) {
		if (fake.live == 1)
			execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	IS(waitpid(pid, &status, 0), pid);
	IS(status, 0);
	IS(fake.live, 1);
	IS(regcache_put(held.guard), 0);
	IS(regcache_destroy(cache), 0);
	munmap(own, 10 * PAGE);
}

int main(void)
{
	struct fake fake = { 0 };
	pthread_t threads[2];
	struct regcache_mr mr, again;
	int i, status;

	idle_memory_is_given_up();
	parents_pool = pool_of(2 * PAGE);
	parents = cache_in(parents_pool, &fake);
	memory = pages(1);
	IS(regcache_get(parents, memory, PAGE, 0, &mr), 0);
	for (i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, look_up, NULL);
	/* When the process forks, the threads are at arbitrary points. */
	for (i = 0; i < 20; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			alarm(300);
			child(&fake, mr.guard);
			/* The child calls exec, because at its exit valgrind would report leaks of
			 * the parent's threads. */
			execl("/bin/true", "true", (char *)NULL);
			_exit(1);
		}
		IS(pid > 0, 1);
		IS(waitpid(pid, &status, 0), pid);
		IS(status, 0);
	}
	stop = 1;
	for (i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	IS(regcache_get(parents, memory, PAGE, 0, &again), 0);
	if (caches(parents))
		IS(again.lkey, fake.registered);
	IS(regcache_put(again.guard), 0);
	IS(regcache_put(mr.guard), 0);
	IS(bytes_in(parents_pool), caches(parents) * PAGE);
	IS(regcache_destroy(parents), 0);
	IS(regcache_pool_destroy(parents_pool), 0);
	IS(fake.live, 0);
	munmap(memory, PAGE);
	puts("forks: ok");
	return 0;
}
