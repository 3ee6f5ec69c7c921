/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Tests that a cache of a protection domain returns registrations of libibverbs and refuses bad
 * requests. */
#include "check.h"

#include "../../examples/loopback.h"

int main(void)
{
	struct loopback link = loopback_open();
	struct regcache_mr mr, again;
	struct regcache *cache;
	struct ibv_mr *its;
	char *memory = pages(2);

	IS(regcache_create(link.pd, NULL, &cache), 0);
	IS(regcache_get(cache, memory, PAGE, REGCACHE_REMOTE_WRITE, &mr), 0);
	its = mr.registration;
	IS(its->lkey, mr.lkey);
	IS(its->rkey, mr.rkey);
	IS(its->pd == link.pd && its->addr == memory && its->length == PAGE, 1);
	IS(regcache_get(cache, memory, PAGE, IBV_ACCESS_LOCAL_WRITE, &again), 0);
	IS(again.lkey == mr.lkey, caches(cache));
	IS(regcache_put(again.guard), 0);

	FAILS(regcache_get(cache, memory, PAGE, IBV_ACCESS_ON_DEMAND, &again), EINVAL, "access is 0x40, of which 0x40");
	FAILS(regcache_get(cache, memory, PAGE, IBV_ACCESS_MW_BIND | 1, &again), EINVAL, "of which 0x10");
	FAILS(regcache_get(cache, memory, PAGE, 1u << 31, &again), EINVAL, "of which 0x80000000");
	munmap(memory + PAGE, PAGE);
	FAILS(regcache_get(cache, memory, 2 * PAGE, 0, &again), EFAULT, "nothing is mapped at");
	FAILS(regcache_destroy(cache), EBUSY, "still out: 1");
	IS(regcache_put(mr.guard), 0);

	/* The memory is unmapped while its registration is in use, and new memory at the address is
	 * looked up. */
	IS(regcache_get(cache, memory, PAGE, 0, &mr), 0);
	IS(mmap(memory, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory, 1);
	IS(regcache_get(cache, memory, PAGE, 0, &again), 0);
	IS(again.lkey == mr.lkey, 0);
	IS(regcache_put(mr.guard), 0);
	IS(regcache_put(again.guard), 0);
	IS(regcache_flush(cache, -1, NULL), 0);
	IS(regcache_destroy(cache), 0);
	/* After the destroy the protection domain can be deallocated. */
	loopback_close(&link);
	munmap(memory, PAGE);
	puts("verbs: ok");
	return 0;
}
