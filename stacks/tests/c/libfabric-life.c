/*
 * libfabric-life MODE: what happens to a process that uses libfabric's cache.
 *   fork     a child ends by _exit, by exit, and after it has closed the parent's domain; the
 *            parent goes on
 *   open     the process ends with an open domain, and with registrations in use
 *   churn    threads register overlapping ranges in two domains while memory changes and the
 *            process forks
 *   domains  two domains cache the same range, which changes
 *   import   the process imports a monitor of its own, as Open MPI does, and is refused
 *   bind     the process imports a monitor of its own, and is accepted
 * The program prints "ok" and ends with status 0 if everything was right.
 */
#include "domains.h"

#include <rdma/fi_ext.h>

static void must_end(pid_t child, const char *how)
{
	int status;

	if (waitpid(child, &status, 0) != child || status)
		errx(1, "the child that ends %s has status %#x", how, status);
}

static pid_t child_of_fork(void)
{
	pid_t child = fork();

	if (child < 0)
		err(1, "fork");
	if (!child)
		alarm(60);
	return child;
}

static void forks(void)
{
	unsigned char *at = map(NULL, LENGTH);
	pid_t child;

	open_domains();
	cache(0, at, LENGTH);
	child = child_of_fork();
	if (!child)
		_exit(0);
	must_end(child, "by _exit");
	child = child_of_fork();
	if (!child)
		exit(0);
	must_end(child, "by exit");
	/*
	 * The parent's pages were shared with the children, so the cache may have dropped its
	 * registration.
	 */
	cache(0, at, LENGTH);
	unmap_raw(at, LENGTH);
	if (!map(at, LENGTH) || !registers(0, at, LENGTH))
		errx(1, "the parent's registration is stale");
	child = child_of_fork();
	if (!child) {
		/*
		 * The child shares the device's file, so this also takes the domains from the
		 * parent.
		 */
		fi_close(&domains[1]->fid);
		fi_close(&domains[0]->fid);
		exit(0);
	}
	must_end(child, "after it has closed the domains");
}

static void ends_open(void)
{
	unsigned char *at = map(NULL, 2 * LENGTH);

	open_domains();
	cache(0, at, LENGTH);
	registration_of(1, at + LENGTH, LENGTH);
	unmap_raw(at, LENGTH);
}

static void two_domains(void)
{
	unsigned char *at = map(NULL, LENGTH);

	open_domains();
	for (int i = 0; i < 15; i++) {
		cache(0, at, LENGTH);
		cache(1, at, LENGTH);
		unmap_raw(at, LENGTH);
		if (!map(at, LENGTH))
			errx(1, "the address is in use");
		memset(at, i, LENGTH);
		if (i % 3 == 0)
			usleep(3000);
		if (!registers(i % 2, at, LENGTH))
			errx(1, "round %d: the first domain is stale", i);
		if (!registers(!(i % 2), at, LENGTH))
			errx(1, "round %d: the second domain is stale", i);
	}
	close_domains();
}

static void *churner(void *argument)
{
	unsigned int seed = (unsigned int)(uintptr_t)argument;

	for (int i = 0; i < 60; i++) {
		size_t len = 4096 * (1 + (size_t)rand_r(&seed) % 8);
		unsigned char *at = map(NULL, len);

		memset(at, 1, len);
		for (int k = 0; k < 4; k++)
			registers(rand_r(&seed) % 2, at + 64 * (rand_r(&seed) % 4), 1024);
		if (rand_r(&seed) % 2)
			unmap_raw(at, len);
		else
			unmap(at, len);
	}
	return NULL;
}

static void churn(void)
{
	pthread_t threads[4];

	open_domains();
	for (uintptr_t i = 0; i < 4; i++)
		if (pthread_create(&threads[i], NULL, churner, (void *)(i + 1)))
			errx(1, "pthread_create");
	for (int i = 0; i < 5; i++) {
		pid_t child = child_of_fork();

		if (!child)
			_exit(0);
		must_end(child, "by _exit");
	}
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	close_domains();
}

static int start(struct fid_mem_monitor *monitor)
{
	(void)monitor;
	return 0;
}

static void stop(struct fid_mem_monitor *monitor)
{
	(void)monitor;
}

static int subscribe(struct fid_mem_monitor *monitor, const void *at, size_t len)
{
	(void)monitor, (void)at, (void)len;
	return 0;
}

static void unsubscribe(struct fid_mem_monitor *monitor, const void *at, size_t len)
{
	(void)monitor, (void)at, (void)len;
}

static bool valid(struct fid_mem_monitor *monitor, const void *at, size_t len)
{
	(void)monitor, (void)at, (void)len;
	return true;
}

/* Imports a monitor as Open MPI does, after fi_getinfo. */
static void import(int expected)
{
	static struct fi_ops_mem_monitor ops = {
		.size = sizeof(ops), .start = start, .stop = stop, .subscribe = subscribe,
		.unsubscribe = unsubscribe, .valid = valid,
	};
	static struct fid_mem_monitor monitor = { .fid.fclass = FI_CLASS_MEM_MONITOR, .export_ops = &ops };
	struct fi_info *any;
	struct fid *cache_fid;
	int got;

	OK(fi_getinfo(FI_VERSION(1, 14), NULL, NULL, 0, NULL, &any));
	fi_freeinfo(any);
	OK(fi_open(FI_VERSION(1, 13), "mr_cache", NULL, 0, 0, &cache_fid, NULL));
	got = fi_import_fid(cache_fid, &monitor.fid, 0);
	fi_close(cache_fid);
	if (got != expected)
		errx(1, "the import returned %d (%s)", got, fi_strerror(-got));
	if (expected)
		two_domains();
	else
		fi_close(&monitor.fid);
}

int main(int argc, char **argv)
{
	const char *mode = argc == 2 ? argv[1] : "";

	if (!strcmp(mode, "fork"))
		forks();
	else if (!strcmp(mode, "open"))
		ends_open();
	else if (!strcmp(mode, "churn"))
		churn();
	else if (!strcmp(mode, "domains"))
		two_domains();
	else if (!strcmp(mode, "import"))
		import(-FI_EBUSY);
	else if (!strcmp(mode, "bind"))
		import(0);
	else
		errx(2, "usage: %s MODE", argv[0]);
	printf("ok\n");
	fflush(stdout);
	return 0;
}
