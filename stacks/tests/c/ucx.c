/*
 * ucx CHANGE MESSAGES: one worker sends messages to another over UCX's transports for RDMA, and
 * compares every byte. The buffer of the sender changes after every second message, so that the
 * second message finds the buffer in UCX's cache.
 *
 * UCX_PROGRAM=many sends through several contexts and threads instead. Each thread also has buffers
 * of other sizes, and a buffer that it has mapped with ucp_mem_map().
 */
#include "memory.h"

#include <ucp/api/ucp.h>

#include "counted.h"

#define OK(call) must(#call, call)

static void must(const char *call, ucs_status_t status)
{
	if (status != UCS_OK)
		errx(1, "%s: %s", call, ucs_status_string(status));
}

/* Two workers, and an endpoint from the first to the second. */
struct pair {
	ucp_context_h context;
	ucp_worker_h workers[2];
	ucp_ep_h ep;
};

static ucp_context_h open_context(bool is_shared)
{
	ucp_params_t params = {
		.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED,
		.features = UCP_FEATURE_TAG,
		.mt_workers_shared = is_shared,
	};
	ucp_context_h context;
	ucp_config_t *config;

	OK(ucp_config_read(NULL, NULL, &config));
	OK(ucp_init(&params, config, &context));
	ucp_config_release(config);
	return context;
}

static void open_pair(struct pair *pair, ucp_context_h context)
{
	ucp_worker_params_t params = {
		.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
		/* UCX_PROGRAM=many opens the workers of its threads in the main thread. */
		.thread_mode = UCS_THREAD_MODE_SERIALIZED,
	};
	ucp_ep_params_t ep = { .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS };
	ucp_address_t *address;
	size_t len;

	pair->context = context;
	for (int i = 0; i < 2; i++)
		OK(ucp_worker_create(context, &params, &pair->workers[i]));
	OK(ucp_worker_get_address(pair->workers[1], &address, &len));
	ep.address = address;
	OK(ucp_ep_create(pair->workers[0], &ep, &pair->ep));
	ucp_worker_release_address(pair->workers[1], address);
}

static void close_pair(struct pair *pair)
{
	ucp_ep_destroy(pair->ep);
	for (int i = 0; i < 2; i++)
		ucp_worker_destroy(pair->workers[i]);
}

static void complete(struct pair *pair, ucs_status_ptr_t request)
{
	ucs_status_t status;

	if (UCS_PTR_IS_ERR(request))
		errx(1, "request: %s", ucs_status_string(UCS_PTR_STATUS(request)));
	if (!request)
		return;
	while ((status = ucp_request_check_status(request)) == UCS_INPROGRESS)
		for (int i = 0; i < 2; i++)
			ucp_worker_progress(pair->workers[i]);
	OK(status);
	ucp_request_free(request);
}

/* Sends a message. `memh` is null or the handle of the sender's buffer. */
static void transfer(struct pair *pair, void *from, void *to, size_t len, ucp_mem_h memh, uint64_t tag)
{
	ucp_request_param_t receive = { 0 }, send = { 0 };
	ucs_status_ptr_t received, sent;

	if (memh) {
		send.op_attr_mask = UCP_OP_ATTR_FIELD_MEMH;
		send.memh = memh;
	}
	received = ucp_tag_recv_nbx(pair->workers[1], to, len, tag, (ucp_tag_t)-1, &receive);
	sent = ucp_tag_send_nbx(pair->ep, from, len, tag, &send);
	complete(pair, sent);
	complete(pair, received);
}

/* UCX copies smaller messages through buffers of its own. The runner sets this threshold. */
#define SMALLEST_REGISTERED 8192

/* A thread of UCX_PROGRAM=many. */
struct sender {
	pthread_t thread;
	struct pair pair;
	long messages, wrong;
	/* The registrations that the messages would need without a cache. */
	long needed;
	unsigned int seed;
};

static void *send_many(void *argument)
{
	static const size_t sizes[] = { 64, 4096, 65536, 65536, 262144, 1 << 20 };
	struct sender *sender = argument;
	struct pair *pair = &sender->pair;
	size_t most = 16 << 20;
	unsigned char *sink = map_sink(most), *mapped = map(NULL, LENGTH);
	ucp_mem_map_params_t params = {
		.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
		.address = mapped,
		.length = LENGTH,
	};
	ucp_mem_h memh;

	memset(mapped, 1, LENGTH);
	OK(ucp_mem_map(pair->context, &params, &memh));
	for (long i = 0; i < sender->messages; i++) {
		bool is_large = i == sender->messages / 2, is_mapped = i % 16 == 7;
		size_t len = is_large ? most : sizes[(size_t)rand_r(&sender->seed) % 6];
		unsigned char byte = byte_of(i), *at = mapped;

		if (is_mapped)
			len = LENGTH;
		else
			at = map(NULL, len);
		counted[0] = (struct range){ at, is_mapped ? 0 : len };
		counted[1] = (struct range){ sink, len };
		if (len >= SMALLEST_REGISTERED)
			sender->needed += is_mapped ? 2 : 4;
		/*
		 * The same buffer is sent twice, so that the second message finds it in the cache.
		 */
		for (int twice = 0; twice < 2; twice++) {
			memset(at, byte, len);
			memset(sink, 0, len);
			transfer(pair, at, sink, len, is_mapped ? memh : NULL, (uint64_t)i);
			sender->wrong += !has_byte(sink, len, byte);
			byte ^= 0xff;
		}
		/* The address of unmapped memory goes to this thread or to another one. */
		if (!is_mapped)
			unmap_raw(at, len);
	}
	OK(ucp_mem_unmap(pair->context, memh));
	return NULL;
}

/* Two threads share a context, and each of two more threads has a context of its own. */
static void many(long messages)
{
	enum { THREADS_MANY = 4 };
	struct sender senders[THREADS_MANY] = { 0 };
	ucp_context_h shared = open_context(true);
	long wrong = 0, sent = 0, needed = 0;

	for (unsigned int i = 0; i < THREADS_MANY; i++) {
		open_pair(&senders[i].pair, i < 2 ? shared : open_context(false));
		senders[i].messages = messages / THREADS_MANY / 2 + 1;
		senders[i].seed = i + 1;
		errno = pthread_create(&senders[i].thread, NULL, send_many, &senders[i]);
		if (errno)
			err(1, "pthread_create");
	}
	for (int i = 0; i < THREADS_MANY; i++) {
		pthread_join(senders[i].thread, NULL);
		wrong += senders[i].wrong;
		sent += 2 * senders[i].messages;
		needed += senders[i].needed;
		close_pair(&senders[i].pair);
		if (i >= 2)
			ucp_cleanup(senders[i].pair.context);
	}
	ucp_cleanup(shared);
	report(wrong, sent, needed - registrations);
}

static void one(enum change change, long messages)
{
	/* The thread that unmaps uses the buffer until the program ends. */
	static struct buffer buffer;
	struct pair pair;
	unsigned char *sink;
	long wrong = 0;

	buffer_open(&buffer, change, LENGTH);
	open_pair(&pair, open_context(false));
	sink = map_sink(LENGTH);
	counted[0] = (struct range){ buffer.at, LENGTH };
	counted[1] = (struct range){ sink, LENGTH };
	for (long i = 0; i < messages; i++) {
		if (i % 2 == 0 && i > 0)
			buffer_change(&buffer);
		memset(buffer.at, byte_of(i), LENGTH);
		memset(sink, 0, LENGTH);
		transfer(&pair, buffer.at, sink, LENGTH, NULL, (uint64_t)i);
		wrong += !has_byte(sink, LENGTH, byte_of(i));
	}
	/* Each message needs a registration of the buffer and one of the sink. */
	report(wrong, messages, 2 * messages - registrations);
	close_pair(&pair);
	ucp_cleanup(pair.context);
}

int main(int argc, char **argv)
{
	const char *program = getenv("UCX_PROGRAM");
	long messages;

	if (argc != 3)
		errx(2, "usage: %s CHANGE MESSAGES", argv[0]);
	messages = atol(argv[2]);
	if (program && !strcmp(program, "many"))
		many(messages);
	else
		one(change_of(argv[1]), messages);
	return 0;
}
