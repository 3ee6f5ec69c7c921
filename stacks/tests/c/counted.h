/*
 * Counts the registrations that a stack asks of libibverbs. The stack may have loaded libibverbs with RTLD_LOCAL.
 * Include this file once in a program that is linked with -rdynamic.
 */
#include <dlfcn.h>

struct ibv_mr;
struct ibv_pd;

static atomic_long registrations;

/* Returns how many of the registrations that the messages needed were not asked of libibverbs. */
static long kept_of(long needed)
{
	return needed > registrations ? needed - registrations : 0;
}

static void *real_function(const char *name, const char *version)
{
	void *found = dlvsym(RTLD_NEXT, name, version);

	if (!found)
		found = dlvsym(dlopen("libibverbs.so.1", RTLD_LAZY | RTLD_NOLOAD), name, version);
	if (!found)
		errx(1, "no %s@%s", name, version);
	return found;
}

__attribute__((visibility("default"))) struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *at, size_t len, int access)
{
	struct ibv_mr *(*real)(struct ibv_pd *, void *, size_t, int) = real_function("ibv_reg_mr", "IBVERBS_1.1");

	registrations++;
	return real(pd, at, len, access);
}

/* The header of libibverbs calls this function where the access is not a constant. */
__attribute__((visibility("default"))) struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *at, size_t len,
									uint64_t iova, unsigned int access)
{
	struct ibv_mr *(*real)(struct ibv_pd *, void *, size_t, uint64_t, unsigned int) =
		real_function("ibv_reg_mr_iova2", "IBVERBS_1.8");

	registrations++;
	return real(pd, at, len, iova, access);
}
