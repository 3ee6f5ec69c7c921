/*
 * libfabric CHANGE MESSAGES: an endpoint of type RDM sends messages to itself, over libfabric's
 * verbs provider, and compares every byte. The buffer of the sender changes after every second
 * message, so that the second message finds the buffer in libfabric's cache.
 *
 * The address of the RDMA device is in LIBFABRIC_ADDRESS.
 */
#include "memory.h"
#include "registrations.h"

static struct fid_fabric *fabric;
static struct fid_domain *domain;
static struct fid_av *av;
static struct fid_cq *cq;
static struct fid_ep *ep;
static fi_addr_t self;

static void open_endpoint(void)
{
	struct fi_info *hints = fi_allocinfo(), *info;
	struct fi_av_attr av_attr = { .type = FI_AV_UNSPEC };
	struct fi_cq_attr cq_attr = { .format = FI_CQ_FORMAT_TAGGED, .wait_obj = FI_WAIT_NONE };
	unsigned char name[256];
	size_t len = sizeof(name);

	hints->fabric_attr->prov_name = strdup("verbs;ofi_rxm");
	hints->ep_attr->type = FI_EP_RDM;
	hints->caps = FI_TAGGED | FI_MSG;
	hints->mode = FI_CONTEXT;
	hints->domain_attr->mr_mode = 0;
	hints->addr_format = FI_SOCKADDR_IN;
	OK(fi_getinfo(FI_VERSION(1, 14), getenv("LIBFABRIC_ADDRESS"), "0", FI_SOURCE, hints, &info));
	OK(fi_fabric(info->fabric_attr, &fabric, NULL));
	OK(fi_domain(fabric, info, &domain, NULL));
	OK(fi_av_open(domain, &av_attr, &av, NULL));
	OK(fi_cq_open(domain, &cq_attr, &cq, NULL));
	OK(fi_endpoint(domain, info, &ep, NULL));
	OK(fi_ep_bind(ep, &av->fid, 0));
	OK(fi_ep_bind(ep, &cq->fid, FI_SEND | FI_RECV));
	OK(fi_enable(ep));
	OK(fi_getname(&ep->fid, name, &len));
	if (fi_av_insert(av, name, 1, &self, 0, NULL) != 1)
		errx(1, "the endpoint's own address was refused");
	fi_freeinfo(info);
	fi_freeinfo(hints);
}

static void close_endpoint(void)
{
	OK(fi_close(&ep->fid));
	OK(fi_close(&cq->fid));
	OK(fi_close(&av->fid));
	OK(fi_close(&domain->fid));
	OK(fi_close(&fabric->fid));
}

/* Sends the buffer to this process and waits until the message has arrived. */
static void send_to_self(unsigned char *from, unsigned char *to, size_t len, uint64_t tag)
{
	struct fi_context sent, received;
	struct fi_cq_tagged_entry done;
	ssize_t got;
	int left = 2;

	OK(fi_trecv(ep, to, len, NULL, self, tag, 0, &received));
	while ((got = fi_tsend(ep, from, len, NULL, self, tag, &sent)) == -FI_EAGAIN)
		fi_cq_read(cq, NULL, 0);
	OK(got);
	while (left) {
		got = fi_cq_read(cq, &done, 1);
		if (got == 1) {
			left--;
		} else if (got != -FI_EAGAIN) {
			struct fi_cq_err_entry failed = { 0 };

			fi_cq_readerr(cq, &failed, 0);
			errx(1, "message %lu: %s", (unsigned long)tag, fi_strerror(failed.err));
		}
	}
}

int main(int argc, char **argv)
{
	static struct buffer buffer;
	unsigned char *sink;
	long messages, wrong = 0, sent = 0;

	if (argc != 3)
		errx(2, "usage: %s CHANGE MESSAGES", argv[0]);
	messages = atol(argv[2]);
	buffer_open(&buffer, change_of(argv[1]), LENGTH);
	open_endpoint();
	sink = map_sink(LENGTH);
	counted[0] = (struct range){ buffer.at, LENGTH };
	counted[1] = (struct range){ sink, LENGTH };
	after_registration = change_in_window;
	for (long i = 0; i < messages; i++, sent++) {
		if (i % 2 == 0 && i > 0 && buffer.change == WINDOW) {
			/*
			 * The program is at fault for this message, because the buffer changes
			 * while it is sent.
			 */
			buffer_change(&buffer);
			memset(buffer.at, 0xff, LENGTH);
			in_window = &buffer;
			send_to_self(buffer.at, sink, LENGTH, (uint64_t)i << 1 | 1);
			sent++;
			if (in_window)
				buffer_change(&buffer);
			in_window = NULL;
		} else if (i % 2 == 0 && i > 0) {
			buffer_change(&buffer);
		}
		memset(buffer.at, byte_of(i), LENGTH);
		memset(sink, 0, LENGTH);
		send_to_self(buffer.at, sink, LENGTH, (uint64_t)i << 1);
		wrong += !has_byte(sink, LENGTH, byte_of(i));
	}
	/* Each message needs a registration of the buffer and one of the sink. */
	report(wrong, messages, 2 * sent - registrations);
	close_endpoint();
	return 0;
}
