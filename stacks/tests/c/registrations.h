/*
 * Registrations that libfabric's verbs provider makes, for the programs on libfabric. The program
 * interposes the functions of libibverbs, counts the calls, and can change memory right after a
 * registration.
 */
#include <dlfcn.h>
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_tagged.h>

#define OK(call) must(#call, (long)(call))

static void must(const char *call, long returned)
{
	if (returned < 0)
		errx(1, "%s: %s", call, fi_strerror((int)-returned));
}

/*
 * The registrations that libfabric asked of libibverbs: all, or those of these two addresses if
 * they are not null.
 */
static atomic_long registrations;
static void *counted[2];

/*
 * The buffer to change as soon as its next registration is made, before libfabric subscribes to its
 * monitor.
 */
static struct buffer *_Atomic in_window;

struct ibv_mr;
struct ibv_pd;

static void registered(void *at)
{
	struct buffer *buffer = in_window;

	if (!counted[0] || at == counted[0] || at == counted[1])
		registrations++;
	if (buffer && buffer->at == at) {
		in_window = NULL;
		buffer_change(buffer);
	}
}

static void *next(const char *name, const char *version)
{
	void *found = dlvsym(RTLD_NEXT, name, version);

	if (!found)
		errx(1, "no %s@%s", name, version);
	return found;
}

__attribute__((visibility("default"))) struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *at, size_t len, int access)
{
	struct ibv_mr *(*real)(struct ibv_pd *, void *, size_t, int) = next("ibv_reg_mr", "IBVERBS_1.1");
	struct ibv_mr *mr = real(pd, at, len, access);

	registered(at);
	return mr;
}

/* The header of libibverbs calls this function where the access is not a constant. */
__attribute__((visibility("default"))) struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *at, size_t len,
									uint64_t iova, unsigned int access)
{
	struct ibv_mr *(*real)(struct ibv_pd *, void *, size_t, uint64_t, unsigned int) =
		next("ibv_reg_mr_iova2", "IBVERBS_1.8");
	struct ibv_mr *mr = real(pd, at, len, iova, access);

	registered(at);
	return mr;
}
