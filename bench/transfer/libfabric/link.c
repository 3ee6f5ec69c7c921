/*
 * Connects this process with itself through libfabric's verbs provider. fi_mr_reg and fi_close use
 * the provider's registration cache. Only the benchmark of peers uses this file. The benchmark does
 * one transfer after the other, and polls for the completion of each transfer.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_rma.h>

/* The time to wait for each event of a connection, in milliseconds. */
#define PATIENCE 20000

struct fabric_link {
	struct fi_info *info;
	struct fid_fabric *fabric;
	struct fid_domain *domain;
	struct fid_eq *eq;
	struct fid_cq *cq;
	struct fid_pep *pep;
	struct fid_ep *ours, *theirs;
	/* The memory at the other end of the connection, which every transfer uses. */
	void *peer;
	struct fid_mr *peer_mr;
};

#define TRY(call)                                                                                                      \
	do {                                                                                                           \
		int ret_ = (call);                                                                                     \
		if (ret_)                                                                                              \
			return ret_;                                                                                   \
	} while (0)

static int endpoint(struct fabric_link *link, struct fi_info *info, struct fid_ep **ep)
{
	TRY(fi_endpoint(link->domain, info, ep, NULL));
	TRY(fi_ep_bind(*ep, &link->eq->fid, 0));
	TRY(fi_ep_bind(*ep, &link->cq->fid, FI_TRANSMIT | FI_RECV));
	return fi_enable(*ep);
}

/* Waits for an event of the kind `wanted`, for at most PATIENCE milliseconds. */
static int event(struct fabric_link *link, uint32_t wanted, struct fi_eq_cm_entry *entry)
{
	uint32_t came;
	ssize_t read = fi_eq_sread(link->eq, &came, entry, sizeof(*entry), PATIENCE, 0);

	if (read == -FI_EAVAIL) {
		struct fi_eq_err_entry error = {0};

		fi_eq_readerr(link->eq, &error, 0);
		return -error.err;
	}
	if (read < 0)
		return (int)read;
	return came == wanted ? 0 : -EPROTO;
}

static int connect_both(struct fabric_link *link)
{
	struct fi_eq_cm_entry entry;
	size_t len = 0;
	void *name;

	TRY(fi_passive_ep(link->fabric, link->info, &link->pep, NULL));
	TRY(fi_pep_bind(link->pep, &link->eq->fid, 0));
	TRY(fi_listen(link->pep));
	fi_getname(&link->pep->fid, NULL, &len);
	name = calloc(1, len);
	if (!name)
		return -ENOMEM;
	TRY(fi_getname(&link->pep->fid, name, &len));

	struct fi_info *to = fi_dupinfo(link->info);

	free(to->src_addr);
	to->src_addr = NULL;
	to->src_addrlen = 0;
	to->dest_addr = name;
	to->dest_addrlen = len;
	TRY(endpoint(link, to, &link->ours));
	TRY(fi_connect(link->ours, name, NULL, 0));
	TRY(event(link, FI_CONNREQ, &entry));
	TRY(endpoint(link, entry.info, &link->theirs));
	fi_freeinfo(entry.info);
	TRY(fi_accept(link->theirs, NULL, 0));
	TRY(event(link, FI_CONNECTED, &entry));
	TRY(event(link, FI_CONNECTED, &entry));
	fi_freeinfo(to);
	return 0;
}

int fabric_link_open(const char *node, size_t size, struct fabric_link **out)
{
	struct fabric_link *link = calloc(1, sizeof(*link));
	struct fi_info *hints = fi_allocinfo();

	if (!link || !hints)
		return -ENOMEM;
	*out = link;
	hints->caps = FI_MSG | FI_RMA;
	hints->ep_attr->type = FI_EP_MSG;
	hints->fabric_attr->prov_name = strdup("verbs");
	hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
	hints->addr_format = FI_SOCKADDR_IN;
	TRY(fi_getinfo(FI_VERSION(1, 14), node, "0", FI_SOURCE, hints, &link->info));
	fi_freeinfo(hints);
	TRY(fi_fabric(link->info->fabric_attr, &link->fabric, NULL));

	struct fi_eq_attr eq = {.wait_obj = FI_WAIT_UNSPEC};
	struct fi_cq_attr cq = {.format = FI_CQ_FORMAT_CONTEXT, .size = 64};

	TRY(fi_eq_open(link->fabric, &eq, &link->eq, NULL));
	TRY(fi_domain(link->fabric, link->info, &link->domain, NULL));
	TRY(fi_cq_open(link->domain, &cq, &link->cq, NULL));
	TRY(connect_both(link));

	if (posix_memalign(&link->peer, 4096, size))
		return -ENOMEM;
	memset(link->peer, 1, size);
	return fi_mr_reg(link->domain, link->peer, size, FI_REMOTE_WRITE | FI_REMOTE_READ | FI_RECV, 0, 0, 0,
			 &link->peer_mr, NULL);
}

/* Registers the buffer of a transfer. op is 0 for a write, 1 for a read, 2 for a send. */
int fabric_link_prepare(struct fabric_link *link, int op, void *buffer, size_t len, struct fid_mr **mr)
{
	static const uint64_t access[] = {FI_WRITE, FI_READ, FI_SEND};

	return fi_mr_reg(link->domain, buffer, len, access[op], 0, 0, 0, mr, NULL);
}

/* Releases the registration of a transfer that has ended. */
int fabric_link_release(struct fid_mr *mr)
{
	return fi_close(&mr->fid);
}

int fabric_link_post(struct fabric_link *link, int op, void *buffer, size_t len, struct fid_mr *mr)
{
	uint64_t to = (uintptr_t)link->peer;
	uint64_t key = fi_mr_key(link->peer_mr);

	switch (op) {
	case 0:
		return (int)fi_write(link->ours, buffer, len, fi_mr_desc(mr), 0, to, key, NULL);
	case 1:
		return (int)fi_read(link->ours, buffer, len, fi_mr_desc(mr), 0, to, key, NULL);
	default:
		TRY((int)fi_recv(link->theirs, link->peer, len, fi_mr_desc(link->peer_mr), 0, NULL));
		return (int)fi_send(link->ours, buffer, len, fi_mr_desc(mr), 0, NULL);
	}
}

/*
 * Returns the number of transfers that completed, 0 or 1. Returns a negative errno after an error.
 */
int fabric_link_poll(struct fabric_link *link)
{
	struct fi_cq_entry entry;
	ssize_t read = fi_cq_read(link->cq, &entry, 1);

	if (read == -FI_EAGAIN)
		return 0;
	if (read == -FI_EAVAIL) {
		struct fi_cq_err_entry error = {0};

		fi_cq_readerr(link->cq, &error, 0);
		return -error.err;
	}
	return (int)read;
}
