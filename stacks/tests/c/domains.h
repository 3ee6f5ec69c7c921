/*
 * Two domains of libfabric's verbs provider, and registrations of memory in them.
 */
#include "memory.h"
#include "registrations.h"

static struct fid_fabric *fabric;
static struct fid_domain *domains[2];
static struct fi_info *info;

static inline void open_domains(void)
{
	struct fi_info *hints = fi_allocinfo();

	counts_all = true;
	hints->fabric_attr->prov_name = strdup("verbs");
	hints->ep_attr->type = FI_EP_MSG;
	hints->caps = FI_MSG | FI_RMA;
	hints->mode = FI_CONTEXT;
	hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_VIRT_ADDR;
	hints->addr_format = FI_SOCKADDR_IN;
	OK(fi_getinfo(FI_VERSION(1, 14), getenv("LIBFABRIC_ADDRESS"), "0", FI_SOURCE, hints, &info));
	OK(fi_fabric(info->fabric_attr, &fabric, NULL));
	OK(fi_domain(fabric, info, &domains[0], NULL));
	OK(fi_domain(fabric, info, &domains[1], NULL));
	fi_freeinfo(hints);
}

static inline void close_domains(void)
{
	OK(fi_close(&domains[0]->fid));
	OK(fi_close(&domains[1]->fid));
	OK(fi_close(&fabric->fid));
	fi_freeinfo(info);
}

static inline struct fid_mr *registration_of(int domain, void *at, size_t len)
{
	static atomic_ulong keys;
	struct fid_mr *mr;

	OK(fi_mr_reg(domains[domain], at, len, FI_SEND | FI_RECV, 0, ++keys, 0, &mr, NULL));
	return mr;
}

/*
 * Registers and deregisters the range. Returns whether libibverbs was asked, so that the cache had
 * no registration.
 */
static inline bool registers(int domain, void *at, size_t len)
{
	long before = registrations;
	struct fid_mr *mr = registration_of(domain, at, len);
	bool asked = registrations != before;

	OK(fi_close(&mr->fid));
	return asked;
}

/*
 * Registers until the cache has the range. On a busy machine the report of an earlier change may
 * come after a registration, which then is not kept. So the attempts go on for two seconds.
 */
static inline void cache(int domain, void *at, size_t len)
{
	for (int i = 0; i < 200; i++) {
		if (!registers(domain, at, len))
			return;
		if (i >= 4)
			usleep(10000);
	}
	errx(1, "the cache does not keep a registration");
}
