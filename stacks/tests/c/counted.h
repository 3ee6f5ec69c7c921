/*
 * Counts the registrations that a stack asks of libibverbs. The stack may have loaded libibverbs
 * with RTLD_LOCAL. Include this file once in a program that is linked with -rdynamic.
 */
#include <dlfcn.h>

struct ibv_mr;
struct ibv_pd;

/*
 * The memory of this thread's messages. Only registrations that overlap it are counted, because a
 * stack also registers buffers of its own.
 */
static _Thread_local struct range {
	const unsigned char *at;
	size_t len;
} counted[2];

/* If this is true, all registrations are counted. */
static bool counts_all;

static atomic_long registrations;

/* Called after each registration, if it is not null. */
static void (*after_registration)(void *at);

static bool is_counted(const unsigned char *at, size_t len)
{
	for (int i = 0; i < 2; i++)
		if (at < counted[i].at + counted[i].len && counted[i].at < at + len)
			return true;
	return counts_all;
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

static struct ibv_mr *registered(struct ibv_mr *mr, void *at, size_t len)
{
	registrations += is_counted(at, len);
	if (after_registration)
		after_registration(at);
	return mr;
}

__attribute__((visibility("default"))) struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *at, size_t len, int access)
{
	struct ibv_mr *(*real)(struct ibv_pd *, void *, size_t, int) = real_function("ibv_reg_mr", "IBVERBS_1.1");

	return registered(real(pd, at, len, access), at, len);
}

/* The header of libibverbs calls this function where the access is not a constant. */
__attribute__((visibility("default"))) struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *at, size_t len,
									uint64_t iova, unsigned int access)
{
	struct ibv_mr *(*real)(struct ibv_pd *, void *, size_t, uint64_t, unsigned int) =
		real_function("ibv_reg_mr_iova2", "IBVERBS_1.8");

	return registered(real(pd, at, len, iova, access), at, len);
}
