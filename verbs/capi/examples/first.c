#include <regcache.h>
#include <sys/mman.h>
#include "loopback.h" /* a connection with ourselves, as an example */

static struct regcache_mr look_up(struct regcache *cache, void *addr, size_t length)
{
	struct regcache_mr mr;
	if (regcache_get(cache, addr, length, REGCACHE_LOCAL_WRITE, &mr) < 0)
		errx(1, "%s", regcache_error());
	return mr;
}

int main(void)
{
	const uint32_t length = 1 << 20;
	struct loopback link = loopback_open();
	struct regcache *cache;
	if (regcache_create(link.pd, NULL, &cache) < 0)
		errx(1, "%s", regcache_error());

	char *sink = malloc(length);
	for (char round = 0; round < 100; round++) {
		/*
		 * The kernel maps each buffer at the same address. A naive cache would send old
		 * bytes.
		 */
		char *source = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (source == MAP_FAILED)
			err(1, "mmap");
		memset(source, round, length);
		struct regcache_mr from = look_up(cache, source, length), to = look_up(cache, sink, length);
		loopback_send(&link, source, from.lkey, sink, to.lkey, length);
		regcache_put(from.guard);
		regcache_put(to.guard);
		if (sink[0] != round || memcmp(sink, sink + 1, length - 1))
			errx(1, "wrong bytes in round %d", round);
		munmap(source, length);
	}
	free(sink);
	if (regcache_destroy(cache) < 0)
		errx(1, "%s", regcache_error());
	loopback_close(&link);
}
